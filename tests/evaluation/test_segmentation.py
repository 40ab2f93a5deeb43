"""The confusion matrix and the segmentation evaluator on cases that can be counted by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_clipplus.evaluation.confusion import ConfusionMatrix
from hf_clipplus.evaluation.segmentation import ZeroShotSegmentation, chance_levels, scene_segmentation
from hf_clipplus.training.groupvit_build import build_groupvit
from hf_clipplus.training.scratch import train_tokenizer


def test_iou_by_hand():
    matrix = ConfusionMatrix(4)
    matrix.update(torch.tensor([[0, 1, 1], [2, 2, 0]]), torch.tensor([[0, 1, 2], [2, 255, 1]]))
    iou = matrix.iou_per_class()
    torch.testing.assert_close(iou, torch.tensor([1 / 2, 1 / 3, 1 / 2, torch.nan]).double(), equal_nan=True)
    found = matrix.compute()
    assert found["mIoU"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
    assert found["pixel_accuracy"] == pytest.approx(3 / 5)
    assert found["mean_accuracy"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)


def test_bad_maps():
    matrix = ConfusionMatrix(3)
    with pytest.raises(ValueError, match="does not fit"):
        matrix.update(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="true label is 3"):
        matrix.update(torch.zeros(1, 2), torch.tensor([[0, 3]]))
    with pytest.raises(ValueError, match="predicted label is -1"):
        matrix.update(torch.tensor([[-1]]), torch.tensor([[0]]))


def test_chance_is_what_random_maps_score():
    truth = torch.randint(0, 4, (400, 400), generator=torch.Generator().manual_seed(0)).clamp(max=2)
    matrix = ConfusionMatrix(3)
    matrix.update(torch.randint(0, 3, truth.shape, generator=torch.Generator().manual_seed(1)), truth)
    chance = chance_levels(matrix)
    assert matrix.compute()["mIoU"] == pytest.approx(chance["chance_mIoU"], abs=0.01)
    one = ConfusionMatrix(3)
    one.update(torch.full_like(truth, 2), truth)
    assert one.compute()["mIoU"] == pytest.approx(chance["chance_mIoU_one_class"], abs=1e-6)


class Oracle:
    """Stands for a model: it gives the true map for what it is shown."""

    device = torch.device("cpu")

    def __init__(self, rows):
        self.masks = [torch.from_numpy(rows[i]["mask"]) for i in range(len(rows))]

    def class_embeddings(self, **inputs):
        return torch.eye(len(inputs["input_ids"]))

    def segment(self, pixel_values, target_sizes, class_embeds, background_threshold, **options):
        from hf_clipplus.models.groupvit.segmentation_groupvit import GroupViTPlusSegmentation

        return [GroupViTPlusSegmentation(self.masks.pop(0)) for _ in pixel_values]


@pytest.fixture(scope="module")
def processor():
    tokenizer = train_tokenizer(["a photo of a cat"], vocab_size=520, context=32)
    return build_groupvit("tiny", tokenizer)[1]


def test_evaluator_counts_every_pixel_once(processor):
    evaluator = scene_segmentation("validation", image_size=48, length=5, batch_size=2, background=0.9)
    found = evaluator(Oracle(evaluator.rows), processor)
    assert found["mIoU"] == found["pixel_accuracy"] == 1
    assert found["samples"] == 5
    assert evaluator.matrix.counts.sum() == 5 * 48 * 48
    present = [name for name, iou in evaluator.iou_per_class().items() if not np.isnan(iou)]
    assert "background" in present
    assert 0 < found["chance_mIoU"] < 0.2


def test_evaluator_with_a_real_model_and_bad_rows(processor):
    torch.manual_seed(0)
    model, _ = build_groupvit("tiny-vit", processor.tokenizer)
    found = scene_segmentation("validation", image_size=32, length=2)(model, processor)
    assert 0 <= found["mIoU"] < 0.5
    with pytest.raises(ValueError, match="no rows"):
        ZeroShotSegmentation([], ["cat"], background=None)
    wrong = [{"image": np.zeros((16, 16, 3), np.uint8), "mask": np.full((16, 16), 9)}]
    wrong[0]["image"] = Image.fromarray(wrong[0]["image"])
    with pytest.raises(ValueError, match="true label is 9"):
        ZeroShotSegmentation(wrong, ["cat"], background=0.5, short_side=16)(model, processor)


def test_names_of_the_background_count_as_background(processor):
    row = {"image": Image.new("RGB", (16, 16)), "mask": np.array([[0, 1], [2, 0]]).repeat(8, 0).repeat(8, 1)}
    evaluator = ZeroShotSegmentation(
        [row], ["cat", "dog"], background=None, background_names=["sky", "wall"], short_side=16
    )
    named = {"mask": np.array([[0, 2], [3, 1]]).repeat(8, 0).repeat(8, 1)}  # sky, cat, dog, wall
    found = evaluator(Oracle([named]), processor)
    assert found["mIoU"] == found["pixel_accuracy"] == 1
    assert list(evaluator.iou_per_class()) == ["background", "cat", "dog"]
    with pytest.raises(ValueError, match="not by both"):
        ZeroShotSegmentation([row], ["cat"], background=0.5, background_names=["sky"])
    with pytest.raises(ValueError, match="more than once"):
        ZeroShotSegmentation([row], ["sky"], background=None, background_names=["sky"])
