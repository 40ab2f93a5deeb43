"""What MA-CLIP's examples share: settings that are known to work, the frozen model, and what of it is trained."""

from dataclasses import dataclass, field
from typing import Any

from peft import PeftModel

from hf_clipplus.data.clipart import EMBEDDED
from hf_clipplus.models.ma_clip import MACLIPForFewShotVideoClassification, MACLIPProcessor
from hf_clipplus.models.ma_clip.adapters_ma_clip import ADAPTATIONS
from hf_clipplus.models.open_clip_layout import read_checkpoint
from hf_clipplus.tuners.ma_clip import attach_ma_clip, seed_from_aim, trainable_by_group

from .few_shot_video_build import EMBEDDED_ENCODER, FewShotVideoArguments, VideoRecipe, starting_model, with_lora
from .schedules import EpisodeSteps

FITTINGS = ("adapters", "lora", "full", "frozen")
EPOCHS, DEVICES, ITERATIONS_PER_STEP = 10, 2, 8
WEIGHT_DECAY = 5e-4
OWN_WEIGHTS = ("prototype_module.", "temporal_cross_transformer.", "logit_scale")


def _recipe(episodes: int, base_lr: float, warmup_start_lr: float, factors: tuple[float, ...]) -> VideoRecipe:
    """D2ST-Adapter's: episodes of all devices in 10 epochs, one of them warm-up."""
    iterations = episodes // DEVICES // EPOCHS
    steps = EpisodeSteps(base_lr, warmup_start_lr, iterations, (0, 5, 7, 9), factors, 1.0, ITERATIONS_PER_STEP, False)
    return VideoRecipe(steps, EPOCHS * iterations, None, iterations)


# Of D2ST-Adapter's published ViT configurations, the same task on the same towers: MA-CLIP's own is not confirmed
RECIPES = {
    "ssv2_full": _recipe(120_000, 1e-3, 2e-4, (1, 0.5, 0.1, 0.05)),
    "ssv2_small": _recipe(40_000, 1e-3, 2e-4, (1, 0.1, 0.05, 0.01)),
    "kinetics100": _recipe(3_000, 5e-4, 1e-4, (1, 0.1, 0.05, 0.01)),
    "hmdb51": _recipe(3_000, 1e-3, 2e-4, (1, 0.5, 0.1, 0.05)),
    "ucf101": _recipe(2_400, 5e-4, 1e-4, (1, 0.1, 0.05, 0.01)),
}


@dataclass
class MACLIPModelArguments:
    """Where the model starts from, and the settings of MA-CLIP."""

    model_name_or_path: str = field(
        default=EMBEDDED_ENCODER, metadata={"help": "A CLIP or MA-CLIP checkpoint (ViT); the embedded one else."}
    )
    fitting: str = field(
        default="adapters",
        metadata={"help": "What of the vision tower is trained: 'adapters', 'lora', 'full', or 'frozen' for nothing."},
    )
    alignment: str = field(default="otam", metadata={"help": "'otam', 'bimhm', 'trx' or 'mean'."})
    merge: str = field(default="after", metadata={"help": "'after' averages shots, 'distances' their distances."})
    prototype_mode: str = field(
        default="cross", metadata={"help": "Prototype module: 'cross', 'concat_self', 'text_kv' or 'none'."}
    )
    temporal_heads: int = field(default=8, metadata={"help": "Heads of the prototype module."})
    temporal_ffn_dim: int = field(default=256, metadata={"help": "Its inner width (2048 for CLIP's 512)."})
    trx_width: int = field(default=160, metadata={"help": "Width of TRX's layers (1152 for CLIP's 512)."})
    alpha: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the texts in loss and prediction; tune on val. None: 0.5, and for the embedded clips "
            "0, which was best on their validation actions."
        },
    )
    inference_mode: str = field(default="combined", metadata={"help": "'combined', 'visual' or 'text'."})
    num_frames: int = field(default=8, metadata={"help": "Frames of a video."})
    adapter_ratio: float = field(default=0.25, metadata={"help": "Inner width of an adapter over the tower's."})
    joint_scale: float = field(default=0.5, metadata={"help": "Weight of the joint adapter."})
    adaptations: list[str] = field(
        default_factory=lambda: list(ADAPTATIONS), metadata={"help": f"Which of {', '.join(ADAPTATIONS)}."}
    )
    text_in_local: bool = field(default=True, metadata={"help": "Support videos see their class text in the tower."})
    text_proj_shared: bool = field(default=True, metadata={"help": "One text projection, or one in each layer."})
    temporal_embedding: bool = field(default=False, metadata={"help": "A learned embedding of the frame's number."})
    num_temporal_adapters: int = field(default=1, metadata={"help": "2: one more before the temporal attention."})
    drop_path: float = field(default=0.0, metadata={"help": "Stochastic depth of the adapter branches."})
    layers: list[int] | None = field(default=None, metadata={"help": "Adapted layers; all when left alone."})
    aim_checkpoint: str | None = field(default=None, metadata={"help": "AIM checkpoint that adapters start from."})
    lora_rank: int | None = field(default=None, metadata={"help": "Rank; that of the adapters' size else."})

    def __post_init__(self):
        if self.fitting not in FITTINGS:
            raise ValueError(f"fitting {self.fitting!r} is unknown: choose one of {', '.join(FITTINGS)}.")


MODEL_FIELDS = (
    *("alignment", "merge", "prototype_mode", "temporal_heads", "temporal_ffn_dim", "trx_width"),
    *("alpha", "inference_mode", "num_frames"),
)
ADAPTER_FIELDS = (
    *("adapter_ratio", "joint_scale", "adaptations", "text_in_local", "text_proj_shared", "layers"),
    *("temporal_embedding", "num_temporal_adapters", "drop_path", "num_frames"),
)


def build_ma_clip(
    args: MACLIPModelArguments, data: FewShotVideoArguments
) -> tuple[MACLIPForFewShotVideoClassification, MACLIPProcessor]:
    """The starting model, without adapters, and its processor; what CLIP does not have starts at random.

    Raises:
        OSError, ValueError: see `starting_model`.
    """
    fields = {name: getattr(args, name) for name in MODEL_FIELDS} | {"freeze_vision": args.fitting != "full"}
    if args.alpha is None:
        fields["alpha"] = 0.0 if data.dataset == EMBEDDED else 0.5
    return starting_model(
        MACLIPForFewShotVideoClassification,
        MACLIPProcessor,
        args.model_name_or_path,
        fields,
        own=OWN_WEIGHTS,
        frame_sampling="segments",
        stretched=data.dataset != EMBEDDED,
    )


def fit_of(model: MACLIPForFewShotVideoClassification, args: MACLIPModelArguments) -> Any:
    """The model with what is trained of its tower: a PeftModel, or the model itself.

    Args:
        model: of `build_ma_clip`; changed.
        args: `fitting`, the adapters' settings, `aim_checkpoint`, `lora_rank`.
    """
    if args.fitting == "lora":
        return with_lora(model, args.lora_rank or rank_of_adapters(model, args), model.trained_modules or None)
    if args.fitting != "adapters":
        return model
    adapted = attach_ma_clip(model, **{name: getattr(args, name) for name in ADAPTER_FIELDS})
    if args.aim_checkpoint is not None:
        left = seed_from_aim(adapted, read_checkpoint(args.aim_checkpoint))
        print(f"adapters start from {args.aim_checkpoint}; AIM has no {', '.join(left)}")
    return adapted


def rank_of_adapters(model: MACLIPForFewShotVideoClassification, args: MACLIPModelArguments) -> int:
    """The rank at which LoRA on the attention has about as many parameters as the adapters with their projection."""
    vision, text_dim = model.config.vision_config, model.config.projection_dim
    dim, layers = vision.hidden_size, vision.num_hidden_layers
    inner, count = int(args.adapter_ratio * dim), len(args.layers or range(layers))
    projections = (1 if args.text_proj_shared else count) * args.text_in_local
    wanted = count * len(args.adaptations) * (2 * dim * inner + dim + inner) + projections * (text_dim * dim + dim)
    return max(1, round(wanted / (layers * 4 * 2 * dim)))


def describe_trainable(model: Any) -> str:
    """One line for each group of trained parameters, and their share of all."""
    groups, total = trainable_by_group(model), sum(each.numel() for each in model.parameters())
    if isinstance(model, PeftModel):  # the untrained originals of trained modules are no part of the model
        total -= sum(each.numel() for name, each in model.named_parameters() if ".original_module." in name)
    trained = sum(groups.values())
    lines = [f"{name:24} {count:>12,}" for name, count in groups.items()]
    return "\n".join([*lines, f"{'trainable':24} {trained:>12,} of {total:,} ({trained / total:.1%})"])
