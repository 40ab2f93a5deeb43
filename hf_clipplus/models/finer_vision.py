"""Finer vision: a picture at several scales in tiles, and its salient regions larger, through one tower (ours).

Training-free or trained through; every dual encoder takes it by its configuration, see `FinerVision`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hf_clipplus.ops.tilings import (
    choose_regions,
    cut_tiles,
    place_regions,
    resample_map,
    resize_pictures,
    stitch_tiles,
    take_regions,
)

from .configuration_finer_vision import FinerVision, picture_side
from .pooled_layer import first_positions

FUSION_PREFIX = "view_fusion."  # of weights that a checkpoint may lack: they start as the mean


@dataclass
class FinerVisionOutput(BaseModelOutputWithPooling):
    """What `get_image_features` gives with finer vision.

    Args:
        last_hidden_state, hidden_states, attentions: of the whole picture at the tower's size.
        pooler_output: `[N, D]`, the joined embedding; the mean of unit vectors with `fusion="mean"`.
        patch_features: `[N, M, D]`, joined, not normalised; of models that have patch features, when asked for.
        crop_corners: `[N, crops, 2]` int64, (row, column) of the crops' upper left corners in pixels of the picture
            at `crop_zoom`, most salient first.
    """

    patch_features: Tensor | None = None
    crop_corners: Tensor | None = None


class ViewFusion(nn.Module):
    """Trained joining of scales: linear maps of their concatenation that start as the mean.

    Args:
        entries: scales to join, crops counted as one.
        width: of the joint space.
        patches: whether patch features are joined too, by weights of their own.
    """

    def __init__(self, entries: int, width: int, patches: bool):
        super().__init__()
        self.pooled = nn.Linear(entries * width, width, bias=False)
        self.patches = nn.Linear(entries * width, width, bias=False) if patches else None

    def start_as_mean(self) -> None:
        for linear in filter(None, (self.pooled, self.patches)):
            entries = linear.in_features // linear.out_features
            mean = torch.eye(linear.out_features, device=linear.weight.device).repeat(1, entries) / entries
            init.copy_(linear.weight, mean.to(linear.weight.dtype))


def at_every_scale(image_features: Callable) -> Callable:
    """Makes of a variant's `get_image_features` one that follows `config.finer_vision`; without, it stays as it is."""

    @wraps(image_features)
    def at_scales(self, pixel_values, interpolate_pos_encoding=False, *args, guide_embeds=None, **kwargs):
        settings = FinerVision.of(self.config)
        if guide_embeds is not None and (settings is None or not settings.crops):
            raise ValueError("guide_embeds choose crops, but config.finer_vision asks for none.")
        if settings is None:
            return image_features(self, pixel_values, interpolate_pos_encoding, *args, **kwargs)

        def encode(views: Tensor, pooled_only: bool) -> BaseModelOutputWithPooling:
            own = {name: value for name, value in kwargs.items() if name != "pooled_positions"}
            if pooled_only and "pooled_positions" in kwargs:
                own["pooled_positions"] = first_positions(views)
            return image_features(self, views, interpolate_pos_encoding, *args, **own)

        base = _base_size(self.config, settings, pixel_values, interpolate_pos_encoding)
        patches_wanted = self.has_patch_features and "pooled_positions" not in kwargs
        return _Views(self, settings, base, encode, patches_wanted).features(pixel_values, guide_embeds)

    return at_scales


class _Views:
    """One forward pass of finer vision.

    Args:
        model: a dual encoder.
        settings: what is looked at.
        base: (height, width) of a view in pixels.
        encode: views `[V, 3, *base]`, and whether pooled tokens are enough, to the tower's output.
        patches_wanted: whether patch features are joined.
    """

    def __init__(
        self, model: "FinerVisionMixin", settings: FinerVision, base: tuple[int, int], encode, patches_wanted
    ):
        self.model, self.settings, self.base, self.encode = model, settings, base, encode
        self.patches_wanted = patches_wanted
        patch = model.config.vision_config.patch_size
        self.grid = (base[0] // patch, base[1] // patch)

    def features(self, pixel_values: Tensor, guide_embeds: Tensor | None) -> FinerVisionOutput:
        scales, images = self.settings.scales, len(pixel_values)
        tiles = [cut_tiles(resize_pictures(pixel_values, self._times(self.base, s)), s, s) for s in scales]
        pooled_only = not self.patches_wanted and not self.settings.crops
        outputs = self.encode(torch.cat(tiles), pooled_only)
        counts = [len(each) for each in tiles]
        unit = F.normalize(outputs.pooler_output, dim=-1)
        entries = [_mean_unit(part, images) for part in unit.split(counts)]
        maps, corners = [], None
        if not pooled_only:
            states = outputs.last_hidden_state.split(counts)
            wanted = scales if self.patches_wanted else scales[:1]
            maps = [stitch_tiles(self._tokens(part), s, s) for part, s in zip(states, wanted, strict=False)]
        if self.settings.crops:
            guide = unit[:images] if guide_embeds is None else F.normalize(guide_embeds.to(unit), dim=-1)
            corners = self._choose(maps[0], guide)
            crops = self._crops(pixel_values, corners)
            crop_outputs = self.encode(crops, not self.patches_wanted)
            entries.append(_mean_unit(F.normalize(crop_outputs.pooler_output, dim=-1), images))
        fusion = self.model.view_fusion
        found = FinerVisionOutput(
            last_hidden_state=outputs.last_hidden_state[:images],
            pooler_output=_join(entries, fusion and fusion.pooled),
            hidden_states=_first(outputs.hidden_states, images),
            attentions=_first(outputs.attentions, images),
        )
        if self.patches_wanted:
            crop_map = None
            if self.settings.crops:
                tokens = self._tokens(crop_outputs.last_hidden_state)
                crop_map = place_regions(tokens, corners, self._times(self.grid, self.settings.crop_zoom))
            found["patch_features"] = self._join_maps(maps, crop_map)
        if corners is not None:
            found["crop_corners"] = corners * self.model.config.vision_config.patch_size
        return found

    def _tokens(self, states: Tensor) -> Tensor:
        """The tower's last states to unit patch features on their grid, `[V, D, h, w]`."""
        patches = F.normalize(self.model.project_patches(states), dim=-1)
        return patches.transpose(1, 2).unflatten(-1, self.grid)

    def _choose(self, patches: Tensor, guide: Tensor) -> Tensor:
        """Corners of the regions whose patches are most similar to the guide, in patches of the zoomed picture."""
        similarity = torch.einsum(
            "ndhw,nd->nhw", patches.detach().float(), guide.detach().float().expand(len(patches), -1)
        )
        fine = self._times(self.grid, self.settings.crop_zoom)
        return choose_regions(resample_map(similarity[:, None], fine)[:, 0], self.grid, self.settings.crops)

    def _crops(self, pixel_values: Tensor, corners: Tensor) -> Tensor:
        zoomed = resize_pictures(pixel_values, self._times(self.base, self.settings.crop_zoom))
        return take_regions(zoomed, corners * self.model.config.vision_config.patch_size, self.base)

    def _join_maps(self, maps: list[Tensor], crop_map: tuple[Tensor, Tensor] | None) -> Tensor:
        """Patch features of all scales on one grid, `[N, M, D]`; where no crop is, the scales' mean stands for it."""
        size = self.grid if self.settings.patch_grid == "coarse" else self._times(self.grid, self.settings.factor)
        entries = [resample_map(each, size) for each in maps]
        if crop_map is not None:
            values, covered = (resample_map(each, size) for each in crop_map)
            entries.append(values + (1 - covered) * torch.stack(entries).mean(0))
        fusion = self.model.view_fusion
        return _join([each.flatten(2).transpose(1, 2) for each in entries], fusion and fusion.patches)

    @staticmethod
    def _times(size: tuple[int, int], factor: int) -> tuple[int, int]:
        return (size[0] * factor, size[1] * factor)


class FinerVisionMixin:
    """What a dual encoder needs for `at_every_scale`.

    Class attributes:
        has_patch_features: whether patches are part of what the model gives.
    """

    has_patch_features = False

    @property
    def trains_patches(self) -> bool:
        """Whether a loss reads patches, so that their joining can be trained; it is their mean otherwise."""
        return False

    def add_view_fusion(self) -> None:
        """Make the trained weights that the configuration asks for; called while the model is built."""
        settings, self.view_fusion = FinerVision.of(self.config), None
        if settings is None:
            return
        settings.check_tower(self.config.vision_config)
        if settings.fusion == "projection":
            self.view_fusion = ViewFusion(settings.entries, self.config.joint_dim, self.trains_patches)

    def set_finer_vision(self, finer_vision: dict[str, Any] | None, processor: Any = None) -> None:
        """Look at pictures otherwise from now on; `from_pretrained(..., finer_vision=...)` does the same at loading.

        Args:
            finer_vision: fields of `FinerVision`; None: every picture once and whole. A projection starts as the mean.
            processor: is told the size of the pictures, see `fit_pictures`.
        """
        self.config.finer_vision = None if finer_vision is None else FinerVision.read(finer_vision).to_dict()
        self.add_view_fusion()
        if self.view_fusion is not None:
            self.view_fusion.start_as_mean()
            self.view_fusion.to(self.device, self.dtype)
        if processor is not None:
            fit_pictures(processor, self.config)

    def patch_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patch features of pictures of that size in pixels."""
        settings, patch = FinerVision.of(self.config), self.config.vision_config.patch_size
        if settings is None:
            return height // patch, width // patch
        times = settings.factor if settings.patch_grid == "fine" else 1
        return tuple(side // settings.factor // patch * times for side in (height, width))

    def project_patches(self, last_hidden_state: Tensor) -> Tensor:
        """The tower's last states to patches in the joint space, `[V, M, D]`, not normalised.

        CLIP's tower norms its class token only, so the patches get the same norm and projection. SigLIP's pooling head
        ends in the joint space: each patch goes through it as if it were the only one.
        """
        if self.config.has_siglip_towers:
            patches = last_hidden_state.flatten(0, 1)[:, None]
            return self.vision_model.head(patches).unflatten(0, last_hidden_state.shape[:2])
        return self.visual_projection(self.vision_model.post_layernorm(last_hidden_state[:, 1:]))


def fit_pictures(processor: Any, config) -> None:
    """Make a processor hand over pictures of the size that a configuration asks for; nothing changes if it does.

    Args:
        processor: of a dual encoder, or its image processor; changed in place (its `size` and `crop_size`).
        config: of the model.

    Raises:
        ValueError: the processor's pictures are not square.
    """
    images = getattr(processor, "image_processor", processor)
    size = dict(images.size)
    crop = dict(images.crop_size) if getattr(images, "do_center_crop", False) else None
    result = set((crop or size).values())
    if len(result) != 1:
        raise ValueError(f"the processor makes pictures of {crop or size}, finer vision wants square ones.")
    factor = picture_side(config) / result.pop()
    if factor == 1:
        return
    images.size = type(images.size)(**{name: round(value * factor) for name, value in size.items()})
    if crop is not None:
        images.crop_size = type(images.crop_size)(**{name: round(value * factor) for name, value in crop.items()})


def _base_size(config, settings: FinerVision, pixel_values: Tensor, any_size: bool) -> tuple[int, int]:
    """Size of a view; raises ValueError where pictures do not have the size that the scales need."""
    (height, width), factor = pixel_values.shape[-2:], settings.factor
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    base = (height // factor, width // factor)
    fits = not height % factor and not width % factor
    fits = fits and (not (base[0] % patch or base[1] % patch) if any_size else base == (side, side))
    if not fits:
        wanted = f"{factor * side}x{factor * side}"
        other = f", or multiples of {factor * patch}" if any_size else ""
        raise ValueError(
            f"pixel_values are {height}x{width}, but finer_vision (scales {list(settings.scales)}"
            + (f", crops at zoom {settings.crop_zoom}" if settings.crops else "")
            + f") needs pictures of {wanted}{other}: hf_clipplus.models.finer_vision.fit_pictures(processor, "
            "model.config) makes the processor give them."
        )
    return base


def _mean_unit(parts: Tensor, images: int) -> Tensor:
    """Unit vectors `[N V, D]`, picture by picture, to the unit vector of each picture's mean, `[N, D]`."""
    return F.normalize(parts.unflatten(0, (images, -1)).mean(1), dim=-1)


def _join(entries: list[Tensor], linear: nn.Linear | None) -> Tensor:
    """`[..., D]` of each scale to one, by the trained projection where there is one."""
    return torch.stack(entries).mean(0) if linear is None else linear(torch.cat(entries, dim=-1))


def _first(states: tuple[Tensor, ...] | None, count: int) -> tuple[Tensor, ...] | None:
    return None if states is None else tuple(state[:count] for state in states)
