"""FFF to the Hub and back: what the example trains goes up, and a stranger who imports the package gets the same."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from hf_clipplus.evaluation.results import COUNTS

ROOT = Path(__file__).parents[2]
MODEL_FILES = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
PUSHED = MODEL_FILES | {"README.md", "results.json", ".gitattributes"}
ABSOLUTE_PATH = re.compile(r"""(?<![\w.:/<])/(?:tmp|home|root|work|mnt|usr|var|opt|private|Users)/|[A-Za-z]:\\\\""")

CONSUMER = """
import sys
import hf_clipplus
import numpy as np, pytest, torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 70, 3), dtype=np.uint8))
labels = ["a red boat", "two cats", "a cup of tea"]

def outputs(source):
    model, processor = AutoModel.from_pretrained(source), AutoProcessor.from_pretrained(source)
    assert type(model) is hf_clipplus.FFFModel and type(processor) is hf_clipplus.FFFProcessor
    inputs = processor(images=[image], text=labels, return_tensors="pt")
    with torch.no_grad():
        tensors = [*inputs.values(), *model(**inputs).to_tuple()]
    answers = pipeline("zero-shot-image-classification", model=source)(image, candidate_labels=labels)
    return [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)], answers

(pulled, pulled_answers), (local, local_answers) = map(outputs, ("org/fff-plus", sys.argv[1]))
assert len(pulled) == len(local) > 3 and all(map(torch.equal, pulled, local))
assert pulled_answers == local_answers and {answer["label"] for answer in pulled_answers} == set(labels)
for load in (AutoModel.from_pretrained, AutoProcessor.from_pretrained):
    with pytest.raises(OSError, match="org/nothing"):
        load("org/nothing")
    with pytest.raises(OSError, match="v9"):
        load("org/fff-plus", revision="v9")
"""

AGAIN = """
import json, sys
sys.path.append(sys.argv[1])
import train_fff
for arguments in json.loads(sys.argv[2]):
    train_fff.main(arguments)
"""


def run(hub, folder, home, *arguments) -> str:
    """A Python process in `folder` that knows only this Hub; its stderr."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=hub.environment(folder / home, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES=""),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stderr


@pytest.fixture(scope="module")
def trained(hub, tmp_path_factory):
    """The folder in which the example ran, with its output in `out`, and org/fff-plus on the Hub."""
    folder = tmp_path_factory.mktemp("push")
    length = ("--max_steps", 2, "--per_device_train_batch_size", 8, "--eval_strategy", "no", "--save_strategy", "no")
    push = ("--push_to_hub", "--hub_model_id", "org/fff-plus", "--output_dir", folder / "out")
    run(hub, folder, "trainer_home", ROOT / "examples" / "train_fff.py", *length, *push)
    return folder


@pytest.mark.slow  # tests/hub/test_push_zoo.py does the same for every variant
def test_a_stranger_gets_the_same_model(hub, trained):
    run(hub, trained, "stranger_home", "-c", CONSUMER, trained / "out")


def test_the_model_goes_up_and_nothing_else(hub, trained):
    assert {path.name for path in (trained / "out").iterdir()} > MODEL_FILES | {"training_args.bin", "metrics.json"}
    for commit in hub.repo("org/fff-plus").commits.values():
        assert set(commit.files) in (PUSHED, {".gitattributes"})
    for path, content in hub.files("org/fff-plus").items():
        assert path == "model.safetensors" or not ABSOLUTE_PATH.search(content.decode()), path
    assert ABSOLUTE_PATH.search(f'"{trained}"'), "the pattern knows a path of this machine"


def test_the_card_says_what_the_trainer_saw(hub, trained):
    card = hub.files("org/fff-plus")["README.md"].decode()
    facts = yaml.safe_load(card.split("---\n")[1])
    assert facts["library_name"] == "hf_clipplus"
    assert facts["pipeline_tag"] == "zero-shot-image-classification"
    assert facts["tags"] == ["transformers", "clipplus_fff", "arxiv:2405.10286"]
    assert not {"base_model", "datasets"} & set(facts), "it started from nothing, on no data set of the Hub"
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert snippet.startswith("import hf_clipplus")
    assert snippet.count('"org/fff-plus"') == 3
    assert "- images in a step: 8\n" in card
    assert "- learning_rate: 0.001\n" in card
    assert "- steps: 2\n" in card


def test_every_number_of_the_card_is_in_the_results(hub, trained):
    card = hub.files("org/fff-plus")["README.md"].decode()
    metrics = json.loads((trained / "out" / "metrics.json").read_text())
    entries = json.loads(hub.files("org/fff-plus")["results.json"])["results"]
    values = {(entry["dataset"], entry["metric"]): entry["value"] for entry in entries}
    assert values["clipart_zero_shot", "top5"] == metrics["eval_clipart_zero_shot_top5"]
    name = "text_to_image_R@1"
    assert values["clipart_retrieval_by_name", name] == metrics[f"eval_clipart_retrieval_by_name_{name}"]
    told = [line.split(" | ") for line in card.splitlines() if line.startswith("| org/fff-plus |")]
    assert {(cells[2], cells[5], cells[6].rstrip(" |")) for cells in told} == {
        (*key, f"{value:.4f}") for key, value in values.items() if key[1] not in COUNTS
    }
    index = yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"]
    scores = {
        (entry["dataset"]["type"], metric["type"], metric["value"]) for entry in index for metric in entry["metrics"]
    }
    assert scores == {
        (*key, value) for key, value in values.items() if key[1] not in COUNTS and "chance" not in key[1]
    }
    assert "_per_second" not in card


@pytest.mark.slow
def test_pushes_while_training_and_resuming(hub, trained):
    """Every checkpoint is pushed as a model; the local ones resume; the whole state goes up only when asked for."""
    draw = np.random.default_rng(0)
    (trained / "pictures").mkdir()
    with open(trained / "pictures" / "metadata.jsonl", "w") as metadata:
        for i in range(8):
            Image.fromarray(draw.integers(0, 255, (50, 50, 3), dtype=np.uint8)).save(trained / f"pictures/{i}.png")
            metadata.write(json.dumps({"file_name": f"{i}.png", "text": f"picture {i} of a cat"}) + "\n")
    data = f"--dataset {trained / 'pictures'} --bias_init config --per_device_train_batch_size 4 --eval_strategy no"
    save = f"--output_dir {trained / 'again'} --save_strategy steps --save_steps 1 --lr_scheduler_type constant"
    push = "--push_to_hub --hub_always_push true"
    first = "--model_name_or_path org/fff-plus --max_steps 2 --save_total_limit 1 --hub_model_id org/again"
    then = "--max_steps 3 --hub_model_id org/state --hub_strategy checkpoint"
    arguments = [f"{data} {save} {push} {more}".split() for more in (first, then)]
    said = run(hub, trained, "trainer_home", "-c", AGAIN, ROOT / "examples", json.dumps(arguments))

    assert f"Resuming from {trained / 'again' / 'checkpoint-2'}" in said
    state = json.loads((trained / "again" / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["global_step"] == 3
    commits = {commit.title: set(commit.files) for commit in hub.repo("org/again").commits.values()}
    # of two pushes in a row the first may be lost: the second save writes the files that it is reading
    progress = [files for title, files in commits.items() if title.startswith("Training in progress, step")]
    assert progress
    assert all(files == PUSHED - {"README.md", "results.json"} for files in progress)
    assert set(hub.files("org/again")) == PUSHED
    assert all(files <= PUSHED for files in commits.values())
    assert "base_model: org/fff-plus\n" in hub.files("org/again")["README.md"].decode()

    asked = hub.files("org/state")
    assert {path for path in asked if "/" not in path} == PUSHED
    assert {"last-checkpoint/optimizer.pt", "last-checkpoint/trainer_state.json"} < set(asked)
    assert str(trained) not in asked["README.md"].decode() + asked["config.json"].decode()
    assert asked["model.safetensors"] == (trained / "again" / "model.safetensors").read_bytes()
    assert asked["model.safetensors"] != hub.files("org/again")["model.safetensors"]
