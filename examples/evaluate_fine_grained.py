"""Fine-grained scores of any models of the zoo or of transformers (CLIP, SigLIP), under one rule, in one table.

    python examples/evaluate_fine_grained.py --models examples/checkpoints/clipart-clip outputs/fff   # embedded scenes
    python examples/evaluate_fine_grained.py --benchmark winoground --data facebook/winoground --models A B
    python examples/evaluate_fine_grained.py --benchmark sugarcrepe --data data --images val2017 --models A B
    python examples/evaluate_fine_grained.py --benchmark mmvp --data MMVP_VLM --models A B

Pairs are scored like Winoground: text (each image prefers its own text), image (each text prefers its own image, which
is MMVP's score), group (both). SugarCrepe's score is the share of images that prefer their caption to a false one. The
first model is the one that the others are compared with, pair by pair (McNemar). --sheet draws the pairs.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hf_clipplus.data.mmvp_source import read_mmvp
from hf_clipplus.data.sugarcrepe_source import read_sugarcrepe
from hf_clipplus.data.winoground_source import read_winoground
from hf_clipplus.evaluation.fine_grained import CaptionChoiceEvaluator, FineGrainedEvaluator
from hf_clipplus.evaluation.fine_grained_scores import fine_grained_table
from hf_clipplus.evaluation.gallery import pair_sheet
from hf_clipplus.evaluation.loading import load_dual_encoder
from hf_clipplus.evaluation.mmvp import PUBLISHED_PREFIX, score_models
from hf_clipplus.evaluation.mmvp_scores import comparison_table
from hf_clipplus.evaluation.scenes import fine_grained_scenes
from hf_clipplus.training import parse_arguments

SHEET_PAIRS_PER_KIND = 3


@dataclass
class FineGrainedArguments:
    """Which models, on which pairs."""

    models: list[str] = field(
        default_factory=list, metadata={"help": "Folders or Hub ids; the first is compared with. None: only --sheet."}
    )
    benchmark: str = field(
        default="scenes",
        metadata={"help": "What is read from --data.", "choices": ["scenes", "mmvp", "winoground", "sugarcrepe"]},
    )
    data: str | None = field(
        default=None,
        metadata={"help": "Folder of MMVP-VLM, folder, parquet file or Hub id of Winoground's form, folder of JSON."},
    )
    images: str | None = field(default=None, metadata={"help": "Folder of the images of sugarcrepe."})
    tag: str | None = field(default=None, metadata={"help": "Column of winoground that becomes the kind."})
    split: str = field(default="test", metadata={"help": "Of the embedded drawings, or of a data set of the Hub."})
    image_size: int = field(default=96, metadata={"help": "Side of the embedded scenes, the same for every model."})
    pairs: int = field(default=60, metadata={"help": "Embedded pairs of each kind."})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, mps; None takes the GPU if there is one."})
    sheet: str | None = field(
        default=None, metadata={"help": "Picture file with some pairs; green: right for the last model (group)."}
    )
    output: str | None = field(default=None, metadata={"help": "JSON file with every pair of every model."})


def build_evaluator(args: FineGrainedArguments) -> FineGrainedEvaluator | CaptionChoiceEvaluator:
    """The evaluator of the benchmark.

    Raises:
        ValueError: a folder that the benchmark needs was not given.
    """
    if args.benchmark == "scenes":
        return fine_grained_scenes(args.split, image_size=args.image_size, pairs_per_kind=args.pairs)
    wanted = ("data", "images") if args.benchmark == "sugarcrepe" else ("data",)
    if absent := [f"--{name}" for name in wanted if getattr(args, name) is None]:
        raise ValueError(f"--benchmark {args.benchmark} needs {' and '.join(absent)}.")
    if args.benchmark == "sugarcrepe":
        return CaptionChoiceEvaluator(read_sugarcrepe(args.data, args.images))
    if args.benchmark == "mmvp":
        return FineGrainedEvaluator(read_mmvp(args.data), prefix=PUBLISHED_PREFIX)
    return FineGrainedEvaluator(read_winoground(args.data, split=args.split, tag=args.tag))


def draw_sheet(evaluator: FineGrainedEvaluator, file: str) -> None:
    """Save the first pairs of each kind."""
    shown, seen = [], {}
    for number, pair in enumerate(evaluator.pairs):
        seen[pair.pattern] = seen.get(pair.pattern, 0) + 1
        if seen[pair.pattern] <= SHEET_PAIRS_PER_KIND:
            shown.append(number)
    correct = evaluator.scores.group.correct.tolist() if evaluator.scores else []
    marks = [correct[number] for number in shown] if correct else []
    pair_sheet([evaluator.pairs[number] for number in shown], correct=marks).save(file)


def main(argv: list[str] | None = None) -> str:
    (args,) = parse_arguments((FineGrainedArguments,), __doc__, argv)
    if not args.models and not args.sheet:
        raise SystemExit("nothing to do: give --models, or --sheet to look at the pairs.")
    if args.sheet and args.benchmark == "sugarcrepe":
        raise SystemExit("--sheet draws pairs of images; sugarcrepe has single ones.")
    evaluator = build_evaluator(args)
    models = {name: load_dual_encoder(name, device=args.device, dtype=torch.float32) for name in args.models}
    scores = score_models(evaluator, models)
    if args.sheet:
        draw_sheet(evaluator, args.sheet)
    if not scores:
        return ""
    of_pairs = isinstance(evaluator, FineGrainedEvaluator)
    table = (fine_grained_table if of_pairs else comparison_table)(scores)
    print(table)
    if args.output:
        names = ("text", "image", "group")
        right = {
            name: {key: getattr(one, key).correct.tolist() for key in names} if of_pairs else one.correct.tolist()
            for name, one in scores.items()
        }
        Path(args.output).write_text(json.dumps({"benchmark": args.benchmark, "right": right}, indent=1))
    return table


if __name__ == "__main__":
    main()
