"""Run by torchrun in test_fff_distributed.py: the losses of ragged batches on every rank of several world sizes."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import CLIPTextConfig, CLIPVisionConfig

from hf_clipplus.models.fff import FFFConfig, FFFModel
from hf_clipplus.ops.contrastive import sigmoid_loss, slot_softmax_loss, softmax_loss
from hf_clipplus.ops.patch_groups import circle_loss

IMAGES = {2: (3, 5), 3: (4, 1, 3)}  # images of each rank, by world size
CAPTIONS_OF_IMAGE = (2, 1, 4, 1, 3, 2, 1, 2)
LONELY = 4  # an image without remote positives by ids; of three ranks one has this image alone
LOSSES = ("per_image", "per_pair", "per_anchor", "softmax")
KINDS = ("owner", "ids", "ids of some ranks", "mined", "given", "nothing is positive", "hard negatives")
NEGATIVES = {2: (3, 2), 3: (2, 0, 3)}  # texts of no image on each rank; with three ranks one has none
TILES = (None, 1, 3)
SLOT_LOSSES = ("slots", "circle")


def cases() -> Iterator[tuple[str, str, int | None]]:
    return ((loss, kind, tile) for loss in LOSSES for kind in KINDS for tile in TILES)


def make_batch() -> dict[str, torch.Tensor]:
    """The batch of all ranks in double precision; captions in the order of their images."""
    draw = torch.Generator().manual_seed(5)
    images, captions = len(CAPTIONS_OF_IMAGE), sum(CAPTIONS_OF_IMAGE)
    owner = torch.repeat_interleave(torch.tensor(CAPTIONS_OF_IMAGE))
    caption_ids = torch.arange(captions) % 9
    caption_ids[(torch.arange(captions) % 5 == 1) | (owner == LONELY)] = -1
    given = torch.rand(images, captions, generator=draw) < 0.3
    given[0] = False  # an image without any positive
    return {
        "images": F.normalize(torch.randn(images, 6, generator=draw, dtype=torch.float64), dim=-1),
        "texts": F.normalize(torch.randn(captions, 6, generator=draw, dtype=torch.float64), dim=-1),
        "owner": owner,
        "image_ids": torch.tensor([7, 8, 9, 7, 11, 7, 8, -1]),
        "caption_ids": caption_ids,
        "image_features": torch.randn(images, 5, generator=draw),
        "text_features": torch.randn(captions, 5, generator=draw),
        "given": given,
        "negatives": F.normalize(torch.randn(5, 6, generator=draw, dtype=torch.float64), dim=-1),
        "slots": F.normalize(torch.randn(images, 2, 6, generator=draw, dtype=torch.float64), dim=-1),
    }


def rank_rows(world: int, rank: int, owner: torch.Tensor) -> tuple[slice, torch.Tensor]:
    """Images (a slice) and captions (numbers) of one rank; world 1 has everything."""
    counts = IMAGES.get(world, (len(CAPTIONS_OF_IMAGE),))
    first = sum(counts[:rank])
    last = first + counts[rank]
    return slice(first, last), ((owner >= first) & (owner < last)).nonzero().squeeze(1)


def rank_negatives(world: int, rank: int, negatives: torch.Tensor) -> torch.Tensor:
    """The texts of no image of one rank; world 1 has all."""
    counts = NEGATIVES.get(world, (len(negatives),))
    return negatives[sum(counts[:rank]) : sum(counts[: rank + 1])]


def compute_slots(world: int, rank: int, name: str) -> dict[str, torch.Tensor]:
    """DreamLIP's losses of images with two captions each, with texts of no image; loss and gradients of one rank."""
    batch = make_batch()
    rows, _ = rank_rows(world, rank, batch["owner"])
    negatives = rank_negatives(world, rank, batch["negatives"])
    leaves = [part.clone().requires_grad_() for part in (batch["images"][rows], batch["slots"][rows], negatives)]
    images, texts, negatives = leaves
    if name == "slots":
        loss = slot_softmax_loss(images, texts, torch.tensor(1.7), negatives=negatives, tile_size=2)
    else:
        loss = circle_loss(images, texts, negatives=negatives)
    loss.backward()
    names = ("grad_images", "grad_texts", "grad_negatives")
    grads = (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)  # a rank without negatives
    return {"loss": loss.detach()} | dict(zip(names, grads, strict=True))


def make_model(loss: str, tile: int | None) -> FFFModel:
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = FFFConfig(
        text_config=CLIPTextConfig(**tower, vocab_size=8, eos_token_id=7, bos_token_id=6, pad_token_id=7).to_dict(),
        vision_config=CLIPVisionConfig(**tower, image_size=8, patch_size=8).to_dict(),
        projection_dim=8,
        logit_scale_init_value=1.7,
        logit_bias_init_value=-2.0,
        contrastive_loss="softmax" if loss == "softmax" else "sigmoid",
        loss_normalizer="per_image" if loss == "softmax" else loss,
        loss_tile_size=tile,
        p1=0.6,
        p1_gate=0.2,
        p2=0.4,
        p3=0.5,
    )
    return FFFModel(config).double()


def compute(
    world: int, rank: int, loss: str, kind: str, tile: int | None, *, without_ids: int = 0
) -> dict[str, torch.Tensor]:
    """Loss, positives and gradients of one rank; the first `without_ids` images and their captions have no ids."""
    batch = make_batch()
    rows, captions = rank_rows(world, rank, batch["owner"])
    images, texts = (batch[name][index].requires_grad_() for name, index in (("images", rows), ("texts", captions)))
    owner = batch["owner"][captions] - rows.start
    model = make_model(loss, tile)
    negatives = rank_negatives(world, rank, batch["negatives"]).requires_grad_()
    targets = {"caption_owner": owner}
    if kind == "hard negatives":  # a batch may hold them anywhere
        targets["caption_owner"] = torch.cat([torch.full((len(negatives),), -1), owner])
    if kind == "ids" or (kind == "ids of some ranks" and rank == world - 1):
        targets |= {"image_ids": batch["image_ids"][rows], "caption_ids": batch["caption_ids"][captions]}
        targets["image_ids"][:without_ids] = -1
        targets["caption_ids"][owner < without_ids] = -1
    elif kind == "mined":
        targets["mining_image_features"] = batch["image_features"][rows]
        targets["mining_text_features"] = batch["text_features"][captions]
    elif kind == "given":
        targets = {"positives": batch["given"][rows]}
    elif kind == "nothing is positive":
        targets = {"positives": torch.zeros(2, 0, dtype=torch.long)}
    embeds = torch.cat([negatives, texts]) if kind == "hard negatives" else texts
    result = model.contrast(SimpleNamespace(image_embeds=images, text_embeds=embeds), **targets)
    if kind == "owner":  # straight from the owners, as a caller of the functions may
        scale, bias = model.logit_scale, model.logit_bias
        if loss == "softmax":
            result["loss"] = softmax_loss(images, texts, owner, scale, tile_size=tile) + 0 * bias
        else:
            result["loss"] = sigmoid_loss(images, texts, owner, scale, bias, normalizer=loss, tile_size=tile)
    result["loss"].backward()
    return {
        "loss": result["loss"].detach(),
        "positives": result["positives"],
        "grad_images": images.grad,
        "grad_texts": texts.grad,
        "grad_negatives": torch.zeros_like(negatives) if negatives.grad is None else negatives.grad,
        "grad_log_scale": model.logit_scale.grad,
        "grad_bias": model.logit_bias.grad,
    }


def main() -> None:
    output, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    for world in IMAGES:
        if rank >= world:
            continue
        dist.init_process_group("gloo", init_method=f"file://{output / f'store{world}'}", rank=rank, world_size=world)
        results = {case: compute(world, rank, *case) for case in cases()}
        results |= {name: compute_slots(world, rank, name) for name in SLOT_LOSSES}
        torch.save({"world": dist.get_world_size(), "results": results}, output / f"world{world}_rank{rank}.pt")
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
