"""Configuration of APE-T."""

from dataclasses import dataclass, field

from peft import PeftConfig

from hf_clipplus.tuners.registration import ensure_peft_type


@dataclass
class APETConfig(PeftConfig):
    """Sizes and settings of an APE-T adapter; `attach_ape_t` fills it in.

    Args:
        class_names: the classes of the base model, in order; checked when the adapter is put on a base.
        feature_dim: D, width of the joint space.
        num_channels: Q, channels that carry a residual.
        cache_size: N, images in the cache.
        alpha: weight of the cache term; fixed while training, chosen on validation afterwards.
        beta: sharpness of the affinities; likewise.
        channel_weights: (w0, w1) of the text-only criterion that chose the channels.
        decay_to_one: whether weight decay pulls the images' weights to 1 and not, as published, to 0.
        target_modules: the classifier of `APEForImageClassification`.
    """

    class_names: list[str] = field(default_factory=list, metadata={"help": "Classes of the base model, in order."})
    feature_dim: int = field(default=0, metadata={"help": "Width of the joint space."})
    num_channels: int = field(default=0, metadata={"help": "Channels that carry a residual."})
    cache_size: int = field(default=0, metadata={"help": "Images in the cache."})
    alpha: float = field(default=1.0, metadata={"help": "Weight of the cache term."})
    beta: float = field(default=1.0, metadata={"help": "Sharpness of the affinities."})
    channel_weights: list[float] = field(
        default_factory=lambda: [0.2, 0.8], metadata={"help": "Weights of similarity and variance in the criterion."}
    )
    decay_to_one: bool = field(default=False, metadata={"help": "Weight decay pulls the images' weights to 1, not 0."})
    target_modules: list[str] | str | None = field(
        default_factory=lambda: ["classifier"], metadata={"help": "Name of the zero-shot classifier."}
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules to leave alone."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Further modules to train and save."})

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = ensure_peft_type("APE_T")
