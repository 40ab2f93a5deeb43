"""Diffusion feedback from rows to a saved model: collator, latent cache, trainer, LoRA, resuming."""

import importlib.util
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from hf_clipplus.data.feedback import (
    CachedLatents,
    CenterCrop,
    FeedbackCollator,
    LatentCache,
    feedback_report,
    square_crop,
)
from hf_clipplus.data.sources import IndexedRows
from hf_clipplus.models.diva.feedback_diva import DIVAForDiffusionFeedback
from hf_clipplus.models.diva.generator_diva import DiffusionGenerator
from hf_clipplus.models.diva.processing_diva import DIVAProcessor
from hf_clipplus.training import ContrastiveTrainingArguments, NonFiniteLossError
from hf_clipplus.training.feedback_trainer import FeedbackTrainer, with_lora
from hf_clipplus.training.start import ENCODER

TINY = Path(__file__).parents[1] / "models" / "tiny_diva.py"
spec = importlib.util.spec_from_file_location("tiny_diva", TINY)
tiny_diva = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny_diva)


@pytest.fixture(scope="module")
def generator():
    parts = tiny_diva.tiny_parts()
    prompt = torch.randn(1, 8, tiny_diva.WIDTH, generator=torch.Generator().manual_seed(1))
    return DiffusionGenerator(parts["unet"], parts["scheduler"].alphas_cumprod, vae=parts["vae"], prompt_embeds=prompt)


@pytest.fixture(scope="module")
def processor():
    stock = AutoProcessor.from_pretrained(ENCODER)
    return DIVAProcessor(stock.image_processor, stock.tokenizer, generator_image_size=tiny_diva.SIDE)


def make_model(generator, **config):
    torch.manual_seed(0)
    options = {"condition_dim": tiny_diva.WIDTH, "recap": "random_k", "recap_k": 3, "prompt_mode": "mean_add"}
    model = DIVAForDiffusionFeedback.from_pretrained(ENCODER, dtype=torch.float32, **options | config)
    model.attach_generator(generator)
    return model


def make_rows(count=8):
    draw = np.random.default_rng(0)
    return [{"image": Image.fromarray(draw.integers(0, 255, (20, 24, 3), dtype=np.uint8))} for _ in range(count)]


def make_trainer(model, processor, folder, *, rows=None, crop="random", **arguments):
    options = {"max_steps": 2, "per_device_train_batch_size": 2, "optim": "sgd", "learning_rate": 0.05}
    options |= {"lr_scheduler_type": "constant", "save_strategy": "no", "max_grad_norm": 0.0, "use_cpu": True}
    options |= {"logging_steps": 1, "disable_tqdm": True}
    return FeedbackTrainer(
        model=model,
        args=ContrastiveTrainingArguments(output_dir=str(folder), **options | arguments),
        train_dataset=IndexedRows(make_rows() if rows is None else rows),
        data_collator=FeedbackCollator(processor, square_crop(crop, processor.generator_image_size), seed=5),
        processing_class=processor,
    )


def test_published_gradients_come_through_the_trainer(generator, processor, tmp_path):
    """One step of SGD over two micro-batches moves the weights by lr * sum(dL_0 + dL_1 / 2)."""
    model = make_model(generator, legacy_grad_weighting=True)
    batches = []
    hook = model.register_forward_pre_hook(lambda _, __, inputs: batches.append(dict(inputs)), with_kwargs=True)
    start = {key: p.detach().clone() for key, p in model.named_parameters() if p.requires_grad}
    trainer = make_trainer(model, processor, tmp_path, max_steps=1, gradient_accumulation_steps=2)
    trainer.train()
    hook.remove()
    assert [batch["accumulation_steps"] for batch in batches] == [2, 2]
    fresh = make_model(generator)
    for inputs in batches:
        losses = fresh(**inputs | {"accumulation_steps": 1}).draw_losses
        (losses[0] + losses[1] / 2).backward()
    for key, value in start.items():
        expected = value - 0.05 * fresh.get_parameter(key).grad
        torch.testing.assert_close(model.get_parameter(key).detach(), expected, rtol=1e-4, atol=1e-6)
    assert {"loss_early", "loss_middle", "loss_late"} & trainer.state.log_history[0].keys()


def test_resumed_is_uninterrupted(generator, processor, tmp_path):
    whole = make_trainer(make_model(generator), processor, tmp_path / "a", max_steps=3)
    whole.train()
    options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2}
    make_trainer(make_model(generator), processor, tmp_path / "b", **options).train()
    assert (tmp_path / "b" / "checkpoint-2").is_dir()
    files = {path.name for path in (tmp_path / "b" / "checkpoint-2").glob("*.safetensors")}
    assert files == {"model.safetensors"}
    again = make_trainer(make_model(generator), processor, tmp_path / "b", **options)
    with torch.no_grad():
        again.model.visual_proj.weight.zero_()
    again.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key


@pytest.mark.parametrize("train_projector", [True, False])
def test_lora_is_merged_into_a_plain_model(generator, processor, tmp_path, train_projector):
    model = make_model(generator)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer = make_trainer(with_lora(model, train_projector=train_projector), processor, tmp_path)
    trainer.train()
    trainer.save_model()
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == before.keys()
    changed = {key for key, value in saved.items() if not torch.equal(value, before[key])}
    assert {key.split(".")[0] for key in changed - {"visual_proj.weight", "visual_proj.bias"}} == {
        "vision_model",
        "visual_projection",
    }
    assert ("visual_proj.weight" in changed) == train_projector
    loaded, pixels = AutoModel.from_pretrained(tmp_path), torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        found, trained = loaded.encode_image(pixels), trainer.model.eval().encode_image(pixels)
    torch.testing.assert_close(found, trained, rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run(generator, processor, tmp_path):
    model = make_model(generator)
    with torch.no_grad():
        model.visual_proj.bias.fill_(torch.nan)
    with pytest.raises(NonFiniteLossError, match=r"at step 1; rows of the batch: \d, \d"):
        make_trainer(model, processor, tmp_path).train()


def test_rows_depend_on_seed_epoch_and_index_alone(processor):
    rows = [row | {"index": index, "epoch": 1} for index, row in enumerate(make_rows(3))]
    collate = FeedbackCollator(processor, square_crop("random", 16), seed=5)
    whole, alone = collate(rows), collate(rows[2:])
    for key in ("pixel_values", "vae_pixel_values", "draw_seeds", "example_index"):
        assert torch.equal(whole[key][2:], alone[key]), key
    later = collate([row | {"epoch": 2} for row in rows])
    assert not torch.equal(later["vae_pixel_values"], whole["vae_pixel_values"])
    assert not torch.equal(later["draw_seeds"], whole["draw_seeds"])
    report = feedback_report()
    broken = [*rows, {"image": {"bytes": b"no image", "path": "x.png"}, "index": 3}]
    assert len(FeedbackCollator(processor, square_crop("center", 16), report=report)(broken)["draw_seeds"]) == 3
    assert report.counts() == {"unreadable image": 1}
    assert report.names("unreadable image") == ["row 3 (x.png)"]
    with pytest.raises(ValueError, match="crop 'left' is unknown"):
        square_crop("left", 16)


def test_latent_cache_is_exact_and_goes_on(generator, processor, tmp_path):
    rows = make_rows(5)
    rows[3] = {"image": {"bytes": b"no image", "path": "x.png"}}
    cache = LatentCache(tmp_path, rows, processor, generator)
    encode, calls = generator.encode_images, itertools.count()

    def encode_once(pixels):
        if next(calls) == 1:
            raise RuntimeError("power cut")
        return encode(pixels)

    generator.encode_images = encode_once
    with pytest.raises(RuntimeError, match="power cut"):
        cache.fill(batch_size=2)
    generator.encode_images = lambda pixels: encode(pixels) if len(pixels) < 2 else pytest.fail("encoded again")
    report = feedback_report()
    again = LatentCache(tmp_path, rows, processor, generator)
    again.fill(batch_size=2, report=report)  # row 2, then row 4; rows 0 and 1 are there
    del generator.encode_images
    assert report.names("unreadable image") == ["row 3 (x.png)"]
    data = IndexedRows(pickle.loads(pickle.dumps(CachedLatents(rows, tmp_path))))  # as a spawned worker gets it
    batch = FeedbackCollator(processor, CenterCrop(16))([data[index] for index in range(5)])
    assert "vae_pixel_values" not in batch
    direct = FeedbackCollator(processor, CenterCrop(16))([IndexedRows(rows)[index] for index in range(5)])
    torch.testing.assert_close(
        batch["latents"], generator.encode_images(direct["vae_pixel_values"]), rtol=1e-6, atol=1e-6
    )
    model = make_model(generator)
    cached, straight = model(**_inputs(batch)).loss, model(**_inputs(direct)).loss
    torch.testing.assert_close(cached, straight, rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="use crop 'center' with a cache"):
        FeedbackCollator(processor, square_crop("random", 16))([data[0]])
    with pytest.raises(ValueError, match="some rows of a batch have latents"):
        FeedbackCollator(processor, CenterCrop(16))([data[0], IndexedRows(rows)[1]])
    with pytest.raises(ValueError, match=r"another run \(pictures differ\): delete it"):
        LatentCache(tmp_path, make_rows(6)[1:], processor, generator)


def _inputs(batch):
    return {key: value for key, value in batch.items() if key != "example_index"}


@pytest.mark.parametrize("settings", [{"self_labels": ["colour=1"]}, {"adversarial": "pixel"}])
def test_enhancements_of_contrastive_losses_are_refused(generator, processor, tmp_path, settings):
    with pytest.raises(ValueError, match="the loss of diffusion feedback is that of a frozen diffusion model"):
        make_trainer(make_model(generator), processor, tmp_path, **settings)
