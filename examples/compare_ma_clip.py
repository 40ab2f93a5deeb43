"""Compare MA-CLIP with what it is made of, on the embedded clips: actions and drawings that were never trained on.

    python examples/compare_ma_clip.py                         # every arm, 3 seeds
    python examples/compare_ma_clip.py --arms frozen_mean otam --seeds 0 --steps 100

The arms: metrics; adapters against LoRA of the same size, full fine-tuning of the tower, and the prototype module on a
frozen tower; each of the three adaptations, the text inside the tower and the prototype module left out; the text in
loss and prediction added; and frozen features without anything trained. Each is tested 1-shot and 5-shot (5-way),
and on order-only episodes: all classes show the same frames in different orders. A run that is on disk with the same
settings is not repeated, so that an interrupted comparison goes on, and two commands with different --seeds and one
--output_dir share the work.
"""

from dataclasses import dataclass, field
from typing import Any

from hf_clipplus.training import parse_arguments
from hf_clipplus.training.few_shot_video_build import FewShotVideoArguments
from hf_clipplus.training.few_shot_video_compare import Arm, ComparisonArguments, compare
from hf_clipplus.training.ma_clip_build import MACLIPModelArguments, build_ma_clip, describe_trainable, fit_of

# Nothing but frames: what the metric makes of the frozen tower
PLAIN = {"fitting": "frozen", "prototype_mode": "none", "inference_mode": "visual"}
ARMS = {
    "frozen_mean": Arm("frozen tower, mean pooling", {**PLAIN, "alignment": "mean"}, trained=False),
    "frozen_otam": Arm("frozen tower, OTAM", {**PLAIN, "alignment": "otam"}, trained=False),
    "otam": Arm("MA-CLIP (OTAM)", {}),
    "bimhm": Arm("MA-CLIP (Bi-MHM)", {"alignment": "bimhm"}),
    "trx": Arm("MA-CLIP (TRX)", {"alignment": "trx"}),
    "lora": Arm("LoRA of the adapters' size instead", {"fitting": "lora"}),
    "full": Arm("full fine-tuning of the tower instead", {"fitting": "full"}),
    "head_only": Arm("frozen tower, prototype module trained", {"fitting": "frozen"}),
    "no_temporal": Arm("without the temporal adaptation", {"adaptations": ["local", "joint"]}),
    "no_local": Arm("without the local adaptation", {"adaptations": ["temporal", "joint"]}),
    "no_joint": Arm("without the joint adaptation", {"adaptations": ["temporal", "local"]}),
    "no_text_in_tower": Arm("without text in the local adaptation", {"text_in_local": False}),
    "no_prototype_module": Arm("without the prototype module", {"prototype_mode": "none"}),
    "text_in_loss": Arm("with text in loss and prediction", {"alpha": 0.5}),
    "frame_numbers": Arm("with a temporal embedding", {"temporal_embedding": True}),
}


@dataclass
class CompareArguments(ComparisonArguments):
    """What is compared, and for how long."""

    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": f"Any of: {', '.join(ARMS)}."})
    steps: int | None = field(default=400, metadata={"help": "Steps of each trained arm."})
    episodes_per_step: int = field(default=1, metadata={"help": "Training episodes of a step."})
    output_dir: str = field(default="outputs/compare_ma_clip", metadata={"help": "Records, and table.md."})


def build(arm: Arm, data: FewShotVideoArguments) -> tuple[Any, Any]:
    """The starting model of an arm."""
    settings = MACLIPModelArguments(**arm.model)
    base, processor = build_ma_clip(settings, data)
    model = fit_of(base, settings)
    if arm.trained:
        print(describe_trainable(model), flush=True)
    return model, processor


def main(argv: list[str] | None = None) -> dict[str, list[dict]]:
    (args,) = parse_arguments((CompareArguments,), __doc__, argv)
    return compare(
        args, ARMS, build, {"steps": "steps", "minutes": "minutes", "trained parameters": "trained_parameters"}
    )


if __name__ == "__main__":
    main()
