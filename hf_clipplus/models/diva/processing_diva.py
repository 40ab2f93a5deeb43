"""Processor of DIVA: images and texts as for CLIP, and in training the same picture for tower and diffusion model."""

import numpy as np
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack

from hf_clipplus.models.processing_dual_encoder import forget_last_cut
from hf_clipplus.models.ready_images import ready_pixel_values
from hf_clipplus.ops.diffusion_feedback import (
    OPENAI_MEAN,
    OPENAI_STD,
    legacy_tower_pixels,
    legacy_vae_pixels,
    normalize_pixels,
)


class DIVAProcessorKwargs(ProcessingKwargs, total=False):
    """What `DIVAProcessor` takes beside images and text, and its defaults."""

    _defaults = {"text_kwargs": {"padding": True, "truncation": True}}


class DIVAProcessor(ProcessorMixin):
    """The image processor and tokenizer of CLIP or SigLIP; `feedback_inputs` prepares pictures for training.

    Args:
        image_processor, tokenizer: of the tower.
        generator_image_size: side of the diffusion model's pictures, pixels.
        legacy_vae_renorm: give the VAE what the published code gives it (a bug, see `legacy_vae_pixels`).
        legacy_tower_pixels: give the tower what the published code gives it: resized without antialiasing, with
            OpenAI's statistics for every tower.
        pad_texts: pad texts to the context, as SigLIP was trained; to the longest of the batch otherwise.
    """

    valid_processor_kwargs = DIVAProcessorKwargs

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        generator_image_size: int = 512,
        legacy_vae_renorm: bool = False,
        legacy_tower_pixels: bool = False,
        pad_texts: bool = False,
        **kwargs,
    ):
        self.generator_image_size = generator_image_size
        self.legacy_vae_renorm = legacy_vae_renorm
        self.legacy_tower_pixels = legacy_tower_pixels
        self.pad_texts = pad_texts
        forget_last_cut(tokenizer)
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(self, images=None, text=None, **kwargs: Unpack[DIVAProcessorKwargs]) -> BatchFeature:
        """`pixel_values [N, 3, S, S]` of the images, `input_ids` and `attention_mask [C, L]` of the texts.

        Texts are cut at the context, the end token kept; `kwargs` are for the image processor or the tokenizer.

        Raises:
            ValueError: neither images nor texts, or an empty list of texts.
        """
        if images is None and text is None:
            raise ValueError("DIVAProcessor: give images, text or both.")
        options = self._merge_kwargs(DIVAProcessorKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        batch = {}
        if images is not None:
            batch.update(self.image_processor(images, **options["images_kwargs"]))
        if text is not None:
            if not text:
                raise ValueError("text is empty: there is nothing to encode.")
            asked = kwargs.get("padding", kwargs.get("text_kwargs", {}).get("padding"))
            if self.pad_texts and asked is None:
                options["text_kwargs"]["padding"] = "max_length"
            batch.update(self.tokenizer(text, **options["text_kwargs"]))
        return BatchFeature(batch)

    def feedback_inputs(self, pictures: list[Image.Image], *, vae_pixels: bool = True) -> BatchFeature:
        """One square RGB crop an image, for the tower and for the diffusion model.

        Args:
            pictures: of any size; resized to `generator_image_size` first, as a crop of another size would be.
            vae_pixels: leave False where latents are cached.

        Returns:
            `pixel_values [B, 3, S, S]`, and `vae_pixel_values [B, 3, H, H]` in [-1, 1] unless left out.

        Raises:
            ValueError: a picture is not square.
        """
        wrong = [number for number, picture in enumerate(pictures) if picture.width != picture.height]
        if wrong:
            raise ValueError(
                f"pictures {wrong} are not square: crop them, or tower and diffusion model see other parts."
            )
        side = (self.generator_image_size, self.generator_image_size)
        resized = [
            picture if picture.size == side else picture.resize(side, Image.Resampling.BICUBIC) for picture in pictures
        ]
        batch = {}
        rgb = None
        if vae_pixels or self.legacy_tower_pixels:
            rgb = torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in resized]))
            rgb = rgb.permute(0, 3, 1, 2).float() / 255
        if self.legacy_tower_pixels:
            batch["pixel_values"] = legacy_tower_pixels(
                normalize_pixels(rgb, OPENAI_MEAN, OPENAI_STD), self.tower_size
            )
        else:
            ready = ready_pixel_values(self.image_processor, resized)
            found = self.image_processor(resized)["pixel_values"] if ready is None else ready
            batch["pixel_values"] = torch.from_numpy(np.stack(found))
        if vae_pixels and self.legacy_vae_renorm:
            batch["vae_pixel_values"] = legacy_vae_pixels(normalize_pixels(rgb, OPENAI_MEAN, OPENAI_STD))
        elif vae_pixels:
            batch["vae_pixel_values"] = 2 * rgb - 1
        return BatchFeature(batch)

    @property
    def tower_size(self) -> int:
        """Side of the tower's pictures, pixels."""
        crop = getattr(self.image_processor, "crop_size", None) or self.image_processor.size
        return dict(crop)["height"]


__all__ = ["DIVAProcessor"]
