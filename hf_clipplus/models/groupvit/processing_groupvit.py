"""Processor of GroupViT: images, captions with prompts, class prompts, and pictures as segmentation wants them."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPImageProcessorPil
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack

from hf_clipplus.models.processing_dual_encoder import PADDING_ID, clean_text, forget_last_cut

from .presets_groupvit import (
    BACKGROUND_THRESHOLDS,
    CLASS_NAMES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LONG_SIDE,
    SEGMENTATION_TEMPLATES,
    SHORT_SIDE,
    class_prompts,
)

CROP_MARGIN = 256 / 224  # short side before the centre crop, over the crop


class GroupViTPlusProcessorKwargs(ProcessingKwargs, total=False):
    """What `GroupViTPlusProcessor` takes beside images and text, and its defaults."""

    _defaults = {"text_kwargs": {"padding": True, "truncation": True}}


class GroupViTPlusProcessor(ProcessorMixin):
    """An image processor with ImageNet's mean and standard deviation, and CLIP's tokenizer.

    Texts are cleaned as in the published code (HTML entities, blanks; mojibake too when the package `ftfy` is there),
    lower-cased by the tokenizer, padded with 0 to the longest of the batch (`padding="max_length"`: to the context)
    and cut at the context length, the end token kept.

    Example:

    ```python
    >>> processor(images=[cat, dog], text=[["a cat", "a photo of a cat."], ["a dog", "art of the dog."]],
    ...           return_tensors="pt")["input_ids"].shape  # a caption and K prompts of each image: [B, 1 + K, L]
    >>> processor.class_inputs(["cat", "dog"])["input_ids"].shape  # [classes, templates, L]
    >>> processor.segmentation_inputs([cat, dog])  # pixel_values: a list of [3, h, w]; target_sizes
    ```
    """

    valid_processor_kwargs = GroupViTPlusProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        forget_last_cut(tokenizer)
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_tokenizer(cls, tokenizer, *, image_size: int = 224) -> "GroupViTPlusProcessor":
        """A processor with the published image protocol: short side 256/224 of the crop, bilinear, ImageNet's mean.

        Args:
            tokenizer: a CLIP tokenizer.
            image_size: side of the centre crop, pixels.
        """
        image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": round(image_size * CROP_MARGIN)},
            crop_size={"height": image_size, "width": image_size},
            resample=PILImageResampling.BILINEAR,
            image_mean=list(IMAGENET_MEAN),
            image_std=list(IMAGENET_STD),
        )
        return cls(image_processor, tokenizer)

    def __call__(
        self,
        images=None,
        text: str | list[str] | list[list[str]] | None = None,
        **kwargs: Unpack[GroupViTPlusProcessorKwargs],
    ) -> BatchFeature:
        """Prepare a batch.

        Args:
            images: one image or a list; resized and cropped for training and classification (segmentation has
                `segmentation_inputs`).
            text: one text, a list (one text each), or a list of equally long lists: the caption and the K prompts of
                each image.
            kwargs: for the image processor or the tokenizer, by name or in `images_kwargs` and `text_kwargs`.

        Returns:
            `pixel_values [B, 3, H, W]`; `input_ids`, `attention_mask`: `[C, L]`, or `[B, 1 + K, L]` for a list of
            lists; `truncated_captions`: number of texts that were cut, when any was.

        Raises:
            ValueError: nothing given, lists of different lengths, or a different number of images and lists.
        """
        if images is None and text is None:
            raise ValueError("GroupViTPlusProcessor: give images, text or both.")
        options = self._merge_kwargs(
            GroupViTPlusProcessorKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs
        )
        batch = {}
        if images is not None:
            batch.update(self.image_processor(images, **options["images_kwargs"]))
        if text is None:
            return BatchFeature(batch)
        flat, texts_per_image = _flatten(text)
        if texts_per_image and images is not None and len(text) != len(batch["pixel_values"]):
            raise ValueError(f"{len(batch['pixel_values'])} images but {len(text)} lists of texts.")
        return_tensors = options["text_kwargs"].pop("return_tensors", None)
        encoded = self.tokenizer([clean_text(each) for each in flat], **options["text_kwargs"])
        cut = sum(bool(encoding.overflowing) for encoding in encoded.encodings or [])
        found = dict(encoded)
        if "attention_mask" in found:
            found["input_ids"] = [
                [token if real else PADDING_ID for token, real in zip(ids, mask, strict=True)]
                for ids, mask in zip(found["input_ids"], found["attention_mask"], strict=True)
            ]
        if texts_per_image:
            found = {
                name: [rows[i : i + texts_per_image] for i in range(0, len(rows), texts_per_image)]
                for name, rows in found.items()
            }
        batch.update(BatchFeature(found, tensor_type=return_tensors))
        if cut:
            batch["truncated_captions"] = cut
        return BatchFeature(batch)

    def class_inputs(
        self, class_names: Sequence[str], templates: Sequence[str] = SEGMENTATION_TEMPLATES
    ) -> dict[str, torch.Tensor]:
        """Prompts of classes, for `model.class_embeddings`: `input_ids`, `attention_mask` `[classes, templates, L]`.

        Args:
            class_names: distinct and not blank; foreground classes only. Presets: `CLASS_NAMES`.
            templates: prompts with `{}` or `{c}`; the published segmentation has one, classification seven
                (`presets_groupvit.CLASSIFICATION_TEMPLATES`).
        """
        batch = self(text=class_prompts(class_names, templates), return_tensors="pt")
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def segmentation_inputs(
        self, images, *, short_side: int = SHORT_SIDE, long_side: int = LONG_SIDE
    ) -> dict[str, list]:
        """Pictures resized as in the published segmentation, each with its own size.

        The factor is the largest with short side <= `short_side` and long side <= `long_side`; bilinear on 8 bits
        without antialiasing, as OpenCV does.

        Args:
            images: a picture or a list: PIL, or uint8 arrays `[h, w, 3]` or `[h, w]`.

        Returns:
            `pixel_values`: list of `[3, h, w]` float32; `target_sizes`: (height, width) of each original, to which
            `model.segment(**inputs, ...)` resizes what it found.

        Raises:
            ValueError: no picture, or one of another number type than 8-bit.
        """
        images = images if isinstance(images, list | tuple) else [images]
        if not images:
            raise ValueError("segmentation_inputs: there are no pictures.")
        mean, std = (
            torch.tensor(value).view(3, 1, 1)
            for value in (self.image_processor.image_mean, self.image_processor.image_std)
        )
        pixel_values, sizes = [], []
        for number, image in enumerate(images):
            levels = torch.from_numpy(_rgb_levels(image, number)).permute(2, 0, 1)  # [3, h, w]
            height, width = levels.shape[1:]
            factor = min(long_side / max(height, width), short_side / min(height, width))
            size = [int(length * factor + 0.5) for length in (height, width)]
            pixel_values.append((_resize_levels(levels, size) / 255 - mean) / std)
            sizes.append((height, width))
        return {"pixel_values": pixel_values, "target_sizes": sizes}

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "input_ids", "attention_mask"]


def _flatten(text) -> tuple[list[str], int]:
    """Flat texts, and how many belong to an image when they came grouped (else 0)."""
    if isinstance(text, str):
        text = [text]
    if not text:
        raise ValueError("text is an empty list: there is nothing to encode.")
    if all(isinstance(each, str) for each in text):
        return list(text), 0
    lengths = {None if isinstance(each, str) else len(each) for each in text}
    if len(lengths) != 1 or lengths & {None, 0}:
        raise ValueError(
            "text must be texts, or equally long lists of texts (a caption and K prompts for every image); got "
            f"lists of {sorted(length or 0 for length in lengths)} texts."
        )
    flat = [each for group in text for each in group]
    if wrong := [type(each).__name__ for each in flat if not isinstance(each, str)]:
        raise ValueError(f"text holds {wrong[0]}, not only texts.")
    return flat, lengths.pop()


def _rgb_levels(image, number: int) -> np.ndarray:
    """`[h, w, 3]` uint8; transparency is laid on white."""
    if isinstance(image, Image.Image):
        if image.mode.startswith("I") or image.mode == "F":
            raise ValueError(
                f"picture {number} has mode {image.mode!r} (more than 8 bits): hf_clipplus.data.images.load_image "
                "turns such files into 8-bit RGB."
            )
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.array(image.convert("RGB"))
    levels = np.asarray(image)
    if levels.dtype != np.uint8:
        raise ValueError(f"picture {number} holds {levels.dtype}, expected a PIL image or uint8 levels.")
    if levels.ndim == 2:
        levels = levels[..., None].repeat(3, axis=2)
    if levels.ndim != 3 or levels.shape[2] != 3:
        raise ValueError(f"picture {number} has shape {list(levels.shape)}, expected [h, w, 3] or [h, w].")
    return np.array(levels)


def _resize_levels(levels: torch.Tensor, size: list[int]) -> torch.Tensor:
    """`[3, h, w]` uint8 to whole levels of another size as float32, bilinear without antialiasing."""
    if list(levels.shape[1:]) == size:
        return levels.float()
    resized = F.interpolate(levels[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    return (resized + 0.5).floor_().clamp_(0, 255)


__all__ = ["BACKGROUND_THRESHOLDS", "CLASS_NAMES", "GroupViTPlusProcessor"]
