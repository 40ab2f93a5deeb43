"""APE heads and model: fit on features and images, save, pipeline, new classes, and bad input said clearly."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForImageClassification, CLIPConfig, CLIPModel, CLIPProcessor, pipeline

from hf_clipplus import APEForImageClassification, APEProcessor, FFFConfig, FFFModel
from hf_clipplus.models.ape import HEADS, APEHead, SearchGrid, TipAdapterHead
from hf_clipplus.models.ape.processing_ape import class_prompts

NAMES = ["cat", "dog", "boat", "tree"]
COUNTS = (5, 3, 4, 3)
TRAINABLE_FREE = ["zero_shot", "tip", "ape", "gda", "proker"]


@pytest.fixture
def world():
    """Features around weakly matching texts: support in no order and of unequal counts, validation, test."""
    draw = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(4, 20, generator=draw), dim=1)
    text = F.normalize(centres + 0.35 * torch.randn(4, 20, generator=draw), dim=1)

    def sample(labels):
        return F.normalize(centres[labels] + 0.22 * torch.randn(len(labels), 20, generator=draw), dim=1), labels

    labels = torch.arange(4).repeat_interleave(torch.tensor(COUNTS))
    support = sample(labels[torch.randperm(len(labels), generator=draw)])
    return text, support, sample(torch.arange(12) % 4), sample(torch.arange(200) % 4)


@pytest.fixture
def clip(tower_configs, seeded):
    return CLIPModel(CLIPConfig(**tower_configs)).eval()


@pytest.fixture
def processor(image_processor, tokenizer):
    return APEProcessor(image_processor, tokenizer)


@pytest.mark.parametrize("name", TRAINABLE_FREE)
def test_head_on_arrays(name, world):
    text, support, validation, test = world
    head = HEADS[name]()
    assert head.fit(support[0].numpy(), support[1].numpy(), text.numpy(), validation=validation) is head
    probabilities = head.predict_proba(test[0].numpy())
    assert probabilities.shape == (200, 4)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (probabilities.argmax(1) == head.predict(test[0])).all()
    accuracy = head.score(*test)
    assert accuracy == (head.predict(test[0]) == test[1].numpy()).mean()
    assert accuracy > 0.6
    assert head.fit_report["protocol"] == "honest"
    assert head.fit_report["shots"] == [3, 5]
    if name != "zero_shot":
        assert accuracy > HEADS["zero_shot"]().fit(*support, text).score(*test)


@pytest.mark.parametrize("name", TRAINABLE_FREE)
def test_labels_may_be_names_in_any_order(name, world):
    text, support, _, test = world
    named = [NAMES[label] for label in support[1]]
    by_name = HEADS[name]().fit(support[0], named, text, class_names=NAMES)
    by_index = HEADS[name]().fit(*support, text, class_names=NAMES)
    np.testing.assert_array_equal(by_name.decision_function(test[0]), by_index.decision_function(test[0]))
    assert set(by_name.predict(test[0])) <= set(NAMES)
    assert by_name.score(test[0], [NAMES[label] for label in test[1]]) == by_index.score(*test)


@pytest.mark.parametrize("name", TRAINABLE_FREE)
def test_classes_added_later_leave_the_others_alone(name, world):
    text, support, _, test = world
    head = HEADS[name]().fit(*support, text, class_names=NAMES)
    before = head.decision_function(test[0])
    head.add_classes(F.normalize(torch.ones(1, 20), dim=1), ["sun"])
    after = head.decision_function(test[0])
    assert after.shape[1] == 5
    np.testing.assert_allclose(after[:, :4], before, rtol=1e-5, atol=1e-4)
    sun = head.decision_function(F.normalize(torch.ones(1, 20), dim=1))
    assert sun.argmax() == 4


def test_bad_support_sets(world):
    text, (features, labels), validation, _ = world
    fit = APEHead().fit
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        fit(features[:2], [0, 0], text[:1])
    with pytest.raises(ValueError, match=r"1 of 4 classes have no image: \['tree'\].*add_classes"):
        fit(features[labels < 3], labels[labels < 3], text, class_names=NAMES)
    with pytest.raises(ValueError, match=r"labels \[7\] are not among 0..3.*without gaps"):
        fit(features, [7 if label == 3 else int(label) for label in labels], text)
    with pytest.raises(ValueError, match=r"labels \['bird'\] are no class names"):
        fit(features, ["bird"] * len(labels), text, class_names=NAMES)
    with pytest.raises(ValueError, match="give class_names"):
        fit(features, ["cat"] * len(labels), text)
    with pytest.raises(TypeError, match="indices or class names"):
        fit(features, labels.float(), text)
    with pytest.raises(ValueError, match="15 rows but 14 labels"):
        fit(features, labels[1:], text)
    with pytest.raises(ValueError, match="text_weight has 4 rows, but there are 2 class names"):
        fit(features, labels, text, class_names=NAMES[:2])
    with pytest.raises(ValueError, match="features are 19 wide, but the model's joint space has 20"):
        fit(features[:, 1:], labels, text)
    with pytest.raises(ValueError, match=r"unit length, their norms lie between 3 and 3.*normalize"):
        fit(3 * features, labels, text)
    broken = features.clone()
    broken[2, 4] = float("nan")
    with pytest.raises(ValueError, match=r"1 rows hold NaN or infinite values, the first is \[2\]"):
        fit(broken, labels, text)
    with pytest.raises(ValueError, match="expected features"):
        fit(features[0], labels, text)
    with pytest.raises(ValueError, match="number of channels: expected 1 to 20"):
        APEHead(num_channels=21).fit(features, labels, text)
    with pytest.raises(ValueError, match="protocol='fair' is unknown"):
        fit(features, labels, text, validation=validation, protocol="fair")
    with pytest.raises(RuntimeError, match="call fit first"):
        APEHead().predict(features)


def test_validation_is_kept_apart(world):
    text, support, _, test = world
    with pytest.raises(ValueError, match="validation and support share 15 images"):
        APEHead().fit(*support, text, validation=support)
    with pytest.raises(ValueError, match="at most min\\(shots, 4\\) validation images per class"):
        APEHead().fit(*support, text, validation=test)
    head = APEHead().fit(*support, text, validation=test, protocol="paper")
    assert head.fit_report["protocol"] == "paper"
    order = torch.randperm(len(test[1]))
    with pytest.raises(ValueError, match="this is the validation set"):
        head.score(test[0][order], test[1][order])
    assert head.score(*test, allow_test_selection=True) == pytest.approx(head.fit_report["validation_accuracy"])


def test_warnings_of_search(world):
    text, support, validation, _ = world
    head = TipAdapterHead().fit(*support, text, validation=validation, grid=SearchGrid([1.0], [0.01, 0.02, 3.0]))
    assert any("upper edge" in each for each in head.fit_report["warnings"]) == (head.alpha == 3.0)
    liar = text.roll(1, 0)
    head = TipAdapterHead().fit(*support, liar, validation=validation, grid=SearchGrid([1.0], [0.01, 0.5, 3.0]))
    assert head.alpha == 3.0
    assert any("alpha=3 is the upper edge" in each for each in head.fit_report["warnings"])
    head = TipAdapterHead(alpha=1e4, beta=10).fit(*support, text)
    assert any("saturates at 100%" in each for each in head.fit_report["warnings"])
    assert any("no validation set" in each for each in head.fit_report["warnings"])


def test_prompts():
    assert class_prompts(["big_cat"], ["a {}."], {"big_cat": ["It roars."]}) == [["a big cat.", "It roars."]]
    with pytest.raises(ValueError, match=r"no sentences for 1 classes: \['dog'\]"):
        class_prompts(["cat", "dog"], ["a {}."], {"cat": ["It purrs."]})
    with pytest.raises(ValueError, match="these have none"):
        class_prompts(["cat"], ["a photo"])
    with pytest.raises(ValueError, match=r"distinct and not blank; repeated: \['cat'\]"):
        class_prompts(["cat", "cat"])


@pytest.mark.parametrize("head", TRAINABLE_FREE)
def test_fit_save_load_and_pipeline(head, clip, processor, pictures, tmp_path):
    model = APEForImageClassification.from_clip(clip)
    assert model.config.text_scale == pytest.approx(clip.logit_scale.exp().item())
    names = NAMES[:3]
    model.fit(pictures, [0, 1, 2, 0, 1, 2], names, processor=processor, head=head, templates=["a {}.", "one {}"])
    assert model.config.fit_report["prompts"] == 6
    model.add_classes(["sun"], processor)
    pixels = processor(images=pictures, return_tensors="pt")
    output = model(**pixels, labels=torch.tensor([0, 1, 2, 0, 1, 2]))
    features = F.normalize(clip.get_image_features(**pixels).pooler_output, dim=-1)
    torch.testing.assert_close(output.image_embeds, features)
    torch.testing.assert_close(output.logits, model(image_embeds=features).logits)
    assert output.loss.ndim == 0
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert type(loaded) is APEForImageClassification
    # not bit for bit: matrix products of memory-mapped weights may round differently
    torch.testing.assert_close(loaded(**pixels).logits, output.logits.detach(), rtol=1e-5, atol=1e-5)
    assert loaded.config.fit_report == model.config.fit_report
    half = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {each.dtype for each in half.classifier.parameters()} == {torch.float32}
    answers = pipeline("image-classification", model=str(tmp_path))(pictures[0], top_k=4)
    assert {answer["label"] for answer in answers} == {*names, "sun"}
    best = answers[0]
    assert best["label"] == loaded.config.id2label[int(output.logits[0].argmax())]
    assert best["score"] == pytest.approx(output.logits[0].softmax(-1).max().item(), abs=1e-5)


def test_a_model_of_the_zoo_inside(tower_configs, processor, pictures, tmp_path, seeded):
    fff = FFFModel(FFFConfig(**tower_configs)).eval()
    fff.save_pretrained(tmp_path / "fff")
    processor.save_pretrained(tmp_path / "fff")
    model = APEForImageClassification.from_clip(str(tmp_path / "fff"))
    model.set_classes(NAMES, APEProcessor.from_pretrained(tmp_path / "fff"), templates=["a {}"])
    inputs = processor(images=pictures, text=[f"a {name}" for name in NAMES], return_tensors="pt")
    expected = fff.similarity_logits(fff.encode_image(inputs["pixel_values"]), fff.encode_text(inputs["input_ids"]))
    torch.testing.assert_close(model(inputs["pixel_values"]).logits, expected, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path / "ape")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "ape")
    assert type(loaded.backbone) is FFFModel
    assert torch.equal(loaded(inputs["pixel_values"]).logits, model(inputs["pixel_values"]).logits)


def test_model_says_what_is_wrong(clip, processor, pictures, tmp_path, world):
    model = APEForImageClassification.from_clip(clip)
    with pytest.raises(ValueError, match="needs the processor"):
        model.set_classes(NAMES)
    with pytest.raises(ValueError, match="unknown head 'best'"):
        model.fit(*world[1], NAMES, text_weight=world[0], head="best")
    with pytest.raises(ValueError, match=r"unknown setting \['alhpa'\]"):
        model.fit(*world[1], NAMES, text_weight=world[0], alhpa=3)
    with pytest.raises(ValueError, match="either pixel_values or image_embeds"):
        model()
    model.set_classes(NAMES, text_weight=world[0])
    with pytest.raises(ValueError, match="image_embeds are 7 wide, the joint space has 20"):
        model(image_embeds=torch.ones(1, 7))
    with pytest.raises(ValueError, match="the head is 6 wide"):
        model.set_head(HEADS["zero_shot"](4, 6))
    CLIPProcessor(processor.image_processor, processor.tokenizer).save_pretrained(tmp_path)
    assert type(APEProcessor.from_pretrained(tmp_path)) is APEProcessor  # any CLIP folder


def test_views_are_averaged_before_they_are_normalised(clip, processor, pictures):
    model = APEForImageClassification.from_clip(clip)
    seen = []

    def augment(image, view, index):
        seen.append((view, index))
        return image.rotate(90 * view)

    views = model.encode_views(pictures, processor, views=2, augment=augment, batch_size=4)
    assert views.shape == (2, 6, 20)
    assert seen == [(view, index) for view in range(2) for index in range(6)]
    with torch.no_grad():
        turned = processor(images=[each.rotate(90) for each in pictures], return_tensors="pt")
        expected = clip.get_image_features(**turned).pooler_output
    torch.testing.assert_close(views[1], expected)
    model.fit(views, [0, 1, 2, 0, 1, 2], NAMES[:3], processor=processor, head="tip")
    torch.testing.assert_close(model.classifier.cache_keys.data, F.normalize(views.mean(0), dim=1))
    assert model.config.fit_report["views"] == 2
