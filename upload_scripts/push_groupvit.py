"""Convert, check and push a GroupViT model: a trained folder, an official file, or transformers' `groupvit`.

The official weights are under the NVIDIA Source Code License (non-commercial): push them with --license other, and
name that licence on the page of the repository.

    python upload_scripts/push_groupvit.py --source outputs/groupvit --repo_id org/groupvit-plus --license cc0-1.0
    python upload_scripts/push_groupvit.py --source group_vit_gcc_yfcc_30e.pth --processor nvidia/groupvit-gcc-yfcc \\
        --repo_id org/groupvit-plus --license other
"""

from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, GroupViTModel

from hf_clipplus.hub.loading import load_from_zoo
from hf_clipplus.hub.release import ReleaseArguments, release
from hf_clipplus.models.groupvit import GroupViTPlusProcessor
from hf_clipplus.models.groupvit.convert_groupvit import (
    groupvit_from_official,
    groupvit_from_transformers,
    groupvit_to_transformers,
)
from hf_clipplus.training import parse_arguments


def main(argv: list[str] | None = None) -> None:
    (args,) = parse_arguments((ReleaseArguments,), __doc__, argv)
    reference = None
    if Path(args.source).is_file():
        if args.processor is None:
            raise ValueError("an official file has no tokenizer: say --processor.")
        model, report = groupvit_from_official(args.source)
        print(report)
        reference, _ = groupvit_to_transformers(model)
    elif AutoConfig.from_pretrained(args.source).model_type == "groupvit":
        model, report = groupvit_from_transformers(args.source)
        print(report)
        reference = GroupViTModel.from_pretrained(args.source)
    else:
        model, _ = load_from_zoo(args.source)
    tokenizer = AutoTokenizer.from_pretrained(args.processor or args.source)
    side = model.config.vision_config.image_size
    print(release(model, GroupViTPlusProcessor.from_tokenizer(tokenizer, image_size=side), args, reference))


if __name__ == "__main__":
    main()
