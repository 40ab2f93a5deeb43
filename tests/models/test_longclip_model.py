"""LongCLIPModel: stretching, frozen positions, losses, texts in segments, checkpoints in and out."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPModel

from hf_clipplus import FFFConfig, FFFModel, LongCLIPConfig, LongCLIPModel, LongCLIPProcessor
from hf_clipplus.ops.components import primary_component_losses
from hf_clipplus.ops.position import stretch_positions
from hf_clipplus.training import ContrastiveTrainer

TABLE = "text_model.embeddings.position_embedding.weight"
PAIRS = [["a red cat. a small dog on a hill", "a red cat"], ["two green boats. the sun", "two green boats"]] * 2


@pytest.fixture
def processor(image_processor, tokenizer):
    return LongCLIPProcessor(image_processor, tokenizer)


@pytest.fixture
def model(tower_configs, seeded):
    return LongCLIPModel(LongCLIPConfig(**tower_configs, frozen_positions=4, components=2)).eval()


@pytest.fixture
def batch(processor, pictures):
    return processor(images=pictures[:4], text=PAIRS, return_tensors="pt")


def test_the_default_has_248_positions():
    assert LongCLIPConfig().text_config.max_position_embeddings == 248


def test_from_clip_stretches_and_lets_short_texts_alone(tower_configs, processor, tmp_path, seeded):
    clip = CLIPModel(CLIPConfig(**tower_configs)).eval()
    clip.save_pretrained(tmp_path)
    model = LongCLIPModel.from_clip(str(tmp_path), kept=6, ratio=3).eval()
    context = 6 + 3 * 10
    assert model.config.text_config.max_position_embeddings == context
    assert model.config.frozen_positions == 6
    table = clip.state_dict()[TABLE]
    assert torch.equal(model.state_dict()[TABLE], stretch_positions(table, kept=6, ratio=3))
    short = processor(text=["a cat", "a dog"], return_tensors="pt")
    assert short["input_ids"].shape[1] <= 6
    with torch.no_grad():
        assert torch.equal(
            model.get_text_features(**short).pooler_output, clip.get_text_features(**short).pooler_output
        )
    longer = processor.tokenizer(["a cat " * 40], max_length=context, truncation=True, return_tensors="pt")
    assert torch.isfinite(model.encode_text(**longer)).all()
    model.save_pretrained(tmp_path / "long")
    again = LongCLIPModel.from_pretrained(tmp_path / "long")
    assert torch.equal(again.encode_text(**longer), model.encode_text(**longer))


def test_every_variant_with_a_clip_tower_can_be_extended(tower_configs, tmp_path, seeded):
    model = FFFModel(FFFConfig(**tower_configs)).eval()
    ids = torch.randint(2, 50, (2, 40))
    assert model.extend_context(kept=4, ratio=4) == 4 + 4 * 12
    ids[:, -1] = model.config.text_config.eos_token_id
    embeds = model.encode_text(ids)
    model.save_pretrained(tmp_path)
    assert torch.equal(FFFModel.from_pretrained(tmp_path).encode_text(ids), embeds)


def test_the_loss_is_that_of_the_function(model, batch):
    out = model(**batch, return_loss=True)
    long, short = primary_component_losses(
        out.image_embeds, out.text_embeds[0::2], out.text_embeds[1::2], model.logit_scale, components=2
    )
    torch.testing.assert_close(out.loss, long + short)
    torch.testing.assert_close(out.statistics["short_loss"], short)
    model.config.short_loss_weight = 0.5
    torch.testing.assert_close(model(**batch, return_loss=True).loss, long + 0.5 * short)


def test_long_captions_alone_have_one_loss(model, processor, pictures):
    batch = processor(images=pictures[:4], text=[pair[:1] for pair in PAIRS], return_tensors="pt")
    out = model(**batch, return_loss=True)
    target = torch.arange(4)
    logits = model.logit_scale.exp() * out.image_embeds @ out.text_embeds.T
    expected = sum(F.cross_entropy(side, target, label_smoothing=0.1) for side in (logits, logits.T)) / 2
    torch.testing.assert_close(out.loss, expected)
    assert out.statistics.keys() == {"long_loss"}


def test_frozen_rows_get_no_gradient_and_no_decay(model, batch):
    model.train()(**batch, return_loss=True).loss.backward()
    grad = dict(model.named_parameters())[TABLE].grad
    assert (grad[:4] == 0).all()
    assert (grad[4:8] != 0).any()
    decayed = ContrastiveTrainer.get_decay_parameter_names(_trainer(decay_scales=False), model)
    assert TABLE not in decayed
    assert "text_projection.weight" in decayed
    model.config.frozen_positions = 0
    assert TABLE in ContrastiveTrainer.get_decay_parameter_names(_trainer(decay_scales=False), model)


def _trainer(**args):
    trainer = object.__new__(ContrastiveTrainer)
    trainer.args = type("Arguments", (), args)
    return trainer


@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [
        (3, 3, "use a batch of more than 3 images"),
        (4, [0, 0, 1, 1, 3, 3, 2, 2], "long and the short"),
        (2, 3, "long and the short"),
    ],
)
def test_bad_batches_are_named(images, texts, message, model, processor, pictures):
    text = PAIRS[:images] if texts != 3 or images == 3 else [["a", "b", "c"]] * images
    batch = processor(images=pictures[:images], text=text, return_tensors="pt")
    if isinstance(texts, list):
        batch["caption_owner"] = torch.tensor(texts)
    with pytest.raises(ValueError, match=message):
        model(**batch, return_loss=True)


def test_saved_model_and_processor(tower_configs, image_processor, tokenizer, tmp_path, seeded):
    model = LongCLIPModel(LongCLIPConfig(**tower_configs, segment_pooling="attention")).eval()
    processor = LongCLIPProcessor(image_processor, tokenizer, default_text_mode="hierarchical")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert (type(again), again.default_text_mode) == (LongCLIPProcessor, "hierarchical")
    batch = again(text="a red cat on a hill. " * 6, return_tensors="pt")
    assert len(batch["segment_owner"]) > 1
    assert torch.equal(AutoModel.from_pretrained(tmp_path).encode_text(**batch), model.encode_text(**batch))


def test_a_checkpoint_with_a_bias_loses_it(tower_configs, tmp_path, seeded):
    FFFModel(FFFConfig(**tower_configs)).save_pretrained(tmp_path)
    model = LongCLIPModel.from_pretrained(tmp_path)
    assert model.logit_bias is None
    assert "logit_bias" not in model.state_dict()
