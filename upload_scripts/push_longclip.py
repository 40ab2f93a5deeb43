"""Convert, check and push a Long-CLIP model: a trained folder, or a published checkpoint.

    python upload_scripts/push_longclip.py --source outputs/longclip --repo_id org/longclip-plus \\
        --license other --dry_run
    python upload_scripts/push_longclip.py --source longclip-B.pt --processor openai/clip-vit-base-patch16 \\
        --repo_id org/longclip-plus --license other
"""

from hf_clipplus.hub.release import ReleaseArguments, release_source
from hf_clipplus.models.longclip import LongCLIPProcessor
from hf_clipplus.models.longclip.convert_longclip import longclip_from_open_clip
from hf_clipplus.training import parse_arguments


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_arguments((ReleaseArguments,), __doc__, argv)
    print(release_source(args, longclip_from_open_clip, LongCLIPProcessor))


if __name__ == "__main__":
    main()
