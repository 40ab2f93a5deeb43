"""hub.push against the loopback Hub: one commit or none, nothing that does not belong there, and faulty networks."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from tiny_zoo import pictures, tiny
from transformers import AutoModel, CLIPTextConfig, CLIPTextModel

from hf_clipplus.data.collators import ContrastiveCollator
from hf_clipplus.data.sources import IndexedRows
from hf_clipplus.evaluation.results import Results
from hf_clipplus.hub import push, write_repository
from hf_clipplus.training import ContrastiveTrainer, ContrastiveTrainingArguments
from hf_clipplus.training.card import own_results, shorten_paths
from hf_clipplus.training.publish import check_publishable, files_of

HOME, USERS = "/" + "home", "C:\\" + "Users"  # in two parts: no file of ours may name such a folder
KEY = "-----BEGIN OPENSSH " + "PRIVATE KEY-----"
FACTS = {"task": "zero-shot-image-classification", "split": "test", "hardware": "an abacus"}


@pytest.fixture(scope="module")
def fff():
    return tiny("fff")


@pytest.fixture
def no_wait(monkeypatch):
    """The client waits between its tries for longer than a test should."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


@pytest.fixture
def uncut(hub):
    yield
    hub.cut = lambda method, path: None


def weights(folder) -> dict[str, torch.Tensor]:
    return AutoModel.from_pretrained(folder).state_dict()


def test_a_dry_run_asks_nothing_and_tells_all(hub, author, fff):
    before = len(hub.requests)
    found = push(*fff, "org/dry", dry_run=True)
    assert len(hub.requests) == before
    assert found.commit is None
    pushed = push(*fff, "org/dry")
    assert (
        pushed.sizes
        == found.sizes
        == {path: len(data) for path, data in hub.files("org/dry").items() if path != ".gitattributes"}
    )
    assert f"{found.sizes['model.safetensors']:,}  model.safetensors" in str(found)
    assert str(found).endswith("would go to org/dry")
    assert pushed.commit.oid in str(pushed)


def test_one_commit_that_replaces_shards_and_numbers(hub, author, fff):
    results = Results()
    results.add("top1", 0.5, dataset="timm/pets", model="somewhere", seed=1, **FACTS)
    results.add("top1", 0.75, dataset="timm/pets", model="somewhere", seed=2, **FACTS)
    results.add("top1", 0.25, dataset="drawings", model="somewhere", **FACTS)
    push(*fff, "org/twice", results=results, max_shard_size="40KB", license="cc0-1.0")
    first = hub.files("org/twice")
    assert len([path for path in first if path.endswith(".safetensors")]) > 1
    entries = yaml.safe_load(first[".eval_results/timm--pets.yaml"])
    assert [entry["value"] for entry in entries] == [0.625]
    assert entries[0]["dataset"] == {"id": "timm/pets", "task_id": "top1"}
    card = yaml.safe_load(first["README.md"].decode().split("---\n")[1])
    assert {metric["value"] for each in card["model-index"][0]["results"] for metric in each["metrics"]} == {
        0.625,
        0.25,
    }
    assert card["license"] == "cc0-1.0"
    assert b"an abacus" in first["README.md"]

    push(*fff, "org/twice")
    second = hub.files("org/twice")
    assert [path for path in second if path.endswith(".safetensors")] == ["model.safetensors"]
    assert not {".eval_results/timm--pets.yaml", "results.json", "model.safetensors.index.json"} & second.keys()
    assert b"Not evaluated." in second["README.md"]
    assert [commit.title for commit in hub.repo("org/twice").commits.values()] == [
        "initial commit",
        "Upload FFF",
        "Upload FFF",
    ]


@pytest.mark.usefixtures("no_wait", "uncut")
@pytest.mark.parametrize("where", ["/lfs/", "/commit/main"])
def test_a_push_that_breaks_off_leaves_the_old_state(hub, author, fff, where):
    repo_id = f"org/broken-{where.strip('/').partition('/')[0]}"
    model, processor = fff
    push(model, processor, repo_id)
    old, head = hub.files(repo_id), hub.repo(repo_id).resolve("main")
    new, _ = tiny("fff")
    torch.nn.init.ones_(new.text_projection.weight)
    hub.cut = lambda method, path: 0 if where in path and method in ("PUT", "POST") else None
    with pytest.raises(Exception, match=r"(?i)disconnected|closed|upload"):
        push(new, processor, repo_id)
    assert (hub.files(repo_id), hub.repo(repo_id).resolve("main")) == (old, head)
    hub.cut = lambda method, path: None
    push(new, processor, repo_id)
    assert torch.equal(weights(snapshot_download(repo_id))["text_projection.weight"], new.text_projection.weight)


@pytest.mark.usefixtures("uncut")
def test_a_push_between_two_others_does_not_undo_them(hub, author, fff):
    push(*fff, "org/race")

    def somebody_else(method, path):
        if path.endswith("/preupload/main"):
            hub.cut = lambda method, path: None
            HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="theirs.txt", repo_id="org/race")

    hub.cut = somebody_else
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        push(*fff, "org/race", license="mit")
    assert "theirs.txt" in hub.files("org/race")


def test_a_private_repository_is_for_those_who_have_a_token(hub, author, fff, tmp_path):
    push(*fff, "org/secret", private=True)
    assert hub.repo("org/secret").private
    assert weights(snapshot_download("org/secret")).keys() == fff[0].state_dict().keys()
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download("org/secret", token=False, cache_dir=tmp_path)
    with pytest.raises(OSError, match="org/secret"):
        AutoModel.from_pretrained("org/secret", token=False, cache_dir=tmp_path)
    push(*fff, "org/open")
    old = hub.files("org/open")
    with pytest.raises(ValueError, match="org/open is public already"):
        push(*fff, "org/open", private=True, license="mit")
    assert hub.files("org/open") == old


def test_a_revision_is_a_branch_of_its_own(hub, author, fff):
    model, processor = fff
    push(model, processor, "org/branches")
    other, _ = tiny("fff")
    torch.nn.init.zeros_(other.text_projection.weight)
    push(other, processor, "org/branches", revision="zeros")
    push(other, processor, "org/branches", revision="zeros", license="mit")
    on_main, on_zeros = (weights(snapshot_download("org/branches", revision=name)) for name in ("main", "zeros"))
    assert torch.equal(on_main["text_projection.weight"], model.text_projection.weight)
    assert not on_zeros["text_projection.weight"].any()


@pytest.mark.usefixtures("no_wait", "uncut")
def test_a_download_that_breaks_off_is_taken_up_where_it_stopped(hub, author, fff, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # what is kept of a broken transfer
    push(*fff, "org/long")
    cuts = []

    def once(method, path):
        if method == "GET" and path.endswith("/model.safetensors") and not cuts:
            cuts.append(path)
            return 10_500

    hub.cut = once
    folder = snapshot_download("org/long", cache_dir=tmp_path)
    assert cuts
    assert (cuts[0], "bytes=10000-") in hub.ranges
    assert (Path(folder) / "model.safetensors").read_bytes() == hub.files("org/long")["model.safetensors"]


def test_a_damaged_file_in_the_cache_is_noticed(hub, author, fff, tmp_path):
    push(*fff, "org/damaged")
    file = Path(snapshot_download("org/damaged", cache_dir=tmp_path)) / "model.safetensors"
    assert not HfApi().verify_repo_checksums("org/damaged", cache_dir=tmp_path).mismatches
    whole = file.read_bytes()
    file.resolve().write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (wrong,) = HfApi().verify_repo_checksums("org/damaged", cache_dir=tmp_path).mismatches
    assert wrong["path"] == "model.safetensors"
    file.resolve().write_bytes(whole[:-100])
    with pytest.raises((SafetensorError, OSError)):
        AutoModel.from_pretrained("org/damaged", cache_dir=tmp_path)
    found = AutoModel.from_pretrained("org/damaged", cache_dir=tmp_path, force_download=True)
    assert torch.equal(found.text_projection.weight, fff[0].text_projection.weight)


def test_a_trainer_pushes_an_adapter(hub, author, fff, tmp_path):
    processor = fff[1]
    push(*fff, "org/base")
    base = AutoModel.from_pretrained("org/base")
    adapter = get_peft_model(base, LoraConfig(target_modules=["q_proj"], r=2))
    args = ContrastiveTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        push_to_hub=True,
        hub_model_id="org/trained-lora",
    )
    rows = [{"image": image, "caption": f"picture {number}"} for number, image in enumerate(pictures(8))]
    trainer = ContrastiveTrainer(
        model=adapter,
        args=args,
        train_dataset=IndexedRows(rows),
        data_collator=ContrastiveCollator(processor),
        processing_class=processor,
    )
    trainer.train()
    trainer.push_to_hub(dataset="pictures")
    files = hub.files("org/trained-lora")
    assert {"adapter_config.json", "adapter_model.safetensors", "processor_config.json"} < files.keys()
    assert not {"model.safetensors", "training_args.bin"} & files.keys()
    card = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert (card["base_model"], card["base_model_relation"]) == ("org/base", "adapter")
    assert b"- data: pictures, 8 rows" in files["README.md"]
    found = AutoModel.from_pretrained("org/trained-lora")
    expected = {key: value for key, value in adapter.get_base_model().state_dict().items() if "lora_B" in key}
    assert len(expected) == 2
    assert all(torch.equal(found.state_dict()[key], value) and value.any() for key, value in expected.items())


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("optimizer.pt", b"", "a state of training"),
        ("trainer_state.json", b"{}", "a state of training"),
        ("training_args.bin", b"", "a state of training"),
        ("checkpoint-3/config.json", b"{}", "a state of training"),
        ("pytorch_model.bin", b"", "pickles are not"),
        ("cache.pt", b"", "pickles are not"),
        ("keys.npz", b"", "pickles are not"),
        ("model.safetensors", b"\x80\x04\x95pickle", "no whole safetensors file"),
        (".env", b"", "a kind that is not published"),
        ("notes.md", b"token: hf_" + b"a1" * 17, "a token of the Hub"),
        ("id.txt", KEY.encode(), "a private key"),
        ("config.json", json.dumps({"a": [{"b": f"{HOME}/me/model"}]}).encode(), "a path of this machine"),
        ("config.json", json.dumps({"a": f"{USERS}\\me"}).encode(), "a path of this machine"),
        ("README.md", b"trained in `/tmp/runs/1`", "a path of this machine"),
    ],
)
def test_what_does_not_go_up(tmp_path, name, content, problem):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=problem) as refused:
        check_publishable(files_of(tmp_path))
    assert str(refused.value).startswith(f"nothing was uploaded, because of {name}: ")


def test_a_token_that_one_is_logged_in_with_does_not_go_up(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "of_another_kind")
    (tmp_path / "notes.txt").write_text("use of_another_kind")
    with pytest.raises(ValueError, match="the token that you are logged in with"):
        check_publishable(files_of(tmp_path))


@pytest.mark.parametrize("path", ["../config.json", "/config.json", "a/../../config.json", "..\\config.json"])
def test_no_file_leaves_its_repository(tmp_path, path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="leaves the repository"):
        check_publishable({path: tmp_path / "config.json"})


def test_what_may_go_up(tmp_path):
    texts = {
        "README.md": "see https://example.org/home/me/x, and/or examples/data/tmp/x",
        "tokenizer.json": json.dumps({"model": {"vocab": {f"{HOME}/me/": 0}}}),
        "config.json": json.dumps({"id2label": {"0": "/m/01lrl", "1": "his/hers"}}),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    check_publishable(files_of(tmp_path))


def test_what_cannot_be_a_repository(fff, tmp_path):
    model, processor = fff
    stock = CLIPTextModel(
        CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(ValueError, match=r"CLIPTextModel .* is no model of the zoo, which has FFFModel"):
        write_repository(stock, processor, tmp_path, "org/x")
    with pytest.raises(ValueError, match="needs bundle=True"):
        write_repository(model, processor, tmp_path, "org/x", handler_task="image-classification")
    with pytest.raises(ValueError, match=r"handler.py serves .*, not 'translation'"):
        write_repository(model, processor, tmp_path, "org/x", bundle=True, handler_task="translation")
    base, _ = tiny("fff")
    base.name_or_path = "runs/today/fff"
    adapter = get_peft_model(base, LoraConfig(target_modules=["q_proj"], r=1))
    with pytest.raises(ValueError, match="base is 'runs/today/fff', which nobody else can load"):
        write_repository(adapter, processor, tmp_path, "org/x")
    adapter.peft_config["default"].base_model_name_or_path = "org/base"
    with pytest.raises(ValueError, match="PEFT loads methods from installed packages only"):
        write_repository(adapter, processor, tmp_path, "org/x", bundle=True)
    with pytest.raises(ValueError, match=r"[Rr]epo id"):
        push(model, processor, "a b/c", dry_run=True)


def test_numbers_of_other_models_stay_out(fff):
    results = Results()
    results.add("top1", 0.1, dataset="pets", model="baseline", **FACTS)
    results.add("top1", 0.2, dataset="/data/pets", model="org/x", command=f"python {HOME}/me/evaluate.py", **FACTS)
    (own,) = own_results(results, "org/x", fff[0]).entries
    assert (own.value, own.model, own.dataset, own.command) == (0.2, "org/x", "pets", "python evaluate.py")
    with pytest.raises(ValueError, match=r"\['baseline', 'org/x'\], none of which is 'org/y'"):
        own_results(results, "org/y", fff[0])
    assert shorten_paths(f"a/b https://x.org/a/b {USERS}\\me and {HOME}/c/") == "a/b https://x.org/a/b me and c"
