"""Configuration of FFF."""

from math import log

from huggingface_hub.dataclasses import strict

from hf_clipplus.models.configuration_mined_positives import MinedPositivesConfig


@strict
class FFFConfig(MinedPositivesConfig):
    """FFF ("Fixing Flawed Foundations in contrastive pre-training", 2405.10286): CLIP towers, sigmoid loss, mining.

    Args:
        contrastive_loss: "sigmoid" (FFF, SigLIP) or "softmax" (CLIP, the baseline).
        captions_per_image: pseudo-captions of one image in a batch, at most.
        use_raw_caption: "append" puts the raw caption before the pseudo-captions, "replace" drops it when there are
            pseudo-captions.
        mining_features and what follows it: see `MinedPositivesConfig`.
    """

    model_type = "clipplus_fff"
    keys_to_ignore_at_inference = ["positives", "statistics"]

    logit_scale_init_value: float | int = log(10)
    captions_per_image: int = 5
    use_raw_caption: str = "append"
    mining_features: str | None = "precomputed"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.require_one_of("use_raw_caption", ("append", "replace"))


__all__ = ["FFFConfig"]
