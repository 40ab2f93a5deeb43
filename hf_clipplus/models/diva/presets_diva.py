"""Published settings of DIVA's backbones, the follow-ups' two-stage settings, and those of the embedded example."""

from dataclasses import dataclass, field
from typing import Any

_OPENAI = {"recap": "random_k", "recap_k": 76, "prompt_mode": "token_add", "official_embedding": "openai"}
_METACLIP = {"recap": "all", "prompt_mode": "mean_add", "official_embedding": "metaclip"}


@dataclass(frozen=True)
class Preset:
    """How a backbone is trained.

    Args:
        model: Hub id of the backbone; None: the embedded encoder.
        config: fields of `DIVAConfig`.
        published: MMVP-VLM averages in percent, before and after, as the authors report them (the rule of the image
            embedding differs between the two, see PAPERS.md); None where nothing is published.
    """

    model: str | None
    config: dict[str, Any] = field(default_factory=dict)
    published: tuple[float, float] | None = None


PRESETS = {
    "openai-l14-224": Preset("openai/clip-vit-large-patch14", _OPENAI, (19.3, 25.9)),
    "openai-l14-336": Preset("openai/clip-vit-large-patch14-336", _OPENAI, (20.0, 25.2)),
    "metaclip-l14-224": Preset("facebook/metaclip-l14-fullcc2.5b", _METACLIP, (23.7, 27.4)),
    "metaclip-h14-224": Preset("facebook/metaclip-h14-fullcc2.5b", _METACLIP, (25.2, 31.9)),
    "siglip-so14-224": Preset(
        "google/siglip-so400m-patch14-224",
        {"recap": "avgpool", "recap_window": 6, "prompt_mode": "mean_add", "official_embedding": "siglip"},
        (37.8, 40.7),
    ),
    "siglip-so14-384": Preset(
        "google/siglip-so400m-patch14-384",
        {"recap": "avgpool", "recap_window": 10, "prompt_mode": "mean_add", "official_embedding": "siglip"},
        (37.0, 38.5),
    ),
    "dfn-h14-224": Preset("apple/DFN5B-CLIP-ViT-H-14", _METACLIP | {"official_embedding": "dfn224"}, (39.3, 43.7)),
    "dfn-h14-378": Preset(
        "apple/DFN5B-CLIP-ViT-H-14-378",
        {"recap": "random_ratio", "recap_ratio": 0.5, "prompt_mode": "mean_add", "official_embedding": "dfn378"},
        (34.8, 37.8),
    ),
    # class token alone, a deeper projector that is trained first: GenHancer (2503.19480), DCR (2603.04803)
    "two_stage": Preset(
        "openai/clip-vit-large-patch14", {"recap": "cls", "prompt_mode": "token_add", "projector": "mlp"}
    ),
    "embedded": Preset(
        None, {"recap": "random_ratio", "recap_ratio": 0.5, "prompt_mode": "mean_add", "prompt": "a drawing of a ."}
    ),
}


def preset(name: str) -> Preset:
    """The preset of that name; raises KeyError that lists the known ones."""
    if name not in PRESETS:
        raise KeyError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
