"""Makes what the Space shows before anybody has a model: small models, and pictures and clips to try them on.

    python examples/space/prepare.py                                  # seconds; what is there already is kept
    python examples/space/prepare.py --space_dir outputs/my-space     # a whole Space, ready to be uploaded

All models are the embedded encoder, which knows drawings and is often wrong. What a method adds to it (DreamLIP's
patches, CLIP-FSAR's comparison of frames) is used as it stands, untrained. The page takes better ones as soon as the
recipes have left them (`make demo`, examples/train_groupvit.py, train_dreamlip.py, train_clip_fsar.py). The pictures
and clips are of the test split, which the encoder has not seen.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from PIL import Image

import hf_clipplus
from hf_clipplus.data.clipart import CaptionWorld, load_drawings
from hf_clipplus.data.clipart_clips import ClipWorld
from hf_clipplus.data.clipart_scenes import SceneWorld
from hf_clipplus.models.dreamlip import DreamLIPModel, DreamLIPProcessor
from hf_clipplus.training import parse_arguments
from hf_clipplus.training.few_shot_video_build import (
    CLIPFSARModelArguments,
    FewShotVideoArguments,
    build_clip_fsar,
)
from hf_clipplus.training.start import ENCODER

EXAMPLES = Path(__file__).parents[1]
SIDE, FRAMES, SPEED = 320, 16, 8  # pixels, frames of a clip, frames a second
# drawings of the test split by number: pictures to name, and those whose pictures and clips teach a class (the last
# one is asked about)
NAMED = (58, 165, 184, 193, 266, 142)
TAUGHT = {"tiger": (260, 262, 263, 265), "fruit": (85, 87, 93, 89), "vehicle": (15, 183, 185, 184)}
SCENES = (10, 9, 12, 6, 1)
NOT_OF_A_MODEL = ("checkpoint-*", "runs", "training_args.bin")
MOVES = ("move_left", "rise", "grow", "move_right")


@dataclass
class SpaceArguments:
    """What is written, and where to."""

    output_dir: str = field(default="outputs/space", metadata={"help": "Folder of models/ and samples/."})
    space_dir: str | None = field(default=None, metadata={"help": "Also write the files of a Space of the Hub here."})
    models: list[str] = field(
        default_factory=list, metadata={"help": "Folders of further models that go into --space_dir."}
    )


def copy_encoder(folder: Path) -> None:
    """The embedded encoder, so that the folder has all that the Space needs."""
    shutil.copytree(ENCODER, folder)
    describe(folder, "trained for half an hour on drawings")


def untrained_patches(folder: Path) -> None:
    """DreamLIP's comparison of texts with patches on the embedded encoder; nothing in it was trained for it."""
    model = DreamLIPModel.from_pretrained(ENCODER, use_grouping_loss=False)
    model.save_pretrained(folder), DreamLIPProcessor.from_pretrained(ENCODER).save_pretrained(folder)
    describe(folder, "compares parts of a picture as the drawings' encoder sees them; not trained for it")


def untrained_video_model(folder: Path) -> None:
    """CLIP-FSAR's comparison of frames on the embedded encoder; nothing in it was trained on videos."""
    settings = CLIPFSARModelArguments(model_name_or_path=str(ENCODER), modulate=False)
    model, processor = build_clip_fsar(settings, FewShotVideoArguments())
    model.save_pretrained(folder), processor.save_pretrained(folder)
    describe(folder, "compares the frames as the drawings' encoder sees them; not trained on videos")


def describe(folder: Path, sentence: str) -> None:
    """What the page says of the model."""
    (folder / "space.json").write_text(json.dumps({"trained": sentence}) + "\n")


def write_samples(folder: Path) -> None:
    """Pictures and clips to click."""
    drawings = load_drawings("test")
    drawn = CaptionWorld(drawings, image_size=SIDE, train=False)
    for number in NAMED:
        save(drawn[number]["image"], folder / "name" / f"{number}.png")
    for name, numbers in TAUGHT.items():
        for number in numbers:
            part = "ask" if number == numbers[-1] else "teach"
            save(drawn[number]["image"], folder / "pictures" / part / name / f"{number}.png")
    scenes = SceneWorld("test", image_size=SIDE, length=max(SCENES) + 1, train=False)
    for number in SCENES:
        save(scenes[number]["image"], folder / "scenes" / f"{number}.png")
    for name, numbers in TAUGHT.items():
        for place, number in enumerate(numbers):
            clip = ClipWorld(
                [drawings[number]], frames=FRAMES, image_size=SIDE // 2, actions=MOVES, seed=place, train=False
            )
            part = "ask" if number == numbers[-1] else "teach"
            save_clip(clip[place % len(MOVES)]["frames"], folder / "videos" / part / name / f"{number}.mp4")


def save(picture: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file, optimize=True)


def save_clip(frames: np.ndarray, file: Path) -> None:
    """Encode uint8 `[n, H, W, 3]` frames as browsers play them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=SPEED, options={"crf": "20"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_space(folder: Path, made: Path, models: list[str]) -> None:
    """The page, the package beside it, models and samples: what a Space of the Hub consists of."""
    hidden = shutil.ignore_patterns("__pycache__", "*.part")
    shutil.copytree(Path(__file__).parent, folder, ignore=hidden)
    shutil.copytree(Path(hf_clipplus.__file__).parent, folder / "hf_clipplus", ignore=hidden)
    for part in ("models", "samples"):
        shutil.copytree(made / part, folder / part, ignore=hidden)
    for model in map(Path, models):
        shutil.copytree(model, folder / "models" / model.name, ignore=shutil.ignore_patterns(*NOT_OF_A_MODEL))


MAKERS = {"clipart-clip": copy_encoder, "dreamlip": untrained_patches, "clip_fsar": untrained_video_model}


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_arguments((SpaceArguments,), __doc__, argv)
    models, samples = (Path(args.output_dir) / name for name in ("models", "samples"))
    for name, make in MAKERS.items():
        if not (models / name).is_dir():
            print(f"== making {models / name}", flush=True)
            part = models / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            models.mkdir(parents=True, exist_ok=True)
            make(part)
            part.rename(models / name)
    if not samples.is_dir():
        print(f"== drawing {samples}", flush=True)
        part = samples.with_name("samples.part")
        shutil.rmtree(part, ignore_errors=True)
        write_samples(part)
        part.rename(samples)
    if args.space_dir is not None:
        write_space(Path(args.space_dir), Path(args.output_dir), args.models)
        print(f"{args.space_dir} is ready: hf upload OWNER/NAME {args.space_dir} . --repo-type space")


if __name__ == "__main__":
    main()
