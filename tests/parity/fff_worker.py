"""Run by torchrun in test_fff.py: computes every job in a process group of its size; each rank saves its part."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPVisionConfig

from hf_clipplus.models.dual_encoder import DualEncoderEmbeddings
from hf_clipplus.models.fff import FFFConfig, FFFModel
from hf_clipplus.ops.contrastive import sigmoid_loss


def leaf(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype).clone().requires_grad_()


def grads(loss, images, texts, log_scale, bias) -> dict[str, torch.Tensor]:
    loss.backward()
    return {
        "loss": loss.detach(),
        "grad_image": images.grad,
        "grad_text": texts.grad,
        "grad_log_scale": log_scale.grad,
        "grad_bias": bias.grad,
    }


def siglip(info: dict, tensors: dict, world: int, rank: int, tile_size: int | None) -> dict[str, torch.Tensor]:
    """Sigmoid loss of this rank's rows; every image has its own caption."""
    count = len(tensors[f"world{world}.image_unit"]) // world
    rows = slice(rank * count, (rank + 1) * count)
    images, texts = (leaf(tensors[f"world{world}.{side}_unit"][rows], torch.float32) for side in ("image", "text"))
    log_scale, bias = (torch.tensor(info[name], requires_grad=True) for name in ("log_scale", "bias"))
    loss = sigmoid_loss(images, texts, torch.arange(count), log_scale, bias, tile_size=tile_size)
    return grads(loss, images, texts, log_scale, bias)


def fff_model(info: dict, dtype: torch.dtype) -> FFFModel:
    """A model with the fixture's thresholds, scale and bias; its towers are not used."""
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    rule, stt = info["rule"].split(", ")
    config = FFFConfig(
        text_config=CLIPTextConfig(**tower, vocab_size=8, eos_token_id=7, bos_token_id=6, pad_token_id=7).to_dict(),
        vision_config=CLIPVisionConfig(**tower, image_size=8, patch_size=8).to_dict(),
        projection_dim=8,
        mining_rule=rule,
        stt_mode=stt,
        logit_scale_init_value=info["log_scale"],
        logit_bias_init_value=info["bias"],
        **info["thresholds"],
    )
    model = FFFModel(config).to(dtype)
    with torch.no_grad():
        model.logit_scale.fill_(info["log_scale"])
        model.logit_bias.fill_(info["bias"])
    return model


def contrast(info: dict, tensors: dict, images: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Mining and loss of the given images (numbers in the fixture) and all their captions."""
    position = {int(image): i for i, image in enumerate(images)}
    captions = torch.tensor([c for c, image in enumerate(tensors["owner"].tolist()) if image in position])
    model = fff_model(info, dtype)
    image_embeds, text_embeds = leaf(tensors["image_unit"][images], dtype), leaf(tensors["text_unit"][captions], dtype)
    result = model.contrast(
        DualEncoderEmbeddings(image_embeds=image_embeds, text_embeds=text_embeds),
        caption_owner=torch.tensor([position[int(i)] for i in tensors["owner"][captions]]),
        mining_image_features=tensors["image_frozen"][images],
        mining_text_features=tensors["text_frozen"][captions],
    )
    return {
        **grads(result["loss"], image_embeds, text_embeds, model.logit_scale, model.logit_bias),
        "positives": result["positives"],
        "captions": captions,
    }


def main() -> None:
    fixtures, output = Path(sys.argv[1]), Path(sys.argv[2])
    rank = int(os.environ["RANK"])
    for number, job in enumerate(json.loads((output / "jobs.json").read_text())):
        world = job["world"]
        if rank >= world:
            continue
        store = f"file://{output / f'store{number}'}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
        info = json.loads((fixtures / f"{job['name']}.json").read_text())
        tensors = load_file(fixtures / f"{job['name']}.safetensors")
        if "order" in job:  # images in the order in which they are dealt to the ranks
            count = info["images_per_rank"]
            images = torch.tensor(job["order"][rank * count : (rank + 1) * count])
            result = contrast(info, tensors, images, getattr(torch, job["dtype"]))
        else:
            result = siglip(info, tensors, world, rank, job["tile_size"])
        torch.save(result | {"world": dist.get_world_size()}, output / f"job{number}_rank{rank}.pt")
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
