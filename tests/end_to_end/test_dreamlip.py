"""The examples of DreamLIP and Long-CLIP on the embedded scenes in fresh processes; what they saved loads."""

import json

import pytest

FRESH = """
import json, sys, hf_clipplus
from transformers import AutoModel, AutoProcessor
from hf_clipplus.evaluation import scenes
found = []
for folder, make in zip(sys.argv[1:], (scenes.scene_evaluators, scenes.long_text_evaluators)):
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    evaluators = make("validation", image_size=model.config.vision_config.image_size)
    found.append({e.name: e(model, processor) for e in evaluators})
print(json.dumps(found))
"""


@pytest.mark.slow
def test_examples_and_what_they_saved(run, tmp_path):
    """The metrics that the runs wrote are those of the saved models."""
    folders = [tmp_path / name for name in ("dreamlip", "longclip")]
    short = ("--max_steps", 2, "--save_strategy", "no", "--eval_strategy", "no")
    short += ("--per_device_eval_batch_size", 64)  # like FRESH: equal texts in other batches tie no more, by rounding
    negatives = ("--grouping_negatives", "cross_image")
    batches = ("--per_device_train_batch_size", 8, "--scenes", 16)
    run("examples/train_dreamlip.py", "--output_dir", folders[0], *negatives, *batches, *short)
    batches = ("--per_device_train_batch_size", 36, "--scenes", 72)
    run("examples/train_longclip.py", "--output_dir", folders[1], *batches, *short)
    found = json.loads(run("-c", FRESH, *folders).splitlines()[-1])
    for folder, evaluators in zip(folders, found, strict=True):
        written = json.loads((folder / "metrics.json").read_text())
        for name, metrics in evaluators.items():
            for key, value in metrics.items():
                assert written[f"eval_{name}_{key}"] == pytest.approx(value, abs=1e-6)


@pytest.mark.slow
def test_comparisons_go_on(run, tmp_path):
    options = ("--seeds", 0, "--steps", 2, "--batch_size", 8, "--scenes", 20, "--training_scenes", 64)
    first = ["examples/compare_dreamlip.py", "--arms", "raw", "sub_captions", "batch", *map(str, options)]
    start = tmp_path / "start"
    assert "DreamLIP, grouping, negatives of the batch" in run(*first, "--output_dir", start)
    before = (start / "raw-0" / "model.safetensors").stat().st_mtime_ns
    run(*first, "--output_dir", start)
    assert (start / "raw-0" / "model.safetensors").stat().st_mtime_ns == before
    second = ["examples/compare_longclip.py", "--start_dir", start, "--output_dir", tmp_path / "long"]
    table = run(*second, "--seeds", 0, "--steps", 2, "--batch_size", 36, "--scenes", 20)
    assert "| Long-CLIP |" in table


@pytest.mark.slow
def test_benchmark(run, tmp_path):
    output = tmp_path / "step.json"
    run("benchmarks/dreamlip_step.py", "--batch", 128, "--pairs", 1, "--output", output)
    found = json.loads(output.read_text())
    assert found["ratio"] > 1
    assert all(own["ratio"] > 1 for own in found["loss_mib"].values())
