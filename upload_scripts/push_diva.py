"""Check and push a DIVA model: a folder that `examples/train_diva.py` saved.

python upload_scripts/push_diva.py --source outputs/diva --repo_id org/diva-plus --license cc-by-4.0
"""

from hf_clipplus.hub.loading import load_from_zoo
from hf_clipplus.hub.release import ReleaseArguments, release
from hf_clipplus.training import parse_arguments


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_arguments((ReleaseArguments,), __doc__, argv)
    print(release(*load_from_zoo(args.source), args))


if __name__ == "__main__":
    main()
