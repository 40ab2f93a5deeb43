"""Checkpoints in open_clip's layout, key by key to the names of transformers' CLIP and back, with nothing lost unseen.

open_clip keeps q, k and v in one matrix (in this order), its projections transposed, and pools a text at its highest
id, which is the end token; it pads with 0.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPVisionConfig

TRANSPOSED = ("visual.proj", "text_projection")
NO_WEIGHTS = {
    "attn_mask": "the causal mask, a constant",
    "input_resolution": "a size, kept in the configuration",
    "context_length": "a size, kept in the configuration",
    "vocab_size": "a size, kept in the configuration",
}
_TOP = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_TOWERS = {"visual.transformer.resblocks": "vision_model", "transformer.resblocks": "text_model"}


@dataclass
class ConversionReport:
    """What became of every key.

    Args:
        used: (source key, target key, shape in the source, shape in the target).
        unused: source keys that nothing takes.
        missing: target (or source) keys that nothing fills.
        mismatched: (target key, shape found, shape expected).
        dropped: source key -> why it is left out on purpose.
        initialised: target key -> why it has no source, and what it is set to.
    """

    used: list[tuple[str, str, list[int], list[int]]] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, list[int], list[int]]] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    initialised: dict[str, str] = field(default_factory=dict)

    def check(self, state: dict[str, torch.Tensor], expected: dict[str, torch.Size]) -> None:
        """Compare a converted state with the shapes the model expects, and refuse unless everything is accounted for.

        Raises:
            ValueError: keys unused or missing, or a wrong shape; names all of them.
        """
        known_missing = set(self.missing)
        self.missing += [key for key in expected if key not in state and key not in self.initialised | self.dropped]
        if known_missing:  # the source keys that are absent say it better than the target keys they would fill
            self.missing = sorted(known_missing)
        self.unused += [key for key in state if key not in expected]
        self.mismatched += [
            (key, list(state[key].shape), list(shape))
            for key, shape in expected.items()
            if key in state and state[key].shape != shape
        ]
        if self.unused or self.missing or self.mismatched:
            shapes = [f"{key}: found {found}, expected {wanted}" for key, found, wanted in self.mismatched]
            raise ValueError(
                "the checkpoint is not converted, because it is not fully accounted for. "
                f"Unused keys: {self.unused or 'none'}. Missing keys: {self.missing or 'none'}. "
                f"Wrong shapes: {shapes or 'none'}."
            )

    def __str__(self) -> str:
        lines = [f"used         {a} {sa} -> {b} {sb}" for a, b, sa, sb in self.used]
        lines += [f"unused       {key}" for key in self.unused] + [f"missing      {key}" for key in self.missing]
        lines += [f"dropped      {key}: {why}" for key, why in self.dropped.items()]
        lines += [f"initialised  {key}: {why}" for key, why in self.initialised.items()]
        counts = ("used", "unused", "missing", "dropped", "initialised")
        return "\n".join([*lines, ", ".join(f"{len(getattr(self, name))} {name}" for name in counts)])


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of a `.safetensors` file or a PyTorch file; a pickle is read without running any code in it.

    A training checkpoint (`{"state_dict": ..., "optimizer": ...}`, or `model_state`) gives its state dict, and DDP's
    `module.` is cut.

    Raises:
        ValueError: the file holds anything that is not tensors.
        pickle.UnpicklingError: the pickle would run code.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, dict):
        state = next((state[key] for key in ("state_dict", "model_state") if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path}: expected a dict of tensors (or one under 'state_dict'), got something else.")
    return {key.removeprefix("module."): value for key, value in state.items()}


def assign_state(
    model: torch.nn.Module, state: dict[str, torch.Tensor], report: ConversionReport, float32: tuple[str, ...]
) -> None:
    """Put copies of converted tensors into the model, in their own number type, and switch it to eval mode.

    Args:
        model: takes them instead of its own parameters; keeps its own for keys that are `report.initialised`.
        state: every other key of the model.
        report: what the conversion did so far; it is completed.
        float32: keys that are float32 whatever the checkpoint's type (scales and the bias of a loss).

    Raises:
        ValueError: a key is missing, unexpected or of the wrong shape; nothing is assigned then.
    """
    own = model.state_dict()
    report.check(state, {key: tensor.shape for key, tensor in own.items()})
    state = {key: own[key] for key in report.initialised} | state
    state = {key: tensor.float() if key in float32 else tensor for key, tensor in state.items()}
    model.load_state_dict({key: tensor.clone() for key, tensor in state.items()}, strict=True, assign=True)
    model.eval()


def write_checkpoint(state: dict[str, torch.Tensor], path: str | Path) -> None:
    """Write tensors to a `.safetensors` file, or to a PyTorch file when the name ends otherwise."""
    state = {key: value.contiguous() for key, value in state.items()}
    if Path(path).suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)


def infer_tower_configs(
    state: dict[str, torch.Tensor],
    *,
    hidden_act: str,
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> dict:
    """Configuration of both towers from the shapes of an open_clip checkpoint.

    Args:
        state: tensors in open_clip's layout.
        hidden_act: "gelu", or "quick_gelu" for weights trained with it (OpenAI's); shapes do not tell.
        vision_heads, text_heads: attention heads; width / 64 when None.

    Returns:
        `text_config`, `vision_config` (dicts) and `projection_dim`: arguments of a dual-encoder configuration.

    Raises:
        ValueError: keys that tell a size are missing, or a width is no multiple of 64 and the heads are not given.
    """
    needed = [
        *("visual.conv1.weight", "visual.positional_embedding", "visual.proj"),
        *("token_embedding.weight", "positional_embedding", "text_projection"),
        *(f"{tower}.0.mlp.c_fc.weight" for tower in _TOWERS),
    ]
    missing = [key for key in needed if key not in state]
    if missing:
        raise ValueError(
            f"not an open_clip checkpoint of two plain transformer towers: keys {missing} are missing "
            f"(found {len(state)} keys, e.g. {sorted(state)[:5]})."
        )
    shape = {key: state[key].shape for key in needed}
    width, _, patch, _ = shape["visual.conv1.weight"]
    patches = shape["visual.positional_embedding"][0] - 1
    side = round(patches**0.5)
    if side * side != patches:
        raise ValueError(f"visual.positional_embedding has {patches} patch positions, which is no square.")
    joint = shape["visual.proj"][1]
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=shape["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
        num_hidden_layers=count_layers(state, "visual.transformer.resblocks"),
        num_attention_heads=vision_heads or _heads(width, "vision"),
        image_size=side * patch,
        patch_size=patch,
        hidden_act=hidden_act,
        projection_dim=joint,
    )
    text = infer_text_config(state, hidden_act=hidden_act, heads=text_heads)
    return {"text_config": text.to_dict(), "vision_config": vision.to_dict(), "projection_dim": joint}


def infer_text_config(state: dict[str, torch.Tensor], *, hidden_act: str, heads: int | None = None) -> CLIPTextConfig:
    """Configuration of the text tower alone, which every open_clip checkpoint with a plain text transformer has."""
    context, width = state["positional_embedding"].shape
    vocabulary = state["token_embedding.weight"].shape[0]
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        num_hidden_layers=count_layers(state, "transformer.resblocks"),
        num_attention_heads=heads or _heads(width, "text"),
        max_position_embeddings=context,
        vocab_size=vocabulary,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,  # open_clip pools at the highest id of a text: the last of the vocabulary, 49407
        pad_token_id=0,
        hidden_act=hidden_act,
        projection_dim=state["text_projection"].shape[1],
    )


def from_open_clip(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], ConversionReport]:
    """Rename, split and transpose to the keys of `CLIPModel` (and `logit_bias` where there is one).

    Args:
        state: tensors in open_clip's layout; `logit_scale` and `logit_bias` of shape [] or [1].

    Returns:
        The tensors, and the report; call `report.check` with the shapes that the model expects.
    """
    left, converted, report = dict(state), {}, ConversionReport()
    for source, targets in _layout(*(count_layers(state, tower) for tower in _TOWERS)).items():
        tensor = left.pop(source, None)
        if tensor is None:
            if source != "logit_bias":
                report.missing.append(source)
            continue
        shape = list(tensor.shape)
        if source in ("logit_scale", "logit_bias") and shape == [1]:
            tensor = tensor.reshape(())
        parts = tensor.chunk(3) if len(targets) == 3 else [tensor.T if source in TRANSPOSED else tensor]
        for target, part in zip(targets, parts, strict=True):
            converted[target] = part.contiguous()
            report.used.append((source, target, shape, list(part.shape)))
    report.dropped = {key: NO_WEIGHTS[key] for key in left if key in NO_WEIGHTS}
    report.unused = [key for key in left if key not in NO_WEIGHTS]
    return converted, report


def to_open_clip(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], ConversionReport]:
    """The way back from the keys of `CLIPModel` (and `logit_bias`): exact, so that a round trip is bit-equal.

    Raises:
        ValueError: keys that open_clip's layout has no place for, or that it needs and are absent.
    """
    left, converted, report = dict(state), {}, ConversionReport()
    layers = (count_layers(state, f"{tower}.encoder.layers") for tower in _TOWERS.values())
    for target, sources in _layout(*layers).items():
        absent = [source for source in sources if source not in left]
        if absent:
            report.missing += [source for source in absent if source != "logit_bias"]
            continue
        parts = [left.pop(source) for source in sources]
        tensor = torch.cat(parts) if len(parts) == 3 else parts[0].T if target in TRANSPOSED else parts[0]
        converted[target] = tensor.contiguous()
        report.used += [
            (source, target, list(part.shape), list(tensor.shape)) for source, part in zip(sources, parts, strict=True)
        ]
    report.unused = list(left)
    report.check({}, {})
    return converted, report


def _layout(vision_layers: int, text_layers: int) -> dict[str, tuple[str, ...]]:
    """open_clip key -> the key, or the three keys (q, k, v), of transformers that hold the same numbers."""
    found = {source: (target,) for source, target in (_TOP | {"logit_bias": "logit_bias"}).items()}
    found |= {f"{a}.{part}": (f"{b}.{part}",) for a, b in _NORMS.items() for part in ("weight", "bias")}
    for (blocks, tower), layers in zip(_TOWERS.items(), (vision_layers, text_layers), strict=True):
        for i in range(layers):
            source, target = f"{blocks}.{i}", f"{tower}.encoder.layers.{i}"
            for part in ("weight", "bias"):
                found |= {f"{source}.{a}.{part}": (f"{target}.{b}.{part}",) for a, b in _BLOCK.items()}
                found[f"{source}.attn.in_proj_{part}"] = tuple(f"{target}.self_attn.{x}_proj.{part}" for x in "qkv")
    return found


def count_layers(state: dict[str, torch.Tensor], prefix: str) -> int:
    """Layers whose keys begin with `prefix` and a number."""
    numbers = [int(key[len(prefix) + 1 :].split(".")[0]) for key in state if key.startswith(f"{prefix}.")]
    return max(numbers, default=-1) + 1


def _heads(width: int, tower: str) -> int:
    if width % 64:
        raise ValueError(f"{tower} tower: width {width} is no multiple of 64, give its number of heads.")
    return width // 64
