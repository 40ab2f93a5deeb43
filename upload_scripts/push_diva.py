"""Convert, check and push a DIVA model: a trained folder, or a released checkpoint.

    python upload_scripts/push_diva.py --source outputs/diva --repo_id org/diva-plus --license cc-by-4.0 --dry_run
    python upload_scripts/push_diva.py --source diva.pth --processor openai/clip-vit-base-patch16 \\
        --repo_id org/diva-plus --license other
"""

from hf_clipplus.hub.release import ReleaseArguments, release_source
from hf_clipplus.models.diva import DIVAProcessor
from hf_clipplus.models.diva.convert_diva import diva_from_released
from hf_clipplus.training import parse_arguments


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_arguments((ReleaseArguments,), __doc__, argv)
    print(release_source(args, diva_from_released, DIVAProcessor))


if __name__ == "__main__":
    main()
