"""EpisodicTrainer: learns, resumes bit by bit, keeps the best checkpoint, and follows the published schedule."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from hf_clipplus import CLIPFSARConfig, CLIPFSARForFewShotVideoClassification, CLIPFSARProcessor
from hf_clipplus.data.episodes import EpisodeCollator, EpisodeDataset, EpisodeSampler
from hf_clipplus.data.few_shot_videos import VideoSplit
from hf_clipplus.evaluation.few_shot_video import FewShotVideoEvaluation
from hf_clipplus.models.video_processing import VideoFrameProcessor
from hf_clipplus.training import EpisodicTrainer, EpisodicTrainingArguments, NonFiniteLossError
from hf_clipplus.training.few_shot_video_build import RECIPES
from hf_clipplus.training.schedules import EpisodeSteps

NAMES = ["up", "down", "still", "left"]


@pytest.fixture(scope="module")
def processor():
    tokenizer = CLIPTokenizer().train_new_from_iterator(["a photo of up down still left"] * 4, 400)
    tokenizer.model_max_length = 16
    return CLIPFSARProcessor(VideoFrameProcessor(resize=16, crop=16, num_frames=4), tokenizer)


@pytest.fixture(scope="module")
def split():
    """A bright bar that moves; four kinds of motion."""
    draw = np.random.default_rng(0)
    videos, labels = [], []
    for label in range(4):
        for _ in range(8):
            frames = draw.integers(0, 40, (4, 16, 16, 3))
            for t in range(4):
                start = {0: 4 * t, 1: 12 - 4 * t, 2: 6, 3: 12 - 4 * t}[label]
                band = (slice(None), slice(start, start + 4)) if label == 3 else (slice(start, start + 4),)
                frames[t][band] += 200
            videos.append(frames.astype(np.uint8))
            labels.append(label)
    return VideoSplit(NAMES, videos, labels)


def make_trainer(output, split, processor, evaluators=(), dropout=0.0, steps=None, **arguments):
    torch.manual_seed(0)
    tower = {"hidden_size": 24, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {f"{name}_token_id": getattr(processor.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = CLIPTextConfig(**tower, **ids, vocab_size=len(processor.tokenizer), max_position_embeddings=16)
    config = CLIPFSARConfig(
        text_config=text.to_dict(),
        vision_config=CLIPVisionConfig(**tower, image_size=16, patch_size=8).to_dict(),
        projection_dim=16,
        temporal_heads=2,
        temporal_ffn_dim=24,
        attention_dropout=dropout,
        ffn_dropout=dropout,
        num_frames=4,
    )
    model = CLIPFSARForFewShotVideoClassification(config)
    sampler = EpisodeSampler(split.labels, way=3, shots=1, queries=2, seed=1)
    arguments = {
        "max_steps": 6,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": [],
    } | arguments
    return EpisodicTrainer(
        model=model,
        args=EpisodicTrainingArguments(output_dir=str(output), **arguments),
        train_dataset=EpisodeDataset(split, sampler, length=64, num_frames=4),
        data_collator=EpisodeCollator(processor, split.class_names),
        processing_class=processor,
        evaluators=list(evaluators),
        steps=steps,
    )


def losses(trainer, name="loss"):
    return [record[name] for record in trainer.state.log_history if name in record]


def weights(trainer):
    return {key: value.clone() for key, value in trainer.model.state_dict().items()}


def test_it_learns_and_logs_both_parts_of_the_loss(tmp_path, split, processor):
    trainer = make_trainer(tmp_path, split, processor, max_steps=25, per_device_train_batch_size=2)
    trainer.train()
    first, last = np.mean(losses(trainer)[:5]), np.mean(losses(trainer)[-5:])
    assert last < first - 0.2
    parts = [losses(trainer, name) for name in ("loss_few_shot", "loss_video_text", "accuracy")]
    assert {len(part) for part in parts} == {25}
    total = np.array(parts[0]) + 1.5 * np.array(parts[1])
    np.testing.assert_allclose(total, losses(trainer), rtol=1e-3)


def test_accumulated_episodes_are_a_batch_of_them(tmp_path, split, processor):
    sgd = {"optim": "sgd", "max_steps": 2, "max_grad_norm": 0.0, "train_sampling_strategy": "sequential"}
    together = make_trainer(tmp_path, split, processor, per_device_train_batch_size=4, **sgd)
    together.train()
    apart = make_trainer(tmp_path, split, processor, gradient_accumulation_steps=4, **sgd)
    apart.train()
    for (key, one), two in zip(weights(together).items(), weights(apart).values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
    np.testing.assert_allclose(losses(together), losses(apart), rtol=1e-4)


def test_a_resumed_run_is_the_whole_one(tmp_path, split, processor):
    options = {"dropout": 0.2, "save_strategy": "steps", "save_steps": 3}
    whole = make_trainer(tmp_path / "whole", split, processor, **options)
    whole.train()
    again = make_trainer(tmp_path / "again", split, processor, **options)
    again.train(str(tmp_path / "whole" / "checkpoint-3"))
    for (key, one), two in zip(weights(whole).items(), weights(again).values(), strict=True):
        assert torch.equal(one, two), key


class Scripted:
    """An evaluator whose second call is the best."""

    name = "val"

    def __init__(self):
        self.scores = iter((0.4, 0.9, 0.6))

    def __call__(self, model, processor):
        return {"accuracy": next(self.scores)}


def test_the_best_checkpoint_on_validation_is_kept(tmp_path, split, processor):
    often = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_val_accuracy"}
    trainer = make_trainer(tmp_path, split, processor, [Scripted()], **often, **best)
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    kept = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    later = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    key = "temporal_transformer.layers.0.fc1.weight"
    assert torch.equal(trainer.model.state_dict()[key], kept[key])
    assert not torch.equal(later[key], kept[key])


def test_an_evaluation_on_videos_is_an_evaluator(tmp_path, split, processor):
    evaluate = FewShotVideoEvaluation(split, way=3, shots=1, episodes=20, name="val")
    trainer = make_trainer(tmp_path, split, processor, [evaluate])
    metrics = trainer.evaluate()
    assert 0 <= metrics["eval_val_accuracy"] <= 1
    assert metrics["eval_val_chance_accuracy"] == pytest.approx(1 / 3)


def test_weight_decay_spares_vectors_unless_published(tmp_path, split, processor):
    for published in (False, True):
        trainer = make_trainer(tmp_path, split, processor, published_optimizer=published, weight_decay=0.1)
        groups = trainer.create_optimizer().param_groups
        names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
        spared = {names[id(p)] for group in groups if group["weight_decay"] == 0.0 for p in group["params"]}
        decayed = {names[id(p)] for group in groups if group["weight_decay"] == 0.1 for p in group["params"]}
        assert not any(name.startswith("text_") for name in spared | decayed)
        assert "temporal_transformer.layers.0.norm.weight" in spared
        assert ("video_text_scale" in decayed) == published
        assert ("vision_model.pre_layrnorm.weight" in decayed) == published
        assert "visual_projection.weight" in decayed
        assert (type(trainer.optimizer) is torch.optim.Adam) == published


def test_the_published_schedule_is_followed(tmp_path, split, processor):
    steps = EpisodeSteps(1e-3, 1e-4, iterations=8, iterations_per_step=4)
    trainer = make_trainer(tmp_path, split, processor, steps=steps, learning_rate=1e-3, max_steps=7)
    trainer.train()
    rates = losses(trainer, "learning_rate")
    assert rates == pytest.approx([steps.rate(4 * step + 3) for step in range(7)])
    assert rates[0] == pytest.approx(1e-4 + 3 / 8 * 9e-4)
    assert rates[3] == pytest.approx(1e-3)
    assert rates[4] == pytest.approx(1e-4)
    assert rates[6] == pytest.approx(1e-5)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, split, processor):
    trainer = make_trainer(tmp_path, split, processor)
    with torch.no_grad():
        trainer.model.temporal_transformer.layers[0].fc1.bias[0] = torch.nan
    with pytest.raises(NonFiniteLossError, match="at step 1"):
        trainer.train()


def test_recipes_are_those_of_the_published_table():
    recipe = RECIPES["kinetics100"]
    assert recipe.steps.rate(0) == pytest.approx(5e-6)
    assert [recipe.steps.rate(i) for i in (250, 749, 750, 1250)] == pytest.approx([1e-5, 1e-5, 1e-6, 1e-7])
    assert recipe.frame_sampling == "kinetics"
    assert {name: each.video_text_weight for name, each in RECIPES.items()} == {
        "ssv2_small": 3.0,
        "ssv2_full": 3.0,
        "kinetics100": 1.5,
        "ucf101": 1.5,
        "hmdb51": 1.2,
    }
