"""Episodes, seeded views, the feature cache on disk, fitting on images, and comparing heads."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from hf_clipplus.evaluation.plot import line_plot
from hf_clipplus.models.ape import APEForImageClassification
from hf_clipplus.training.few_shot import (
    CacheAugmentation,
    FeatureRows,
    draw_episode,
    encode_with_cache,
    fit_few_shot,
    tip_f_arguments,
    train_few_shot,
)
from hf_clipplus.training.few_shot_compare import ALL_HEADS, FewShotData, compare_heads, comparison_table


class ImagesOnly:
    """A processor for images; the texts of these tests are given as features."""

    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})

    def __call__(self, images, return_tensors):
        return self.image_processor(images, return_tensors=return_tensors)


@pytest.fixture
def model():
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision, text = {**tower, "image_size": 16, "patch_size": 8}, {**tower, "vocab_size": 10}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()
    return APEForImageClassification.from_clip(clip)


@pytest.fixture
def pictures():
    colours = [(40 * i % 256, 90 * i % 256, 30 * i % 256) for i in range(8)]
    found = []
    for i, colour in enumerate(colours):
        image = Image.new("RGB", (24, 20), colour)
        image.paste((255, 255, 0), (2 * i, i, 2 * i + 6, i + 9))
        found.append(image)
    return found


def test_episodes_are_disjoint_seeded_and_balanced():
    labels = [0] * 9 + [1] * 12 + [2] * 20
    episode = draw_episode(labels, 4, seed=3)
    assert [labels[row] for row in episode.support] == [0] * 4 + [1] * 4 + [2] * 4
    assert [labels[row] for row in episode.validation] == [0] * 4 + [1] * 4 + [2] * 4
    everything = episode.support + episode.validation + episode.test
    assert sorted(everything) == list(range(len(labels)))
    assert draw_episode(labels, 4, seed=3) == episode != draw_episode(labels, 4, seed=4)
    assert len(draw_episode(labels, 1, seed=0).validation) == 3
    with pytest.raises(ValueError, match="class 0 has 9 rows to draw from; 16 shots, 4 for validation and one"):
        draw_episode(labels, 16, seed=0)
    test = list(range(6, 9))
    few = draw_episode(labels, 16, seed=0, test=test, allow_fewer=True)
    assert few.test == test
    assert not set(few.support + few.validation) & set(test)
    assert [sum(labels[row] == c for row in few.support) for c in range(3)] == [3, 8, 16]


def test_views_depend_on_seed_view_and_index_alone(pictures):
    augment = CacheAugmentation(5)
    first = augment(pictures[0], 2, 7)
    assert augment(pictures[0], 2, 7).tobytes() == first.tobytes()
    others = [CacheAugmentation(6)(pictures[0], 2, 7), augment(pictures[0], 3, 7), augment(pictures[0], 2, 8)]
    assert all(other.tobytes() != first.tobytes() for other in others)


def test_features_on_disk(model, pictures, tmp_path, monkeypatch):
    options = {"views": 3, "augment": CacheAugmentation(1), "cache_dir": tmp_path}
    fresh = encode_with_cache(model, ImagesOnly(), pictures, **options)
    assert fresh.shape == (3, 8, 12)
    monkeypatch.setattr(model, "encode_views", lambda *args, **kwargs: pytest.fail("encoded again"))
    assert torch.equal(encode_with_cache(model, ImagesOnly(), pictures, **options), fresh)
    for change in ({"views": 2}, {"augment": CacheAugmentation(2)}, {"augment": None}):
        with pytest.raises(pytest.fail.Exception):
            encode_with_cache(model, ImagesOnly(), pictures, **{**options, **change})
    with pytest.raises(pytest.fail.Exception):
        encode_with_cache(model, ImagesOnly(), pictures[::-1], **options)
    model.backbone.visual_projection.weight.data += 1
    with pytest.raises(pytest.fail.Exception):
        encode_with_cache(model, ImagesOnly(), pictures, **options)


def test_fit_on_images(model, pictures, tmp_path):
    text = F.normalize(torch.randn(2, 12), dim=1)
    fit_few_shot(
        model, ImagesOnly(), pictures[:4], [0, 1, 0, 1], ["a", "b"], validation=(pictures[4:], [0, 1, 0, 1]),
        views=3, seed=9, cache_dir=tmp_path, head="ape", text_weight=text, num_channels=6,
    )  # fmt: skip
    report = model.config.fit_report
    assert (report["views"], report["augmentation_seed"], report["validation_images"]) == (3, 9, 4)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    views = encode_with_cache(model, ImagesOnly(), pictures[:4], views=3, augment=CacheAugmentation(9))
    torch.testing.assert_close(model.classifier.cache_keys.data, F.normalize(views.mean(0), dim=1))


@pytest.fixture
def data():
    draw = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(3, 12, generator=draw), dim=1)

    def sample(labels, *views):
        return centres[labels] + 0.2 * torch.randn(*views, len(labels), 12, generator=draw), labels

    support, labels = sample(torch.arange(12) % 3, 2)
    val, test = (sample(torch.arange(n) % 3) for n in (12, 90))
    unit = [(F.normalize(features, dim=1), targets) for features, targets in (val, test)]
    text = F.normalize(centres + 0.3 * torch.randn(3, 12, generator=draw), dim=1)
    return text, FewShotData(support, labels, *unit)


def test_all_heads_in_one_table(model, data):
    text, episode = data
    model.set_classes(["a", "b", "c"], text_weight=text)
    rows, models = compare_heads(model, episode)
    found = {row.head: row for row in rows}
    assert tuple(found) == ALL_HEADS == tuple(models)
    assert found["tip_f"].trained == 12 * 12
    assert found["ape_t"].trained == 3 * (800 * 12 // 1024 + 4)
    assert {row.trained for row in rows if row.head not in ("tip_f", "ape_t")} == {0}
    assert found["zero_shot"].stored == 0
    assert found["tip"].stored == 12 * 12 + 12
    assert max(row.accuracy for row in rows) > 0.8
    assert {row.protocol for row in rows} == {"honest"}
    assert model.classifier.name == "zero_shot"  # left as it was
    table = comparison_table({4: [rows, rows]})
    assert "protocol: honest" in table
    assert table.count("\n") == 4 + len(ALL_HEADS)


def test_test_images_never_choose(model, data):
    text, episode = data
    model.set_classes(["a", "b", "c"], text_weight=text)
    same = FewShotData(episode.views, episode.labels, episode.test, episode.test)
    with pytest.raises(ValueError, match="validation and test share 90 images"):
        compare_heads(model, same, heads=("tip",), protocol="paper")
    rows, _ = compare_heads(model, same, heads=("tip",), protocol="paper", allow_test_selection=True)
    assert rows[0].protocol == "paper"


def test_training_that_saturates_is_said(model, data, monkeypatch):
    text, episode = data
    model.fit(episode.views, episode.labels, ["a", "b", "c"], text_weight=text, head="tip_f", alpha=1e3, beta=5.0)
    said = []
    monkeypatch.setattr("hf_clipplus.training.few_shot.logger.warning", said.append)
    rows = FeatureRows(episode.views, episode.labels)
    report = train_few_shot(model, rows, validation=episode.validation, args=tip_f_arguments(num_train_epochs=2))
    assert any("After one epoch all training images" in message for message in said)
    assert len(report["validation_accuracies"]) == 2
    assert not any(each.requires_grad for each in model.classifier.parameters())


def test_rows_show_another_view_each_epoch(data):
    _, episode = data
    rows = FeatureRows(episode.views, episode.labels, seed=1)
    seen = set()
    for epoch in range(6):
        rows.set_epoch(epoch)
        row = rows[0]["image_embeds"]
        seen.add(next(i for i in range(2) if torch.equal(row, F.normalize(episode.views[i, 0], dim=0))))
        assert torch.equal(rows[0]["image_embeds"], row)
    assert seen == {0, 1}


def test_plot():
    image = line_plot({"a": [1.0, 5.0], "b": [2.0, 2.0]}, [1, 16], title="t", x_label="shots")
    assert image.size == (760, 440)
    assert len(image.getcolors(10**6)) > 5
    assert line_plot({"a": [1.0]}, [1], title="t", x_label="shots").size == (760, 440)
    with pytest.raises(ValueError, match=r"expected 2 values in every series; wrong: \['a'\]"):
        line_plot({"a": [1.0]}, [1, 2], title="t", x_label="shots")
