"""Zero-shot classification against a computation by hand, its sources of class names, and what it refuses."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from torch.nn.functional import normalize

from hf_clipplus.evaluation.zero_shot import (
    DEFAULT_TEMPLATES,
    ZeroShotClassification,
    fill_template,
    read_class_texts,
    zero_shot_classifier,
)

TEMPLATES = ["a photo of a {}", "{c} square on paper", "a {}"]

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange")  # of the `pictures` fixture


@pytest.fixture
def rows(pictures):
    """16 rows, classes not balanced: class 0 nine times, the others once."""
    labels = [0] * 9 + list(range(1, 8))
    return [{"image": pictures[label], "label": label} for label in labels]


def test_classifier_is_the_normalised_mean_of_normalised_prompts(clip):
    model, processor = clip
    columns = []
    for name in COLOURS:
        prompts = [f"a photo of a {name}", f"{name} square on paper", f"a {name}"]
        tokens = processor(text=prompts, return_tensors="pt", padding=True)
        with torch.no_grad():
            embeds = normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
        columns.append(normalize(embeds.mean(0), dim=0))
    got = zero_shot_classifier(model, processor, COLOURS, TEMPLATES, batch_size=5)
    assert got.shape == (16, 8)
    torch.testing.assert_close(got, torch.stack(columns, dim=1), atol=1e-5, rtol=0)


def test_result_equals_argmax_by_hand(clip, rows, pictures):
    model, processor = clip
    result = ZeroShotClassification(rows, COLOURS, TEMPLATES)(model, processor)
    classifier = zero_shot_classifier(model, processor, COLOURS, TEMPLATES)
    with torch.no_grad():
        pixels = processor(images=[row["image"] for row in rows], return_tensors="pt")["pixel_values"]
        logits = normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1) @ classifier
    labels = torch.tensor([row["label"] for row in rows])
    hit = (logits.argmax(1) == labels).double()
    assert result["top1"] == pytest.approx(hit.mean().item())
    assert result["top5"] == pytest.approx((logits.topk(5).indices == labels[:, None]).any(1).double().mean().item())
    per_class = np.mean([hit[labels == c].mean().item() for c in range(8)])
    assert result["mean_per_class"] == pytest.approx(per_class)
    assert (result["samples"], result["classes"], result["chance_top1"]) == (16, 8, 1 / 8)


class Oracle(torch.nn.Module):
    """Embeds image and text `i` as the i-th unit vector, from the mean colour and the colour word."""

    def __init__(self, pictures, right=True):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.colours = [picture.getpixel((0, 0)) for picture in pictures]
        self.shift = 0 if right else 1

    def encode_image(self, pixel_values, normalize=True):
        return torch.eye(8)[pixel_values]

    def encode_text(self, input_ids, normalize=True):
        return torch.eye(8)[(input_ids + self.shift) % 8]

    def processor(self, images=None, text=None, return_tensors=None):
        if images:
            return {"pixel_values": torch.tensor([self.colours.index(i.getpixel((0, 0))) for i in images])}
        return {"input_ids": torch.tensor([next(i for i, c in enumerate(COLOURS) if c in t) for t in text])}


@pytest.mark.parametrize(("right", "score"), [(True, 1.0), (False, 0.0)])
def test_a_perfect_and_a_wrong_model(pictures, rows, right, score):
    model = Oracle(pictures, right)
    result = ZeroShotClassification(rows, COLOURS)(model, model.processor)
    assert result["top1"] == result["mean_per_class"] == score


def test_class_names_come_from_the_data(pictures):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(COLOURS))})
    labels = [3, 1, 0, 7]
    images = [pictures[label] for label in labels]
    dataset = Dataset.from_dict({"image": images, "label": labels}, features=features)
    strings = [{"image": image, "label": COLOURS[label]} for image, label in zip(images, labels, strict=True)]
    model = Oracle(pictures)
    for evaluator, classes in ((ZeroShotClassification(dataset), 8), (ZeroShotClassification(strings), 4)):
        result = evaluator(model, model.processor)
        assert result["top1"] == 1
        assert result["classes"] == classes
    shuffled = ZeroShotClassification(dataset, COLOURS[::-1])
    assert shuffled.targets.tolist() == [7 - label for label in labels]  # by name
    better = ZeroShotClassification(dataset, [f"{colour} square" for colour in COLOURS])
    assert better.targets.tolist() == labels  # other words: by position
    with pytest.raises(ValueError, match="got 3 class names, but column 'label' has 8 classes"):
        ZeroShotClassification(dataset, COLOURS[:3])
    missing = Dataset.from_dict({"image": images, "label": [-1, *labels[1:]]}, features=features)
    with pytest.raises(ValueError, match="row 0: label -1"):
        ZeroShotClassification(missing)
    assert ZeroShotClassification(strings, COLOURS).targets.tolist() == labels
    assert ZeroShotClassification(strings).class_names == ["green", "orange", "red", "yellow"]


def test_clip_benchmark_files(tmp_path):
    (tmp_path / "classnames.txt").write_text("tabby cat\ncrâne\n\n", encoding="utf-8")
    assert read_class_texts(tmp_path) == (["tabby cat", "crâne"], list(DEFAULT_TEMPLATES))
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nart of the {}\n")
    names, templates = read_class_texts(tmp_path)
    assert [fill_template(t, names[0]) for t in templates] == ["a photo of a tabby cat.", "art of the tabby cat"]
    (tmp_path / "classnames.txt").write_text("\n")
    with pytest.raises(ValueError, match="empty"):
        read_class_texts(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"classnames\.txt"):
        read_class_texts(tmp_path / "nowhere")


def test_few_classes(clip, rows, pictures):
    one = ZeroShotClassification(rows[:3], ["red"])(*clip)
    assert one["top1"] == one["chance_top1"] == 1
    assert "top5" not in one
    three = ZeroShotClassification([{"image": pictures[i], "label": i} for i in range(2)], COLOURS[:3])(*clip)
    assert "top5" not in three
    assert three["classes_without_samples"] == 1


def test_wrong_inputs_are_named(rows):
    with pytest.raises(ValueError, match=r"more than once: \['red'\]"):
        ZeroShotClassification(rows, ["red", "blue", "red "])
    with pytest.raises(ValueError, match="class name 1 is blank"):
        ZeroShotClassification(rows, ["red", " "])
    with pytest.raises(ValueError, match="no class names"):
        ZeroShotClassification(rows, [])
    with pytest.raises(ValueError, match="a photo"):
        ZeroShotClassification(rows, COLOURS, ["a photo"])
    with pytest.raises(ValueError, match="none at all"):
        ZeroShotClassification(rows, COLOURS, [])
    with pytest.raises(ValueError, match="row 10: label 2 is none of the 2 classes"):
        ZeroShotClassification(rows, COLOURS[:2])
    with pytest.raises(ValueError, match="row 0: label None"):
        ZeroShotClassification([{"image": None, "label": None}], COLOURS)
    with pytest.raises(ValueError, match="row 0: label 'pink'"):
        ZeroShotClassification([{"image": None, "label": "pink"}], COLOURS)
    with pytest.raises(ValueError, match="pass class_names"):
        ZeroShotClassification(rows)
    with pytest.raises(KeyError, match="no column 'fine_label'"):
        ZeroShotClassification(rows, COLOURS, label_column="fine_label")
    with pytest.raises(TypeError, match="lists of strings"):
        ZeroShotClassification(rows, "red")
