"""MMVP-VLM of any models of the zoo or of transformers (CLIP, SigLIP), under one rule, in one table.

    python examples/evaluate_mmvp.py --data MMVP_VLM --models openai/clip-vit-large-patch14 outputs/diva
    python examples/evaluate_mmvp.py --models examples/checkpoints/clipart-clip outputs/diva      # the embedded pairs

The first model is the one that the others are compared with, pair by pair (McNemar). A published rule of the image
embedding ("official", random patches of the recap) can be asked for with --embedding; it then holds for all models.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hf_clipplus.data.mmvp_source import read_mmvp
from hf_clipplus.evaluation.clipart import clipart_pairs
from hf_clipplus.evaluation.loading import load_dual_encoder
from hf_clipplus.evaluation.mmvp import PairEvaluator, score_models
from hf_clipplus.evaluation.mmvp_scores import comparison_table
from hf_clipplus.models.diva.modeling_diva import DIVAModel
from hf_clipplus.models.diva.presets_diva import PRESETS, preset
from hf_clipplus.training import parse_arguments


@dataclass
class MMVPArguments:
    """Which models, on which pairs, by which rule."""

    models: list[str] = field(metadata={"help": "Folders or Hub ids; the first is compared with."})
    data: str | None = field(
        default=None, metadata={"help": "Folder of MMVP-VLM; None: the embedded look-alike pairs."}
    )
    embedding: str = field(
        default="cls",
        metadata={
            "help": "Image embedding of every model.",
            "choices": ["cls", "cls+local_mean", "official"],
        },
    )
    preset: str | None = field(
        default=None, metadata={"help": "Backbone whose published rule 'official' means.", "choices": list(PRESETS)}
    )
    split: str = field(default="test", metadata={"help": "Of the embedded pairs."})
    seed: int = field(default=0, metadata={"help": "Of the random patches."})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, mps; None takes the GPU if there is one."})
    output: str | None = field(default=None, metadata={"help": "JSON file with every pair of every model."})


def load(name: str, args: MMVPArguments):
    """A model as it is, or under one of DIVA's rules: as a `DIVAModel` with the same weights."""
    model, processor = load_dual_encoder(name, device=args.device, dtype=torch.float32)
    if args.embedding == "cls":
        if isinstance(model, DIVAModel):
            model.config.embedding = "cls"
        return model, processor
    fields = preset(args.preset).config if args.preset else {}
    wanted = {"embedding": args.embedding} | fields
    model = DIVAModel.from_pretrained(name, dtype=torch.float32, **wanted).to(model.device).eval()
    return model, processor


def main(argv: list[str] | None = None) -> str:
    (args,) = parse_arguments((MMVPArguments,), __doc__, argv)
    models = {name: load(name, args) for name in args.models}
    if args.data is None:
        side = next(iter(models.values()))[0].config.vision_config.image_size
        evaluator = clipart_pairs(args.split, image_size=side)
    else:
        evaluator = PairEvaluator(read_mmvp(args.data), seed=args.seed)
    scores = score_models(evaluator, models)
    table = comparison_table(scores)
    print(f"image embedding: {args.embedding}\n\n{table}")
    if args.output:
        right = {name: one.correct.tolist() for name, one in scores.items()}
        Path(args.output).write_text(json.dumps({"embedding": args.embedding, "right": right}, indent=1))
    return table


if __name__ == "__main__":
    main()
