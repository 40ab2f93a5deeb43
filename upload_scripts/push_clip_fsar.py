"""Check and push a CLIP-FSAR model with its support set: a folder that `examples/train_clip_fsar.py` saved.

python upload_scripts/push_clip_fsar.py --source outputs/clip_fsar --repo_id org/clip-fsar-plus --license cc-by-4.0
"""

from hf_clipplus.hub.loading import load_from_zoo
from hf_clipplus.hub.release import ReleaseArguments, release
from hf_clipplus.training import parse_arguments


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_arguments((ReleaseArguments,), __doc__, argv)
    print(release(*load_from_zoo(args.source), args))


if __name__ == "__main__":
    main()
