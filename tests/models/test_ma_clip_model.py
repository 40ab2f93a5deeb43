"""MA-CLIP in use: episodes, support sets, pipelines, cached evaluation, training by Trainer, and what is refused."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_episodes import assert_each_alone, assert_order_does_not_matter, one, two_episodes
from transformers import AutoModelForVideoClassification, AutoProcessor, CLIPConfig, CLIPModel, pipeline

from hf_clipplus import MACLIPConfig, MACLIPForFewShotVideoClassification, MACLIPProcessor
from hf_clipplus.data.episodes import EpisodeCollator, EpisodeDataset, EpisodeSampler
from hf_clipplus.data.few_shot_videos import VideoSplit
from hf_clipplus.evaluation.few_shot_video import FewShotVideoEvaluation, encode_split, predict_episodes
from hf_clipplus.models.video_processing import VideoFrameProcessor
from hf_clipplus.training import EpisodicTrainer, EpisodicTrainingArguments
from hf_clipplus.tuners.ma_clip import attach_ma_clip, export_ma_clip

FIELDS = {"temporal_heads": 4, "temporal_ffn_dim": 24, "num_frames": 3, "trx_width": 12}
NAMES = ["a red cat", "two green boats", "a tiger", "the sun"]


@pytest.fixture(scope="module")
def original(tower_configs):
    torch.manual_seed(0)
    return MACLIPForFewShotVideoClassification(MACLIPConfig(**tower_configs, **FIELDS)).eval()


def stirred(model, seed=0):
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model


def make(original, **fields):
    """A model with trained adapters and these fields in its configuration."""
    torch.manual_seed(0)
    config = type(original.config).from_dict(original.config.to_dict() | fields)
    model = MACLIPForFewShotVideoClassification(config)
    model.load_state_dict(original.state_dict(), strict=False)
    return stirred(attach_ma_clip(model)).eval()


@pytest.fixture
def model(original):
    return make(original)


@pytest.fixture(scope="module")
def processor(tokenizer):
    return MACLIPProcessor(VideoFrameProcessor(resize=28, crop=24, num_frames=3), tokenizer)


@pytest.fixture(scope="module")
def split():
    """Four classes of noisy pictures, a mean picture each, five videos of 4 to 7 frames."""
    draw = np.random.default_rng(0)
    means, labels = draw.integers(40, 215, (4, 28, 28, 3)), [label for label in range(4) for _ in range(5)]
    videos = [
        (means[label] + draw.integers(-40, 40, (4 + row % 4, 28, 28, 3))).astype(np.uint8)
        for row, label in enumerate(labels)
    ]
    return VideoSplit(NAMES, videos, labels)


@pytest.fixture
def episode(processor):
    return two_episodes(processor, NAMES, [[3, 0, 2], [1, 3, 0]])


@torch.no_grad()
def test_a_clip_checkpoint_loads_and_only_the_head_is_new(tower_configs, tmp_path):
    clip = CLIPModel(CLIPConfig(**tower_configs)).eval()
    clip.logit_scale.fill_(1.5)
    clip.save_pretrained(tmp_path)
    model, info = MACLIPForFewShotVideoClassification.from_pretrained(tmp_path, output_loading_info=True, **FIELDS)
    assert not info["unexpected_keys"]
    assert all(key.startswith("prototype_module.") for key in info["missing_keys"])
    pixels = torch.randn(1, 2, 3, 24, 24)
    torch.testing.assert_close(model.frame_features(pixels)[0], clip.get_image_features(pixels[0]).pooler_output)
    assert model.logit_scale.item() == 1.5
    assert not any(each.requires_grad for name, each in model.named_parameters() if "prototype" not in name)


@pytest.mark.parametrize("owned", [False, True])
@pytest.mark.parametrize("layers", [None, [0], [1]])
def test_the_last_layer_for_the_class_token_alone_gives_the_features_and_gradients_of_the_whole(
    original, owned, layers
):
    torch.manual_seed(0)
    model = stirred(attach_ma_clip(copy.deepcopy(original).double(), layers=layers))
    model = export_ma_clip(model) if owned else model
    pixels, has_text = torch.randn(3, 3, 3, 24, 24).double(), torch.tensor([True, False, True])
    texts, seen, found = torch.randn(3, original.config.projection_dim).double(), [], []
    for layer in model.vision_model.encoder.layers:
        layer = getattr(layer, "base_layer", layer)
        layer.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1] if args[0].ndim == 3 else 1))
    for wanted in ({}, {"output_hidden_states": True}):
        model.zero_grad()
        features = model.frame_features(pixels, texts, has_text=has_text, **wanted)
        (features**3).sum().backward()
        found.append([features, *(each.grad.clone() for each in model.parameters() if each.grad is not None)])
    assert seen == [10, 1, 10, 10]
    for pooled, whole in zip(*found, strict=True):
        torch.testing.assert_close(pooled, whole, rtol=1e-8, atol=1e-11)


# episodes


@pytest.mark.parametrize("fields", [{}, {"alignment": "trx", "trx_cardinalities": [2, 3]}, {"merge": "distances"}])
def test_several_episodes_in_a_batch_are_each_alone(original, episode, fields):
    model = make(original, attention_dropout=0.0, ffn_dropout=0.0, **fields).train()
    if fields.get("alignment") == "trx":
        for each in model.modules():
            if hasattr(each, "transformers"):
                each.dropout = 0.0
    assert_each_alone(model, episode, texts=3)


@torch.no_grad()
@pytest.mark.parametrize("alignment", ["otam", "bimhm", "trx", "mean"])
@pytest.mark.parametrize("merge", ["after", "distances"])
def test_order_of_supports_and_labels_does_not_matter_and_shots_may_differ(original, episode, alignment, merge):
    model, inputs = make(original, alignment=alignment, merge=merge), one(episode)
    assert_order_does_not_matter(model, inputs)
    kept, twice = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([0, 1, 2, 3, 4, 2])
    fewer, doubled = (
        inputs | {key: value[rows] for key, value in inputs.items() if key.startswith("support_")}
        for rows in (kept, twice)
    )
    torch.testing.assert_close(model(**fewer).logits, model(**doubled).logits)


@torch.no_grad()
def test_prototype_modes(original, episode):
    inputs = one(episode)
    found = {
        mode: make(original, prototype_mode=mode)(**inputs) for mode in ("cross", "concat_self", "text_kv", "none")
    }
    torch.testing.assert_close(found["cross"].logits, found["concat_self"].logits)
    for mode in ("text_kv", "none"):
        assert not torch.allclose(found[mode].prototypes, found["cross"].prototypes)
    torch.testing.assert_close(found["text_kv"].query_features, found["cross"].query_features)
    plain = make(original, prototype_mode="none")
    assert not plain.get_base_model().trained_modules
    torch.testing.assert_close(found["none"].query_features, plain.frame_features(inputs["query_pixel_values"]))


@torch.no_grad()
def test_modes_of_inference_and_the_loss_of_all_of_them(model, episode):
    inputs = one(episode)
    found = {mode: model(**inputs, mode=mode) for mode in ("visual", "text", "combined")}
    probabilities = {mode: out.logits.softmax(-1) for mode, out in found.items()}
    mixed = (probabilities["visual"] + probabilities["text"]) / 2
    torch.testing.assert_close(probabilities["combined"], mixed)
    torch.testing.assert_close(model(**inputs).logits, found["combined"].logits)
    assert len({out.loss.item() for out in found.values()}) == 1
    base = model.get_base_model()
    for alpha, mode in ((0.0, "visual"), (1.0, "text")):
        base.config.alpha = alpha
        torch.testing.assert_close(model(**inputs, mode="combined").logits.softmax(-1), probabilities[mode])
    torch.testing.assert_close(model(**inputs).loss, found["text"].loss_video_text)


def test_only_what_should_be_trained_is(model, episode):
    model.train()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    own = {name for name, each in model.named_parameters() if each.requires_grad}
    assert all("ma_clip_" in name or "prototype_module.modules_to_save" in name for name in own)
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    model(**episode).loss.backward()
    assert all(each.grad is not None for name, each in model.named_parameters() if name in own)
    optimizer.step()
    changed = {name for name, each in model.state_dict().items() if not torch.equal(each, before[name])}
    assert changed == own


# support sets, pipelines, evaluation


@pytest.mark.parametrize("fields", [{}, {"alignment": "trx"}, {"merge": "distances"}])
def test_a_support_set_travels_with_the_exported_model(original, processor, split, fields, tmp_path):
    model = make(original, **fields)
    names = [NAMES[0], NAMES[1], NAMES[0]]
    support = model.encode_support([split.videos[row] for row in (0, 5, 1)], names, processor=processor)
    assert len(support.features) == (3 if fields else 2)
    expected = model.classify(split.videos[2:7], processor=processor)
    exported = export_ma_clip(model)
    exported.save_pretrained(tmp_path), processor.save_pretrained(tmp_path)
    loaded = AutoModelForVideoClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.classify(split.videos[2:7], processor=processor), expected)
    assert loaded.config.id2label == {0: NAMES[0], 1: NAMES[1]}
    pixels = processor(videos=split.videos[2:7], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        out = loaded(pixel_values=pixels, labels=torch.zeros(5, dtype=torch.int64))
    torch.testing.assert_close(out.logits.softmax(-1), expected)
    own = {name for name, each in loaded.named_parameters() if each.requires_grad}
    assert own
    assert all(".adapters." in name or name.startswith(("prototype", "temporal_cross")) for name in own)
    name, path = model.alignment_path(split.videos[0], processor=processor)
    assert name in NAMES[:2]
    assert path.shape == (3, 3)


def test_pipeline_on_an_adapter_folder_is_pipeline_on_the_export(original, processor, split, tmp_path):
    base = copy.deepcopy(original)
    base.save_pretrained(tmp_path / "base"), processor.save_pretrained(tmp_path / "base")
    base = MACLIPForFewShotVideoClassification.from_pretrained(tmp_path / "base")
    model = stirred(attach_ma_clip(base)).eval()
    model.save_pretrained(tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    support = {NAMES[0]: [split.videos[0]], NAMES[1]: [split.videos[5], split.videos[6]]}
    task = "clipplus-few-shot-video-classification"
    few = pipeline(task, model=str(tmp_path / "adapter"))
    assert type(few.model) is MACLIPForFewShotVideoClassification
    found = few(split.videos[1], support=support)
    exported = pipeline(task, model=export_ma_clip(model), processor=AutoProcessor.from_pretrained(tmp_path / "base"))
    assert exported(split.videos[1], support=support) == found
    plain = pipeline(task, model=str(tmp_path / "base"))
    assert plain(split.videos[1], support=support) != found


@torch.no_grad()
@pytest.mark.parametrize("mode", ["visual", "combined"])
@pytest.mark.parametrize(
    ("fields", "shots"),
    [({}, 1), ({}, 2), ({"alignment": "trx"}, 2), ({"merge": "distances", "alignment": "bimhm"}, 2)],
)
def test_cached_predictions_are_those_of_forward(original, processor, split, fields, shots, mode):
    model = make(original, **fields)
    evaluate = FewShotVideoEvaluation(split, way=3, shots=shots, queries=2, episodes=20, seed=5)
    passes = []
    handle = model.vision_model.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0]) // 3))
    features, text, supports = encode_split(model, processor, split)
    assert sum(passes) == 2 * len(split), "every video once for each branch"
    assert not torch.allclose(features, supports)
    episodes = [evaluate.sampler(number) for number in range(20)]
    options = {"support_features": supports, "mode": mode}
    found = predict_episodes(model, features, text, split.labels, episodes, **options)
    handle.remove()
    pixels = processor(videos=split.videos, return_tensors="pt")["pixel_values"]
    for number, each in enumerate(episodes):
        labels = torch.tensor(each.support_labels)
        out = model(
            support_pixel_values=pixels[each.support],
            support_labels=labels,
            query_pixel_values=pixels[each.query],
            class_embeds=text,
            support_class_ids=torch.tensor(each.classes)[labels],
            mode=mode,
        )
        assert torch.equal(found[number], out.logits.argmax(-1)), number


# Trainer


class Scripted:
    """An evaluator whose second call is the best."""

    name = "val"

    def __init__(self):
        self.scores = iter((0.4, 0.9, 0.6, 0.1))

    def __call__(self, model, processor):
        return {"accuracy": next(self.scores)}


def make_trainer(model, output, split, processor, evaluators=(), **arguments):
    sampler = EpisodeSampler(split.labels, way=3, shots=1, queries=1, seed=1)
    options = {"max_steps": 6, "learning_rate": 3e-3, "save_strategy": "steps", "save_steps": 2, "use_cpu": True}
    options |= {"disable_tqdm": True, "logging_steps": 1, "report_to": []} | arguments
    return EpisodicTrainer(
        model=model,
        args=EpisodicTrainingArguments(output_dir=str(output), **options),
        train_dataset=EpisodeDataset(split, sampler, length=16, num_frames=3),
        data_collator=EpisodeCollator(processor, split.class_names),
        processing_class=processor,
        evaluators=list(evaluators),
    )


def test_trainer_saves_adapters_alone_resumes_and_keeps_the_best(original, processor, split, tmp_path):
    original.save_pretrained(tmp_path / "base")

    def fresh():
        torch.manual_seed(0)
        base = MACLIPForFewShotVideoClassification.from_pretrained(tmp_path / "base")
        return base, attach_ma_clip(base, drop_path=0.2)

    base, model = fresh()
    frozen = {name: each.clone() for name, each in base.state_dict().items() if ".base_layer." in name}
    often = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "eval_val_accuracy"}
    trainer = make_trainer(
        model, tmp_path / "run", split, processor, [Scripted()], load_best_model_at_end=True, **often
    )
    trainer.train()
    assert {path.name for path in (tmp_path / "run" / "checkpoint-2").glob("*.safetensors")} == {
        "adapter_model.safetensors"
    }
    best = load_file(tmp_path / "run" / "checkpoint-4" / "adapter_model.safetensors")
    last = load_file(tmp_path / "run" / "checkpoint-6" / "adapter_model.safetensors")
    key = "vision_model.encoder.layers.0.ma_clip_local_up{}.weight"
    kept = base.state_dict()[key.format(".default")]
    assert torch.equal(kept, best[f"base_model.model.{key.format('')}"])
    assert not torch.equal(kept, last[f"base_model.model.{key.format('')}"])
    after = base.state_dict()
    assert frozen
    assert all(torch.equal(each, after[name]) for name, each in frozen.items()), "the base is bit-identical"
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    parts = [(r["loss_few_shot"], r["loss_video_text"]) for r in trainer.state.log_history if "loss" in r]
    np.testing.assert_allclose(losses, [(few + text) / 2 for few, text in parts], rtol=1e-3)

    base, model = fresh()
    again = make_trainer(model, tmp_path / "again", split, processor)
    again.train(str(tmp_path / "run" / "checkpoint-2"))
    again.save_model()
    resumed = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert resumed.keys() == last.keys()
    assert all(torch.equal(resumed[name], last[name]) for name in last)


# what is refused


REFUSED = {
    "0..N-1 without gaps": lambda e: {"support_labels": torch.tensor([0, 0, 1, 1, 3, 3])},
    "no support video; the support has classes 0..2": lambda e: {"query_labels": torch.tensor([0, 1, 3])},
    "different class ids": lambda e: {"support_class_ids": torch.tensor([0, 1, 2, 3, 1, 0])},
    "class texts are missing": lambda e: {"support_class_ids": None},
    "without class_input_ids": lambda e: {"class_input_ids": None},
    "mode='loud' is unknown": lambda e: {"mode": "loud"},
    "leading dimension of 1": lambda e: {"query_pixel_values": torch.zeros(3, 3, 24, 24)},
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_episodes_are_refused(model, episode, message):
    inputs = one(episode)
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        model(**inputs | REFUSED[message](inputs))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alignment": "dtw"}, "choose one of otam, bimhm, mean, trx"),
        ({"merge": "before"}, "choose one of after, distances"),
        ({"prototype_mode": "loud"}, "prototype_mode='loud'"),
        ({"inference_mode": "loud"}, "inference_mode='loud'"),
        ({"alpha": 1.5}, "between 0 and 1"),
        ({"temporal_heads": 3}, "no multiple of 3 temporal_heads"),
        ({"alignment": "trx", "num_frames": 2}, "tuples of 3 frames"),
        ({"vision_config": {"model_type": "clipplus_clip_resnet", "projection_dim": 20}}, "layers of a ViT"),
    ],
)
def test_bad_configurations_are_refused(tower_configs, fields, message):
    with pytest.raises(ValueError, match=message):
        MACLIPForFewShotVideoClassification(MACLIPConfig(**tower_configs | FIELDS | fields))
