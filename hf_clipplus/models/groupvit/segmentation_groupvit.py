"""Zero-shot segmentation with GroupViT: crops of many pictures in common batches, each crop encoded once.

The published order (one crop at a time, the encoder twice per crop) gives the same labels; see the paper's section 3.3
and, for the filter, the threshold and the sliding window, the published code.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from hf_clipplus.models.evaluation_mode import evaluation_mode
from hf_clipplus.ops.grouping import at_least_float32, background_logits, group_affinity, roll_out

CROPS_PER_BATCH = 4  # on a CPU larger batches are no faster, and they fall out of its cache


@dataclass
class GroupViTPlusSegmentation:
    """The segmentation of one picture. C counts the background, index 0, when a threshold was given.

    Args:
        labels: `[h, w]` int64, best class of each pixel.
        scores: `[C, h, w]` float32, softmax over the classes; None unless asked for.
        groups: with `output_groups`, per grouping stage `[h, w]` int64, the group of each pixel; group numbers are of
            this picture, and of the window that covers the pixel first when there are several.
        group_classes: with `output_groups`, `[windows, G]` int64, the class of each group of the last stage, without
            counting the background.
    """

    labels: torch.Tensor
    scores: torch.Tensor | None = None
    groups: tuple[torch.Tensor, ...] | None = None
    group_classes: torch.Tensor | None = None


@dataclass
class _Crop:
    """A window of a picture, and what was found there."""

    picture: int
    box: tuple[int, int, int, int]  # y1, y2, x1, x2
    pixel_groups: list[torch.Tensor] | None = None  # per stage [h, w] int64; only the last unless groups are asked for
    affinity: torch.Tensor | None = None  # [G, N]
    kept: torch.Tensor | None = None  # [N] bool
    background: torch.Tensor | None = None  # [G]


def windows(height: int, width: int, *, crop_size: int, stride: int) -> list[tuple[int, int, int, int]]:
    """Boxes (y1, y2, x1, x2) of a sliding window, the last ones moved inside; smaller only where the picture is."""
    starts = []
    for length in (height, width):
        ends = [min(i * stride + crop_size, length) for i in range(_window_count(length, crop_size, stride))]
        starts.append([(max(end - crop_size, 0), end) for end in ends])
    return [(*rows, *columns) for rows in starts[0] for columns in starts[1]]


def _window_count(length: int, crop_size: int, stride: int) -> int:
    return max(length - crop_size + stride - 1, 0) // stride + 1


@torch.no_grad()
def segment(
    model,
    pixel_values: torch.Tensor | Sequence[torch.Tensor],
    class_embeds: torch.Tensor,
    *,
    background_threshold: float | None = None,
    mode: str = "slide",
    crop_size: int = 448,
    stride: int = 224,
    target_sizes: Sequence[tuple[int, int]] | None = None,
    top_classes: int = 5,
    output_scores: bool = False,
    output_groups: bool = False,
    crops_per_batch: int = CROPS_PER_BATCH,
) -> list[GroupViTPlusSegmentation]:
    """Label every pixel of pictures of any sizes with one of N classes.

    Args:
        model: `GroupViTPlusModel`; it runs in evaluation mode and gets its training flags back.
        pixel_values: `[B, 3, H, W]`, or a list of `[3, H, W]` of any sizes (`processor.segmentation_inputs`).
        class_embeds: `[N, D]`, L2-normalised (`model.class_embeddings`); foreground classes only.
        background_threshold: affinity below which a group is background, class 0 of the result (presets:
            `processing_groupvit.BACKGROUND_THRESHOLDS`); None: no background, every pixel gets one of the classes.
        mode: "slide" (windows that overlap) or "whole" (each picture at once).
        crop_size, stride: of the windows, pixels.
        target_sizes: (height, width) of each result; the size of its `pixel_values` when None.
        top_classes: classes that a window keeps, see `ops.grouping.group_affinity`.
        output_scores: return `[C, h, w]` scores.
        output_groups: return the groups of every stage.
        crops_per_batch: windows encoded at a time.

    Returns:
        One result per picture.

    Raises:
        ValueError: no classes, embeddings of another width, unknown mode, a picture smaller than a patch, window or
            stride not positive, not one target size per picture, or weights or pictures that are not finite.
    """
    pictures = list(pixel_values)
    _check(model, pictures, class_embeds, mode, crop_size, stride, target_sizes)
    class_embeds = class_embeds.to(model.device)
    crops = []
    for number, picture in enumerate(pictures):
        height, width = picture.shape[-2:]
        boxes = [(0, height, 0, width)]
        if mode == "slide":
            boxes = windows(height, width, crop_size=crop_size, stride=stride)
        crops += [_Crop(number, box) for box in boxes]
    with evaluation_mode(model):
        for batch in _batches_of_one_size(crops, crops_per_batch):
            _encode(model, pictures, batch, class_embeds, background_threshold, top_classes, output_groups)
    results = []
    for number, picture in enumerate(pictures):
        size = tuple(picture.shape[-2:])
        target = size if target_sizes is None else tuple(map(int, target_sizes[number]))
        own = [crop for crop in crops if crop.picture == number]
        results.append(_assemble(own, size, target, output_scores, output_groups))
    return results


def _check(model, pictures, class_embeds, mode, crop_size, stride, target_sizes) -> None:
    if class_embeds.ndim != 2 or not len(class_embeds):
        raise ValueError(
            f"class_embeds: expected [classes, D] with at least one class, got {list(class_embeds.shape)}."
        )
    if class_embeds.shape[1] != model.config.projection_dim:
        raise ValueError(
            f"class_embeds have {class_embeds.shape[1]} dimensions, the model {model.config.projection_dim}: "
            "make them with model.class_embeddings."
        )
    if mode not in ("slide", "whole"):
        raise ValueError(f"mode {mode!r} is unknown: choose 'slide' or 'whole'.")
    if not 0 < stride <= crop_size:
        raise ValueError(f"expected 0 < stride <= crop_size (windows must cover all), got {stride} and {crop_size}.")
    if target_sizes is not None and len(target_sizes) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures but {len(target_sizes)} target_sizes.")
    patch = model.config.vision_config.patch_size
    for number, picture in enumerate(pictures):
        height, width = picture.shape[-2:]
        if min(height, width) < patch:
            raise ValueError(
                f"picture {number} is {height}x{width} pixels (h x w) when the model sees it, smaller than a patch of "
                f"{patch}: make it larger, or cut a very long picture into parts."
            )


def _batches_of_one_size(crops: list[_Crop], size: int):
    """Crops of equal height and width, of whatever pictures, up to `size` at a time."""
    by_size: dict[tuple[int, int], list[_Crop]] = {}
    for crop in crops:
        y1, y2, x1, x2 = crop.box
        by_size.setdefault((y2 - y1, x2 - x1), []).append(crop)
    for group in by_size.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _encode(model, pictures, crops, class_embeds, background_threshold, top_classes, output_groups) -> None:
    """Encode crops of one size and write into them what each pixel and each group is."""
    parts = [pictures[crop.picture][:, crop.box[0] : crop.box[1], crop.box[2] : crop.box[3]] for crop in crops]
    pixels = torch.stack(parts).to(model.device, model.dtype)
    vision = model.vision_model(pixels, output_assignments=True)
    groups = F.normalize(at_least_float32(model.visual_projection(vision.last_hidden_state)), dim=-1)  # [B, G, D]
    whole = F.normalize(at_least_float32(model.visual_projection(vision.pooler_output)), dim=-1)  # [B, D]
    affinity, kept = group_affinity(groups, whole, class_embeds, model.logit_scale, top_classes=top_classes)
    if not torch.isfinite(affinity).all():
        names = sorted({crop.picture for crop in crops if not torch.isfinite(pictures[crop.picture]).all()})
        where = f"pictures {names} hold NaN or infinite pixels" if names else "the model's weights or its dtype"
        raise ValueError(f"segmentation met numbers that are not finite; look at: {where}.")
    height, width = pixels.shape[-2:]
    patch = model.config.vision_config.patch_size
    grid = (height // patch, width // patch)
    maps = list(vision.soft_assignments)
    if not maps:  # a plain ViT: every patch is a group
        maps = [torch.eye(grid[0] * grid[1], device=pixels.device).expand(len(crops), -1, -1)]
    stages = range(1, len(maps) + 1) if output_groups else [len(maps)]
    pixel_groups = [_pixel_groups(roll_out(maps[:stage]), grid, (height, width)) for stage in stages]
    for i, crop in enumerate(crops):
        crop.pixel_groups = [stage[i] for stage in pixel_groups]
        crop.affinity, crop.kept = affinity[i], kept[i]
        if background_threshold is not None:
            owned = torch.zeros(affinity.shape[1], dtype=torch.bool, device=affinity.device)
            owned[crop.pixel_groups[-1].unique()] = True
            crop.background = background_logits(affinity[i : i + 1], owned[None], background_threshold)[0]


def _pixel_groups(rolled: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """`[B, patches, G]` to the best group of each pixel, `[B, h, w]`."""
    maps = rolled.transpose(1, 2).unflatten(2, grid)  # [B, G, h / patch, w / patch]
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False).argmax(1)


def _assemble(
    crops: list[_Crop], size: tuple[int, int], target: tuple[int, int], output_scores: bool, output_groups: bool
) -> GroupViTPlusSegmentation:
    """Average the windows of a picture, resize, and choose the classes.

    A class that no window keeps has logit 0 everywhere, so only the kept ones (and the first, which wins a tie of
    zeros) are laid out in pixels.
    """
    shift = int(crops[0].background is not None)
    classes = len(crops[0].kept) + shift
    active = torch.zeros(classes, dtype=torch.bool, device=crops[0].kept.device)
    active[0] = True
    for crop in crops:
        active[shift:] |= crop.kept
    columns = active.nonzero().squeeze(1)
    total = crops[0].affinity.new_zeros(len(columns), *size)
    count = total.new_zeros(size)
    for crop in crops:
        table = crop.affinity if crop.background is None else torch.cat([crop.background[:, None], crop.affinity], 1)
        y1, y2, x1, x2 = crop.box
        logits = table.T[columns][:, crop.pixel_groups[-1].flatten()]  # [active, pixels]
        total[:, y1:y2, x1:x2] += logits.unflatten(1, (y2 - y1, x2 - x1))
        count[y1:y2, x1:x2] += 1
    logits = total.div_(count)
    if target != size:
        logits = F.interpolate(logits[None], size=target, mode="bilinear", align_corners=False)[0]
    result = GroupViTPlusSegmentation(labels=columns[logits.argmax(0)])
    if output_scores:
        full = logits.new_zeros(classes, *target)
        full[columns] = logits
        result.scores = full.softmax(0)
    if output_groups:
        result.groups = tuple(_group_map(crops, stage, size, target) for stage in range(len(crops[0].pixel_groups)))
        result.group_classes = torch.stack([crop.affinity.argmax(1) for crop in crops])
    return result


def _group_map(crops: list[_Crop], stage: int, size: tuple[int, int], target: tuple[int, int]) -> torch.Tensor:
    groups = crops[0].pixel_groups[stage].new_zeros(size)
    for crop in reversed(crops):
        y1, y2, x1, x2 = crop.box
        groups[y1:y2, x1:x2] = crop.pixel_groups[stage]
    if target == size:
        return groups
    rows, columns = (
        (torch.arange(wanted, device=groups.device) + 0.5) * (length / wanted)
        for wanted, length in zip(target, size, strict=True)
    )
    return groups[rows.long()][:, columns.long()]
