"""FFF checkpoints to and from open_clip and transformers: equal bits, equal embeddings, nothing lost unseen."""

import pickle
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from hf_clipplus import FFFConfig, FFFModel, FFFProcessor
from hf_clipplus.models.fff.convert_fff import (
    fff_from_open_clip,
    fff_from_transformers,
    fff_to_open_clip,
    fff_to_transformers,
    main,
)
from hf_clipplus.models.open_clip_layout import read_checkpoint, write_checkpoint

VISION, TEXT, JOINT, PATCH, SIDE, CONTEXT, VOCABULARY = 128, 64, 24, 4, 3, 9, 40  # widths, sizes; 2 heads and 1


class Block(nn.Module):
    """A block of open_clip, written from the description of its keys."""

    def __init__(self, width, heads, activation):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 3 * width), "c_proj": nn.Linear(3 * width, width)})
        self.activation = activation

    def forward(self, x, mask=None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["c_proj"](self.activation(self.mlp["c_fc"](self.ln_2(x))))


class Transformer(nn.Module):
    def __init__(self, width, layers, heads, activation):
        super().__init__()
        self.resblocks = nn.ModuleList([Block(width, heads, activation) for _ in range(layers)])

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(VISION))
        self.positional_embedding = nn.Parameter(torch.randn(SIDE**2 + 1, VISION))
        self.proj = nn.Parameter(torch.randn(VISION, JOINT))
        self.conv1 = nn.Conv2d(3, VISION, PATCH, PATCH, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(VISION), nn.LayerNorm(VISION)
        self.transformer = Transformer(VISION, 2, 2, activation)

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class Reference(nn.Module):
    """The two towers in open_clip's layout; texts are pooled at their highest id and padded with 0."""

    def __init__(self, activation=F.gelu, bias_shape=()):
        super().__init__()
        self.visual = Visual(activation)
        self.transformer = Transformer(TEXT, 3, 1, activation)
        self.token_embedding = nn.Embedding(VOCABULARY, TEXT)
        self.positional_embedding = nn.Parameter(torch.randn(CONTEXT, TEXT))
        self.ln_final = nn.LayerNorm(TEXT)
        self.text_projection = nn.Parameter(torch.randn(TEXT, JOINT))
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        if bias_shape is not None:
            self.logit_bias = nn.Parameter(torch.full(bias_shape, -7.25))
        for name, parameter in self.named_parameters():
            if "ln_" in name or ("bias" in name and "logit" not in name):
                parameter.data += 0.3 * torch.randn_like(parameter)  # no norm and no bias may hide behind 1 or 0

    def encode_text(self, ids):
        mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        x = self.ln_final(self.transformer(x, mask))
        return x[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_projection


def texts():
    """Ids with start, content, end token at different places, padded with 0."""
    ids = torch.randint(1, VOCABULARY - 2, (6, CONTEXT))
    ids[:, 0] = VOCABULARY - 2
    for row, end in enumerate((2, 3, 5, 6, 7, 8)):
        ids[row, end] = VOCABULARY - 1
        ids[row, end + 1 :] = 0
    return ids


@pytest.fixture
def reference(seeded):
    return Reference().eval()


@pytest.mark.parametrize("hidden_act", ["gelu", "quick_gelu"])
def test_embeddings_equal_an_independent_forward(hidden_act, tmp_path, seeded):
    quick = hidden_act == "quick_gelu"
    reference = Reference((lambda x: x * torch.sigmoid(1.702 * x)) if quick else F.gelu).eval()
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    model, _ = fff_from_open_clip(tmp_path / "model.safetensors", hidden_act=hidden_act)
    pixels, ids = torch.randn(5, 3, PATCH * SIDE, PATCH * SIDE), texts()
    with torch.no_grad():
        expected = reference.visual(pixels), reference.encode_text(ids)
        found = model.encode_image(pixels, normalize=False), model.encode_text(ids, normalize=False)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5 * b.abs().max().item(), rtol=0)
        torch.testing.assert_close(model.encode_text(ids, (ids > 0).long(), normalize=False), found[1])
        other = fff_from_open_clip(tmp_path / "model.safetensors", hidden_act="gelu" if quick else "quick_gelu")[0]
        assert (other.encode_text(ids, normalize=False) - expected[1]).abs().max() > 1e-3  # the activation matters
    assert model.config.text_config.hidden_act == model.config.vision_config.hidden_act == hidden_act
    assert (model.logit_scale.item(), model.logit_bias.item()) == (2.5, -7.25)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_bit_equal(reference, name, dtype, tmp_path):
    scalars = ("logit_scale", "logit_bias")
    state = {k: v if k in scalars else v.to(dtype) for k, v in reference.state_dict().items()}
    if name.endswith("pt"):
        training = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}
        torch.save(training, tmp_path / name)
    else:
        save_file(state, tmp_path / name)
    back = tmp_path / f"back-{name}"
    if dtype == torch.float32:  # through files
        main(["from-open-clip", str(tmp_path / name), str(tmp_path / "fff")])
        main(["to-open-clip", str(tmp_path / "fff"), str(back)])
    else:
        write_checkpoint(fff_to_open_clip(fff_from_open_clip(tmp_path / name)[0])[0], back)
    back = read_checkpoint(back)
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert back[key].dtype == value.dtype, key
        assert torch.equal(back[key], value), key


@pytest.mark.parametrize("shape", [None, (), (1,)])
def test_bias_of_every_published_shape(shape, tmp_path, seeded):
    torch.save(Reference(bias_shape=shape).state_dict(), tmp_path / "model.pt")
    model, report = fff_from_open_clip(tmp_path / "model.pt", logit_bias_init_value=-4)
    assert model.logit_bias.shape == ()
    assert model.logit_bias.item() == (-4 if shape is None else -7.25)
    assert list(report.initialised) == (["logit_bias"] if shape is None else [])
    targets = [target for _, target, _, _ in report.used] + list(report.initialised)
    assert sorted(targets) == sorted(model.state_dict())
    assert "in_proj_weight [192, 64] -> text_model.encoder.layers.2.self_attn.v_proj.weight [64, 64]" in str(report)


def test_sizes_are_read_from_the_shapes(reference, tmp_path):
    torch.save(reference.state_dict(), tmp_path / "model.pt")
    config = fff_from_open_clip(tmp_path / "model.pt", vision_heads=4)[0].config
    vision, text = config.vision_config, config.text_config
    assert (vision.num_attention_heads, text.num_attention_heads) == (4, 1)
    assert (vision.num_hidden_layers, text.num_hidden_layers) == (2, 3)
    assert (vision.image_size, vision.patch_size, vision.intermediate_size) == (12, 4, 384)
    assert (text.max_position_embeddings, text.vocab_size, text.eos_token_id, text.pad_token_id) == (9, 40, 39, 0)
    assert config.projection_dim == vision.projection_dim == text.projection_dim == JOINT


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("transformer.resblocks.1.attn.in_proj_bias"), r"Missing keys: \['transformer.resblocks.1"),
        (lambda s: s.pop("visual.ln_pre.weight"), r"Missing keys: \['visual.ln_pre.weight'\]"),
        (lambda s: s.pop("logit_scale"), r"Missing keys: \['logit_scale'\]"),
        (lambda s: s.pop("visual.proj"), r"keys \['visual.proj'\] are missing"),
        (lambda s: s.update({"visual.head.weight": torch.ones(2)}), r"Unused keys: \['visual.head.weight'\]"),
        (lambda s: s.update({"ln_final.bias": torch.ones(5)}), r"text_model.final_layer_norm.bias: found \[5\], exp"),
        (lambda s: s.update({"visual.positional_embedding": torch.ones(9, VISION)}), r"8 patch positions"),
    ],
)
def test_nothing_is_lost_or_invented(reference, spoil, message, tmp_path):
    state = reference.state_dict()
    spoil(state)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message):
        fff_from_open_clip(tmp_path / "model.pt")


def test_constants_are_dropped_by_name(reference, tmp_path):
    torch.save(reference.state_dict() | {"attn_mask": torch.zeros(9, 9)}, tmp_path / "model.pt")
    assert list(fff_from_open_clip(tmp_path / "model.pt")[1].dropped) == ["attn_mask"]


class _Malice:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


def test_a_pickle_that_runs_code_is_refused(reference, tmp_path):
    trap = tmp_path / "executed"
    torch.save(reference.state_dict() | {"x": _Malice(str(trap))}, tmp_path / "model.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        fff_from_open_clip(tmp_path / "model.pt")
    assert not trap.exists()


def test_a_file_of_something_else_is_refused(tmp_path):
    torch.save({"state_dict": {"a": 3}}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt: expected a dict of tensors"):
        fff_from_open_clip(tmp_path / "model.pt")


def test_transformers_clip_there_and_back(tower_configs, tokenizer, image_processor, tmp_path, seeded, capsys):
    clip = CLIPModel(CLIPConfig(**tower_configs)).eval()
    clip.save_pretrained(tmp_path / "clip")
    FFFProcessor(image_processor, tokenizer).save_pretrained(tmp_path / "clip")
    clip_folder, fff_folder, back_folder = (str(tmp_path / name) for name in ("clip", "fff", "back"))
    main(["from-transformers", clip_folder, fff_folder, "--processor", clip_folder])
    assert "initialised  logit_bias: the source has none" in capsys.readouterr().out
    main(["to-transformers", fff_folder, back_folder, "--processor", fff_folder])
    assert "dropped      logit_bias: transformers' CLIPModel has no bias; its value was -10" in capsys.readouterr().out
    back, info = CLIPModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for key, value in clip.state_dict().items():
        assert torch.equal(back.state_dict()[key], value), key
    script = f"""
from transformers import AutoModel, AutoProcessor
print(type(AutoModel.from_pretrained({str(tmp_path / "back")!r})).__name__)
print(type(AutoProcessor.from_pretrained({str(tmp_path / "back")!r})).__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)  # without hf_clipplus
    assert re.findall(r"CLIP\w+", done.stdout) == ["CLIPModel", "CLIPProcessor"], done.stderr


def test_extra_keys_of_a_transformers_folder_are_named(tower_configs, tmp_path, seeded):
    clip = CLIPModel(CLIPConfig(**tower_configs))
    clip.save_pretrained(tmp_path)
    state = {key: value.clone() for key, value in clip.state_dict().items()}
    state.pop("visual_projection.weight")
    save_file(state | {"adapter.weight": torch.ones(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"\['adapter.weight'\]. Missing keys: \['visual_projection.weight'\]"):
        fff_from_transformers(tmp_path)


def test_siglip_folder_keeps_its_bias_and_cannot_become_clip(tmp_path, seeded):
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    text_config = tower | {"vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 1}
    config = SiglipConfig(text_config=text_config, vision_config=tower | {"image_size": 24, "patch_size": 8})
    siglip = SiglipModel(config)
    siglip.logit_bias.data.fill_(-6.5)
    siglip.save_pretrained(tmp_path)
    model, report = fff_from_transformers(tmp_path)
    assert model.logit_bias.item() == -6.5
    assert not report.initialised
    for convert in (fff_to_open_clip, fff_to_transformers):
        with pytest.raises(ValueError, match="SigLIP towers"):
            convert(model)


def test_other_models_are_refused(tmp_path, tower_configs, seeded):
    FFFModel(FFFConfig(**tower_configs)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'clipplus_fff' cannot become FFF"):
        fff_from_transformers(tmp_path)
