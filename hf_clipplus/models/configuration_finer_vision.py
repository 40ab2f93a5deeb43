"""Settings of finer vision: the scales and crops at which a dual encoder looks at a picture, and how it joins them."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

FUSIONS = ("mean", "projection")
PATCH_GRIDS = ("coarse", "fine")


@dataclass(frozen=True)
class FinerVision:
    """What `config.finer_vision` may hold; left alone, a field keeps the value below, and `{}` changes nothing.

    Args:
        scales: whole numbers, ascending, beginning with 1 (the whole picture at the tower's size). Scale s is the
            picture s times as large, in s x s tiles of the tower's size.
        fusion: "mean" of the scales (a training-free choice), or a trained "projection" of their concatenation, which
            starts as the mean. Crops count as one more scale.
        patch_grid: on which grid patch features are given: "coarse", as many as without finer vision (finer scales are
            averaged), or "fine", the grid of the finest scale or crop (coarser ones are interpolated).
        crops: regions of a picture that are encoded again, larger: those whose patches are most similar to the class
            (or pooled) token, or to a text, see `DualEncoderModel.get_image_features`. 0: none.
        crop_zoom: how much larger, a whole number above 1; a region is the tower's size over this.

    Raises:
        ValueError: a field that is unknown or out of range.
    """

    scales: tuple[int, ...] = (1,)
    fusion: str = "mean"
    patch_grid: str = "coarse"
    crops: int = 0
    crop_zoom: int = 2

    def __post_init__(self):
        scales = self.scales if isinstance(self.scales, list | tuple) else (self.scales,)
        if not scales or any(not _is_number(scale) or scale <= 0 for scale in scales):
            raise ValueError(f"finer_vision.scales={self.scales}: expected numbers above 0, such as [1, 2].")
        if fractions := [scale for scale in scales if scale != int(scale)]:
            raise ValueError(
                f"finer_vision.scales={self.scales}: tiles of the tower's size do not divide a picture {fractions[0]} "
                "times as large; expected whole numbers."
            )
        scales = tuple(map(int, scales))
        if list(scales) != sorted(set(scales)) or scales[0] != 1:
            raise ValueError(f"finer_vision.scales={self.scales}: expected ascending scales that begin with 1.")
        object.__setattr__(self, "scales", scales)
        for name, known in (("fusion", FUSIONS), ("patch_grid", PATCH_GRIDS)):
            if getattr(self, name) not in known:
                raise ValueError(f"finer_vision.{name}={getattr(self, name)!r} is unknown: choose one of {known}.")
        for name, least in (("crops", 0), ("crop_zoom", 2)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"finer_vision.{name}={value!r}: expected a whole number of at least {least}.")
        if self.fusion == "projection" and self.entries == 1:
            raise ValueError("finer_vision.fusion='projection' has nothing to join: give more scales, or crops.")

    @property
    def entries(self) -> int:
        """What is joined: the scales, and the crops as one more."""
        return len(self.scales) + bool(self.crops)

    @property
    def factor(self) -> int:
        """How many times the tower's size the pictures must have."""
        return max(self.scales[-1], self.crop_zoom if self.crops else 1)

    def views(self) -> int:
        """Passes of the tower over a picture."""
        return sum(scale * scale for scale in self.scales) + self.crops

    def to_dict(self) -> dict[str, Any]:
        """Every field, as it goes into `config.json`."""
        return asdict(self) | {"scales": list(self.scales)}

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "FinerVision | None":
        """The settings of a model's configuration; None where pictures are seen once and whole."""
        given = getattr(config, "finer_vision", None)
        found = None if given is None else cls.read(given)
        return None if found is None or found.entries == 1 else found

    @classmethod
    def read(cls, given: "dict[str, Any] | str | FinerVision") -> "FinerVision":
        """Settings from a dict, or from JSON as on a command line.

        Raises:
            ValueError: malformed JSON, an unknown field, or see above.
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, str):
            try:
                given = json.loads(given)
            except json.JSONDecodeError as error:
                raise ValueError(f"finer_vision: {given!r} is no JSON ({error}).") from error
        known = [field.name for field in fields(cls)]
        if not isinstance(given, dict) or not given.keys() <= set(known):
            unknown = sorted(given.keys() - set(known)) if isinstance(given, dict) else repr(given)
            raise ValueError(f"finer_vision: unknown {unknown}; expected a dict with {', '.join(known)}.")
        return cls(**given)

    def check_tower(self, vision_config: PreTrainedConfig) -> None:
        """Whether the tower's pictures can be cropped so.

        Raises:
            ValueError: patches that do not divide a tile, or more crops than there are places.
        """
        if not self.crops:
            return
        side, patch = vision_config.image_size, vision_config.patch_size
        if side % patch:
            raise ValueError(f"finer_vision.crops: patches of {patch} pixels do not divide pictures of {side}.")
        places = ((self.crop_zoom - 1) * (side // patch) + 1) ** 2
        if self.crops > places:
            raise ValueError(
                f"finer_vision.crops={self.crops} is more than the {places} places that a region has on the patches "
                f"of a picture of {side} pixels at crop_zoom={self.crop_zoom}."
            )


def picture_side(config: PreTrainedConfig) -> int:
    """Side in pixels of the pictures that a dual encoder wants: its tower's, times what finer vision needs."""
    settings = FinerVision.of(config)
    return config.vision_config.image_size * (1 if settings is None else settings.factor)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


__all__ = ["FinerVision", "picture_side"]
