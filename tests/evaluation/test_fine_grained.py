"""Fine-grained scores: Winoground's three from similarities, chance by simulation, one table, any model, Trainer."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from hf_clipplus.data.mmvp_source import ImagePair
from hf_clipplus.data.sugarcrepe_source import CaptionChoice
from hf_clipplus.evaluation.fine_grained import CaptionChoiceEvaluator, FineGrainedEvaluator
from hf_clipplus.evaluation.fine_grained_scores import CHANCES, FineGrainedScores, fine_grained_table
from hf_clipplus.evaluation.loading import load_dual_encoder
from hf_clipplus.evaluation.mmvp import PairEvaluator
from hf_clipplus.evaluation.scenes import fine_grained_scenes
from hf_clipplus.training.start import ENCODER

EXAMPLE = Path(__file__).parents[2] / "examples" / "evaluate_fine_grained.py"
# texts in rows, images in columns
BOTH = [[4.0, 1.0], [2.0, 3.0]]
TEXT_ONLY = [[4.0, 5.0], [2.0, 6.0]]  # text 0 prefers image 1
IMAGE_ONLY = [[4.0, 1.0], [5.0, 6.0]]  # image 0 prefers text 1
NEITHER = [[1.0, 4.0], [3.0, 2.0]]
TIED = [[1.0, 1.0], [1.0, 1.0]]


def scores_of(*logits, patterns=None):
    return FineGrainedScores(torch.tensor(logits), tuple(patterns or ["a"] * len(logits)))


def test_the_three_scores():
    scores = scores_of(BOTH, TEXT_ONLY, IMAGE_ONLY, NEITHER, TIED)
    assert scores.text.correct.tolist() == [True, True, False, False, False]
    assert scores.image.correct.tolist() == [True, False, True, False, False]
    assert scores.group.correct.tolist() == [True, False, False, False, False]
    assert scores.mmvp.correct.tolist() == [True, False, True, False, False]
    half_tied = scores_of([[2.0, 1.0], [3.0, 3.0]])  # MMVP gives the tie to the second image
    assert (half_tied.image.average(), half_tied.mmvp.average()) == (0.0, 1.0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        scores_of([[torch.nan, 1.0], [1.0, 1.0]])
    with pytest.raises(ValueError, match="1 pairs but 2 patterns"):
        scores_of(BOTH, patterns=["a", "b"])


def test_chance_is_what_independent_similarities_reach():
    logits = torch.randn(60_000, 2, 2, generator=torch.Generator().manual_seed(0))
    scores = FineGrainedScores(logits, ("a",) * len(logits))
    for name, chance in CHANCES.items():
        assert getattr(scores, name).average() == pytest.approx(chance, abs=0.01)
    blind = torch.randn(100, 2, 1) + torch.randn(100, 1, 2)  # what each text and each image has of itself
    assert FineGrainedScores(blind, ("a",) * 100).text.average() == 0


def test_table():
    patterns = ["b", "a", "a", "b"]
    before, after = (
        scores_of(BOTH, TEXT_ONLY, NEITHER, TIED, patterns=patterns),
        scores_of(*[BOTH] * 4, patterns=patterns),
    )
    lines = fine_grained_table({"CLIP": before, "ours": after}).splitlines()
    assert lines[0] == "| text / image / group | pairs | CLIP | ours |"
    assert lines[2] == "| b | 2 | 50.0 / 50.0 / 50.0 | 100.0 / 100.0 / 100.0 |"
    assert lines[3] == "| a | 2 | 50.0 / 0.0 / 0.0 | 100.0 / 100.0 / 100.0 |"
    assert lines[4] == "| average | 4 | 50.0 / 25.0 / 25.0 | 100.0 / 100.0 / 100.0 |"
    assert lines[5] == "| chance | | 25.0 / 25.0 / 16.7 | 25.0 / 25.0 / 16.7 |"
    assert lines[7] == "ours against CLIP, group: 3 pairs won, 0 lost, McNemar p = 0.250."
    with pytest.raises(ValueError, match="ours and CLIP were scored on different pairs"):
        fine_grained_table({"CLIP": before, "ours": scores_of(BOTH)})


def test_any_model_and_any_order_of_texts(clip, siglip, pictures):
    texts = ("a photo of a red square", "green square on paper")
    pairs = [ImagePair("a", tuple(pictures[k : k + 2]), texts) for k in (0, 3)]
    turned = [ImagePair("a", pair.images, texts[::-1], (False, True)) for pair in pairs]
    for model, processor in (clip, siglip):
        found = FineGrainedEvaluator(pairs)(model, processor)
        evaluator = FineGrainedEvaluator(turned)
        assert evaluator(model, processor) == found  # the same truth, told in the other order
        assert found["image"] == PairEvaluator(pairs, prefix="")(model, processor)["average"] == found["mmvp"]
        right = evaluator.scores.logits.diagonal(dim1=1, dim2=2)
        wrong = evaluator.scores.logits.flip(2).diagonal(dim1=1, dim2=2)
        assert found["image"] == float((right > wrong).all(1).float().mean())
    with pytest.raises(ValueError, match="both texts of 1 pairs are true of the same image, the first is 1"):
        FineGrainedEvaluator([pairs[0], ImagePair("a", pairs[0].images, texts, (True, True))])


def test_captions_against_false_ones(clip, pictures, tmp_path):
    model, processor = clip
    texts = ["a photo of a red square", "green", "a photo of a blue square on paper"]
    paths = []
    for number, picture in enumerate(pictures[:3]):
        picture.save(tmp_path / f"{number}.png")
        paths.append(tmp_path / f"{number}.png")
    asked = [(image, *order) for image in range(3) for order in ((image, (image + 1) % 3), ((image + 1) % 3, image))]
    choices = [CaptionChoice("swap", paths[image], texts[a], texts[b]) for image, a, b in asked]
    choices.append(CaptionChoice("add", paths[0], "red", "red"))  # a tie
    evaluator = CaptionChoiceEvaluator(choices)
    found = evaluator(model, processor)
    with torch.no_grad():
        cosines = model(
            **processor(images=pictures[:3], text=texts, padding=True, return_tensors="pt")
        ).logits_per_image
    expected = [bool(cosines[image, a] > cosines[image, b]) for image, a, b in asked]
    assert evaluator.scores.correct.tolist() == [*expected, False]
    assert sum(expected) == 3  # of either order of two captions, one is right
    assert (found["swap"], found["add"], found["average"]) == (0.5, 0.0, 0.25)
    assert (found["chance_average"], found["choices"]) == (0.5, 7.0)
    with pytest.raises(ValueError, match="no captions to choose from"):
        CaptionChoiceEvaluator([])


def test_the_embedded_encoder_sees_colours_and_not_relations():
    """The evaluation separates: what the captions of its training tell is far above chance, word order is not."""
    evaluator = fine_grained_scenes("test", image_size=96, pairs_per_kind=16)
    found = evaluator(*load_dual_encoder(str(ENCODER), device="cpu", dtype=torch.float32))
    assert found["pairs"] == 96
    assert found["group_colour"] > 2 * found["chance_group"]
    assert found["group_relation"] < found["chance_group"]
    for name in ("text", "image", "group", "mmvp"):
        kinds = [value for key, value in found.items() if key.startswith(f"{name}_")]
        assert len(kinds) == 6
        assert found[name] == pytest.approx(sum(kinds) / 6)


def test_the_example(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name])
    main = runpy.run_path(str(EXAMPLE))["main"]
    sheet, output = tmp_path / "pairs.png", tmp_path / "right.json"
    table = main(
        ["--models", str(ENCODER), "--device", "cpu", "--pairs", "2", "--sheet", str(sheet), "--output", str(output)]
    )
    assert table in capsys.readouterr().out
    assert table.count("\n") == 9
    assert sheet.stat().st_size > 1000
    assert len(json.loads(output.read_text())["right"][str(ENCODER)]["group"]) == 12
    with pytest.raises(ValueError, match="--benchmark sugarcrepe needs --data and --images"):
        main(["--benchmark", "sugarcrepe", "--models", str(ENCODER)])
