"""Convert, check and push an FFF model: a trained folder, an open_clip file, or a CLIP or SigLIP of transformers.

    python upload_scripts/push_fff.py --source outputs/fff --repo_id org/fff-plus --license cc-by-4.0 --dry_run
    python upload_scripts/push_fff.py --source model.pt --hidden_act quick_gelu \\
        --processor openai/clip-vit-base-patch32 --repo_id org/fff-plus --license mit
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoConfig, AutoModel

from hf_clipplus.hub.loading import load_from_zoo
from hf_clipplus.hub.release import ReleaseArguments, release
from hf_clipplus.models.fff import FFFProcessor
from hf_clipplus.models.fff.convert_fff import fff_from_open_clip, fff_from_transformers
from hf_clipplus.training import parse_arguments


@dataclass
class Arguments(ReleaseArguments):
    """And how an open_clip file is to be read."""

    hidden_act: str = field(default="gelu", metadata={"help": "Activation of an open_clip file: gelu or quick_gelu."})
    vision_heads: int | None = field(default=None, metadata={"help": "Its attention heads; width / 64 when None."})
    text_heads: int | None = field(default=None, metadata={"help": "Its attention heads; width / 64 when None."})


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_arguments((Arguments,), __doc__, argv)
    reference = None
    if Path(args.source).is_file():
        if args.processor is None:
            raise ValueError("an open_clip file has no processor: say --processor.")
        heads = {"vision_heads": args.vision_heads, "text_heads": args.text_heads}
        model, report = fff_from_open_clip(args.source, hidden_act=args.hidden_act, **heads)
        print(report)
    elif AutoConfig.from_pretrained(args.source).model_type in ("clip", "siglip"):
        model, report = fff_from_transformers(args.source)
        print(report)
        reference = AutoModel.from_pretrained(args.source)
    else:
        model, _ = load_from_zoo(args.source)
    print(release(model, FFFProcessor.from_pretrained(args.processor or args.source), args, reference))


if __name__ == "__main__":
    main()
