"""Evaluates a model of the zoo or any CLIP/SigLIP-like model: zero-shot classification and retrieval.

    python examples/evaluate.py --model openai/clip-vit-base-patch32                      # the embedded drawings
    python examples/evaluate.py --model runs/fff --classification data/pets --retrieval data/flickr.parquet

A classification folder has one folder of images per class (`<split>/<class>/*.png`); with a `classnames.txt` and a
`zeroshot_classification_templates.txt` of clip-benchmark in it, those name the classes and give the prompts.
"""

import shlex
import sys
from collections.abc import Sequence

import hf_clipplus  # noqa: F401  registers the zoo's models with AutoModel
from hf_clipplus.evaluation.any_model import EvaluationArguments, evaluate
from hf_clipplus.evaluation.results import Results
from hf_clipplus.training.arguments import parse_arguments


def main(argv: Sequence[str] | None = None) -> Results:
    (args,) = parse_arguments([EvaluationArguments], __doc__.splitlines()[0], argv)
    command = shlex.join(["python", "examples/evaluate.py", *(sys.argv[1:] if argv is None else argv)])
    results = evaluate(args, command)
    print(results.to_markdown())
    print(f"{len(results.entries)} numbers in {args.output}")
    return results


if __name__ == "__main__":
    main()
