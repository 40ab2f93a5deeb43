"""What the few-shot video examples share: published recipes, the starting model, videos, episodes and evaluators."""

from dataclasses import dataclass, field
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoProcessor, AutoTokenizer

from hf_clipplus.data.clipart import EMBEDDED
from hf_clipplus.data.episodes import UNREADABLE, EpisodeDataset, EpisodeSampler
from hf_clipplus.data.few_shot_videos import VideoSplit, embedded_clips, open_video_split
from hf_clipplus.data.report import DataReport
from hf_clipplus.data.video_views import CROP_ONLY, KINETICS_QUERIES, ViewSampler
from hf_clipplus.evaluation.few_shot_video import FewShotVideoEvaluation
from hf_clipplus.models.clip_fsar import CLIPFSARForFewShotVideoClassification, CLIPFSARProcessor
from hf_clipplus.models.few_shot_video import FewShotVideoModel
from hf_clipplus.models.video_processing import VideoFrameProcessor

from .episodic import EpisodicTrainingArguments
from .schedules import EpisodeSteps
from .start import load_to_train

EMBEDDED_ENCODER = "examples/checkpoints/clipart-clip"
RESIZE_MARGIN = 256 / 224  # published side that frames are stretched to, over the crop
ADAPTATIONS = ("full", "lora", "frozen")


@dataclass(frozen=True)
class VideoRecipe:
    """What was published for one data set (RN50; nothing is published for ViT).

    Args:
        steps: learning rates.
        episodes: training iterations of one process.
        video_text_weight: w of CLIP-FSAR's loss; None for MA-CLIP.
        evaluate_every: iterations.
        frame_sampling: see `models.video_frames.frame_sampler`.
        seed: of the run.
    """

    steps: EpisodeSteps
    episodes: int
    video_text_weight: float | None
    evaluate_every: int
    frame_sampling: str = "segments"
    seed: int = 0


RECIPES = {
    "ssv2_small": VideoRecipe(EpisodeSteps(5e-5, 2e-5, 2000), 30000, 3.0, 1000),
    "ssv2_full": VideoRecipe(EpisodeSteps(5e-5, 1e-5, 4000), 30000, 3.0, 1000),
    "kinetics100": VideoRecipe(EpisodeSteps(1e-5, 5e-6, 250, (0, 6, 9)), 5000, 1.5, 100, "kinetics", 18),
    "ucf101": VideoRecipe(EpisodeSteps(2e-6, 1e-7, 600), 3000, 1.5, 100),
    "hmdb51": VideoRecipe(EpisodeSteps(1e-5, 1e-6, 700), 5000, 1.2, 300),
}
PUBLISHED_WEIGHT_DECAY = 1e-3
PUBLISHED_EPISODES_PER_STEP = 16


@dataclass
class FewShotVideoArguments:
    """Videos, episodes and how they are evaluated."""

    dataset: str = field(
        default=EMBEDDED,
        metadata={
            "help": f"'{EMBEDDED}': the embedded clips. Or a folder of videos with train.txt, val.txt, test.txt (the "
            "published lists) or train/<class>/<video>, val/..., test/..."
        },
    )
    preset: str | None = field(
        default=None,
        metadata={"help": f"Published recipe and class names of a data set: {', '.join(RECIPES)}."},
    )
    way: int = field(default=5, metadata={"help": "Classes of an episode."})
    shots: int = field(default=1, metadata={"help": "Support videos of a class in training; published 1."})
    queries: int = field(default=5, metadata={"help": "Query videos of a class in training."})
    eval_shots: list[int] = field(default_factory=lambda: [1, 5], metadata={"help": "Shots of the tests."})
    eval_episodes: int = field(default=10_000, metadata={"help": "Episodes of a test; a tenth of them on val."})
    eval_frames: str = field(default="centre", metadata={"help": "'centre', or 'random' as in the published tests."})
    clips_per_class: int = field(default=40, metadata={"help": "Embedded clips of each action."})
    on_bad_video: str = field(default="raise", metadata={"help": "'raise', or 'replace' and count."})

    def __post_init__(self):
        if self.preset is not None and self.preset not in RECIPES:
            raise ValueError(f"preset {self.preset!r} is unknown: choose one of {', '.join(RECIPES)}.")


@dataclass
class ClipTrainingArguments(EpisodicTrainingArguments):
    """Defaults that suit the embedded clips on a CPU; every one can be set."""

    max_steps: int = 200
    per_device_train_batch_size: int = 1
    gradient_accumulation_steps: int = 2
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.1
    eval_strategy: str = "steps"
    eval_steps: float = 50
    save_strategy: str = "steps"
    save_steps: float = 50
    save_total_limit: int | None = 2
    load_best_model_at_end: bool = True
    metric_for_best_model: str | None = "eval_val_accuracy"
    logging_steps: float = 10


@dataclass
class CLIPFSARModelArguments:
    """Where the model starts from, and the settings of CLIP-FSAR."""

    model_name_or_path: str = field(
        default=EMBEDDED_ENCODER, metadata={"help": "A CLIP or CLIP-FSAR checkpoint (ViT); the embedded one else."}
    )
    alignment: str = field(default="otam", metadata={"help": "'otam', 'bimhm' or 'mean'."})
    merge: str = field(default="before", metadata={"help": "Shots are averaged 'before' or 'after' the transformer."})
    modulate: bool = field(default=True, metadata={"help": "Whether class texts modulate the prototypes."})
    video_text_weight: float | None = field(
        default=None, metadata={"help": "Weight of the video-text loss; the preset's, or 1.5."}
    )
    text_scale_init_value: float = field(
        default=1.0, metadata={"help": "First inverse temperature of the video-text loss; published 1."}
    )
    num_frames: int = field(default=8, metadata={"help": "Frames of a video."})
    adaptation: str = field(
        default="full",
        metadata={"help": "Of the vision tower: 'full' training, 'lora' (PEFT), or 'frozen'."},
    )
    lora_rank: int = field(default=16, metadata={"help": "Rank of the LoRA matrices."})

    def __post_init__(self):
        if self.adaptation not in ADAPTATIONS:
            raise ValueError(f"adaptation {self.adaptation!r} is unknown: choose one of {', '.join(ADAPTATIONS)}.")


def build_clip_fsar(
    args: CLIPFSARModelArguments, data: FewShotVideoArguments
) -> tuple[CLIPFSARForFewShotVideoClassification, CLIPFSARProcessor]:
    """The starting model and its processor; what CLIP does not have starts at random.

    Raises:
        OSError: `model_name_or_path` is neither a folder nor a Hub id.
        ValueError: the checkpoint lacks weights of CLIP.
    """
    recipe = RECIPES.get(data.preset)
    weight = args.video_text_weight
    if weight is None:
        weight = recipe.video_text_weight if recipe else 1.5
    fields = {name: getattr(args, name) for name in ("alignment", "merge", "modulate", "num_frames")}
    fields |= {"video_text_weight": weight, "text_scale_init_value": args.text_scale_init_value}
    fields["freeze_vision"] = args.adaptation == "frozen"
    return starting_model(
        CLIPFSARForFewShotVideoClassification,
        CLIPFSARProcessor,
        args.model_name_or_path,
        fields,
        own=("temporal_transformer.", "video_text_scale"),
        frame_sampling=recipe.frame_sampling if recipe else "segments",
        stretched=data.dataset != EMBEDDED,
    )


def starting_model(
    model_class: type[FewShotVideoModel],
    processor_class: type,
    name: str,
    fields: dict[str, Any],
    *,
    own: tuple[str, ...],
    frame_sampling: str,
    stretched: bool,
) -> tuple[FewShotVideoModel, Any]:
    """A model of the variant and its processor, from one of it or from any CLIP.

    Args:
        model_class, processor_class: of the variant.
        name: folder or Hub id.
        fields: of the configuration, set in any case.
        own: starts of the names of weights that CLIP does not have.
        frame_sampling: see `models.video_frames.frame_sampler`.
        stretched: whether frames are made larger than what is cropped of them.

    Raises:
        OSError: `name` is neither a folder nor a Hub id.
        ValueError: the checkpoint lacks weights of CLIP.
    """
    found, config_class = AutoConfig.from_pretrained(name), model_class.config_class
    if found.model_type == config_class.model_type:
        return load_to_train(model_class, name, added=own, **fields)[0], AutoProcessor.from_pretrained(name)
    towers = {side: getattr(found, side).to_dict() for side in ("text_config", "vision_config")}
    config = config_class(**towers, projection_dim=found.projection_dim, **fields)
    model, _ = load_to_train(model_class, name, added=own, config=config)
    side = model.config.vision_config.image_size
    frames = VideoFrameProcessor(
        resize=round(side * RESIZE_MARGIN) if stretched else side,
        crop=side,
        num_frames=config.num_frames,
        frame_sampling=frame_sampling,
        **_channels(name),
    )
    return model, processor_class(frames, AutoTokenizer.from_pretrained(name))


LORA_TARGETS = r"vision_model\..*\.(q_proj|k_proj|v_proj|out_proj)"


def with_lora(model: FewShotVideoModel, rank: int, modules: list[str] | None) -> PeftModel:
    """The model with LoRA on the attention of a ViT tower, and some modules trained in full (PEFT).

    Args:
        model: with a ViT tower.
        rank: of the matrices.
        modules: names of the modules outside the towers.

    Raises:
        ValueError: a ResNet tower.
    """
    if model.config.has_resnet:
        raise ValueError("LoRA is placed on the attention of a ViT; a ResNet tower has only that of its pooling.")
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_TARGETS, modules_to_save=modules)
    return get_peft_model(model, config)


def open_split(data: FewShotVideoArguments, split: str, *, image_size: int, num_frames: int) -> VideoSplit:
    """The videos of one split; the embedded ones of the size of the model's frames."""
    if data.dataset != EMBEDDED:
        return open_video_split(data.dataset, split, dataset=data.preset)
    return embedded_clips(split, per_class=data.clips_per_class, frames=num_frames, image_size=image_size)


def training_episodes(
    data: FewShotVideoArguments,
    split: VideoSplit,
    processor: Any,
    *,
    length: int,
    seed: int,
    query_view: ViewSampler | None = None,
) -> tuple[EpisodeDataset, DataReport]:
    """Random episodes of the training videos, and the report of what they lose.

    Args:
        data, split, processor: what is drawn, and how it is shown.
        length: episodes.
        seed: of the run.
        query_view: how queries are shown; None takes what CLIP-FSAR published for the preset.
    """
    report = DataReport([UNREADABLE])
    sampler = EpisodeSampler(split.labels, way=data.way, shots=data.shots, queries=data.queries, seed=seed)
    frames = processor.image_processor
    episodes = EpisodeDataset(
        split,
        sampler,
        length=length,
        num_frames=frames.num_frames,
        frame_sampling=frames.frame_sampling,
        query_view=query_view or (KINETICS_QUERIES if data.preset == "kinetics100" else CROP_ONLY),
        on_bad_video=data.on_bad_video,
        report=report,
    )
    return episodes, report


def validation_evaluators(data: FewShotVideoArguments, split: VideoSplit) -> list[FewShotVideoEvaluation]:
    """What decides the best checkpoint: the first of the tests' shots on validation videos, never test videos."""
    return [
        FewShotVideoEvaluation(
            split,
            way=data.way,
            shots=data.eval_shots[0],
            episodes=max(1, data.eval_episodes // 10),
            frames=data.eval_frames,
            name="val",
        )
    ]


def final_evaluators(data: FewShotVideoArguments, split: VideoSplit) -> list[FewShotVideoEvaluation]:
    """The tests: each number of shots, and, where the split has them, classes that only the order tells apart."""
    options = {"episodes": data.eval_episodes, "frames": data.eval_frames}
    found = [
        FewShotVideoEvaluation(split, way=data.way, shots=shots, name=f"test_{shots}_shot", **options)
        for shots in data.eval_shots
    ]
    if split.groups:
        way = min(data.way, *(len(group) for group in split.groups))
        found += [
            FewShotVideoEvaluation(
                split, way=way, shots=shots, name=f"test_{shots}_shot_order_only", same_group=True, **options
            )
            for shots in data.eval_shots
        ]
    return found


def _channels(name: str) -> dict[str, list[float]]:
    """Mean and standard deviation that a CLIP checkpoint was trained with."""
    image_processor = AutoProcessor.from_pretrained(name).image_processor
    return {"image_mean": image_processor.image_mean, "image_std": image_processor.image_std}
