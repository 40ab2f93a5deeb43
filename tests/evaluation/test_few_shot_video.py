"""Evaluation on cached features: equal to episode by episode, random frames, confusion, and where a model is right."""

import copy

import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from hf_clipplus import CLIPFSARConfig, CLIPFSARForFewShotVideoClassification, CLIPFSARProcessor
from hf_clipplus.data.few_shot_videos import VideoSplit
from hf_clipplus.evaluation.few_shot_video import (
    FewShotVideoEvaluation,
    encode_class_names,
    encode_videos,
    predict_episodes,
)
from hf_clipplus.models.video_processing import VideoFrameProcessor

NAMES = [f"action {number}" for number in range(6)]


@pytest.fixture(scope="module")
def processor():
    tokenizer = CLIPTokenizer().train_new_from_iterator(["a photo of action 0 1 2 3 4 5"] * 4, 400)
    tokenizer.model_max_length = 16
    return CLIPFSARProcessor(VideoFrameProcessor(resize=16, crop=16, num_frames=4), tokenizer)


@pytest.fixture(scope="module")
def original(processor):
    torch.manual_seed(0)
    tower = {"hidden_size": 24, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {f"{name}_token_id": getattr(processor.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = CLIPTextConfig(**tower, **ids, vocab_size=len(processor.tokenizer), max_position_embeddings=16)
    vision = CLIPVisionConfig(**tower, image_size=16, patch_size=8)
    config = CLIPFSARConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=20,
        temporal_heads=4,
        temporal_ffn_dim=24,
        num_frames=4,
    )
    return CLIPFSARForFewShotVideoClassification(config).train()


@pytest.fixture
def model(original):
    return copy.deepcopy(original)


@pytest.fixture(scope="module")
def split():
    """Six classes of noisy pictures, a mean picture each, seven videos of 5 to 11 frames."""
    draw = np.random.default_rng(0)
    means = draw.integers(40, 215, (6, 16, 16, 3))
    labels = [label for label in range(6) for _ in range(7)]
    videos = [
        (means[label] + draw.integers(-40, 40, (5 + row % 7, 16, 16, 3))).astype(np.uint8)
        for row, label in enumerate(labels)
    ]
    return VideoSplit(NAMES, videos, labels, groups=[[0, 1, 2], [3, 4, 5]])


@torch.no_grad()
@pytest.mark.parametrize("mode", ["visual", "text", "combined"])
@pytest.mark.parametrize(("shots", "merge"), [(1, "before"), (3, "before"), (3, "after")])
def test_cached_predictions_are_those_of_forward_episode_by_episode(model, processor, split, shots, merge, mode):
    model.config.merge = merge
    evaluate = FewShotVideoEvaluation(split, way=4, shots=shots, queries=2, episodes=30, seed=5)
    features = encode_videos(model, processor, split)
    text = encode_class_names(model, processor, split.class_names)
    episodes = [evaluate.sampler(number) for number in range(30)]
    found = predict_episodes(model, features, text, split.labels, episodes, mode=mode)
    assert model.training, "the model's mode is left as it was"
    model.eval()
    pixels = processor(videos=split.videos, return_tensors="pt")["pixel_values"]
    for number, episode in enumerate(episodes):
        labels = torch.tensor(episode.support_labels)
        out = model(
            support_pixel_values=pixels[episode.support],
            support_labels=labels,
            query_pixel_values=pixels[episode.query],
            class_embeds=text,
            support_class_ids=torch.tensor(episode.classes)[labels],
            mode=mode,
        )
        assert torch.equal(found[number], out.logits.argmax(-1)), number


def test_accuracy_interval_and_confusion(model, processor, split):
    evaluate = FewShotVideoEvaluation(split, way=3, shots=2, queries=2, episodes=200, seed=1)
    scores = evaluate(model, processor)
    assert scores["accuracy"] > 0.8, "the mean pictures of the classes are easy to tell apart"
    assert 0 < scores["interval"] < 0.1
    assert scores["chance_accuracy"] == pytest.approx(1 / 3)
    counts, offered = evaluate.confusion.matrix.counts, evaluate.confusion.offered
    assert counts.sum() == 200 * 6
    assert scores["accuracy"] == pytest.approx(counts.diagonal().sum().item() / counts.sum().item())
    assert torch.equal(offered.sum(1), 3 * counts.sum(1))
    assert torch.equal(offered.diagonal(), counts.sum(1))
    worst = evaluate.confusion.worst_pairs(NAMES, top=3)
    shares = [share for *_, share in worst]
    assert shares == sorted(shares, reverse=True)
    assert all(counts[NAMES.index(true), NAMES.index(taken)] > 0 for true, taken, _ in worst)
    assert FewShotVideoEvaluation(split, way=3, shots=2, queries=2, episodes=200, seed=1)(model, processor) == scores


def test_order_only_episodes_stay_in_a_group(model, processor, split):
    evaluate = FewShotVideoEvaluation(split, way=3, shots=1, episodes=50, same_group=True)
    evaluate(model, processor)
    counts = evaluate.confusion.offered
    assert counts[:3, :3].min() > 0
    assert counts[:3, 3:].sum() == counts[3:, :3].sum() == 0
    with pytest.raises(ValueError, match="knows no classes that differ only in the order"):
        FewShotVideoEvaluation(VideoSplit(NAMES, split.videos, split.labels), same_group=True)


def test_random_frames_are_several_takes_of_each_video(model, processor, split):
    takes = encode_videos(model, processor, split, draws=3, seed=2)
    assert takes.shape == (3, len(split), 4, 20)
    assert not torch.equal(takes[0], takes[1])
    again = encode_videos(model, processor, split, draws=3, seed=2, batch_size=5)
    torch.testing.assert_close(again, takes)
    random = FewShotVideoEvaluation(split, way=3, shots=1, episodes=50, frames="random", draws=3)
    assert random(model, processor)["accuracy"] > 0.6
    with pytest.raises(ValueError, match="choose one of centre, random"):
        FewShotVideoEvaluation(split, frames="first")
