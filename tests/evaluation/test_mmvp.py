"""MMVP-VLM: reading every layout, scoring, one table, the embedded pairs and probes."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from hf_clipplus.data.clipart import load_drawings
from hf_clipplus.data.clipart_facts import FACTS, FactPictures, fact_drawings, look_alike_pairs, picture_of
from hf_clipplus.data.mmvp_source import IMAGE_FOLDERS, PATTERNS, read_mmvp
from hf_clipplus.evaluation.linear_probe import LinearProbe, fit_logistic, predict
from hf_clipplus.evaluation.loading import load_dual_encoder
from hf_clipplus.evaluation.mmvp import PairEvaluator, score_models
from hf_clipplus.evaluation.mmvp_scores import PairScores, comparison_table, first_image_wins, mcnemar, score_pairs
from hf_clipplus.models.diva.modeling_diva import DIVAModel
from hf_clipplus.training.start import ENCODER


def write_mmvp(root, folder="MLLM_VLM Images", *, columns=("Question ID", "Type", "Statement"), rows=270, where=None):
    """A data set of the published form with one-pixel images; the second images' types are deliberately others."""
    images = root / folder
    types = ("Orientation", "Presence", "State", "Quantity", "Position", "Colour", "Structure", "Texts", "Camera")
    with open((where or root) / "Questions.csv", "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for number in range(1, rows + 1):
            kind = types[(number - 1) // 30 % 9]
            writer.writerow((number, kind if number % 2 else "elsewhere", f"statement {number}"))
            (images / kind).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (1, 1)).save(images / kind / f"{number}.jpg")
    return root


@pytest.mark.parametrize("folder", IMAGE_FOLDERS[:3])
def test_every_layout_is_read(tmp_path, folder):
    (tmp_path / folder).mkdir()
    where = tmp_path / folder if folder == IMAGE_FOLDERS[1] else None
    pairs = read_mmvp(write_mmvp(tmp_path, folder, where=where))
    assert len(pairs) == 135
    assert [pair.pattern for pair in pairs[::15]] == list(PATTERNS)
    assert pairs[1].texts == ("statement 3", "statement 4")
    assert [path.name for path in pairs[1].images] == ["3.jpg", "4.jpg"]
    assert {path.parent.name for path in pairs[1].images} == {"Orientation"}
    assert all(pair.first_is_true == (True, False) for pair in pairs)


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no MMVP-VLM: .*MLLM_VLM Images"):
        read_mmvp(tmp_path)
    with pytest.raises(ValueError, match="has no column 'Statement'; it has"):
        read_mmvp(write_mmvp(tmp_path, columns=("Question ID", "Type", "Text")))
    with pytest.raises(ValueError, match="has 30 rows, expected 270"):
        read_mmvp(write_mmvp(tmp_path, rows=30))
    root = write_mmvp(tmp_path)
    (root / "MLLM_VLM Images" / "Presence" / "40.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 images are missing: .*Presence/40\.jpg"):
        read_mmvp(root)


def test_a_tie_goes_to_the_second_image():
    logits = torch.tensor([[[1.0, 1.0], [2.0, 3.0]], [[2.0, 1.0], [1.0, 1.0]], [[2.0, 1.0], [2.0, 1.0]]])
    assert first_image_wins(logits).tolist() == [[False, False], [True, False], [True, True]]
    truth = torch.tensor([[True, False]]).expand(3, 2)
    scores = score_pairs(logits, truth, ["a", "a", "b"])
    assert scores.correct.tolist() == [False, True, False]
    assert scores.shares() == {"a": 0.5, "b": 0.0}
    assert scores.average() == 0.25
    with pytest.raises(ValueError, match="1 pairs are NaN or infinite, the first is 1"):
        first_image_wins(torch.stack([logits[0], logits[1] * torch.nan]))
    with pytest.raises(ValueError, match=r"\[pairs, 2 texts, 2 images\]"):
        first_image_wins(torch.zeros(3, 2))


def test_table_and_paired_test():
    before = PairScores(torch.tensor([True, False, False, False, False, False]), ("a",) * 3 + ("b",) * 3)
    after = PairScores(torch.tensor([False, True, True, True, True, True]), before.patterns)
    assert mcnemar(before.correct, after.correct) == (5, 1, pytest.approx(2 * 7 / 64))
    assert mcnemar(before.correct, before.correct) == (0, 0, 1.0)
    table = comparison_table({"CLIP": before, "DIVA": after})
    assert "| a | 3 | 33.3 (1) | 66.7 (2) |" in table
    assert "| average | 6 | 16.7 (1) | 83.3 (5) |" in table
    assert "DIVA against CLIP: 5 pairs won, 1 lost, McNemar p = 0.219." in table
    with pytest.raises(ValueError, match="scored on different pairs"):
        comparison_table({"CLIP": before, "DIVA": PairScores(after.correct, ("a",) * 6)})


@pytest.fixture(scope="module")
def encoder():
    return load_dual_encoder(str(ENCODER), device="cpu", dtype=torch.float32)


def test_embedded_pairs_under_every_rule(encoder):
    model, processor = encoder
    pairs = look_alike_pairs("test", image_size=48, pairs_per_fact=8)
    evaluator = PairEvaluator(pairs, prefix="", batch_size=5)
    found = evaluator(model, processor)
    assert set(found) == {"average", "chance_average", "pairs", "pairs_right", *FACTS}
    tuned = DIVAModel.from_pretrained(ENCODER, dtype=torch.float32, recap="random_k", recap_k=6).eval()
    assert evaluator(tuned, processor) == found  # the same weights, the same rule
    scores = score_models(evaluator, {"CLIP": encoder, "DIVA": (tuned, processor)})
    assert "0 pairs won, 0 lost" in comparison_table(scores)
    tuned.config.embedding = "official"
    first = evaluator._official_embeds(tuned, processor, [p.images[0] for p in pairs])
    torch.rand(1)  # torch's own generator has no part in it
    again = PairEvaluator(pairs, prefix="", batch_size=32)._official_embeds(
        tuned, processor, [p.images[0] for p in pairs]
    )
    torch.testing.assert_close(first, again, rtol=1e-4, atol=1e-5)
    other = PairEvaluator(pairs, seed=1)._official_embeds(tuned, processor, [p.images[0] for p in pairs])
    assert (first - other).abs().max() > 1e-3
    with pytest.raises(ValueError, match="different image embeddings"):
        score_models(evaluator, {"CLIP": encoder, "DIVA": (tuned, processor)})


def test_pairs_differ_in_one_fact_and_are_reproducible():
    pairs, again = (look_alike_pairs("test", image_size=32, pairs_per_fact=6) for _ in range(2))
    for pair, same in zip(pairs, again, strict=True):
        assert pair.texts == same.texts
        first, second = (np.asarray(image) for image in pair.images)
        assert (first == np.asarray(same.images[0])).all()
        assert (first != second).any()
        assert pair.texts[0] != pair.texts[1]
    more = look_alike_pairs("test", image_size=32, pairs_per_fact=7)
    assert [pair.texts for pair in more if pair.pattern == "count"][:6] == [
        p.texts for p in pairs if p.pattern == "count"
    ]
    drawing = next(d for d in fact_drawings(load_drawings("test"), "colour") if d.visibility[0] > 0.8)
    options = {"size": 48, "background": np.array([255, 255, 255])}
    shown = {
        count: (np.asarray(picture_of(drawing, "count", count, **options, rng=np.random.default_rng(0))) < 250).mean()
        for count in (1, 2, 4)
    }
    assert shown[2] == pytest.approx(2 * shown[1], rel=0.1)
    assert shown[4] == pytest.approx(4 * shown[1], rel=0.1)
    red = np.asarray(picture_of(drawing, "colour", "red", **options, rng=np.random.default_rng(0))).astype(int)
    painted = red[(red < 250).any(-1)]
    assert (painted[:, 0] >= painted[:, 1:].max(1)).mean() > 0.95


def test_probe_finds_what_is_linear():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, generator=draw)
    y = (x[:, :3] + 0.1 * torch.randn(300, 3, generator=draw)).argmax(1)
    fitted = fit_logistic(x[:200], y[:200], 1e-3)
    assert (predict(fitted, x[200:]) == y[200:]).float().mean() > 0.9
    weights, mean, deviation = fitted
    z = torch.nn.functional.pad(((x[:200] - mean) / deviation).double(), (0, 1), value=1.0)
    error = torch.softmax(z @ weights.T, 1) - torch.nn.functional.one_hot(y[:200])
    gradient = error.T @ z / 200
    gradient[:, :-1] += 1e-3 * weights[:, :-1]
    assert gradient.abs().max() < 1e-4  # the minimum


def test_probe_of_the_encoder(encoder):
    rows = (FactPictures("test", "colour", length=60, seed=seed) for seed in (0, 1))
    found = LinearProbe(*rows, name="colour")(*encoder)
    assert found["chance_accuracy"] == pytest.approx(1 / 6)
    assert found["accuracy"] > 0.5
    with pytest.raises(ValueError, match="fact: expected one of"):
        FactPictures("test", "size")
