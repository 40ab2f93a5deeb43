"""What each tab does: checks what the visitor gave, asks the model, and says in a sentence what is seen."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from models import Loaded, SorryError
from PIL import Image, ImageOps
from transformers import pipeline

from hf_clipplus.data.images import UnreadableImageError, load_image
from hf_clipplus.evaluation.alignment_picture import alignment_picture
from hf_clipplus.evaluation.heat_map import heat_map_overlay, text_heat_map
from hf_clipplus.evaluation.overlay import segmentation_overlay
from hf_clipplus.hub.handler import Limits
from hf_clipplus.models.ape import APEForImageClassification, APEProcessor
from hf_clipplus.models.video_frames import UnreadableVideoError, frame_sampler, load_frames
from hf_clipplus.training.few_shot import fit_few_shot

LIMITS = Limits()
LONGEST_SIDE = 1024  # pixels; larger pictures are made smaller
TEMPLATE = "a picture of a {}."
EXAMPLES_OF_A_CLASS = 20

Bars = dict[str, float]
Tell = Callable[[float, str], Any]  # share of the work that is done, and what comes now


def name_picture(loaded: Loaded, picture: str | None, words: str) -> tuple[Bars, str]:
    """How well each word fits the picture."""
    image = read_picture(picture)
    model, processor = loaded.model, loaded.processor
    if hasattr(model, "backbone"):
        classify = pipeline("image-classification", model=model, image_processor=processor.image_processor)
        found = bars(classify(image, top_k=None))
        return found, f"**{best(found)}** fits best. This model knows {len(found)} words; yours were not asked for."
    names = read_words(words, at_least=2)
    tokenizer, images = processor.tokenizer, processor.image_processor
    classify = pipeline("zero-shot-image-classification", model=model, tokenizer=tokenizer, image_processor=images)
    found = bars(classify(image, candidate_labels=names, hypothesis_template=TEMPLATE))
    return found, (
        f"**{best(found)}** fits best of your {len(names)} words. The bars share 100% among these "
        "words: add or change words, and they change too."
    )


def segment_picture(loaded: Loaded, picture: str | None, words: str, sureness: float) -> tuple[Image.Image, str]:
    """The parts of the picture that look like each word, coloured."""
    image = read_picture(picture)
    names = read_words(words, at_least=2)
    segment = pipeline("clipplus-zero-shot-segmentation", model=loaded.model, processor=loaded.processor)
    side = loaded.model.config.vision_config.image_size
    side *= 2 if hasattr(loaded.model, "segment") else 1  # GroupViT looks at 448 pixels with windows of 224
    sizes = {"short_side": side, "long_side": 4 * side}
    found = segment(image, class_names=names, templates=(TEMPLATE,), background=sureness, **sizes)
    drawn = segmentation_overlay(image, found["labels"], found["class_names"], legend=True)
    shares = {name: float((found["labels"] == number).mean()) for number, name in enumerate(found["class_names"])}
    seen = [f"**{name}** {share:.0%}" for name, share in shares.items() if share > 0.005 and name in names]
    if not seen:
        return drawn, "Nothing looks enough like one of the words. Move the slider to the left to colour more."
    return drawn, f"Each colour is the word that fits there best: {', '.join(seen)} of the picture. Grey: none does."


def find_in_picture(loaded: Loaded, picture: str | None, words: str) -> tuple[Image.Image, str]:
    """Where in the picture it looks like the text."""
    image = read_picture(picture)
    text = read_words(words, at_least=1, separators="\n")[0]
    heat = text_heat_map(loaded.model, loaded.processor, image, text)
    pale = ImageOps.grayscale(image).point(lambda level: 110 + level * 145 // 255)  # so that colours are the answer
    drawn = heat_map_overlay(pale, heat)
    return drawn, (
        f"The more orange, the more the spot looks like “**{text}**”. Something is always the most orange, even where "
        "there is no such thing."
    )


def learn_from_pictures(
    loaded: Loaded, names: Sequence[str], taught: Sequence[Sequence[str]], picture: str | None, tell: Tell
) -> tuple[Bars, str]:
    """How well the picture fits each class of a few given pictures."""
    names, files = taught_classes(names, taught, "picture")
    image = read_picture(picture, "Add the picture that you ask about, too.")
    tell(0.1, "Looking at your pictures")
    images = [read_picture(file) for own in files for file in own]
    labels = [number for number, own in enumerate(files) for _ in own]
    base = getattr(loaded.model, "backbone", loaded.model)
    model = APEForImageClassification.from_clip(base)
    processor = APEProcessor(loaded.processor.image_processor, loaded.processor.tokenizer)
    # with so few pictures none is left to choose the weight by: pictures count as much as words
    options = {"templates": (TEMPLATE,), "alpha": model.config.text_scale}
    fit_few_shot(model, processor, images, labels, names, **options)
    tell(0.8, "Comparing")
    classify = pipeline("image-classification", model=model, image_processor=processor.image_processor)
    found = bars(classify(image, top_k=None))
    return found, f"**{best(found)}** fits best, judged by your {len(images)} pictures and the names you gave them."


def learn_from_videos(
    loaded: Loaded, names: Sequence[str], taught: Sequence[Sequence[str]], video: str | None, tell: Tell
) -> tuple[Bars, Image.Image, str]:
    """How well the clip fits each class of a few given clips, and which moments match."""
    model, processor = loaded.model, loaded.processor
    support, given = loaded.support, None
    if support is None or any(taught):
        names, given = taught_classes(names, taught, "clip")
    if video is None:
        raise SorryError("Add the clip that you ask about, too.")
    try:
        if given is not None:
            tell(0.1, "Watching your clips")
            labels = [name for name, own in zip(names, given, strict=True) for _ in own]
            support = model.encode_support([file for own in given for file in own], labels, processor=processor)
        tell(0.7, "Comparing")
        scores = model.classify(video, support, processor=processor)[0]
        name, path = model.alignment_path(video, support=support, processor=processor)
        frames = load_frames(video, frame_sampler("segments", path.shape[0]))
    except UnreadableVideoError as error:
        raise SorryError(
            "One of the clips cannot be played: it is damaged or in an unknown format. Try MP4."
        ) from error
    finally:
        model.set_support(loaded.support)  # the model is everybody's
    found = dict(zip(support.class_names, scores.tolist(), strict=True))
    return (
        found,
        alignment_picture(path, frames),
        (
            f"**{best(found)}** fits best. The squares: your clip from top to bottom, “{name}” from left to right; "
            "dark where the moments match. A line down to the right means that things happen in the same order."
        ),
    )


# what the visitor gave


def read_words(words: str | None, *, at_least: int, separators: str = ",;\n") -> list[str]:
    """The words, as they were written, without repetitions.

    Raises:
        SorryError: too few, too many or too long ones.
    """
    parts = re.split(f"[{re.escape(separators)}]", words or "")
    found = list(dict.fromkeys(" ".join(part.split()) for part in parts if part.strip()))
    if not found:
        raise SorryError(
            "Write at least one word." if at_least == 1 else "Write some words, with commas between them."
        )
    if len(found) < at_least:
        raise SorryError(f"“{found[0]}” alone leaves nothing to choose from. Write at least {at_least} words.")
    if len(found) > LIMITS.texts or max(map(len, found)) > LIMITS.characters:
        raise SorryError(f"At most {LIMITS.texts} words of {LIMITS.characters} letters, please.")
    return found


def read_picture(file: str | None, missing: str = "Add a picture first, or click one below.") -> Image.Image:
    """The picture, not larger than needed.

    Raises:
        SorryError: there is none, or the file is no picture, or too large a one.
    """
    if file is None:
        raise SorryError(missing)
    try:
        with Image.open(file) as opened:
            pixels = opened.width * opened.height
        if pixels > LIMITS.megapixels * 1e6:
            raise SorryError(f"The picture has {pixels / 1e6:.0f} megapixels; at most {LIMITS.megapixels:g}, please.")
        image = load_image(file)
    except (OSError, SyntaxError, Image.DecompressionBombError, UnreadableImageError) as error:
        raise SorryError(
            f"{Path(file).name} is damaged or no picture. Try another file, PNG or JPEG for example."
        ) from error
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return image


def taught_classes(
    names: Sequence[str | None], taught: Sequence[Sequence[str] | None], what: str
) -> tuple[list[str], list[list[str]]]:
    """Names and files of the classes that were filled in.

    Raises:
        SorryError: fewer than two, one without a name or without files, two of one name, or too many files.
    """
    found: dict[str, list[str]] = {}
    for place, (name, files) in enumerate(zip(names, taught, strict=True), start=1):
        name, files = " ".join((name or "").split()), list(files or ())
        if not name and not files:
            continue
        if not name:
            raise SorryError(f"Kind {place} has no name. What do its {what}s show?")
        if not files:
            raise SorryError(f"“{name}” has no {what} yet. Add at least one; three or more work better.")
        if len(files) > EXAMPLES_OF_A_CLASS:
            raise SorryError(f"“{name}” has {len(files)} {what}s; at most {EXAMPLES_OF_A_CLASS}, please.")
        if name in found:
            raise SorryError(f"Two kinds are called “{name}”. Give them different names.")
        found[name] = files
    if len(found) < 2:
        raise SorryError(f"Fill in at least two kinds, each with a name and a {what}: one leaves nothing to choose.")
    return list(found), list(found.values())


# what the page shows


def bars(answer: list[dict[str, Any]]) -> Bars:
    """A pipeline's answer as the page draws it."""
    return {entry["label"]: entry["score"] for entry in answer}


def best(found: Bars) -> str:
    return max(found, key=found.get)
