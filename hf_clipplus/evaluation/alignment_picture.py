"""A picture of how the frames of a query match those of a class: frames at the sides, the soft path between them."""

import numpy as np
import torch
from PIL import Image

CELL, GAP = 64, 4  # pixels
LOW, HIGH = np.array([245, 245, 250]), np.array([30, 70, 160])


def alignment_picture(
    path: torch.Tensor, query_frames: np.ndarray, support_frames: np.ndarray | None = None
) -> Image.Image:
    """Draw an alignment, the query's frames from top to bottom, the class's from left to right.

    Args:
        path: `[L, M]` from `FewShotVideoModel.alignment_path` (or `ops.alignment.otam_path`), >= 0.
        query_frames: uint8 `[L, H, W, 3]`.
        support_frames: uint8 `[M, H, W, 3]` of a support video; None leaves the top free (a prototype of several
            videos has no frames).

    Raises:
        ValueError: another number of frames than the path has.
    """
    rows, columns = path.shape
    for name, frames, count in (("query", query_frames, rows), ("support", support_frames, columns)):
        if frames is not None and len(frames) != count:
            raise ValueError(f"the path has {count} {name} frames, but {len(frames)} pictures came.")
    step = CELL + GAP
    picture = Image.new("RGB", ((columns + 1) * step + GAP, (rows + 1) * step + GAP), "white")
    for row, frame in enumerate(query_frames):
        picture.paste(_thumbnail(frame), (GAP, GAP + (row + 1) * step))
    for column, frame in enumerate(() if support_frames is None else support_frames):
        picture.paste(_thumbnail(frame), (GAP + (column + 1) * step, GAP))
    shares = path.detach().float().cpu().clamp(0, 1).numpy()
    for row, column in np.ndindex(rows, columns):
        colour = LOW + (HIGH - LOW) * shares[row, column]
        cell = Image.new("RGB", (CELL, CELL), tuple(int(each) for each in colour))
        picture.paste(cell, (GAP + (column + 1) * step, GAP + (row + 1) * step))
    return picture


def _thumbnail(frame: np.ndarray) -> Image.Image:
    return Image.fromarray(frame).resize((CELL, CELL), Image.Resampling.BILINEAR)
