"""Recaptioning: three kinds of captioner, row-wise seeds, resuming, several processes; all with tiny random models."""

import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

from hf_clipplus.data.recaption import REPORT_KINDS, Captioner, SeededNucleusSampler, recaption
from hf_clipplus.data.report import DataReport
from hf_clipplus.data.shards import check_settings
from hf_clipplus.data.sources import load_pairs

SCRIPT = Path(__file__).parents[2] / "examples" / "recaption.py"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{chr(97 + i)}" for i in range(26))]
TINY = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**TINY, "image_size": 16, "patch_size": 8, "initializer_range": 1.0}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}


def tokenizer():
    return BertTokenizer(
        vocab={word: i for i, word in enumerate(WORDS)}, model_input_names=["input_ids", "attention_mask"]
    )


def save_blip(folder):
    text = {**TINY, **IDS, "vocab_size": len(WORDS), "encoder_hidden_size": 32, "initializer_range": 1.0}
    text |= {"sep_token_id": 3, "max_position_embeddings": 32}
    BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=VISION)).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 16, "width": 16}), tokenizer()).save_pretrained(folder)


def save_git(folder):
    config = GitConfig(vision_config=VISION, vocab_size=len(WORDS), **TINY, **IDS, initializer_range=0.5)
    GitForCausalLM(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    GitProcessor(images, tokenizer()).save_pretrained(folder)


def save_encoder_decoder(folder):
    text = GPT2Config(vocab_size=len(WORDS), n_embd=32, n_layer=1, n_head=2, n_positions=64, initializer_range=1.0)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**VISION), text)
    model = VisionEncoderDecoderModel(config)
    model.generation_config.update(decoder_start_token_id=2, **IDS)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def save_chat(folder):
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text = LlamaConfig(vocab_size=len(WORDS) + 1, **TINY, **IDS, initializer_range=0.5)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=text,
        image_token_index=len(WORDS),
        vision_feature_layer=-1,
        projector_hidden_act="gelu",
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.update(**IDS)
    model.save_pretrained(folder)
    template = "{% for m in messages %}{% for c in m.content %}{{ '<image>' if c.type == 'image' else ' ' + c.text }}"
    template += "{% endfor %}{% endfor %}"
    images = CLIPImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False)
    LlavaProcessor(
        images,
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folders = {}
    for save in (save_blip, save_git, save_encoder_decoder, save_chat):
        torch.manual_seed(0)
        folders[save.__name__] = tmp_path_factory.mktemp(save.__name__)
        save(folders[save.__name__])
    return folders


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def pictures(tmp_path):
    """A folder of 11 images of different sizes; number 4 is corrupt and number 6 is missing."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = []
    for i in range(11):
        noise = np.random.default_rng(i).integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
        lines.append(f'{{"file_name": "{i}.png", "caption": "raw {i}"}}\n')
    (folder / "4.png").write_bytes(b"corrupt")
    (folder / "6.png").unlink()
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def images(count):
    return [
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)) for i in range(count)
    ]


@pytest.mark.parametrize("kind", ["save_blip", "save_git", "save_encoder_decoder"])
@pytest.mark.parametrize("decoding", ["beam", "nucleus"])
def test_captions_are_distinct_and_belong_to_the_row(models, kind, decoding):
    captioner = Captioner(models[kind], captions_per_image=3, decoding=decoding, max_new_tokens=6, temperature=2.0)
    together = captioner(images(4), [10, 11, 12, 13])
    assert len(together) == 4
    for captions in together:
        assert 1 <= len(set(captions)) == len(captions) <= 3
        assert all(word in WORDS for caption in captions for word in caption.split())
    assert len({tuple(captions) for captions in together}) > 1
    # other company in the batch, and another state of the global generators, change nothing
    assert captioner(images(4)[2:], [12, 13]) == together[2:]
    assert captioner(images(4)[::-1], [13, 12, 11, 10]) == together[::-1]
    if decoding == "nucleus":
        assert captioner(images(4), [0, 1, 2, 3]) != together
        captioner.seed = 1
        assert captioner(images(4), [10, 11, 12, 13]) != together


def test_nucleus_sampler_follows_the_distribution():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().repeat(20_000, 1)
    uniforms = 1 - torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0))
    uniforms[0] = 1.0  # the end of the unit interval must not fall behind the last kept token
    sampler = SeededNucleusSampler(uniforms, top_p=0.85, temperature=1.0)
    for _ in range(2):
        scores = sampler(torch.zeros(20_000, 1, dtype=torch.long), logits)
        assert (scores.isfinite().sum(-1) == 1).all()
        shares = scores.softmax(-1).mean(0)
        assert torch.allclose(shares, torch.tensor([4 / 9, 3 / 9, 2 / 9, 0.0]), atol=0.015)
        assert shares[3] == 0


@pytest.mark.parametrize("kind", ["save_blip", "save_git", "save_chat"])
def test_prompt_is_not_part_of_the_captions(models, kind):
    captioner = Captioner(models[kind], decoding="nucleus", temperature=3.0, max_new_tokens=5, prompt="wa Wb")
    captions = [caption for group in captioner(images(4), [0, 1, 2, 3]) for caption in group]
    assert len(captions) > 5
    assert not any(caption.lower().startswith("wa wb") for caption in captions)


def test_wrong_arguments(models, tmp_path):
    with pytest.raises(ValueError, match="nucleus"):
        Captioner(models["save_git"], decoding="greedy")
    with pytest.raises(ValueError, match="cannot take a prompt"):
        Captioner(models["save_encoder_decoder"], prompt="a photo of")
    with pytest.raises(ValueError, match="give a prompt"):
        Captioner(models["save_chat"])
    check_settings(tmp_path, {"seed": 1, "model": "m"}, "recaption")
    check_settings(tmp_path, {"seed": 1, "model": "m"}, "recaption")
    with pytest.raises(ValueError, match=r"seed: 1 then, 2 now"):
        check_settings(tmp_path, {"seed": 2, "model": "m"}, "recaption")


def test_streaming_source_and_paths(models, pictures, tmp_path):
    captioner = Captioner(models["save_git"], captions_per_image=2, decoding="nucleus", max_new_tokens=4)
    results = {}
    for streaming, keep_image in ((False, "path"), (True, "bytes")):
        report, output = DataReport(REPORT_KINDS), tmp_path / keep_image
        dataset = load_pairs(pictures, streaming=streaming)
        assert recaption(dataset, captioner, output, report=report, shard_size=4, keep_image=keep_image) == (3, 0)
        assert report.counts()["unreadable image"] == 2
        assert [Path(name).name for name in report.names("unreadable image")] == ["4.png", "6.png"]
        results[keep_image] = load_pairs(output)
    assert [r["pseudo_captions"] for r in results["path"]] == [r["pseudo_captions"] for r in results["bytes"]]
    assert results["path"][0]["image"] == {"bytes": None, "path": str(pictures / "0.png")}
    assert results["bytes"][0]["image"] == {"bytes": (pictures / "0.png").read_bytes(), "path": "0.png"}
    with pytest.raises(ValueError, match="keep_image='bytes'"):
        recaption(results["bytes"], captioner, tmp_path / "x", report=report, keep_image="path")


@pytest.mark.slow
def test_script_stops_resumes_and_shares_the_work(models, pictures, tmp_path):
    """Interrupted, resumed and split over two processes, the script writes what one run writes."""
    arguments = ["--source", pictures, "--model", models["save_blip"], "--captions_per_image", "3"]
    arguments += ["--decoding", "nucleus", "--max_new_tokens", "6", "--shard_size", "2", "--temperature", "3"]

    def run(output, *extra, launcher=(sys.executable,)):
        command = [*launcher, SCRIPT, *arguments, "--output_dir", tmp_path / output, *extra]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads of several processes would fight for the cores
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, timeout=300, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def shards(output):
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / output).glob("*.parquet")}

    assert "2 shards written" in run("resumed", "--max_shards", "2")
    first = shards("resumed")
    assert set(first) == {"captions-000000000-000000002.parquet", "captions-000000002-000000004.parquet"}
    (tmp_path / "resumed" / "captions-000000000-000000002.parquet").unlink()
    output = run("resumed", "--batch_size", "1")
    assert "5 shards written" in output
    assert "1 were there already" in output
    assert "2 x unreadable image" in output
    assert "4.png" in output
    assert "6.png" in output
    name = "captions-000000002-000000004.parquet"
    assert shards("resumed")[name] == first[name]  # not written again

    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    output = run("shared", launcher=torchrun)
    assert output.count("3 shards written") == 2
    assert shards("shared").keys() == shards("resumed").keys()
    assert len(shards("shared")) == 6

    whole, shared = load_pairs(tmp_path / "resumed"), load_pairs(tmp_path / "shared")
    assert whole.column_names == ["image", "caption", "pseudo_captions"]
    assert list(whole) == list(shared)
    assert [row["caption"] for row in whole] == [f"raw {i}" for i in range(11)]
    assert [bool(row["pseudo_captions"]) for row in whole] == [i not in (4, 6) for i in range(11)]
    assert len({tuple(row["pseudo_captions"]) for row in whole}) > 5
