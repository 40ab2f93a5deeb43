"""Converts checkpoints to GroupViT-plus and back: official files, and transformers' `groupvit` folders or Hub names.

    python -m hf_clipplus.models.groupvit.convert_groupvit from-official group_vit_gcc_yfcc_30e.pth folder
    python -m hf_clipplus.models.groupvit.convert_groupvit to-official folder model.safetensors
    python -m hf_clipplus.models.groupvit.convert_groupvit from-transformers nvidia/groupvit-gcc-yfcc folder
    python -m hf_clipplus.models.groupvit.convert_groupvit to-transformers folder groupvit-folder

Every conversion prints what became of each key and refuses when one is not accounted for. The official weights are for
non-commercial use only (NVIDIA Source Code License).
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, GroupViTConfig, GroupViTModel

from hf_clipplus.models.open_clip_layout import ConversionReport, assign_state, read_checkpoint, write_checkpoint

from .configuration_groupvit import GroupViTPlusConfig
from .layout_groupvit import from_official, infer_config, to_official
from .modeling_groupvit import GroupViTPlusModel
from .processing_groupvit import GroupViTPlusProcessor

SCALES = ("logit_scale", "multi_label_logit_scale")
SCALE_DROPPED = "transformers' GroupViTModel has no multi-label loss; inference does not use this scale"
NO_SCALE = "transformers' GroupViTModel has none; inference does not use it. Set to logit_scale's value"
_SHARED_VISION = (
    *("hidden_size", "depths", "num_group_tokens", "image_size", "patch_size", "num_channels", "hidden_act"),
    *("layer_norm_eps", "assign_eps", "assign_mlp_ratio", "initializer_range"),
)
_SHARED_TEXT = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"),
    *("max_position_embeddings", "layer_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id"),
    "attention_dropout",
)
_SHARED = ("projection_dim", "projection_intermediate_dim", "logit_scale_init_value")


def groupvit_from_official(
    path: str | Path, *, vision: dict | None = None, text: dict | None = None, **config
) -> tuple[GroupViTPlusModel, ConversionReport]:
    """A model from an official checkpoint.

    Args:
        path: `.pth` (read with `weights_only=True`; the state dict may stand under "model") or `.safetensors`.
        vision, text, config: see `layout_groupvit.infer_config`.

    Raises:
        ValueError: a key is missing, unexpected or of the wrong shape.
    """
    source = read_official(path)
    state, report = from_official(source)
    model = GroupViTPlusModel(infer_config(source, vision=vision, text=text, **config))
    assign_state(model, state, report, float32=SCALES)
    return model, report


def read_official(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of an official file; a training checkpoint's other parts (optimizer, metrics) are left behind."""
    if Path(path).suffix == ".safetensors":
        return read_checkpoint(path)
    found = torch.load(path, map_location="cpu", weights_only=True)
    state = found.get("model", found) if isinstance(found, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path}: expected a dict of tensors, or one under 'model', got something else.")
    return {key.removeprefix("module."): value for key, value in state.items()}


def groupvit_to_official(model: GroupViTPlusModel) -> tuple[dict[str, torch.Tensor], ConversionReport]:
    """The tensors of a model under official names; a round trip is bit-equal."""
    return to_official(model.state_dict(), model.config)


def groupvit_from_transformers(source: str | Path | GroupViTModel, **config):
    """A model from transformers' `GroupViTModel`, or from its folder or Hub name.

    Args:
        source: e.g. "nvidia/groupvit-gcc-yfcc".
        config: further fields of `GroupViTPlusConfig`, e.g. `prompts_per_image=0` (3 when left alone: then the
            multi-label loss gets a scale of its own, with the value of the first).

    Returns:
        The model and the report.

    Raises:
        ValueError: another kind of model, weights that would stay random, or keys that are not accounted for.
    """
    if not isinstance(source, GroupViTModel):
        kind = AutoConfig.from_pretrained(source).model_type
        if kind != "groupvit":
            raise ValueError(f"{source}: model type {kind!r} cannot become GroupViT-plus; expected 'groupvit'.")
        name, (source, info) = source, GroupViTModel.from_pretrained(source, output_loading_info=True)
        if info["missing_keys"] or info["mismatched_keys"]:
            wrong = sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])})
            raise ValueError(f"{name} lacks weights, which would stay random: {wrong}")
    theirs = source.config
    vision = {name: getattr(theirs.vision_config, name) for name in _SHARED_VISION}
    vision |= {
        "num_attention_heads": theirs.vision_config.num_attention_heads,
        "num_output_groups": list(theirs.vision_config.num_output_groups)[: len(vision["depths"]) - 1],
        "mlp_ratio": theirs.vision_config.intermediate_size / theirs.vision_config.hidden_size,
        "drop_path_rate": 0.1,
    }
    text = {name: getattr(theirs.text_config, name) for name in _SHARED_TEXT}
    fields = {name: getattr(theirs, name) for name in _SHARED}
    model = GroupViTPlusModel(GroupViTPlusConfig(text_config=text, vision_config=vision, **fields | config))
    state, report = dict(source.state_dict()), ConversionReport()
    report.used = [(key, key, list(tensor.shape), list(tensor.shape)) for key, tensor in state.items()]
    if model.config.has_multi_label_scale:
        state["multi_label_logit_scale"] = state["logit_scale"].clone()
        report.initialised["multi_label_logit_scale"] = NO_SCALE
    assign_state(model, state, report, float32=SCALES)
    return model, report


def groupvit_to_transformers(model: GroupViTPlusModel) -> tuple[GroupViTModel, ConversionReport]:
    """transformers' `GroupViTModel` with the same embeddings.

    Raises:
        ValueError: the model has what `GroupViTModel` cannot hold.
    """
    config, vision = model.config, model.config.vision_config
    _check_for_transformers(config)
    state, report = dict(model.state_dict()), ConversionReport()
    if "multi_label_logit_scale" in state:
        value = state.pop("multi_label_logit_scale").item()
        report.dropped["multi_label_logit_scale"] = f"{SCALE_DROPPED}; its value was {value:g}"
    theirs = GroupViTModel(
        GroupViTConfig(
            text_config={name: getattr(config.text_config, name) for name in _SHARED_TEXT},
            vision_config={name: getattr(vision, name) for name in _SHARED_VISION}
            | {
                "num_attention_heads": vision.heads[0],
                "num_hidden_layers": vision.num_hidden_layers,
                "intermediate_size": int(vision.mlp_ratio * vision.hidden_size),
                "num_output_groups": [*vision.num_output_groups, vision.num_output_groups[-1]],
            },
            **{name: getattr(config, name) for name in _SHARED},
        )
    )
    report.used = [(key, key, list(tensor.shape), list(tensor.shape)) for key, tensor in state.items()]
    assign_state(theirs, state, report, float32=SCALES)
    return theirs, report


def _check_for_transformers(config: GroupViTPlusConfig) -> None:
    """Refuse what `GroupViTModel` computes differently or has no place for."""
    vision, problems = config.vision_config, []
    if len(set(vision.widths)) > 1 or len(set(vision.heads)) > 1:
        problems.append("stages of different widths or heads")
    if vision.sum_assign or not vision.hard_assignment:
        problems.append("sum_assign, or soft assignment")
    if int(vision.assign_mlp_ratio[0] * vision.hidden_size) < 1:
        problems.append(f"assign_mlp_ratio={vision.assign_mlp_ratio}")
    pairs = zip(vision.num_output_groups, vision.num_group_tokens, strict=False)
    inner = list(pairs)[: len(vision.num_group_tokens) - 2]  # those that a later group projector starts from
    if any(groups != tokens for groups, tokens in inner):
        problems.append(
            f"num_output_groups={vision.num_output_groups} beside num_group_tokens={vision.num_group_tokens} (its "
            "group projector is sized by the wrong one of them, so they must be equal)"
        )
    if problems:
        raise ValueError(f"transformers' GroupViTModel cannot hold this model: {'; '.join(problems)}.")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, what in (
        ("from-official", "official .pth file -> GroupViT-plus folder"),
        ("to-official", "GroupViT-plus folder -> official layout (.safetensors, or .pth with the key 'model')"),
        ("from-transformers", "transformers groupvit folder or Hub name -> GroupViT-plus folder"),
        ("to-transformers", "GroupViT-plus folder -> transformers groupvit folder"),
    ):
        sub = actions.add_parser(action, help=what, description=what)
        sub.add_argument("source")
        sub.add_argument("destination", type=Path)
        if action.startswith("from"):
            sub.add_argument("--tokenizer", help="folder or Hub name of a CLIP tokenizer; saves a processor too")
        if action == "from-official":
            sub.add_argument("--vision-heads", type=int, help="(width / 64)")
            sub.add_argument("--text-heads", type=int, help="(width / 64)")
    args = parser.parse_args(arguments)

    if args.action == "from-official":
        given = {"vision": args.vision_heads, "text": args.text_heads}
        given = {tower: {"num_attention_heads": heads} for tower, heads in given.items() if heads}
        result, report = groupvit_from_official(args.source, **given)
    elif args.action == "from-transformers":
        result, report = groupvit_from_transformers(args.source)
    elif args.action == "to-transformers":
        result, report = groupvit_to_transformers(GroupViTPlusModel.from_pretrained(args.source))
    else:
        result, report = groupvit_to_official(GroupViTPlusModel.from_pretrained(args.source))
    print(report)
    if args.action == "to-official":
        if args.destination.suffix == ".safetensors":
            write_checkpoint(result, args.destination)
        else:
            torch.save({"model": result}, args.destination)
        return
    result.save_pretrained(args.destination)
    if args.action == "to-transformers":
        return
    if args.tokenizer is None:
        print(f"no processor was saved: add one to {args.destination}, or run again with --tokenizer.")
        return
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    image_size = result.config.vision_config.image_size
    GroupViTPlusProcessor.from_tokenizer(tokenizer, image_size=image_size).save_pretrained(args.destination)


if __name__ == "__main__":
    main()
