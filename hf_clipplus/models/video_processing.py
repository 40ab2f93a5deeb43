"""Frames to pixel values as CLIP's few-shot video models want them.

transformers' video processors need torchvision; this one is an image processor to transformers, and needs nothing.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from .video_frames import frame_sampler, is_single_video, load_frames

LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class ClipView:
    """How one video is shown; the same for all of its frames. The default is the view of testing.

    Args:
        place: of the crop, (top, left) as shares of the free room; (0.5, 0.5) is the centre.
        mirror: left and right exchanged.
        grey: without colour.
        colour: ("brightness" | "contrast" | "saturation" | "hue", amount) in the order they are applied; factors, and
            for hue a turn in -0.5..0.5.
    """

    place: tuple[float, float] = (0.5, 0.5)
    mirror: bool = False
    grey: bool = False
    colour: tuple[tuple[str, float], ...] = ()


class VideoFrameProcessor(BaseImageProcessor):
    """Samples frames, stretches them to a square, crops, and normalises with CLIP's mean and standard deviation.

    The published transform: bilinear without antialiasing, aspect ratio not kept, centre crop.

    Args:
        resize: side that every frame is stretched to, pixels (published 256).
        crop: side of the crop (published 224).
        num_frames: frames of a video.
        frame_sampling: "segments", "kinetics" or "trx", see `models.video_frames.frame_sampler`.
        image_mean, image_std: of the three channels.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        resize: int = 256,
        crop: int = 224,
        num_frames: int = 8,
        frame_sampling: str = "segments",
        image_mean: tuple[float, ...] = tuple(OPENAI_CLIP_MEAN),
        image_std: tuple[float, ...] = tuple(OPENAI_CLIP_STD),
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if crop > resize:
            raise ValueError(f"crop={crop} is larger than resize={resize}.")
        frame_sampler(frame_sampling, num_frames)
        self.resize, self.crop, self.num_frames, self.frame_sampling = resize, crop, num_frames, frame_sampling
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    def __call__(self, videos: Any, **kwargs: Any) -> BatchFeature:
        return self.preprocess(videos, **kwargs)

    def preprocess(
        self,
        videos: Any,
        *,
        num_frames: int | None = None,
        do_sample_frames: bool = True,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """`pixel_values [V, T, 3, crop, crop]` of one video or a list, in any form that `load_frames` takes.

        Args:
            videos: see above; they may have different sizes and lengths.
            num_frames: T instead of the configured number.
            do_sample_frames: False takes every frame; then all videos must have the same number.
            return_tensors: "pt", "np" or None (a list of tensors).
        """
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f"return_tensors={return_tensors!r}: choose 'pt', 'np' or None.")
        videos = [videos] if is_single_video(videos) else list(videos)
        sample = frame_sampler(self.frame_sampling, num_frames or self.num_frames)
        if not do_sample_frames:
            sample = _every_frame
        found = [
            self.pixel_values(load_frames(video, sample, name=_name(video, number)))
            for number, video in enumerate(videos)
        ]
        lengths = {len(each) for each in found}
        if return_tensors is None:
            return BatchFeature({"pixel_values": found})
        if len(lengths) != 1:
            raise ValueError(
                f"videos of {sorted(lengths)} frames do not make a batch: let the processor sample them."
                if found
                else "there is no video."
            )
        stacked = torch.stack(found)
        return BatchFeature({"pixel_values": stacked.numpy() if return_tensors == "np" else stacked})

    def pixel_values(self, frames: np.ndarray, view: ClipView = ClipView()) -> Tensor:
        """Normalised pixels `[T, 3, crop, crop]` of uint8 frames `[T, H, W, 3]`, shown as `view` says."""
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255
        size = (self.resize, self.resize)
        if tuple(pixels.shape[-2:]) != size:
            pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=False)
        top, left = (round(share * (self.resize - self.crop)) for share in view.place)
        pixels = coloured(pixels[..., top : top + self.crop, left : left + self.crop], view)
        mean, std = (torch.tensor(each)[:, None, None] for each in (self.image_mean, self.image_std))
        pixels = (pixels - mean) / std
        return (pixels.flip(-1) if view.mirror else pixels).contiguous()


def coloured(pixels: Tensor, view: ClipView) -> Tensor:
    """Pixels 0..1 `[T, 3, H, W]` with the colours that the view says; grey comes first, as published."""
    if view.grey:
        pixels = _luma(pixels).expand_as(pixels)
    for kind, amount in view.colour:
        if kind == "brightness":
            pixels = pixels * amount
        elif kind == "contrast":
            pixels = _blend(pixels, _luma(pixels).mean((-1, -2), keepdim=True), amount)
        elif kind == "saturation":
            pixels = _blend(pixels, _luma(pixels), amount)
        elif kind == "hue":
            pixels = _turn_hue(pixels, amount)
        else:
            raise ValueError(f"colour change {kind!r} is unknown.")
        pixels = pixels.clamp(0, 1)
    return pixels


def _luma(pixels: Tensor) -> Tensor:
    weights = torch.tensor(LUMA, device=pixels.device)[:, None, None]
    return (pixels * weights).sum(-3, keepdim=True)


def _blend(pixels: Tensor, other: Tensor, amount: float) -> Tensor:
    return amount * pixels + (1 - amount) * other


def _turn_hue(pixels: Tensor, turn: float) -> Tensor:
    """Hue of HSV turned by a share of the circle; saturation and value stay."""
    value, _ = pixels.max(-3, keepdim=True)
    chroma = value - pixels.amin(-3, keepdim=True)
    red, green, blue = pixels.split(1, dim=-3)
    safe = chroma.clamp_min(1e-8)
    sector = torch.where(
        value == red,
        (green - blue) / safe % 6,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    sector = (sector + 6 * turn) % 6
    steps = torch.tensor([5.0, 3.0, 1.0], device=pixels.device)[:, None, None]  # red, green, blue
    place = (sector + steps) % 6
    return value - chroma * torch.minimum(place, 4 - place).clamp(0, 1)


def _every_frame(total: int, fps: float) -> list[int]:
    return list(range(total))


def _name(video: Any, number: int) -> str | None:
    return None if isinstance(video, str) or hasattr(video, "__fspath__") else f"video {number}"


__all__ = ["VideoFrameProcessor"]
