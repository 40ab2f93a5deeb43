"""Run by test_dreamlip.py: forks gloo processes; each saves the fixture's and a model's losses on its rows."""

import json
import multiprocessing
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file

from hf_clipplus.models.dreamlip.configuration_dreamlip import DreamLIPConfig
from hf_clipplus.models.dreamlip.modeling_dreamlip import DreamLIPEmbeddings, DreamLIPModel
from hf_clipplus.ops.contrastive import slot_softmax_loss
from hf_clipplus.ops.patch_groups import circle_loss, grouping_loss

FOLDER = Path(os.environ["CLIPPLUS_PARITY_DIR"]) / "dreamlip"
IMAGES, CAPTIONS, PATCHES, WIDTH = 5, 3, 6, 8  # of the model's batch; no number of processes divides the images
CASES = {
    **{name: {"grouping_negatives": name} for name in ("batch", "within_image", "cross_image")},
    "capped": {"grouping_negatives": "cross_image", "max_grouping_negatives": 2},
    "circle": {"use_circle_loss": True},
    "sigmoid": {"contrastive_loss": "sigmoid"} | {"mining_features": "online", "p1": 0.4, "p1_gate": 0.1, "p2": 0.3},
}


def of_the_fixture(rank: int, config: dict, tensors: dict) -> dict[str, torch.Tensor]:
    """The three losses of this rank and their gradients."""
    prefix = f"rank{rank}.in."
    stored = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    scale, local = (tensors[f"in.{name}"].log() for name in ("logit_scale", "logit_scale_local"))
    found = {}
    for name in ("global", "circle", "sgl_k1"):
        leaves = {key: value.clone().requires_grad_() for key, value in stored.items()}
        images, texts = leaves["image_features"], leaves["text_features"]
        if name == "global":
            loss = config["clip_lossweight"] * slot_softmax_loss(images, texts, scale)
        elif name == "circle":
            loss = circle_loss(images, texts, gamma=config["circle_gamma"], margin=config["circle_margin"])
        else:
            leaves["text_features"] = stored["text_features"][:, :1].clone().requires_grad_()
            unit = (F.normalize(leaves[key], dim=-1) for key in ("text_features", "patch_features"))
            loss = config["sgl_lossweight"] * grouping_loss(*unit, local)
        loss.backward()
        found[f"{name}.loss"] = loss.detach()
        found |= {f"{name}.grad.{key}": leaf.grad for key, leaf in leaves.items() if leaf.grad is not None}
    return found


def of_the_model(rows: slice) -> dict[str, torch.Tensor]:
    """Loss of some rows of a fixed batch for every case, and the gradients of one map that made all embeddings."""
    draw = torch.Generator().manual_seed(0)
    sizes = {"image_embeds": (IMAGES,), "text_embeds": (IMAGES, CAPTIONS), "patch_embeds": (IMAGES, PATCHES)}
    batch = {key: torch.randn(*size, WIDTH, generator=draw, dtype=torch.float64) for key, size in sizes.items()}
    caption_ids = torch.randint(-1, 6, (IMAGES, CAPTIONS), generator=draw)[
        rows
    ].flatten()  # some equal, across ranks too
    tower = {"hidden_size": WIDTH, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    found = {}
    for name, options in CASES.items():
        config = DreamLIPConfig(
            text_config={"model_type": "clip_text_model", "vocab_size": 8, "eos_token_id": 7, **tower},
            vision_config={"model_type": "clip_vision_model", "image_size": 8, "patch_size": 8, **tower},
            projection_dim=WIDTH,
            loss_tile_size=2,
            **options,
        )
        model = DreamLIPModel(config).double()
        maps = {key: torch.eye(WIDTH, dtype=torch.float64).requires_grad_() for key in sizes}
        embeds = {key: F.normalize(value[rows] @ maps[key], dim=-1) for key, value in batch.items()}
        embeds["text_embeds"] = embeds["text_embeds"].flatten(0, 1)
        result = model.contrast(DreamLIPEmbeddings(**embeds), caption_ids=caption_ids, mine_online=True)
        result["loss"].backward()
        found[f"{name}.loss"] = result["loss"].detach()
        found |= {f"{name}.{key}": value.grad for key, value in maps.items()}
        scalars = ("logit_scale", "logit_scale_local", *(("logit_bias",) if name == "sigmoid" else ()))
        found |= {f"{name}.{key}": getattr(model, key).grad for key in scalars}
        if name == "sigmoid":
            found["sigmoid.mined"] = (result["statistics"]["mined"] * len(embeds["image_embeds"])).round()
    return found


def rank_of(rank: int, world: int, folder: Path) -> None:
    """What one of the processes does."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    config = json.loads((FOLDER / "losses_ddp.json").read_text())["config"]
    first, last = (IMAGES * number // world for number in (rank, rank + 1))
    part = {
        "fixture": of_the_fixture(rank, config, load_file(FOLDER / "losses_ddp.safetensors")),
        "model": of_the_model(slice(first, last)),
    }
    dist.destroy_process_group()
    torch.save(part, folder / f"rank{rank}.pt")


def main() -> None:
    folder = Path(sys.argv[1])
    world = json.loads((FOLDER / "losses_ddp.json").read_text())["config"]["world_size"]
    forks = multiprocessing.get_context("fork")  # a fork costs no import; nothing was computed before it
    ranks = [forks.Process(target=rank_of, args=(rank, world, folder)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        sys.exit(f"exit codes of {world} processes: {[process.exitcode for process in ranks]}")
    torch.save(of_the_model(slice(None)), folder / "alone.pt")


if __name__ == "__main__":
    main()
