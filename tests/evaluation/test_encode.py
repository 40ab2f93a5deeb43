"""Encoding: equal to the model's own outputs, for every kind of model, lazily, in any batch and world size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from torch import nn
from torch.nn.functional import normalize

from hf_clipplus.evaluation.encode import encode_images, encode_texts, evaluation_mode
from hf_clipplus.evaluation.retrieval import RetrievalEvaluator
from hf_clipplus.evaluation.rows import Column
from hf_clipplus.evaluation.zero_shot import ZeroShotClassification

TEXTS = ["red", "a photo of a blue square on paper", "green paper", "a photo", "a yellow square"]


class ZooModel(nn.Module):
    """The interface of the zoo around a CLIPModel."""

    def __init__(self, clip):
        super().__init__()
        self.clip = clip

    def encode_image(self, pixel_values, normalize=True):
        embeds = self.clip.get_image_features(pixel_values=pixel_values).pooler_output
        return nn.functional.normalize(embeds, dim=-1) if normalize else embeds

    def encode_text(self, input_ids, attention_mask=None, normalize=True):
        embeds = self.clip.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        return nn.functional.normalize(embeds, dim=-1) if normalize else embeds


def test_embeddings_are_the_models_own_normalised(clip, pictures):
    model, processor = clip
    with torch.no_grad():
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
        expected_images = normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        tokens = processor(text=TEXTS, return_tensors="pt", padding=True)
        expected_texts = normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
    for batch_size in (1, 3, 100):
        images = encode_images(model, processor, pictures, batch_size=batch_size)
        texts = encode_texts(model, processor, TEXTS, batch_size=batch_size)
        assert images.dtype == texts.dtype == torch.float32
        torch.testing.assert_close(images, expected_images, atol=1e-5, rtol=0)
        torch.testing.assert_close(texts, expected_texts, atol=1e-5, rtol=0)
    assert (images @ images.T).fill_diagonal_(0).max() < 0.9999  # the images are told apart


def test_siglip_texts_do_not_depend_on_their_batch(siglip, pictures):
    model, processor = siglip
    together = encode_texts(model, processor, TEXTS)
    alone = torch.cat([encode_texts(model, processor, [text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert encode_images(model, processor, pictures).shape == (8, 32)


def test_a_model_of_the_zoo_gives_the_same_as_its_clip(clip, pictures, tokenizer):
    model, processor = clip
    zoo = ZooModel(model)

    def zoo_processor(images=None, text=None, return_tensors=None):
        options = {"padding": "max_length", "max_length": 24, "truncation": True} if text else {}
        return processor(images=images, text=text, return_tensors=return_tensors, **options)

    torch.testing.assert_close(encode_images(zoo, zoo_processor, pictures), encode_images(model, processor, pictures))
    expected = encode_texts(model, processor, TEXTS)
    torch.testing.assert_close(encode_texts(zoo, zoo_processor, TEXTS), expected, atol=1e-5, rtol=0)


def test_images_are_read_lazily_from_any_iterable(clip, pictures):
    model, processor = clip
    read, seen_by_model = [], []

    def stream():
        for index, picture in enumerate(pictures):
            read.append(index)
            yield picture

    def watching(images, return_tensors):
        seen_by_model.append(len(read))
        return processor(images=images, return_tensors=return_tensors)

    embeds = encode_images(model, watching, stream(), batch_size=3)
    assert seen_by_model == [3, 6, 8]
    torch.testing.assert_close(embeds, encode_images(model, processor, pictures, batch_size=3))


def test_paths_bytes_and_transparency_go_through_load_image(clip, pictures, tmp_path):
    model, processor = clip
    path = tmp_path / "red.png"
    pictures[0].save(path)
    embeds = encode_images(
        model, processor, [path, {"bytes": path.read_bytes(), "path": None}, pictures[0].convert("RGBA")]
    )
    torch.testing.assert_close(embeds[0], embeds[1])
    torch.testing.assert_close(embeds[0], embeds[2])


def test_long_texts_are_cut_and_counted(clip, siglip, monkeypatch):
    warnings = []
    monkeypatch.setattr("hf_clipplus.evaluation.encode.logger.warning", warnings.append)
    long = "a red square on paper " * 50
    for model, processor in (clip, siglip):
        assert torch.isfinite(encode_texts(model, processor, [long, "a red square", long], batch_size=2)).all()
        encode_texts(model, processor, TEXTS)
    assert len(warnings) == 2
    assert all("2 of the 3 texts" in warning for warning in warnings)


def test_training_flags_come_back_and_no_graph_is_kept(clip, pictures):
    model, processor = clip
    model.train()
    model.vision_model.eval()  # a frozen tower
    before = [module.training for module in model.modules()]
    assert not encode_images(model, processor, pictures).requires_grad
    assert [module.training for module in model.modules()] == before
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    hook = model.visual_projection.register_forward_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encode_images(model, processor, pictures)
    hook.remove()
    assert [module.training for module in model.modules()] == before
    model.eval()


def test_autocast_runs_in_its_dtype(clip, pictures):
    model, processor = clip
    dtypes = []
    hook = model.visual_projection.register_forward_hook(lambda module, args, out: dtypes.append(out.dtype))
    embeds = encode_images(model, processor, pictures, autocast_dtype=torch.bfloat16)
    hook.remove()
    assert dtypes == [torch.bfloat16]
    assert embeds.dtype == torch.float32
    torch.testing.assert_close(embeds, encode_images(model, processor, pictures), atol=0.05, rtol=0)


def test_a_bfloat16_model_takes_float32_pixels(clip, pictures):
    import copy

    model, processor = clip
    half = copy.deepcopy(model).bfloat16()
    embeds = encode_images(half, processor, pictures)
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(8))


def test_progress_bar_counts_items(clip, pictures, capsys):
    encode_images(*clip, pictures, batch_size=4)
    assert capsys.readouterr().err == ""
    encode_images(*clip, pictures, batch_size=4, progress=True)
    assert "8/8" in capsys.readouterr().err


def test_wrong_inputs_are_named(clip, pictures):
    model, processor = clip
    with pytest.raises(TypeError, match="Linear"):
        encode_images(nn.Linear(2, 2), processor, pictures)
    with pytest.raises(TypeError, match="Linear"):
        encode_texts(nn.Linear(2, 2), processor, TEXTS)
    with pytest.raises(TypeError, match="one string"):
        encode_texts(model, processor, "a red square")
    with pytest.raises(TypeError, match="NoneType"):
        encode_texts(model, processor, ["a", None])
    with pytest.raises(ValueError, match="no images"):
        encode_images(model, processor, [])
    hook = model.visual_projection.register_forward_hook(lambda module, args, out: out * torch.nan)
    with pytest.raises(ValueError, match="8 images are NaN or infinite, the first is 0"):
        encode_images(model, processor, pictures)
    hook.remove()


def test_column_reads_only_itself(pictures, tmp_path):
    broken = [{"bytes": b"no image", "path": None}] * 3
    features = Features({"image": ImageFeature(), "text": Value("string")})
    rows = Dataset.from_dict({"image": broken, "text": ["a", "b", "c"]}, features=features)
    assert list(Column(rows, "text")) == ["a", "b", "c"]
    with pytest.raises(KeyError, match=r"no column 'label', they have \['image', 'text'\]"):
        Column(rows, "label")
    with pytest.raises(KeyError, match=r"no column 'label', they have \['x'\]"):
        Column([{"x": 1}], "label")
    read = []

    class Rows(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    column = Column(Rows([{"x": i} for i in range(5)]), "x")
    read.clear()
    assert column[3] == 3
    assert read == [3]


def test_two_processes_give_the_same_as_one(clip, pictures, tmp_path):
    model, processor = clip
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    for index, picture in enumerate(pictures):
        picture.save(tmp_path / f"{index}.png")
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    worker = Path(__file__).with_name("distributed_worker.py")
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(worker)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    results = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    rows = [{"image": image, "label": i % 3, "captions": TEXTS[: 1 + i % 5]} for i, image in enumerate(pictures)]
    zero_shot = ZeroShotClassification(rows, TEXTS[:3], ["a {}"])(model, processor)
    retrieval = RetrievalEvaluator(rows)(model, processor)
    for result in results:
        assert result["world_size"] == 2
        assert result["zero_shot"] == pytest.approx(zero_shot)
        assert result["retrieval"] == pytest.approx(retrieval)
        for count in (1, 2, 7):
            expected = encode_images(model, processor, pictures[:count])
            torch.testing.assert_close(result[f"images{count}"], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(result["stream"], encode_images(model, processor, pictures), atol=1e-5, rtol=0)
        torch.testing.assert_close(result["texts"], encode_texts(model, processor, TEXTS), atol=1e-5, rtol=0)
        assert torch.equal(result["stream"], results[0]["stream"])
    assert [result["own_pictures"] for result in results] == [4, 3]  # of 7: the work is shared
