"""MA-CLIP's adapters under PEFT: every way to save and load, exactness, counts, hooks, checkpointing, precision."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from peft import AutoPeftModel, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel
from transformers import CLIPTextConfig as TextConfig

from hf_clipplus import FFFConfig, FFFModel, MACLIPConfig, MACLIPForFewShotVideoClassification, get_variant
from hf_clipplus.tuners.base import load_strictly
from hf_clipplus.tuners.ma_clip import (
    MACLIPAdapterConfig,
    MACLIPLayer,
    attach_ma_clip,
    export_ma_clip,
    seed_from_aim,
    trainable_by_group,
)

V, T, D, C, LAYERS = 3, 4, 16, 12, 3
TOWER = {"hidden_size": D, "intermediate_size": 24, "num_attention_heads": 2}
TEXT = TextConfig(**TOWER, num_hidden_layers=1, vocab_size=20, bos_token_id=0, eos_token_id=1).to_dict()
VISION = CLIPVisionConfig(**TOWER, num_hidden_layers=LAYERS, image_size=16, patch_size=8).to_dict()
SIZES = {"text_config": TEXT, "vision_config": VISION, "projection_dim": C}
HEAD = {"temporal_heads": 2, "temporal_ffn_dim": 8, "num_frames": T, "attention_dropout": 0.0, "ffn_dropout": 0.0}
VISION_ALONE = CLIPVisionConfig.from_dict(VISION | {"projection_dim": C})
MAKERS = {
    "clip": lambda: CLIPModel(CLIPConfig(**SIZES)),
    "clip_vision_model": lambda: CLIPVisionModel(VISION_ALONE),
    "fff": lambda: FFFModel(FFFConfig(**SIZES)),
    "ma_clip": lambda: MACLIPForFewShotVideoClassification(MACLIPConfig(**SIZES, **HEAD)),
}
KINDS = list(MAKERS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved base of every kind."""
    folder = tmp_path_factory.mktemp("bases")
    for number, (kind, make) in enumerate(MAKERS.items()):
        torch.manual_seed(number)
        make().save_pretrained(folder / kind)
    return folder


@pytest.fixture
def fresh(folders):
    """A new copy of a saved base, in eval mode."""
    classes = {"clip": CLIPModel, "clip_vision_model": CLIPVisionModel, "fff": FFFModel}

    def load(kind="ma_clip"):
        found = classes.get(kind, MACLIPForFewShotVideoClassification)
        return found.from_pretrained(folders / kind).eval()

    return load


@pytest.fixture
def frames():
    draw = torch.Generator().manual_seed(5)
    return torch.randn(V * T, 3, 16, 16, generator=draw), torch.randn(V, C, generator=draw)


def features(model, frames, **given):
    """Pooled features `[V T, ...]` of a model of any kind, through the call that its users make."""
    if "num_frames" not in given:
        given["num_frames"] = T
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if isinstance(base, CLIPVisionModel):
        return model(frames, **given).pooler_output
    if isinstance(base, MACLIPForFewShotVideoClassification):
        text = given.get("text_tokens")
        return model.frame_features(frames.unflatten(0, (-1, T)), text).flatten(0, 1)
    return model.get_image_features(frames, **given).pooler_output


def stir(model, seed=0):
    """Give trainable tensors values, as training would."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return model


def adapted(base, name="default", seed=0, **settings):
    torch.manual_seed(seed)
    return stir(attach_ma_clip(base, name, num_frames=T, **settings), seed).eval()


@pytest.fixture(scope="module")
def shared(folders, tmp_path_factory):
    """An adapter of every kind of base, saved; its features of supports and queries."""
    saved, folder = {}, tmp_path_factory.mktemp("adapters")
    draw = torch.Generator().manual_seed(5)
    pixels, text = torch.randn(V * T, 3, 16, 16, generator=draw), torch.randn(V, C, generator=draw)
    classes = {"clip": CLIPModel, "clip_vision_model": CLIPVisionModel, "fff": FFFModel}
    for kind in KINDS:
        base = classes.get(kind, MACLIPForFewShotVideoClassification).from_pretrained(folders / kind)
        model = adapted(base)
        model.save_pretrained(folder / kind)
        with torch.no_grad():
            saved[kind] = features(model, pixels, text_tokens=text), features(model, pixels)
    return folder, saved


# counts and names


def expected_names(layers=range(LAYERS), first=0):
    stem = "base_model.model.vision_model.encoder.layers"
    ends = [
        f"{kind}_{end}.{part}"
        for kind in ("temporal", "local", "joint")
        for end in ("down", "up")
        for part in ("weight", "bias")
    ]
    names = {f"{stem}.{number}.ma_clip_{end}" for number in layers for end in ends}
    return names | {f"{stem}.{first}.ma_clip_text_proj.{part}" for part in ("weight", "bias")}


def test_names_shapes_and_counts_are_those_of_the_specification(fresh, tmp_path):
    model = attach_ma_clip(fresh("clip"))
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    assert {name.replace(".default.", ".") for name in trained} == expected_names()
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert stored.keys() == expected_names()
    inner = D // 4
    for name, tensor in stored.items():
        kind, part = name.split(".")[-2:]
        wide = {"down": [inner, D], "up": [D, inner], "proj": [D, C]}[kind.split("_")[-1]]
        assert list(tensor.shape) == (wide if part == "weight" else wide[:1])
    one = 2 * D * inner + D + inner
    groups = trainable_by_group(model)
    assert groups == dict.fromkeys(("temporal", "local", "joint"), LAYERS * one) | {"text_proj": C * D + D}
    each = attach_ma_clip(fresh("clip"), text_proj_shared=False)
    assert trainable_by_group(each)["text_proj"] == LAYERS * (C * D + D)


def test_vit_b_16_has_the_counts_of_the_specification(tmp_path):
    with torch.device("meta"):
        base = MACLIPForFewShotVideoClassification(MACLIPConfig())
        for shared, total, text in ((True, 14_195_200, 393_984), (False, 18_529_024, 4_727_808)):
            model = attach_ma_clip(copy.deepcopy(base), text_proj_shared=shared)
            groups = trainable_by_group(model)
            assert groups.pop("prototype_module") == 3_149_824
            assert groups == dict.fromkeys(("temporal", "local", "joint"), 12 * 295_872) | {"text_proj": text}
            assert sum(each.numel() for each in model.parameters() if each.requires_grad) == total


def test_a_folder_is_four_bytes_a_trained_number_and_holds_no_tensor_of_the_base(shared):
    folder, _ = shared
    model = load_strictly(
        MAKERS["ma_clip"]().from_pretrained(json_of(folder)["base_model_name_or_path"]),
        folder / "ma_clip",
        is_trainable=True,
    )
    count = sum(trainable_by_group(model).values())
    file = folder / "ma_clip" / "adapter_model.safetensors"
    assert 0 <= file.stat().st_size - 4 * count < 10_000
    names = load_file(file).keys()
    assert all("ma_clip_" in name or ".prototype_module." in name for name in names)
    assert not any("base_layer" in name or "original_module" in name for name in names)


def json_of(folder):
    return json.loads((folder / "ma_clip" / "adapter_config.json").read_text())


# saving and loading


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ma_clip", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[:-1])])
def test_every_way_to_load(kind, fresh, shared, frames):
    folder, saved = shared
    source, (pixels, text) = folder / kind, frames
    ways = {
        "PeftModel": lambda: PeftModel.from_pretrained(fresh(kind), source),
        "trainable": lambda: PeftModel.from_pretrained(fresh(kind), source, is_trainable=True),
        "low memory": lambda: PeftModel.from_pretrained(fresh(kind), source, low_cpu_mem_usage=True),
        "another name": lambda: PeftModel.from_pretrained(fresh(kind), source, adapter_name="second"),
        "our loader": lambda: load_strictly(fresh(kind), source),
        "AutoModel": lambda: AutoModel.from_pretrained(source),
        "AutoPeftModel": lambda: AutoPeftModel.from_pretrained(
            source, import_allowlist=["transformers", "hf_clipplus"]
        ),
        "native": lambda: native(fresh(kind), source),
    }
    for way, load in ways.items():
        model = load().eval()
        assert torch.equal(features(model, pixels, text_tokens=text), saved[kind][0]), way
        assert torch.equal(features(model, pixels), saved[kind][1]), way
        trainable = [name for name, each in model.named_parameters() if each.requires_grad]
        if way in ("AutoModel", "native"):  # transformers freezes layers of PEFT alone
            trainable = [name for name in trainable if "modules_to_save" not in name]
        assert bool(trainable) == (way == "trainable"), way
    assert type(ways["AutoModel"]()) is type(fresh(kind))


def native(base, folder):
    base.load_adapter(str(folder))
    return base


@torch.no_grad()
def test_transformers_own_way_to_add_and_save(fresh, frames, tmp_path):
    base, (pixels, text) = fresh("clip"), frames
    base.add_adapter(MACLIPAdapterConfig(num_frames=T))
    stir(base).eval().save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {"adapter_model.safetensors"}
    again = native(fresh("clip"), tmp_path)
    found = features(again, pixels, text_tokens=text)
    assert torch.equal(found, features(base, pixels, text_tokens=text))


@torch.no_grad()
def test_several_adapters_on_one_base(fresh, frames, tmp_path):
    pixels, text = frames
    model = adapted(fresh(), "one")
    first = features(model, pixels, text_tokens=text)
    model.save_pretrained(tmp_path)
    adapted(model, "two", 1, layers=[1, 2], text_proj_shared=False, adaptations=["temporal", "local"])
    second = features(model, pixels, text_tokens=text)
    assert not torch.allclose(first, second)
    for name, expected in (("one", first), ("two", second), ("one", first)):
        model.set_adapter(name)
        assert torch.equal(features(model, pixels, text_tokens=text), expected)
    model.load_adapter(tmp_path / "one", "three")
    model.set_adapter("three")
    assert torch.equal(features(model, pixels, text_tokens=text), first)
    model.delete_adapter("one")
    model.set_adapter("two")
    assert torch.equal(features(model, pixels, text_tokens=text), second)
    with pytest.raises(ValueError, match="Only one adapter can be set"):
        model.base_model.set_adapter(["two", "three"])


def test_adapters_trained_in_turn_do_not_touch_each_other(fresh, frames):
    pixels, text = frames
    model = adapted(fresh("clip"), "one")
    adapted(model, "two", 1)

    def step(name):
        model.set_adapter(name)
        own = [each for each in model.parameters() if each.requires_grad]
        optimizer = torch.optim.SGD(own, lr=0.1)
        features(model, pixels, text_tokens=text).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def state(name):
        return {key: value.clone() for key, value in model.state_dict().items() if f".{name}." in key}

    for trained, other in (("one", "two"), ("two", "one")):
        before, own = state(other), state(trained)
        step(trained)
        assert before
        assert all(torch.equal(value, before[key]) for key, value in state(other).items())
        assert all(not torch.equal(value, own[key]) for key, value in state(trained).items())


FRESH = """
import sys
{first}
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1])
print(type(model).__name__, sum("ma_clip_" in name for name, _ in model.named_parameters()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "said"), [("import hf_clipplus", "CLIPModel 38"), ("", "KeyError: 'MA_CLIP'")], ids=["with", "without"]
)
def test_a_fresh_process_needs_the_import(first, said, shared):
    command = [sys.executable, "-c", FRESH.format(first=first), str(shared[0] / "clip")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert said in done.stdout + done.stderr


# exactness


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_disabled_and_unloaded_are_the_base_bit_for_bit(kind, fresh, frames):
    (pixels, text), base = frames, fresh(kind)
    plain = copy.deepcopy(base)
    expected = plain.frame_features(pixels.unflatten(0, (-1, T))).flatten(0, 1) if kind == "ma_clip" else None
    if kind == "clip_vision_model":
        expected = plain(pixels).pooler_output
    elif expected is None:
        expected = plain.get_image_features(pixels).pooler_output
    model = adapted(base)
    with model.disable_adapter():
        assert torch.equal(features(model, pixels, text_tokens=text), expected)
        assert torch.equal(features(model, pixels, num_frames=None), expected)
    assert not torch.allclose(features(model, pixels), expected)
    unloaded = model.unload()
    assert torch.equal(features(unloaded, pixels), expected)
    after = unloaded.state_dict()
    assert after.keys() == plain.state_dict().keys()
    assert all(torch.equal(value, after[key]) for key, value in plain.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("variant", ["dreamlip", "longclip", "diva", "clip_fsar"])
def test_the_zoo_takes_adapters(variant, frames):
    (pixels, text), entry = frames, get_variant(variant)
    fields = {"temporal_heads": 2} if variant == "clip_fsar" else {}
    torch.manual_seed(0)
    model = entry.load(entry.model)(entry.load(entry.config)(**SIZES, **fields)).eval()
    plain = model.vision_model(pixels).pooler_output
    adapter = adapted(model)
    assert len([each for each in model.modules() if isinstance(each, MACLIPLayer)]) == LAYERS
    found = model.vision_model(pixels, num_frames=T, text_tokens=text).pooler_output
    assert not torch.allclose(found, plain)
    with adapter.disable_adapter():
        assert torch.equal(model.vision_model(pixels, num_frames=T, text_tokens=text).pooler_output, plain)


@torch.no_grad()
def test_one_masked_pass_is_two_passes(fresh, frames):
    pixels, text = frames
    model = adapted(fresh())
    videos, has_text = pixels.unflatten(0, (-1, T)), torch.tensor([True, False, True])
    for attention in ("sdpa", "eager"):
        model.get_base_model().set_attn_implementation(attention)
        supports, queries = model.frame_features(videos, text), model.frame_features(videos)
        assert not torch.allclose(supports, queries)
        together = model.frame_features(videos, text, has_text=has_text)
        expected = torch.where(has_text[:, None, None], supports, queries)
        torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_frames_of_other_videos_and_their_order_do_not_matter_without_an_embedding(fresh, frames):
    pixels, text = frames
    model, videos = adapted(fresh()), pixels.unflatten(0, (-1, T))
    found = model.frame_features(videos, text)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model.frame_features(videos[:, order], text), found[:, order])
    alone = model.frame_features(videos[:1], text[:1])
    torch.testing.assert_close(alone, found[:1])
    embedded = adapted(fresh(), temporal_embedding=True)
    assert trainable_by_group(embedded)["temporal_embedding"] == T * D
    changed = embedded.frame_features(videos[:, order], text)
    assert not torch.allclose(changed, embedded.frame_features(videos, text)[:, order])


@torch.no_grad()
def test_at_the_start_adapters_are_silent_but_their_tokens_are_seen(fresh, frames):
    pixels, text = frames
    plain = features(fresh("clip"), pixels, num_frames=None)
    tokens = attach_ma_clip(fresh("clip"), num_frames=T).eval()
    assert not torch.allclose(features(tokens, pixels), plain)
    silent = attach_ma_clip(fresh("clip"), num_frames=T, adaptations=["local", "joint"], text_in_local=False).eval()
    torch.testing.assert_close(features(silent, pixels, text_tokens=text), plain)


SWITCHES = {
    "no temporal": {"adaptations": ["local", "joint"]},
    "no local": {"adaptations": ["temporal", "joint"]},
    "no joint": {"adaptations": ["temporal", "local"]},
    "no text": {"text_in_local": False},
    "projection of each layer": {"text_proj_shared": False},
    "some layers": {"layers": [0, 2]},
    "two temporal": {"num_temporal_adapters": 2},
    "wider": {"adapter_ratio": 0.5, "joint_scale": 1.0},
    "embedding": {"temporal_embedding": True},
}
SLOW_SWITCHES = ("no local", "no joint", "wider", "projection of each layer")


@torch.no_grad()
@pytest.mark.parametrize(
    "switch", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW_SWITCHES else name for name in SWITCHES]
)
def test_settings_survive_saving_and_the_export(switch, fresh, frames, tmp_path):
    pixels, text = frames
    model = adapted(fresh(), **SWITCHES[switch])
    videos = pixels.unflatten(0, (-1, T))
    expected = model.frame_features(videos, text), model.frame_features(videos)
    assert torch.equal(*expected) == (switch == "no text")
    model.save_pretrained(tmp_path / "adapter")
    exported = export_ma_clip(model)
    exported.save_pretrained(tmp_path / "exported")
    for found in (
        load_strictly(fresh(), tmp_path / "adapter"),
        exported,
        AutoModel.from_pretrained(tmp_path / "exported").eval(),
    ):
        assert torch.equal(found.frame_features(videos, text), expected[0])
        assert torch.equal(found.frame_features(videos), expected[1])
    assert not any("lora" in name or "base_layer" in name for name in exported.state_dict())


def test_stochastic_depth_works_in_training_alone(fresh, frames):
    pixels, _ = frames
    model = adapted(fresh("clip"), drop_path=0.5)
    still = features(model, pixels)
    assert torch.equal(features(model, pixels), still)
    model.train()
    torch.manual_seed(0)
    found = torch.stack([features(model, pixels) for _ in range(4)])
    assert len({each.sum().item() for each in found}) > 1
    assert model.get_base_model().vision_model.encoder.layers[0].drop_rates["default"] == 0.0
    assert model.get_base_model().vision_model.encoder.layers[-1].drop_rates["default"] == 0.5


# what transformers does around a layer


@torch.no_grad()
@pytest.mark.parametrize("when", ["before", "after"])
def test_hidden_states_are_collected(when, fresh, frames):
    pixels, text = frames
    base = fresh("clip_vision_model")
    if when == "before":
        assert len(base(pixels, output_hidden_states=True).hidden_states) == LAYERS + 1
    model = adapted(base)
    out = model(pixels, num_frames=T, text_tokens=text, output_hidden_states=True)
    assert len(out.hidden_states) == LAYERS + 1
    assert all(states.shape == (V * T, 5, D) for states in out.hidden_states)
    with model.disable_adapter():
        assert len(model(pixels, output_hidden_states=True).hidden_states) == LAYERS + 1
    assert len(model.unload()(pixels, output_hidden_states=True).hidden_states) == LAYERS + 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_gradient_checkpointing_gives_the_same_gradients(when, fresh, frames):
    pixels, text = frames

    def gradients(checkpointed):
        base = fresh("clip").train()
        if checkpointed and when == "before":
            base.activation_checkpointing_enable({"use_reentrant": False})
        model = adapted(base, drop_path=0.5).train()
        if checkpointed and when == "after":
            base.activation_checkpointing_enable({"use_reentrant": False})
        layer = base.vision_model.encoder.layers[0]
        assert isinstance(layer, MACLIPLayer)
        assert layer.gradient_checkpointing == checkpointed
        calls = []
        handle = layer.base_layer.layer_norm1.register_forward_hook(lambda *_: calls.append(1))
        torch.manual_seed(3)
        features(model, pixels, text_tokens=text).square().sum().backward()
        handle.remove()
        assert len(calls) == (4 if checkpointed else 2), "twice in a pass, and once more for the backward"
        return {name: each.grad for name, each in model.named_parameters() if each.requires_grad}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    for name, grad in plain.items():
        assert grad.abs().sum() > 0, name
        torch.testing.assert_close(checkpointed[name], grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_bfloat16_base_trains_with_float32_adapters(autocast, fresh, frames):
    pixels, text = frames
    base = fresh("clip").to(torch.bfloat16)
    before = {name: each.clone() for name, each in base.state_dict().items()}
    model = adapted(base).train()
    own = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert {each.dtype for each in own.values()} == {torch.float32}
    optimizer = torch.optim.SGD(own.values(), lr=0.1)
    losses = []
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = features(model, pixels.to(torch.bfloat16), text_tokens=text.to(torch.bfloat16))
        loss = found.float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    after = model.unload().state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    half = get_peft_model(fresh("clip").to(torch.bfloat16), MACLIPAdapterConfig(), autocast_adapter_dtype=False)
    assert {each.dtype for each in half.parameters() if each.requires_grad} == {torch.bfloat16}


@torch.no_grad()
def test_text_side_and_contrastive_forward_of_a_clip_ignore_what_is_about_videos(fresh, frames):
    pixels, text = frames
    model = adapted(fresh("clip"))
    ids = torch.tensor([[3, 4, 1], [5, 1, 1]])
    out = model(input_ids=ids, pixel_values=pixels, num_frames=T, text_tokens=text)
    expected = fresh("clip").get_text_features(ids).pooler_output
    torch.testing.assert_close(out.text_embeds, expected / expected.norm(dim=-1, keepdim=True))


# what is refused


def test_a_batch_that_is_no_videos_is_refused(fresh, frames):
    pixels, text = frames
    model = adapted(fresh("clip"))
    with pytest.raises(ValueError, match=r"12 frames does not consist of videos of num_frames=5"):
        features(model, pixels, num_frames=5)
    with pytest.raises(ValueError, match=r"text_tokens must be \[3, 12\]"):
        features(model, pixels, text_tokens=text[:2])
    assert features(model, pixels[:8], num_frames=2, text_tokens=torch.randn(4, C)).shape == (8, C)
    embedded = adapted(fresh("clip"), temporal_embedding=True)
    with pytest.raises(ValueError, match="num_frames=4"):
        features(embedded, pixels[:6], num_frames=2)


def test_merging_is_refused_and_leaves_the_model_usable(fresh, frames):
    pixels, text = frames
    model = adapted(fresh())
    before = features(model, pixels, text_tokens=text)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(NotImplementedError, match="export_ma_clip"):
            merge()
        assert torch.equal(features(model, pixels, text_tokens=text), before)


def test_an_adapter_of_another_base_is_refused_with_both_names(fresh, shared, folders, tmp_path):
    other = MAKERS["ma_clip"]()
    other.save_pretrained(tmp_path / "other")
    other = MACLIPForFewShotVideoClassification.from_pretrained(tmp_path / "other")
    for load in (load_strictly, PeftModel.from_pretrained, native):
        with pytest.raises(ValueError, match=rf"{folders / 'ma_clip'}.*{tmp_path / 'other'}"):
            load(other, shared[0] / "ma_clip")
        assert not any("ma_clip_" in name for name, _ in other.named_parameters())
    with pytest.raises(ValueError, match=r"made for CLIPVisionModel .* this is CLIPModel"):
        load_strictly(fresh("clip"), shared[0] / "clip_vision_model")


@pytest.mark.parametrize("change", ["missing", "unknown", "missing module"])
def test_missing_and_unknown_tensors_are_refused(change, fresh, shared, frames, tmp_path):
    source, folder = shared[0] / "ma_clip", tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text((source / "adapter_config.json").read_text())
    stored = load_file(source / "adapter_model.safetensors")
    if change == "unknown":
        stored["base_model.model.vision_model.encoder.layers.9.ma_clip_local_up.bias"] = torch.zeros(D)
    else:
        what = "layers.1.ma_clip_joint_up.weight" if change == "missing" else "prototype_module.layer.norm.weight"
        stored = {name: each for name, each in stored.items() if not name.endswith(what)}
    save_file(stored, folder / "adapter_model.safetensors")
    message = r"unknown tensors \['base" if change == "unknown" else r"missing tensors \['base"
    base = fresh()
    expected = features(base, frames[0])
    with pytest.raises(ValueError, match=message):
        load_strictly(base, folder)
    assert torch.equal(features(base, frames[0]), expected)
    model = load_strictly(base, source)
    with pytest.raises(ValueError, match=message):
        load_strictly(model, folder, "second")
    assert list(model.peft_config) == ["default"]


BAD = {
    "choose one or more of temporal, local, joint": {"adaptations": ["global"]},
    "adapter_ratio must be above 0": {"adapter_ratio": 0.0},
    "AIM has 1 or 2": {"num_temporal_adapters": 3},
    "give numbers of layers": {"layers": []},
    "the tower has layers 0..2": {"layers": [1, 7]},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_settings_are_refused(message, fresh):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        attach_ma_clip(fresh("clip"), **BAD[message])


def test_bases_that_do_not_fit_are_refused(fresh):
    with pytest.raises(TypeError, match="has none"):
        get_peft_model(torch.nn.Sequential(torch.nn.Linear(2, 2)), MACLIPAdapterConfig(target_modules=["0"]))
    exported = export_ma_clip(adapted(fresh()))
    with pytest.raises(TypeError, match="owns adapters already"):
        attach_ma_clip(exported)
    with pytest.raises(TypeError, match="active MA-CLIP adapters"):
        export_ma_clip(fresh())
    with pytest.raises(TypeError, match="got CLIPModel"):
        export_ma_clip(adapted(fresh("clip")))


def test_seeding_from_aim_refuses_what_does_not_fit(fresh):
    model = attach_ma_clip(fresh("clip"), num_temporal_adapters=2, temporal_embedding=True, num_frames=T)
    inner, aim = D // 4, {"backbone.temporal_embedding": torch.ones(1, T, D), "backbone.conv1.weight": torch.ones(1)}
    for number in range(LAYERS):
        for kind in ("T_Adapter_in", "T_Adapter", "S_Adapter", "MLP_Adapter"):
            stem = f"backbone.transformer.resblocks.{number}.{kind}"
            aim |= {f"{stem}.D_fc1.weight": torch.ones(inner, D), f"{stem}.D_fc1.bias": torch.ones(inner)}
            aim |= {f"{stem}.D_fc2.weight": torch.ones(D, inner), f"{stem}.D_fc2.bias": torch.ones(D)}
    assert seed_from_aim(model, aim) == ["0.text_proj.bias", "0.text_proj.weight"]
    filled = {name for name, each in model.named_parameters() if each.requires_grad and bool((each == 1).all())}
    assert len(filled) == 16 * LAYERS + 1
    with pytest.raises(ValueError, match="do not fit these"):
        seed_from_aim(attach_ma_clip(fresh("clip")), aim)
    with pytest.raises(ValueError, match="no adapters of AIM"):
        seed_from_aim(model, {"backbone.conv1.weight": torch.ones(1)})
    aim["backbone.transformer.resblocks.0.X_Adapter.D_fc1.bias"] = torch.ones(inner)
    with pytest.raises(ValueError, match="X_Adapter"):
        seed_from_aim(model, aim)
