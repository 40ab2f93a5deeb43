"""Configuration of CLIP-FSAR."""

from huggingface_hub.dataclasses import strict

from ..configuration_few_shot_video import INFERENCE_MODES, FewShotVideoConfig


@strict
class CLIPFSARConfig(FewShotVideoConfig):
    """CLIP-FSAR (2303.02982). Defaults are the published ones; the ViT's training settings are not published.

    Args:
        temporal_depth, temporal_heads, temporal_ffn_dim: layers, heads and inner width of the temporal transformer.
        attention_dropout, ffn_dropout: its dropouts.
        video_text_weight: of the video-text loss; published 3.0 (SSv2), 1.5 (Kinetics, UCF101), 1.2 (HMDB51).
        text_scale_init_value: first inverse temperature of the video-text logits. The published 1.0 leaves the softmax
            almost flat, and hardly moves in training.
        modulate: whether the class text is appended to the support frames; without it the temporal transformer sees
            frames only.
        inference_mode: "visual", "text" or "combined".
        combine_beta: exponent of the text's probabilities in "combined".
        combine_divisor: distances over this are the visual logits of "combined"; published 8 at any frame count.
    """

    model_type = "clipplus_clip_fsar"

    temporal_depth: int = 1
    temporal_heads: int = 8
    temporal_ffn_dim: int = 2048
    attention_dropout: float | int = 0.2
    ffn_dropout: float | int = 0.05
    video_text_weight: float | int = 1.5
    text_scale_init_value: float | int = 1.0
    modulate: bool = True
    inference_mode: str = "visual"
    combine_beta: float | int = 0.9
    combine_divisor: float | int = 8.0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.inference_mode not in INFERENCE_MODES:
            raise ValueError(
                f"CLIPFSARConfig.inference_mode={self.inference_mode!r}: choose one of {INFERENCE_MODES}."
            )
        if not 0 <= self.combine_beta <= 1:
            raise ValueError(f"CLIPFSARConfig.combine_beta={self.combine_beta} must be between 0 and 1.")


__all__ = ["CLIPFSARConfig"]
