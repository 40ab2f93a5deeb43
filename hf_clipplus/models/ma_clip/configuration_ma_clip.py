"""Configuration of MA-CLIP."""

from typing import Any

from huggingface_hub.dataclasses import strict

from hf_clipplus.ops.alignment import ALIGNMENTS

from ..configuration_few_shot_video import INFERENCE_MODES, FewShotVideoConfig

PROTOTYPE_MODES = ("cross", "concat_self", "text_kv", "none")


@strict
class MACLIPConfig(FewShotVideoConfig):
    """MA-CLIP (2308.01532). The paper's text could not be read: what it does not confirm is a field here.

    Args:
        alignment: "otam", "bimhm", "mean", or "trx", which has parameters.
        merge: "after" averages the shots of a class behind the prototype module, "distances" averages the distances to
            the class's videos. TRX always attends to all videos of a class.
        prototype_mode: of the text-guided prototype module. "cross": frames attend to frames and text; "concat_self":
            frames and text attend to themselves, the text row is dropped (with the one layer there is, the same
            numbers); "text_kv": frames attend to the text alone; "none": no module. Without text frames attend to
            frames.
        temporal_heads, temporal_ffn_dim: heads and inner width of that module.
        attention_dropout, ffn_dropout: its dropouts.
        trx_cardinalities, trx_width: frames of a tuple, and output width of TRX's layers.
        alpha: weight of the text in the loss and in the mode "combined".
        inference_mode: "visual" (alignment), "text", or "combined", their probabilities mixed by `alpha`.
        logit_scale_init_value: log of CLIP's temperature, which is not trained, where a checkpoint has none.
        adapters: settings of adapters that the model owns (`AdapterSettings`), as `export_ma_clip` writes them; None
            leaves the towers CLIP's, for adapters of PEFT.
    """

    model_type = "clipplus_ma_clip"

    merge: str = "after"
    freeze_vision: bool = True
    prototype_mode: str = "cross"
    temporal_heads: int = 8
    temporal_ffn_dim: int = 2048
    attention_dropout: float | int = 0.2
    ffn_dropout: float | int = 0.05
    trx_cardinalities: list[int] | tuple[int, ...] = (2, 3)
    trx_width: int = 1152
    alpha: float | int = 0.5
    inference_mode: str = "combined"
    logit_scale_init_value: float | int = 2.6592
    adapters: dict[str, Any] | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.has_resnet:
            raise ValueError("MACLIPConfig.vision_config: MA-CLIP's adapters sit in the layers of a ViT.")
        for name, known in (("prototype_mode", PROTOTYPE_MODES), ("inference_mode", INFERENCE_MODES)):
            if getattr(self, name) not in known:
                raise ValueError(f"MACLIPConfig.{name}={getattr(self, name)!r}: choose one of {', '.join(known)}.")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"MACLIPConfig.alpha={self.alpha} must be between 0 and 1.")
        if self.alignment == "trx" and self.num_frames < max(self.trx_cardinalities):
            raise ValueError(
                f"MACLIPConfig: TRX's tuples of {max(self.trx_cardinalities)} frames cannot be taken from "
                f"num_frames={self.num_frames}."
            )

    @property
    def alignments(self) -> tuple[str, ...]:
        return (*ALIGNMENTS, "trx")

    @property
    def merges(self) -> tuple[str, ...]:
        return ("after", "distances")


__all__ = ["MACLIPConfig"]
