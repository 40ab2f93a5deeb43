"""Check and push MA-CLIP: an adapter that examples/train_ma_clip.py left, with its base, or a self-contained model.

An adapter whose base is a folder pushes that folder as <repo_id>-base first. With --self_contained true the adapter
and its base become one model that needs no PEFT, with the code for machines without this package. No weights were
published.

    python upload_scripts/push_ma_clip.py --source outputs/ma_clip --repo_id org/ma-clip-plus --license cc-by-4.0
"""

from dataclasses import dataclass, field

from peft import PeftModel

from hf_clipplus.evaluation.results import is_hub_id
from hf_clipplus.hub.loading import load_from_zoo
from hf_clipplus.hub.release import ReleaseArguments, release
from hf_clipplus.training import parse_arguments
from hf_clipplus.training.adapter_base import base_id
from hf_clipplus.tuners.ma_clip import export_ma_clip


@dataclass
class MACLIPReleaseArguments(ReleaseArguments):
    """What goes where, and in which form."""

    self_contained: bool = field(default=False, metadata={"help": "One model with its adapter, which needs no PEFT."})


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_arguments((MACLIPReleaseArguments,), __doc__, argv)
    model, processor = load_from_zoo(args.source)
    if isinstance(model, PeftModel) and args.self_contained:
        model = export_ma_clip(model)
    if isinstance(model, PeftModel):
        args.bundle = args.handler = False  # PEFT loads no code of a repository
        config, source, repo_id = model.peft_config[model.active_adapter], args.source, args.repo_id
        if not is_hub_id(config.base_model_name_or_path):
            args.repo_id = base_id(repo_id)
            print(release(*load_from_zoo(config.base_model_name_or_path), args))
            if args.dry_run:
                print(f"the adapter can be checked when its base is {args.repo_id}")
                return
            config.base_model_name_or_path, args.repo_id, args.source = args.repo_id, repo_id, source
    print(release(model, processor, args))


if __name__ == "__main__":
    main()
