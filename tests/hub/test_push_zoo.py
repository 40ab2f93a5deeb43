"""Every variant and its adapters to the Hub and back: in a fresh process, offline, and where the package is not."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from answers import answers
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tiny_zoo import CLASSES, clip, ma_clip_base, pictures, tiny, trained_adapter
from video_files import write_video

from hf_clipplus import get_variant, list_models
from hf_clipplus.evaluation.results import Results
from hf_clipplus.hub import push
from hf_clipplus.hub.loading import load_from_zoo
from hf_clipplus.models.ape import APEForImageClassification
from hf_clipplus.tuners.ape_t import attach_ape_t

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
CONTRASTIVE = "--max_steps 2 --per_device_train_batch_size 8 --eval_strategy no --save_strategy no --push_to_hub"
ONE_HEAD = "--shots 1 --seeds 1 --views 1 --heads {0} --save {0}"
EPISODES = "--max_steps 1 --eval_strategy no --save_strategy no --load_best_model_at_end false --push_to_hub"
DIFFUSION = "--pictures 24 --batch_size 4 --held_out 8 --vae_steps 2 --unet_steps 2 --sample_steps 2"
# name of a variant or an adapter -> arguments of its recipe; MA-CLIP has a test file of its own
RECIPES = {
    "fff": CONTRASTIVE,
    "groupvit": CONTRASTIVE,
    "dreamlip": CONTRASTIVE,
    "longclip": CONTRASTIVE.replace("size 8", "size 40"),  # its images need more than 33 in a batch
    "diva": CONTRASTIVE + " --generator {tiny} --pictures 12 --eval_split none",
    "clip_fsar": EPISODES + " --clips_per_class 2 --queries 1 --eval_shots 1 --eval_episodes 20",
    "ape": ONE_HEAD.format("ape"),
    "ape_t": ONE_HEAD.format("ape_t"),
}
STRANGER = r"""
import re, sys
import hf_clipplus
from answers import answers, ask_pipeline, same
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification, AutoProcessor, pipeline

for repo, auto, *tasks in (line.split() for line in sys.stdin):
    folder = snapshot_download(repo)
    model = getattr(sys.modules["transformers"], auto).from_pretrained(repo)
    processor = AutoProcessor.from_pretrained(repo)
    assert type(model).__module__.startswith("hf_clipplus."), "the package wins over the bundle"
    assert same(answers(model, processor), load_file(f"{repo.partition('/')[2]}.safetensors")), repo
    for task in tasks:
        by_name, by_hand = (ask_pipeline(pipe, task) for pipe in (
            pipeline(task, model=repo),
            pipeline(task, model=model, processor=processor, image_processor=processor.image_processor,
                     tokenizer=processor.tokenizer)))
        assert by_name == by_hand and by_name, (repo, task)
    if not tasks:
        continue
    (sample,) = re.findall(r"```python\n(.*?)```", open(f"{folder}/README.md").read(), flags=re.DOTALL)
    exec(sample, {})
    model.save_pretrained("again"), processor.save_pretrained("again")
    config = type(AutoModel.from_pretrained("again").config).from_pretrained("again").to_dict()
    assert "auto_map" not in config and "custom_pipelines" not in config, "the copy has no code of its own"
"""
WITHOUT_THE_PACKAGE = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_clipplus":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())

import transformers
from answers import answers, ask_pipeline, same
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from transformers import AutoProcessor, pipeline

def check(source, auto, expected):
    model = getattr(transformers, auto).from_pretrained(source, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert isinstance(model, transformers.PreTrainedModel) and isinstance(processor, transformers.ProcessorMixin)
    assert same(answers(model, processor), expected), source
    return model, processor

for repo, auto, *tasks in (line.split() for line in sys.stdin):
    name = repo.partition("/")[2]
    expected = load_file(f"{name}.safetensors")
    model, processor = check(repo, auto, expected)
    for task in tasks:
        assert ask_pipeline(pipeline(task, model=repo, trust_remote_code=True), task), (repo, task)
    local, _ = check(snapshot_download(repo), auto, expected)  # a folder: transformers makes a second copy of the code
    local.save_pretrained(f"again-{name}"), processor.save_pretrained(f"again-{name}")
    check(f"again-{name}", auto, expected)
    try:
        getattr(transformers, auto).from_pretrained(repo, trust_remote_code=False)
    except ValueError as error:
        assert "custom code" in str(error)
    else:
        raise AssertionError("code was run that nobody trusted")
"""


def a_result(repo_id: str) -> Results:
    results = Results()
    facts = {"task": "image-classification", "dataset": "timm/pets", "split": "test", "model": "runs/1"}
    results.add("top1", 0.25, **facts, seed=3, command="python evaluate.py --data /data/pets")
    return results


@pytest.fixture(scope="module")
def lines(hub, author, tmp_path_factory):
    """The folder of all answers, and lines "repository, Auto class, tasks that it serves" of variants and adapters."""
    folder, variants, adapters = tmp_path_factory.mktemp("pushed"), [], []

    def remember(model, processor, repo_id, found):
        save_file(answers(model, processor), folder / f"{repo_id.partition('/')[2]}.safetensors")
        variant = get_variant(model.config.model_type.removeprefix("clipplus_"))
        tasks = [] if found is adapters else variant.tasks
        found.append(" ".join([repo_id, variant.auto_classes[0 if found is variants else -1], *tasks]))

    for name in list_models():
        model, processor = tiny(name)
        repo_id = f"org/{name}-plus"
        push(model, processor, repo_id, results=a_result(repo_id), bundle=True, license="cc0-1.0")
        remember(model, processor, repo_id, variants)

    base, processor = tiny("fff")
    base.name_or_path = "org/fff-plus"
    lora = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False))
    push(lora, processor, "org/lora-plus")
    remember(lora, processor, "org/lora-plus", adapters)

    backbone, processor = tiny("ape")
    zero_shot = APEForImageClassification.from_clip(backbone.backbone).set_classes(CLASSES, processor)
    push(zero_shot, processor, "org/zero-shot-plus")
    zero_shot.name_or_path = "org/zero-shot-plus"
    features = zero_shot.encode_views(pictures(6), processor)
    adapted = attach_ape_t(zero_shot, features, [0, 1, 2] * 2, num_channels=6)
    torch.nn.init.normal_(adapted.get_base_model().classifier.ape_t_res["default"])
    push(adapted, processor, "org/ape-t-plus")
    remember(adapted, processor, "org/ape-t-plus", adapters)

    base, processor = ma_clip_base()
    push(base, processor, "org/ma-clip-adapter-base")
    base.name_or_path = "org/ma-clip-adapter-base"
    adapted = trained_adapter(base)
    push(adapted, processor, "org/ma-clip-adapter")
    remember(adapted, processor, "org/ma-clip-adapter", adapters)
    assert {name for name in hub.files("org/ma-clip-adapter") if name.startswith("adapter")} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    return folder, variants, adapters


def run(script: str, lines: list[str], folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=environment,
        input="\n".join(lines),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.mark.slow
def test_a_stranger_gets_the_same_models_and_then_needs_neither_network_nor_package(hub, lines):
    folder, variants, adapters = lines
    for name in ("picture.jpg", "street.jpg"):  # what the samples of the cards open
        pictures(1)[0].resize((64, 48)).save(folder / name)
    for seed, name in enumerate(("new", "another", "a", "b", "c")):
        write_video(folder / f"{name}.mp4", clip(seed))
    alike = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{HERE}:{ROOT}"}
    environment = hub.environment(folder / "stranger", **alike)
    run(STRANGER, variants + adapters, folder, environment)
    before = len(hub.requests)
    run(WITHOUT_THE_PACKAGE, variants, folder, environment | {"HF_HUB_OFFLINE": "1"})
    assert len(hub.requests) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_what_the_recipe_trains_goes_up_and_comes_back(hub, author, tmp_path, name):
    repo_id, variant = f"org/trained-{name}", get_variant(name.removesuffix("_t"))
    alike = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{HERE}:{ROOT}"}

    def run_example(script: str, arguments: str) -> None:
        command = [sys.executable, str(ROOT / script), *arguments.split()]
        environment = hub.environment(tmp_path / "home", **alike)
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]

    diffusion = tmp_path / "tiny"
    if name == "diva":
        run_example("examples/train_tiny_diffusion.py", f"{DIFFUSION} --output_dir {diffusion}")
    options = RECIPES[name].format(tiny=diffusion)
    run_example(variant.recipe, f"{options} --output_dir {tmp_path / 'out'} --hub_model_id {repo_id}")

    saved = tmp_path / "out" / (name if variant.id == "ape" else "")
    save_file(answers(*load_from_zoo(str(saved))), tmp_path / f"trained-{name}.safetensors")
    assert {"README.md", "results.json"} < hub.files(repo_id).keys()
    auto = variant.auto_classes[0]
    if name == "ape_t":
        (saved / "base").rename(saved / "elsewhere")  # the pulled adapter must not find it on this machine
        assert f"base_model: {repo_id}-base" in hub.files(repo_id)["README.md"].decode()
        auto = "AutoModelForImageClassification"
    run(STRANGER, [f"{repo_id} {auto}"], tmp_path, hub.environment(tmp_path / "stranger", **alike))
