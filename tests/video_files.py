"""Writes small video and sound files with PyAV, for tests."""

from fractions import Fraction

import av
import numpy as np


def write_video(path, frames, fps=12):
    """Encode uint8 `[n, H, W, 3]` frames without visible loss."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 8_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_sound(path):
    """Half a second of silence, no pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        for start in range(0, 4096, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 8000, start, Fraction(1, 8000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def grey_levels(levels, side=32):
    """Frames of one grey level each, so that a frame tells its number."""
    return np.repeat(np.asarray(levels, np.uint8), side * side * 3).reshape(len(levels), side, side, 3)
