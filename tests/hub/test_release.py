"""upload_scripts/: what they convert, check and push, and that the checks find what is wrong."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_zoo import tiny
from transformers import CLIPProcessor

from hf_clipplus import get_variant, list_models
from hf_clipplus.hub import handler, write_repository
from hf_clipplus.hub.loading import load_from_zoo
from hf_clipplus.hub.release import check_features, check_repository
from hf_clipplus.models.configuration_clip_resnet import CLIPResNetConfig
from hf_clipplus.models.fff.convert_fff import fff_to_open_clip, fff_to_transformers
from hf_clipplus.models.groupvit.convert_groupvit import groupvit_to_official, groupvit_to_transformers
from hf_clipplus.models.open_clip_layout import write_checkpoint

SCRIPTS = Path(__file__).parents[2] / "upload_scripts"


def script(name: str):
    spec = importlib.util.spec_from_file_location(f"push_{name}", SCRIPTS / f"push_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def saved(tmp_path):
    """`saved(variant)`: a folder with model and processor; the model is returned too."""

    def save(variant: str):
        model, processor = tiny(variant)
        model.save_pretrained(tmp_path / variant)
        processor.save_pretrained(tmp_path / variant)
        return model, tmp_path / variant

    return save


@pytest.mark.parametrize("name", list_models())
def test_every_variant_has_a_script(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        script(name).main(["--help"])
    assert stopped.value.code == 0
    assert "--repo_id" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "ape" else [pytest.mark.slow]) for name in list_models()]
)
def test_a_trained_folder_goes_up(hub, author, saved, name, capsys):
    model, folder = saved(name)
    script(name).main(["--source", str(folder), "--repo_id", f"org/{name}-plus", "--license", "cc0-1.0"])
    files = hub.files(f"org/{name}-plus")
    assert {f"{name}_bundle.py", "model.safetensors"} <= files.keys()
    assert ("handler.py" in files) == any(task in handler.PARAMETERS for task in get_variant(name).tasks)
    assert f"commit {hub.repo(f'org/{name}-plus').resolve('main')}" in capsys.readouterr().out
    found, _ = load_from_zoo(f"org/{name}-plus")
    assert all(torch.equal(found.state_dict()[key], value) for key, value in model.state_dict().items())


def test_what_can_be_converted_goes_up_converted(hub, author, saved, tmp_path):
    fff, folder = saved("fff")
    write_checkpoint(fff_to_open_clip(fff)[0], tmp_path / "open_clip.safetensors")
    clip, _ = fff_to_transformers(fff)
    clip.save_pretrained(tmp_path / "clip")
    processor = tiny("fff")[1]
    CLIPProcessor(processor.image_processor, processor.tokenizer).save_pretrained(tmp_path / "clip")
    groupvit, tokens = saved("groupvit")
    save_file(groupvit_to_official(groupvit)[0], tmp_path / "official.safetensors")
    stock, _ = groupvit_to_transformers(groupvit)
    stock.save_pretrained(tmp_path / "stock")
    tiny("groupvit")[1].tokenizer.save_pretrained(tmp_path / "stock")
    for name, source, model, more in (
        (
            "fff",
            "open_clip.safetensors",
            fff,
            ["--processor", str(folder), "--vision_heads", "2", "--text_heads", "2"],
        ),
        ("fff", "clip", fff, []),
        ("groupvit", "official.safetensors", groupvit, ["--processor", str(tokens)]),
        ("groupvit", "stock", groupvit, []),
    ):
        repo_id = f"org/{source.partition('.')[0]}"
        where = ["--source", str(tmp_path / source), "--repo_id", repo_id, "--license", "mit", "--bundle", "false"]
        script(name).main([*where, *more])
        found, _ = load_from_zoo(repo_id)
        one, other = (
            found.state_dict()["text_projection.weight" if name == "fff" else "logit_scale"],
            model.state_dict(),
        )
        assert torch.equal(one, other["text_projection.weight" if name == "fff" else "logit_scale"])
    with pytest.raises(ValueError, match="has no processor: say --processor"):
        script("fff").main(
            ["--source", str(tmp_path / "open_clip.safetensors"), "--repo_id", "org/x", "--license", "mit"]
        )


def test_a_bundle_registers_the_tower_that_transformers_has_not(tmp_path):
    variant, (_, processor) = get_variant("clip_fsar"), tiny("clip_fsar")
    vision = CLIPResNetConfig(depths=[1, 1, 1, 1], width=8, image_size=32, num_attention_heads=2, projection_dim=12)
    towers = {"vision_config": vision.to_dict(), "text_config": tiny("clip_fsar")[0].config.text_config.to_dict()}
    config = variant.load(variant.config)(**towers, projection_dim=12, temporal_heads=2, temporal_ffn_dim=16)
    write_repository(variant.load(variant.model)(config), processor, tmp_path, "org/x", bundle=True)
    entry = (tmp_path / "clip_fsar_bundle.py").read_text()
    assert 'AutoConfig.register("clipplus_clip_resnet", CLIPResNetConfig, exist_ok=True)' in entry
    assert "from .configuration_clip_resnet import CLIPResNetConfig" in entry


def test_the_checks_find_what_is_wrong(tmp_path):
    model, processor = tiny("fff")
    write_repository(model, processor, tmp_path, "org/x", license="mit")
    check_repository(tmp_path, model, processor)
    reference, _ = fff_to_transformers(model)
    check_features(model, reference, processor)
    torch.nn.init.ones_(reference.visual_projection.weight)
    with pytest.raises(ValueError, match="image features differ from the reference by"):
        check_features(model, reference, processor)

    weights, config = tmp_path / "model.safetensors", tmp_path / "processor_config.json"
    state, text = load_file(weights), config.read_text()
    save_file({**state, "logit_scale": state["logit_scale"] + 1}, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"weights are not what was saved: \['logit_scale'\]"):
        check_repository(tmp_path, model, processor)
    save_file(state, weights, metadata={"format": "pt"})
    changed = json.loads(text)
    changed["image_processor"]["image_mean"] = [0.0, 0.0, 0.0]
    config.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="pixel_values differs by"):
        check_repository(tmp_path, model, processor)
    config.write_text(text)
    card = tmp_path / "README.md"
    card.write_text(card.read_text().replace("license: mit\n", ""))
    with pytest.raises(ValueError, match="the card does not say license"):
        check_repository(tmp_path, model, processor)
    (tmp_path / "optimizer.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"nothing was uploaded, because of optimizer\.pt"):
        check_repository(tmp_path, model, processor)


def test_missing_weights_are_not_made_up(tmp_path):
    model, processor = tiny("fff")
    write_repository(model, processor, tmp_path, "org/x")
    state = load_file(tmp_path / "model.safetensors")
    del state["text_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights, which would stay random: \['text_projection.weight'\]"):
        load_from_zoo(str(tmp_path))
