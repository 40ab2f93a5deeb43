"""Compare CLIP-FSAR with frozen features on the embedded clips: actions and drawings that were never trained on.

    python examples/compare_clip_fsar.py                      # every arm, 3 seeds
    python examples/compare_clip_fsar.py --arms frozen_mean frozen_otam --seeds 0

Each arm is tested 1-shot and 5-shot (5-way), and on order-only episodes: all classes show the same frames in different
orders, so that nothing but a metric that knows order can tell them apart. The tower stays frozen, but for one arm. A
run that is on disk with the same settings is not repeated, so that an interrupted comparison goes on, and two commands
with different --seeds and one --output_dir share the work.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from hf_clipplus.training import parse_arguments
from hf_clipplus.training.few_shot_video_build import CLIPFSARModelArguments, FewShotVideoArguments, build_clip_fsar
from hf_clipplus.training.few_shot_video_compare import Arm, ComparisonArguments, compare

ARMS = {
    "frozen_mean": Arm("frozen tower, mean pooling", {"alignment": "mean", "modulate": False}, trained=False),
    "frozen_otam": Arm("frozen tower, OTAM", {"alignment": "otam", "modulate": False}, trained=False),
    "mean": Arm("trained, mean pooling", {"alignment": "mean"}),
    "bimhm": Arm("trained, Bi-MHM", {"alignment": "bimhm"}),
    "otam": Arm("CLIP-FSAR (OTAM)", {}),
    "otam_no_text": Arm("CLIP-FSAR without text modulation", {"modulate": False}),
    "otam_no_video_text": Arm("CLIP-FSAR without the video-text loss", {"video_text_weight": 0.0}),
    "otam_full": Arm("CLIP-FSAR, tower trained too", {"adaptation": "full"}),
}


@dataclass
class CompareArguments(ComparisonArguments):
    """What is compared, and for how long."""

    arms: list[str] = field(default_factory=lambda: list(ARMS), metadata={"help": f"Any of: {', '.join(ARMS)}."})
    output_dir: str = field(default="outputs/compare_clip_fsar", metadata={"help": "Records, and table.md."})


def build(arm: Arm, data: FewShotVideoArguments) -> tuple[Any, Any]:
    """The starting model of an arm; an untrained one without the temporal transformer."""
    model, processor = build_clip_fsar(CLIPFSARModelArguments(**{"adaptation": "frozen"} | arm.model), data)
    if not arm.trained:
        model.temporal_transformer.layers = nn.ModuleList()
    return model, processor


def main(argv: list[str] | None = None) -> dict[str, list[dict]]:
    (args,) = parse_arguments((CompareArguments,), __doc__, argv)
    return compare(args, ARMS, build, {"steps": "steps", "minutes": "minutes"})


if __name__ == "__main__":
    main()
