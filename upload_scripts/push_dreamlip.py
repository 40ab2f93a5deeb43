"""Convert, check and push a DreamLIP model: a trained folder, or a published checkpoint.

    python upload_scripts/push_dreamlip.py --source outputs/dreamlip --repo_id org/dreamlip-plus \\
        --license other --dry_run
    python upload_scripts/push_dreamlip.py --source dreamlip.pt --processor openai/clip-vit-base-patch16 \\
        --repo_id org/dreamlip-plus --license other
"""

from hf_clipplus.hub.release import ReleaseArguments, release_source
from hf_clipplus.models.dreamlip import DreamLIPProcessor
from hf_clipplus.models.dreamlip.convert_dreamlip import dreamlip_from_open_clip
from hf_clipplus.training import parse_arguments


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_arguments((ReleaseArguments,), __doc__, argv)
    print(release_source(args, dreamlip_from_open_clip, DreamLIPProcessor))


if __name__ == "__main__":
    main()
