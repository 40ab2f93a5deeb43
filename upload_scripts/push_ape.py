"""Check and push a few-shot classifier that `fit` or examples/train_ape.py saved: heads of every kind but adapters.

APE-T adapters go up with their base: `python examples/train_ape.py --save ape_t --hub_model_id org/ape-t-plus`.

    python upload_scripts/push_ape.py --source outputs/ape/ape --repo_id org/ape-plus --license cc-by-4.0 \\
        --results outputs/ape/ape/results.json
"""

from hf_clipplus.hub.loading import load_from_zoo
from hf_clipplus.hub.release import ReleaseArguments, release
from hf_clipplus.training import parse_arguments


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_arguments((ReleaseArguments,), __doc__, argv)
    print(release(*load_from_zoo(args.source), args))


if __name__ == "__main__":
    main()
