"""CLIP-FSAR in use: CLIP checkpoints, support sets, pipelines, adapters, checkpointing, and what is refused."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_episodes import assert_each_alone, assert_order_does_not_matter, one, two_episodes
from transformers import AutoModelForVideoClassification, AutoProcessor, CLIPConfig, CLIPModel, pipeline
from video_files import grey_levels, write_video

from hf_clipplus import CLIPFSARConfig, CLIPFSARForFewShotVideoClassification, CLIPFSARProcessor
from hf_clipplus.evaluation.alignment_picture import alignment_picture
from hf_clipplus.models.configuration_clip_resnet import CLIPResNetConfig
from hf_clipplus.models.few_shot_video import SupportSet
from hf_clipplus.models.video_processing import VideoFrameProcessor

FIELDS = {"temporal_heads": 4, "temporal_ffn_dim": 24, "num_frames": 3}
NAMES = ["a red cat", "two green boats", "a tiger"]


@pytest.fixture(scope="module")
def original(tower_configs):
    torch.manual_seed(0)
    config = CLIPFSARConfig(**tower_configs, **FIELDS)
    return CLIPFSARForFewShotVideoClassification(config).eval()


@pytest.fixture
def model(original):
    return copy.deepcopy(original)


@pytest.fixture(scope="module")
def processor(tokenizer):
    return CLIPFSARProcessor(VideoFrameProcessor(resize=28, crop=24, num_frames=3), tokenizer)


@pytest.fixture(scope="module")
def videos():
    draw = np.random.default_rng(0)
    return [draw.integers(0, 255, (5 + n, 30, 40, 3), dtype=np.uint8) for n in range(6)]


@pytest.fixture
def episode(processor):
    return two_episodes(processor, [*NAMES, "the sun", "a cup"], [[4, 0, 2], [1, 3, 0]])


@torch.no_grad()
def test_a_clip_checkpoint_loads_and_only_the_head_is_new(tower_configs, tmp_path):
    clip = CLIPModel(CLIPConfig(**tower_configs)).eval()
    clip.save_pretrained(tmp_path)
    model, info = CLIPFSARForFewShotVideoClassification.from_pretrained(tmp_path, output_loading_info=True, **FIELDS)
    assert not info["unexpected_keys"]
    assert all(key.startswith(("temporal_transformer.", "video_text_scale")) for key in info["missing_keys"])
    pixels = torch.randn(1, 2, 3, 24, 24)
    expected = clip.get_image_features(pixels[0]).pooler_output
    torch.testing.assert_close(model.frame_features(pixels)[0], expected)
    assert model.video_text_scale.item() == 1.0
    frozen = CLIPFSARForFewShotVideoClassification.from_pretrained(tmp_path, freeze_vision=True, **FIELDS)
    own = {name.split(".")[0] for name, each in frozen.named_parameters() if each.requires_grad}
    assert own == {"temporal_transformer", "video_text_scale"}


def test_several_episodes_in_a_batch_are_each_alone(model, episode):
    model.train()
    for layer in model.temporal_transformer.layers:
        layer.attention_dropout = layer.ffn_dropout = 0.0
    assert_each_alone(model, episode, texts=5)


@torch.no_grad()
def test_order_of_support_videos_and_of_labels_does_not_matter(model, episode):
    assert_order_does_not_matter(model, one(episode))


@torch.no_grad()
@pytest.mark.parametrize("merge", ["before", "after"])
def test_a_class_may_have_more_videos_than_another(model, episode, merge):
    model.config.merge = merge
    inputs = one(episode)
    kept = torch.tensor([0, 1, 2, 3, 4])  # label 1 keeps one video, the others two
    fewer = inputs | {key: value[kept] for key, value in inputs.items() if key.startswith("support_")}
    twice = torch.tensor([0, 1, 2, 3, 4, 2])  # its only video twice has the same mean
    doubled = inputs | {key: value[twice] for key, value in inputs.items() if key.startswith("support_")}
    torch.testing.assert_close(model(**fewer).logits, model(**doubled).logits)


@torch.no_grad()
def test_modes_differ_and_combined_lies_between(model, episode):
    inputs = one(episode)
    text, visual = (model(**inputs, mode=mode).logits for mode in ("text", "visual"))
    torch.testing.assert_close(text.exp().sum(-1), torch.ones(3))
    model.config.combine_beta = 1.0
    torch.testing.assert_close(model(**inputs, mode="combined").logits, text)
    model.config.combine_beta = 0.0
    expected = (visual / 8).log_softmax(-1)
    torch.testing.assert_close(model(**inputs, mode="combined").logits, expected)


def test_text_tower_is_frozen_and_its_features_are_kept_until_something_changes(model, episode):
    model.train()
    ids, mask = episode["class_input_ids"], episode["class_attention_mask"]
    first = model.encode_classes(ids, mask)
    assert model.encode_classes(ids.clone(), mask) is first
    assert model.training
    assert not first.requires_grad
    model(**episode).loss.backward()
    assert all(parameter.grad is None for parameter in model.text_model.parameters())
    assert model.video_text_scale.grad is not None
    with torch.no_grad():
        model.text_projection.weight.mul_(2)
    torch.testing.assert_close(model.encode_classes(ids, mask), 2 * first)
    half = model.to(torch.bfloat16)
    assert half.encode_classes(ids, mask).dtype == torch.bfloat16
    assert half.video_text_scale.dtype == torch.bfloat16 or half.video_text_scale.dtype == torch.float32


def test_an_unfrozen_text_tower_is_trained(tower_configs, episode):
    model = CLIPFSARForFewShotVideoClassification(
        CLIPFSARConfig(**tower_configs, **FIELDS, freeze_text=False, freeze_vision=True)
    )
    model(**episode).loss.backward()
    assert model.text_projection.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.vision_model.parameters())


def test_gradient_checkpointing_changes_no_gradient(model, episode):
    def gradients():
        model.zero_grad()
        torch.manual_seed(3)
        model.train()
        model(**episode).loss.backward()
        return {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}

    plain = gradients()
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    for key, value in gradients().items():
        torch.testing.assert_close(value, plain[key], rtol=1e-4, atol=1e-7, msg=lambda text, key=key: f"{key}: {text}")


def test_bfloat16_autocast_trains_with_a_finite_loss(model, episode):
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**episode)
    assert out.logits.dtype == torch.float32
    out.loss.backward()
    assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)


# support sets


def test_a_stored_support_set_is_an_ordinary_video_classifier(model, processor, videos, tmp_path):
    with pytest.raises(ValueError, match="no support set"):
        model.classify(videos[0], processor=processor)
    names = ["pour", "fold", "pour"]
    support = model.encode_support(videos[:3], names, processor=processor)
    assert support.class_names == ["pour", "fold"]
    expected = model.classify(videos[3:], processor=processor)
    torch.testing.assert_close(expected.sum(-1), torch.ones(3))
    model.save_pretrained(tmp_path), processor.save_pretrained(tmp_path)
    loaded = AutoModelForVideoClassification.from_pretrained(tmp_path)
    assert type(loaded) is CLIPFSARForFewShotVideoClassification
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    torch.testing.assert_close(loaded.classify(videos[3:], processor=again), expected)
    assert loaded.config.id2label == {0: "pour", 1: "fold"}
    pixels = again(videos=videos[3:], return_tensors="pt")["pixel_values"]
    out = loaded(pixel_values=pixels, labels=torch.tensor([0, 1, 1]))
    torch.testing.assert_close(out.logits.softmax(-1), expected)
    assert out.loss.isfinite()
    loaded.set_support(None)
    loaded.save_pretrained(tmp_path / "empty")
    assert CLIPFSARForFewShotVideoClassification.from_pretrained(tmp_path / "empty").support is None


def test_classifying_is_what_forward_does_with_the_episode(model, processor, videos):
    support = model.encode_support(videos[:4], ["pour", "fold", "fold", "pour"], processor=processor)
    pixels = processor(videos=videos, return_tensors="pt")["pixel_values"]
    texts = processor(text=processor.class_texts(["pour", "fold"]), return_tensors="pt")
    labels = torch.tensor([0, 1, 1, 0])
    with torch.no_grad():
        out = model(
            support_pixel_values=pixels[:4],
            support_labels=labels,
            support_class_ids=labels,
            query_pixel_values=pixels[4:],
            class_input_ids=texts["input_ids"],
            class_attention_mask=texts["attention_mask"],
        )
    assert out.loss is None
    torch.testing.assert_close(model.classify(pixels[4:], support), out.logits.softmax(-1))
    other = model.encode_support(videos[4:], ["x", "y"], processor=processor)
    assert other.class_names == model.stored_support().class_names == ["x", "y"]
    torch.testing.assert_close(model.classify(pixels[4:], support), out.logits.softmax(-1))


def test_pipelines_read_files(model, processor, videos, tmp_path):
    files = [
        str(write_video(tmp_path / f"{n}.mp4", grey_levels(levels)))
        for n, levels in enumerate(([10] * 6, [10, 60, 110, 160, 210, 250], [250, 210, 160, 110, 60, 10]))
    ]
    few = pipeline("clipplus-few-shot-video-classification", model=model, processor=processor)
    support = {"still": [files[0]], "brighter": [files[1]], "darker": [files[2]]}
    found = few(files, support=support)
    assert [each[0]["label"] for each in found] == list(support)
    assert few(files[1], top_k=2) == found[1][:2]
    assert sum(each["score"] for each in found[0]) == pytest.approx(1.0, abs=1e-5)
    assert few(list(grey_levels([10] * 6)))[0]["label"] == "still"
    with pytest.raises(ValueError, match="'empty' has no support video"):
        few(files, support={"empty": []})
    with pytest.raises(ValueError, match="unknown options"):
        few(files, colour="red")
    folder = tmp_path / "model"
    model.save_pretrained(folder), processor.save_pretrained(folder)
    stock = pipeline("video-classification", model=str(folder))
    # it reads the first num_frames * frame_sampling_rate frames, where ours samples the whole video
    assert stock(files[2], frame_sampling_rate=2)[0]["label"] == "darker"
    carried = pipeline("clipplus-few-shot-video-classification", model=str(folder))
    assert carried(files[2])[0]["label"] == "darker"


def test_alignment_path_and_its_picture(model, processor, videos):
    support = model.encode_support(videos[:2], ["pour", "fold"], processor=processor)
    name, path = model.alignment_path(videos[0], processor=processor)
    assert name == support.class_names[int(model.classify(videos[0], processor=processor).argmax())]
    other = next(each for each in support.class_names if each != name)
    assert model.alignment_path(videos[0], other, processor=processor)[0] == other
    assert path.shape == (3, 3)
    frames = [video[:3] for video in videos[:2]]
    picture = alignment_picture(torch.eye(3), *frames)
    side = picture.width // 4
    colours = {picture.getpixel((int(side * (1.5 + x)), int(side * (1.5 + y)))) for x, y in ((0, 0), (1, 1), (2, 2))}
    assert colours == {(30, 70, 160)}
    with pytest.raises(ValueError, match="3 query frames, but 5 pictures"):
        alignment_picture(path, videos[0])


def test_lora_on_the_tower_by_peft(model, episode, tmp_path):
    base = copy.deepcopy(model)
    config = LoraConfig(
        r=2, target_modules=r"vision_model\..*\.(q_proj|v_proj)", modules_to_save=["temporal_transformer"]
    )
    adapted = get_peft_model(model, config)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name or "temporal_transformer" in name for name in trained)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    adapted(**episode).loss.backward()
    optimizer.step()
    adapted.eval()
    expected = adapted(**one(episode)).logits
    assert not torch.allclose(expected, base(**one(episode)).logits)
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    torch.testing.assert_close(loaded(**one(episode)).logits, expected)


def test_resnet_tower_saves_loads_and_trains(tower_configs, processor, tmp_path, seeded):
    vision = CLIPResNetConfig(width=4, depths=[1, 1, 1, 1], image_size=32, projection_dim=20)
    towers = tower_configs | {"vision_config": vision.to_dict()}
    model = CLIPFSARForFewShotVideoClassification(CLIPFSARConfig(**towers, **FIELDS))
    labels = torch.arange(2)
    inputs = {
        "support_pixel_values": torch.randn(2, 3, 3, 32, 32),
        "query_pixel_values": torch.randn(2, 3, 3, 32, 32),
        "support_labels": labels,
        "query_labels": labels,
        "class_embeds": torch.randn(2, 20),
        "support_class_ids": labels,
        "query_class_ids": labels,
    }
    model.train()(**inputs).loss.backward()
    assert model.vision_model.conv1.weight.grad.abs().sum() > 0
    model.save_pretrained(tmp_path)
    loaded = AutoModelForVideoClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(**inputs).logits, model.eval()(**inputs).logits)
    with pytest.raises(ValueError, match="use the configured image_size"):
        model.frame_features(torch.randn(1, 1, 3, 64, 64))


# what is refused


REFUSED = {
    "no support video; the support has classes 0..2": lambda e: {"query_labels": torch.tensor([0, 1, 3])},
    "0..N-1 without gaps": lambda e: {"support_labels": torch.tensor([0, 0, 1, 1, 3, 3])},
    "must be int64": lambda e: {"support_labels": e["support_labels"].float()},
    "different class ids": lambda e: {"support_class_ids": torch.tensor([0, 1, 2, 3, 4, 0])},
    "class texts are missing": lambda e: {"support_class_ids": None},
    "without class_input_ids": lambda e: {"class_input_ids": None},
    "support_labels are missing": lambda e: {"support_labels": None},
    "either query_pixel_values or query_features": lambda e: {"query_pixel_values": None},
    "leading dimension of 1": lambda e: {"query_pixel_values": torch.zeros(3, 3, 24, 24)},
    "mode='loud' is unknown": lambda e: {"mode": "loud"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_episodes_are_refused(model, episode, message):
    inputs = one(episode)
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        model(**inputs | REFUSED[message](inputs))


def test_one_frame_is_enough(model, episode):
    inputs = one(episode)
    single = inputs | {key: inputs[key][:, :1] for key in ("support_pixel_values", "query_pixel_values")}
    assert model(**single).loss.isfinite()
    longer = inputs | {"query_pixel_values": inputs["query_pixel_values"].repeat(1, 2, 1, 1, 1)}
    assert model(**longer).logits.shape == (3, 3)


@pytest.mark.parametrize(
    ("names", "message"),
    [(["pour"], "2 support videos but 1 class names"), (["pour", " "], "empty or no text"), (["pour", 3], "no text")],
)
def test_bad_support_names_are_refused(model, processor, videos, names, message):
    with pytest.raises(ValueError, match=message):
        model.encode_support(videos[:2], names, processor=processor)


def test_support_sets_know_their_device(model, processor, videos):
    support = model.encode_support(videos[:2], ["pour", "fold"], processor=processor)
    assert isinstance(support.to("cpu"), SupportSet)
    with pytest.raises(ValueError, match=r"need processor=\.\.\."):
        model.classify(videos[0], support)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alignment": "dtw"}, "choose one of otam, bimhm, mean"),
        ({"merge": "never"}, "choose one of before, after"),
        ({"inference_mode": "loud"}, "inference_mode='loud'"),
        ({"temporal_heads": 3}, "no multiple of 3 temporal_heads"),
        ({"prompt_template": "a photo"}, "no place {}"),
        ({"combine_beta": 1.5}, "between 0 and 1"),
    ],
)
def test_bad_configurations_are_refused(tower_configs, fields, message):
    with pytest.raises(ValueError, match=message):
        CLIPFSARForFewShotVideoClassification(CLIPFSARConfig(**tower_configs, **{"temporal_heads": 4} | fields))
