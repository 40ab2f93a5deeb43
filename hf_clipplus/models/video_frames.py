"""Which frames of a video are taken, and how they are read: files, folders of pictures, lists of pictures, arrays.

Everything but video files works without a decoder; files want PyAV (the extra `video`).
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

FRAME_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
VIDEO_SUFFIXES = {".mp4", ".webm", ".avi", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv"}
KINETICS_INTERVAL, KINETICS_FPS = 35, 12.0
DEFAULT_FPS = 30.0  # of pictures without a clock
TRX_MARGIN = 5

# (frames of the video, its frames per second) -> indices
FrameSampler = Callable[[int, float], list[int]]


class UnreadableVideoError(ValueError):
    """A video is missing, empty, cut short, without pictures or in no known format; the message names it."""


# which frames


def segment_centres(total: int, wanted: int) -> list[int]:
    """The middle frame of each of `wanted` equal parts; a shorter video repeats frames."""
    return [int((2 * i + 1) * total / (2 * wanted)) for i in range(wanted)]


def random_in_segments(total: int, wanted: int, generator: np.random.Generator) -> list[int]:
    """A random frame of each of `wanted` parts of `total // wanted` frames, as published; the last `total % wanted`
    frames are never taken. A shorter video repeats frames (the published code fails)."""
    length = total // wanted
    if length == 0:
        return segment_centres(total, wanted)
    return [i * length + int(generator.integers(length)) for i in range(wanted)]


def kinetics_clip(total: int, fps: float, wanted: int, generator: np.random.Generator | None = None) -> list[int]:
    """The published rule for Kinetics: interval 35 at 12 frames per second; random start, or the middle without one.

    A 10 s video gives almost all of itself but the last 35 frames. Where the rule runs backwards (fewer than about 40
    frames, a bug of the published code) the parts of `segment_centres` or `random_in_segments` are taken.
    """
    clip = wanted * KINETICS_INTERVAL * fps / KINETICS_FPS
    if clip > total:
        clip = wanted * (total // wanted)
    latest = max(total - clip + 1, 0)
    start = latest / 2 if generator is None else generator.uniform(0, latest)
    end = start + clip - KINETICS_INTERVAL
    if end <= start:
        return segment_centres(total, wanted) if generator is None else random_in_segments(total, wanted, generator)
    return np.linspace(start, end, wanted).clip(0, total - 1).astype(int).tolist()


def trx_span(total: int, wanted: int, generator: np.random.Generator | None = None) -> list[int]:
    """TRX's rule as the specification describes it: a random start and end near the video's ends, linear between.

    How near is not confirmed; here at most 5 frames, and less where the video has few more than wanted. Without a
    generator the whole video is spanned.
    """
    margin = min(TRX_MARGIN, (total - wanted) // 2)
    start, end = 0, total - 1
    if generator is not None and margin > 0:
        start, end = int(generator.integers(margin + 1)), total - 1 - int(generator.integers(margin + 1))
    return np.linspace(start, end, wanted).astype(int).tolist()


def frame_sampler(rule: str, wanted: int, generator: np.random.Generator | None = None) -> FrameSampler:
    """One of the rules as a function of a video's length and speed; random ones with a generator.

    Args:
        rule: "segments" (published for SSv2, UCF101 and HMDB51), "kinetics" or "trx".
        wanted: T, frames to take.
        generator: None samples as in testing, always the same.

    Raises:
        ValueError: unknown rule.
    """
    if rule == "segments" and generator is None:
        return lambda total, fps: segment_centres(total, wanted)
    if rule == "segments":
        return lambda total, fps: random_in_segments(total, wanted, generator)
    if rule == "kinetics":
        return lambda total, fps: kinetics_clip(total, fps, wanted, generator)
    if rule == "trx":
        return lambda total, fps: trx_span(total, wanted, generator)
    raise ValueError(f"frame sampling {rule!r} is unknown: choose 'segments', 'kinetics' or 'trx'.")


# reading


def load_frames(video: Any, sample: FrameSampler, *, name: str | None = None) -> np.ndarray:
    """The sampled frames of a video, uint8 `[T, H, W, 3]`.

    Args:
        video: path of a file or of a folder of pictures (taken in the order of their names), a list of pictures or of
            their paths, or an array or tensor `[n, H, W, 3]` or `[n, 3, H, W]`, uint8 or floats in 0..1.
        sample: see `frame_sampler`.
        name: what to call the video in an error; its path when not given.

    Raises:
        UnreadableVideoError: there is no picture in it, or it cannot be read.
        ImportError: a file without PyAV.
        TypeError: none of the above.
    """
    if isinstance(video, str | os.PathLike):
        path = Path(video)
        name = name or str(path)
        if path.is_dir():
            pictures = sorted(file for file in path.iterdir() if file.suffix.lower() in FRAME_SUFFIXES)
            return _pictures(pictures, sample, f"the folder {name}")
        return _video_file(path, sample, name)
    name = name or "a video without a name"
    if isinstance(video, np.ndarray | torch.Tensor):
        return _array(np.asarray(video), sample, name)
    if isinstance(video, Sequence):
        return _pictures(video, sample, name)
    raise TypeError(f"{name}: expected a path, a list of pictures or an array, got {type(video).__name__}.")


def is_single_video(value: Any) -> bool:
    """Whether a value that `load_frames` takes is one video, where a list of videos is allowed too."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.ndim == 4
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value):
        first = value[0]
        if isinstance(first, Image.Image):
            return True
        if isinstance(first, np.ndarray | torch.Tensor):
            return first.ndim == 3
        return isinstance(first, str | os.PathLike) and Path(first).suffix.lower() in FRAME_SUFFIXES
    return isinstance(value, str | os.PathLike)


def _array(video: np.ndarray, sample: FrameSampler, name: str) -> np.ndarray:
    if video.ndim != 4 or 3 not in (video.shape[-1], video.shape[1]):
        raise UnreadableVideoError(f"{name}: expected frames [n, H, W, 3] or [n, 3, H, W], got {list(video.shape)}.")
    if not len(video):
        raise UnreadableVideoError(f"{name} has no frames.")
    frames = video[sample(len(video), DEFAULT_FPS)]
    if frames.shape[-1] != 3:
        frames = frames.transpose(0, 2, 3, 1)
    if frames.dtype == np.uint8:
        return frames
    if not np.issubdtype(frames.dtype, np.floating) or frames.min() < 0 or frames.max() > 1:
        raise UnreadableVideoError(f"{name}: expected uint8, or floats in 0..1, got {frames.dtype}.")
    return (frames * 255).round().astype(np.uint8)


def _pictures(pictures: Sequence[Any], sample: FrameSampler, name: str) -> np.ndarray:
    if not len(pictures):
        raise UnreadableVideoError(f"{name} has no pictures.")
    frames = [_picture(pictures[index], name) for index in sample(len(pictures), DEFAULT_FPS)]
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise UnreadableVideoError(f"{name}: frames of different sizes {sorted(size[:2] for size in sizes)}.")
    return np.stack(frames)


def _picture(picture: Any, name: str) -> np.ndarray:
    if isinstance(picture, np.ndarray | torch.Tensor):
        return _array(np.asarray(picture)[None], lambda total, fps: [0], name)[0]
    try:
        with picture if isinstance(picture, Image.Image) else Image.open(picture) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise UnreadableVideoError(f"{name}: cannot read the frame {picture}: {error}") from error


def _video_file(path: Path, sample: FrameSampler, name: str) -> np.ndarray:
    try:
        import av
    except ImportError as error:
        raise ImportError(f"reading the video file {name} needs PyAV: pip install 'hf_clipplus[video]'.") from error
    if not path.is_file():
        raise UnreadableVideoError(f"there is no video {name}.")
    if path.stat().st_size == 0:
        raise UnreadableVideoError(f"the video {name} is an empty file.")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UnreadableVideoError(f"{name} has no pictures, only sound or data.")
            stream = container.streams.video[0]
            fps = float(stream.average_rate or DEFAULT_FPS)
            total = stream.frames or sum(1 for _ in container.decode(stream))
            wanted = sample(total, fps) if total else []
            frames = _decoded(container, stream, wanted)
            missing = [index for index in wanted if index not in frames]
            if missing or not total:  # the file says that it has more frames than it has
                total = sum(1 for _ in _rewound(container, stream))
                if total == 0:
                    raise UnreadableVideoError(f"{name} has no pictures.")
                wanted = sample(total, fps)
                frames = _decoded(container, stream, wanted)
            return np.stack([frames[index] for index in wanted])
    except av.error.FFmpegError as error:
        raise UnreadableVideoError(f"cannot read the video {name}: {error}") from error


def _rewound(container, stream):
    container.seek(0)
    return container.decode(stream)


def _decoded(container, stream, wanted: list[int]) -> dict[int, np.ndarray]:
    """The wanted frames by index, decoded in order from the start up to the last of them."""
    frames, last = {}, max(wanted, default=-1)
    for index, frame in enumerate(_rewound(container, stream)):
        if index in wanted:
            frames[index] = frame.to_ndarray(format="rgb24")
        if index >= last:
            break
    return frames
