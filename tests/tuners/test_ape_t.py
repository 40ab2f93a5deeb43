"""APE-T under PEFT: counts, disabled bit for bit, save and load by every way, several adapters, training on images."""

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from peft import AutoPeftModel, PeftModel, PeftType
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageClassification, CLIPConfig, CLIPModel

from hf_clipplus.models.ape import APEForImageClassification, SearchGrid
from hf_clipplus.training.few_shot import FeatureRows, ape_t_arguments, train_few_shot
from hf_clipplus.tuners.ape_t import attach_ape_t
from hf_clipplus.tuners.base import load_strictly
from hf_clipplus.tuners.registration import ensure_peft_type

C, K, D, Q = 4, 3, 20, 7
NAMES = ["cat", "dog", "boat", "tree"]


@pytest.fixture
def base(tmp_path):
    """A zero-shot model on disk and in memory."""
    torch.manual_seed(0)
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision, text = {**tower, "image_size": 8, "patch_size": 8}, {**tower, "vocab_size": 10}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=D)).eval()
    model = APEForImageClassification.from_clip(clip)
    model.set_classes(NAMES, text_weight=F.normalize(torch.randn(C, D), dim=1))
    model.save_pretrained(tmp_path / "base")
    return APEForImageClassification.from_pretrained(tmp_path / "base").eval()


@pytest.fixture
def support():
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(C).repeat(K)
    return F.normalize(torch.eye(C, D)[labels] + 0.2 * torch.randn(C * K, D, generator=draw), dim=1), labels


@pytest.fixture
def pixels():
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def trained(base, support, name="default", epochs=3):
    model = attach_ape_t(base, *support, num_channels=Q, alpha=2.0, adapter_name=name)
    validation = (support[0].roll(1, 1), support[1])
    args = ape_t_arguments(num_train_epochs=epochs, learning_rate=0.05, use_cpu=True)
    train_few_shot(model, FeatureRows(support[0][None], support[1]), validation=validation, args=args)
    return model.eval()


def test_counts_and_disabled_is_zero_shot_bit_for_bit(base, support, pixels):
    with torch.no_grad():
        zero_shot = base(pixels).logits
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = trained(base, support)
    names = {name for name, each in model.named_parameters() if each.requires_grad}
    assert {name.split(".")[-2] for name in names} == {"ape_t_res", "ape_t_value_weights"}
    assert sum(each.numel() for each in model.parameters() if each.requires_grad) == C * (Q + K)
    with torch.no_grad():
        adapted = model(pixels).logits
        with model.disable_adapter():
            assert torch.equal(model(pixels).logits, zero_shot)
        assert not torch.equal(adapted, zero_shot)
        assert torch.equal(model(pixels).logits, adapted)
    unloaded = model.unload()
    with torch.no_grad():
        assert torch.equal(unloaded(pixels).logits, zero_shot)
    after = unloaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_folder_and_every_way_to_load_it(base, support, pixels, tmp_path):
    model = trained(base, support)
    with torch.no_grad():
        expected = model(pixels).logits
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)
    stored = load_file(folder / "adapter_model.safetensors")
    prefix = "base_model.model.classifier.ape_t_"
    shapes = {"res": (C, Q), "value_weights": (C * K, 1), "indices": (Q,), "cache_keys": (C * K, D)}
    shapes |= {"cache_labels": (C * K,)}
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == {
        prefix + name: shape for name, shape in shapes.items()
    }
    assert stored[f"{prefix}indices"].dtype == torch.int64
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "APE_T"
    assert config["alpha"] == model.peft_config["default"].alpha

    def fresh():
        return APEForImageClassification.from_pretrained(tmp_path / "base").eval()

    ways = {
        "PeftModel": lambda: PeftModel.from_pretrained(fresh(), folder),
        "low memory": lambda: PeftModel.from_pretrained(fresh(), folder, low_cpu_mem_usage=True),
        "our loader": lambda: load_strictly(fresh(), folder),
        "another name": lambda: PeftModel.from_pretrained(fresh(), folder, adapter_name="second"),
        "AutoModel": lambda: AutoModel.from_pretrained(folder),
        "AutoModelForImageClassification": lambda: AutoModelForImageClassification.from_pretrained(folder),
        "AutoPeftModel": lambda: AutoPeftModel.from_pretrained(folder, import_allowlist=["hf_clipplus"]),
    }
    for way, load in ways.items():
        with torch.no_grad():
            assert torch.equal(load().eval()(pixels).logits, expected), way
    assert type(ways["AutoModel"]()) is APEForImageClassification
    native = fresh()
    native.load_adapter(str(folder))
    with torch.no_grad():
        assert torch.equal(native(pixels).logits, expected)


@pytest.mark.slow
def test_loading_in_a_fresh_process(base, support, tmp_path):
    trained(base, support, epochs=1).save_pretrained(tmp_path / "adapter")
    load = f"from transformers import AutoModel; print(type(AutoModel.from_pretrained({str(tmp_path / 'adapter')!r})))"
    done = subprocess.run([sys.executable, "-c", f"import hf_clipplus; {load}"], capture_output=True, text=True)
    assert "APEForImageClassification" in done.stdout, done.stderr


def test_two_adapters_on_one_base(base, support, pixels, tmp_path):
    model = trained(base, support, "one")
    with torch.no_grad():
        first = model(pixels).logits
    model = attach_ape_t(model, support[0][:8], support[1][:8], num_channels=5, adapter_name="two")
    args = ape_t_arguments(num_train_epochs=2, learning_rate=0.05, use_cpu=True)
    rows = FeatureRows(support[0][None], support[1])
    train_few_shot(model, rows, validation=(support[0][:8].roll(1, 1), support[1][:8]), args=args)
    model.eval()
    with torch.no_grad():
        second = model(pixels).logits
        model.set_adapter("one")
        assert torch.equal(model(pixels).logits, first)
        model.set_adapter("two")
        assert torch.equal(model(pixels).logits, second)
    assert not torch.equal(first, second)
    model.delete_adapter("two")
    model.set_adapter("one")
    with torch.no_grad():
        assert torch.equal(model(pixels).logits, first)


def test_classes_added_later_leave_the_adapter_alone(base, support, pixels, tmp_path):
    sun = {"text_weight": F.normalize(torch.ones(1, D), dim=1)}
    with torch.no_grad():
        zero_shot = base(pixels).logits
    model = trained(base, support)
    with torch.no_grad():
        before = model(pixels).logits
    model.save_pretrained(tmp_path / "adapter")
    model.get_base_model().add_classes(["sun"], **sun)
    assert model.config.id2label[4] == "sun"
    with torch.no_grad():
        after = model(pixels).logits
        assert after.shape == (5, 5)
        torch.testing.assert_close(after[:, :C], before)
        with model.disable_adapter():
            torch.testing.assert_close(model(pixels).logits[:, :C], zero_shot)
    fresh = APEForImageClassification.from_pretrained(tmp_path / "base").eval()
    fresh.add_classes(["sun"], **sun)
    with torch.no_grad():
        assert torch.equal(PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()(pixels).logits, after)
    model.save_pretrained(tmp_path / "again")
    saved = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert sum(saved[f"base_model.model.classifier.ape_t_{name}"].numel() for name in ("res", "value_weights")) == (
        C * (Q + K)
    )


def test_the_adapter_says_how_it_was_chosen(base, support, tmp_path):
    report = trained(base, support).peft_config["default"].fit_report
    assert (report["protocol"], report["shots"], report["validation_images"]) == ("honest", [K, K], C * K)
    model = attach_ape_t(base, *support, num_channels=Q, adapter_name="paper")
    rows, args = FeatureRows(support[0][None], support[1]), ape_t_arguments(num_train_epochs=1, use_cpu=True)
    many = (torch.cat([support[0].roll(i, 1) for i in (1, 2)]), support[1].repeat(2))
    with pytest.raises(ValueError, match="at most min\\(shots, 4\\) validation images per class"):
        train_few_shot(model, rows, validation=many, args=args)
    with pytest.raises(ValueError, match="validation and support share 12 images"):
        train_few_shot(model, rows, validation=support, args=args)
    edge = SearchGrid(betas=[1.0], alphas=[1e-3, 1e4])
    train_few_shot(model, rows, validation=many, args=args, protocol="paper", grid=edge)
    model.save_pretrained(tmp_path, selected_adapters=["paper"])
    stored = json.loads((tmp_path / "paper" / "adapter_config.json").read_text())["fit_report"]
    assert stored["protocol"] == "paper"
    assert any("edge of its grid" in each for each in stored["warnings"])


def test_training_on_images(base, support, pixels):
    model = attach_ape_t(base, *support, num_channels=Q)
    rows = [{"pixel_values": image, "labels": torch.tensor(i % C)} for i, image in enumerate(pixels)]
    args = ape_t_arguments(num_train_epochs=2, per_device_train_batch_size=2, use_cpu=True)
    report = train_few_shot(model, rows, validation=(support[0].roll(1, 1), support[1]), args=args)
    assert report["trained_parameters"] == C * (Q + K)
    assert model.get_base_model().classifier.ape_t_res["default"].abs().sum() > 0
    assert len(report["validation_accuracies"]) == 2


def test_decay_to_one_starts_at_the_same_place(base, support, pixels):
    model = attach_ape_t(base, *support, num_channels=Q)
    with torch.no_grad():
        expected = model(pixels).logits
    other = attach_ape_t(model, *support, num_channels=Q, decay_to_one=True, adapter_name="other")
    assert other.get_base_model().classifier.ape_t_value_weights["other"].sum() == 0
    with torch.no_grad():
        assert torch.equal(other(pixels).logits, expected)


def test_what_does_not_fit_is_refused(base, support, tmp_path):
    model = trained(base, support, epochs=1)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        model.merge_and_unload()
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    stored = load_file(file)
    save_file({name: each for name, each in stored.items() if "value_weights" not in name}, file)
    fresh = APEForImageClassification.from_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"missing tensors .*value_weights"):
        load_strictly(fresh, tmp_path / "adapter")
    fresh = APEForImageClassification.from_pretrained(tmp_path / "base")
    fresh.set_classes(["sun", *NAMES[1:]], text_weight=fresh.classifier.text_weight)
    with pytest.raises(ValueError, match=r"only the adapter has \['cat'\], only the base has \['sun'\]"):
        PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    tip = APEForImageClassification.from_pretrained(tmp_path / "base")
    tip.fit(*support, NAMES, text_weight=tip.classifier.text_weight, head="tip")
    with pytest.raises(TypeError, match="sits on a zero-shot classifier"):
        attach_ape_t(tip, *support)
    with pytest.raises(ValueError, match="nothing of the model is trainable"):
        train_few_shot(tip, FeatureRows(support[0][None], support[1]), validation=support, args=ape_t_arguments())


def test_the_type_is_a_member_like_any_other():
    import copy
    import pickle

    member = ensure_peft_type("APE_T")
    assert PeftType("APE_T") is PeftType["APE_T"] is member
    assert member in list(PeftType)
    assert pickle.loads(pickle.dumps(member)) is copy.deepcopy(member) is member
    assert json.dumps(member) == '"APE_T"'
    assert hash(member) == hash("APE_T")
