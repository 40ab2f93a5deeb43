"""FFFModel and FFFProcessor: checkpoints in and out, the way of a batch, and what bad input says."""

import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
    pipeline,
)

from hf_clipplus import FFFConfig, FFFModel, FFFProcessor
from hf_clipplus.ops.contrastive import sigmoid_loss, softmax_loss
from hf_clipplus.ops.positives import Positives

GROUPS = [
    ["a red cat", "a tiger"],
    ["a small dog on a hill"],
    ["two green boats", "the sun over the sea", "a cup of tea"],
]


@pytest.fixture
def processor(image_processor, tokenizer):
    return FFFProcessor(image_processor, tokenizer)


@pytest.fixture
def model(tower_configs, seeded):
    return FFFModel(FFFConfig(**tower_configs)).eval()


@pytest.fixture
def batch(processor, pictures):
    return processor(images=pictures[:3], text=GROUPS, return_tensors="pt")


def test_processor_flattens_captions(batch):
    assert batch["caption_owner"].tolist() == [0, 0, 1, 2, 2, 2]
    assert batch["pixel_values"].shape == (3, 3, 24, 24)
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert "truncated_captions" not in batch


def test_long_caption_is_cut_with_its_end_token_and_counted(processor):
    batch = processor(text=["a cat " * 40, "a cat"], return_tensors="pt")
    assert batch["truncated_captions"] == 1
    assert batch["input_ids"].shape[1] == 16
    assert batch["input_ids"][0, -1] == processor.tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([["a cat"], []], r"text\[1\] has no captions at all"),
        ([["a cat", " "]], r"text\[0\]\[1\] is an empty caption"),
        ([["a cat"], "a dog"], r"text\[1\] is a text among lists"),
        ([["a cat", None]], r"text\[0\]\[1\] is NoneType"),
        ([], "empty list"),
    ],
)
def test_bad_captions_are_named(processor, text, message):
    with pytest.raises(ValueError, match=message):
        processor(text=text)


def test_number_of_images_and_caption_lists_must_agree(processor, pictures):
    with pytest.raises(ValueError, match="2 images but 1 lists"):
        processor(images=pictures[:2], text=[["a cat"]])


def test_loss_is_the_function_of_the_embeddings(model, batch):
    output = model(**batch, return_loss=True)
    expected = sigmoid_loss(
        output.image_embeds, output.text_embeds, batch["caption_owner"], model.logit_scale, model.logit_bias
    )
    assert torch.equal(output.loss, expected)
    assert output.logits_per_image is None
    logits = model(**batch, return_loss=True, return_logits=True).logits_per_image
    mask = Positives.coerce(batch["caption_owner"], (3, 6)).to_mask()
    dense = torch.nn.functional.softplus(torch.where(mask, -logits, logits)).sum() / 3
    torch.testing.assert_close(output.loss, dense)
    torch.testing.assert_close(output.statistics["positive_logit"], logits[mask].mean())
    torch.testing.assert_close(output.statistics["negative_logit"], logits[~mask].mean())


def test_softmax_arm_is_clip(tower_configs, processor, pictures, seeded):
    model = FFFModel(FFFConfig(**tower_configs, contrastive_loss="softmax"))
    batch = processor(images=pictures[:3], text=[["a red cat"], ["a tiger"], ["two green boats"]], return_tensors="pt")
    output = model(**batch, return_loss=True, return_logits=True)
    target = torch.arange(3)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(output.logits_per_image, target) + cross_entropy(output.logits_per_text, target)) / 2
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_ids_and_mining_make_positives(model, batch):
    output = model(**batch, return_loss=True, image_ids=torch.tensor([7, 8, 7]))
    assert set(map(tuple, output.positives.T.tolist())) == {
        *((0, c) for c in (0, 1, 3, 4, 5)),
        (1, 2),
        *((2, c) for c in (0, 1, 3, 4, 5)),
    }
    features = torch.eye(3)
    output = model(
        **batch,
        return_loss=True,
        mining_image_features=features,
        mining_text_features=features[[0, 0, 1, 1, 2, 2]],
    )
    assert output.statistics["mined_image_text"] == pytest.approx(1 / 3)
    assert [1, 3] in output.positives.T.tolist()


def test_online_mining_waits_for_the_word(tower_configs, batch, seeded):
    model = FFFModel(FFFConfig(**tower_configs, mining_features="online", p1=-1.0)).eval()
    assert model(**batch, return_loss=True).positives.shape[1] == 6
    assert model(**batch, return_loss=True, mine_online=True).positives.shape[1] == 18


def test_batch_of_one(model, processor, pictures):
    batch = processor(images=pictures[:1], text=[["a cat"]], return_tensors="pt")
    assert torch.isfinite(model(**batch, return_loss=True).loss)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"caption_owner": torch.tensor([0, 0, 1, 2, 2, 3])}, "image index out of range: found 3"),
        ({"caption_owner": torch.tensor([0, 1])}, r"one entry per text \(6\), got \[2\]"),
        ({"image_ids": torch.tensor([1])}, "image_ids"),
        ({"mining_image_features": torch.ones(3, 4)}, "mining needs both"),
        (
            {"mining_image_features": torch.full((3, 4), torch.nan), "mining_text_features": torch.ones(6, 4)},
            "NaN",
        ),
        ({"positives": torch.ones(2, 6, dtype=torch.bool)}, "dense mask"),
    ],
)
def test_bad_targets_are_named(model, batch, extra, message):
    with pytest.raises(ValueError, match=message):
        model(**{**batch, **extra}, return_loss=True)


def test_clip_checkpoint_loads_with_equal_embeddings(tower_configs, batch, tmp_path, seeded):
    clip = CLIPModel(CLIPConfig(**tower_configs)).eval()
    clip.save_pretrained(tmp_path)
    model, info = FFFModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"logit_bias"}
    assert not info["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(
            model.get_image_features(batch["pixel_values"]).pooler_output,
            clip.get_image_features(batch["pixel_values"]).pooler_output,
        )
        text = (batch["input_ids"], batch["attention_mask"])
        assert torch.equal(model.get_text_features(*text).pooler_output, clip.get_text_features(*text).pooler_output)
    assert model.logit_scale == clip.logit_scale
    assert model.logit_bias == -10
    model.save_pretrained(tmp_path / "fff")
    assert FFFConfig.from_pretrained(tmp_path / "fff").model_type == "clipplus_fff"
    assert type(AutoModel.from_pretrained(tmp_path / "fff")) is FFFModel


def test_siglip_checkpoint_loads_with_equal_logits(tmp_path, seeded):
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text_config = tower | {"vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 1}
    config = SiglipConfig(text_config=text_config, vision_config=tower | {"image_size": 24, "patch_size": 8})
    siglip = SiglipModel(config).eval()
    siglip.save_pretrained(tmp_path)
    model, info = FFFModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    inputs = {"pixel_values": torch.randn(2, 3, 24, 24), "input_ids": torch.randint(2, 50, (4, 8))}
    with torch.no_grad():
        expected = siglip(**inputs).logits_per_image
        torch.testing.assert_close(model.eval()(**inputs).logits_per_image, expected)
    assert torch.isfinite(model(**inputs, return_loss=True).loss)


def test_auto_classes_and_pipeline_in_a_fresh_process(model, processor, batch, pictures, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    torch.save({"batch": dict(batch), "logits": model(**batch).logits_per_image.detach()}, tmp_path / "expected.pt")
    script = f"""
import torch, hf_clipplus
from transformers import AutoModel, AutoProcessor
model, processor = AutoModel.from_pretrained({str(tmp_path)!r}), AutoProcessor.from_pretrained({str(tmp_path)!r})
expected = torch.load({str(tmp_path / "expected.pt")!r}, weights_only=True)
assert torch.equal(model(**expected["batch"]).logits_per_image, expected["logits"])
assert type(processor).__name__ == "FFFProcessor", type(processor)
for name, buffer in model.named_buffers():
    assert buffer.abs().max() < 1000, name
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert type(AutoModelForZeroShotImageClassification.from_pretrained(tmp_path)) is FFFModel
    assert type(AutoProcessor.from_pretrained(tmp_path)) is FFFProcessor
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path))
    answer = classify(pictures[0], candidate_labels=["cat", "dog " * 50])
    assert {entry["label"] for entry in answer} == {"cat", "dog " * 50}


def test_too_long_ids_keep_the_end_token(model, processor):
    ids = processor.tokenizer(["a cat " * 40], return_tensors="pt")["input_ids"]
    kept = ids[:, :16].clone()
    kept[:, -1] = processor.tokenizer.eos_token_id
    assert torch.equal(model.encode_text(ids), model.encode_text(kept))


def test_padding_does_not_change_text_embeddings(model, processor):
    short = processor(text=["a tiger"], return_tensors="pt")
    padded = processor(text=["a tiger"], padding="max_length", return_tensors="pt")
    torch.testing.assert_close(model.encode_text(**short), model.encode_text(**padded))


def test_scale_and_bias_stay_float32(model, tmp_path):
    model.save_pretrained(tmp_path)
    half = FFFModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.logit_scale.dtype == half.logit_bias.dtype == torch.float32
    assert half.visual_projection.weight.dtype == torch.bfloat16


def test_wrong_name_never_gives_random_weights(tmp_path):
    with pytest.raises(OSError, match="no-such-folder"):
        FFFModel.from_pretrained(str(tmp_path / "no-such-folder"))


@pytest.mark.parametrize(
    "field", ["contrastive_loss", "mining_rule", "stt_mode", "loss_normalizer", "use_raw_caption"]
)
def test_wrong_option_is_named(field):
    with pytest.raises(ValueError, match=field):
        FFFConfig(**{field: "nonsense"})


def test_softmax_and_sigmoid_accept_the_same_positives(seeded):
    images, texts = (torch.nn.functional.normalize(torch.randn(n, 8), dim=1) for n in (3, 6))
    owner = torch.tensor([0, 0, 1, 2, 2, 2])
    for positives in (owner, Positives.coerce(owner, (3, 6)).to_mask(), torch.stack([owner, torch.arange(6)])):
        assert torch.isfinite(softmax_loss(images, texts, positives, torch.tensor(2.0)))
