"""Run by test_groupvit.py: forks 2 and then 3 gloo processes; each saves its losses and a model's step on its rows."""

import json
import multiprocessing
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file

from hf_clipplus.models.groupvit import GroupViTPlusConfig, GroupViTPlusModel
from hf_clipplus.ops.grouping import image_text_loss, multi_label_loss

FOLDER = Path(os.environ["CLIPPLUS_PARITY_DIR"]) / "groupvit"
ROWS = 6  # of a model's batch over all processes; 2 and 3 divide it
FORMS = ("mean_of_logs", "log_of_sum")


def case_of_the_fixture(case: str, facts: dict, tensors: dict, rank: int) -> dict[str, torch.Tensor]:
    """Losses of this rank, and the gradient of their sum."""
    rows = slice(rank * facts["batch_per_rank"], (rank + 1) * facts["batch_per_rank"])
    prefix = f"{case}.in."
    stored = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    leaves = {key: (value[rows] if value.ndim else value).clone().requires_grad_() for key, value in stored.items()}
    unit = {key: F.normalize(value, dim=-1) for key, value in leaves.items() if value.ndim}
    second_scale = leaves.get("multi_label_logit_scale", leaves["logit_scale"])
    first = image_text_loss(unit["image"], unit["text"], leaves["logit_scale"])
    second = multi_label_loss(unit["image"], unit["multi_label_text"], second_scale)
    (first + second).backward()
    return {"loss": first.detach(), "multi_label_loss": second.detach()} | {
        f"grad_{name}": leaf.grad for name, leaf in leaves.items()
    }


def model_step(rows: slice, world: int, form: str) -> dict[str, torch.Tensor]:
    """Loss, gradients and batch statistics of one training step on some rows of a fixed batch, as DDP leaves them.

    In float64: in float32 the order of the sums alone moved a gradient by 3.5e-5.
    """
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "depths": [1, 1],
        "num_group_tokens": [4, 0],
        "num_output_groups": [3],
        "image_size": 16,
        "patch_size": 8,
        "drop_path_rate": 0.0,
    }
    ids = {"vocab_size": 30, "max_position_embeddings": 6, "eos_token_id": 29, "bos_token_id": 28, "pad_token_id": 0}
    config = GroupViTPlusConfig(
        text_config=text | ids,
        vision_config=vision,
        projection_dim=8,
        projection_intermediate_dim=12,
        prompts_per_image=2,
        multi_label_form=form,
    )
    model = GroupViTPlusModel(config).double().train()
    images = torch.randn(ROWS, 3, 16, 16, dtype=torch.float64)
    words = torch.randint(1, 28, (ROWS, 3, 6))
    words[..., -1] = 29
    noise = [torch.randn(ROWS, 3, 4, dtype=torch.float64)]
    out = model(images[rows], words[rows], gumbel_noise=[part[rows] for part in noise], return_loss=True)
    out.loss.backward()
    found = {"loss": out.loss.detach()} | {name: each.grad for name, each in model.named_parameters()}
    if world > 1:
        for value in found.values():
            dist.all_reduce(value)
            value /= world
    return found | {name: value for name, value in model.named_buffers() if "running" in name}


def rank_of(rank: int, world: int, folder: Path) -> None:
    """What one of the processes does."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    cases = json.loads((FOLDER / "losses.json").read_text())["cases"]
    tensors = load_file(FOLDER / "losses.safetensors")
    part = {"losses": {}, "model": {}}
    for case, facts in cases.items():
        if facts["world_size"] == world:
            part["losses"][case] = case_of_the_fixture(case, facts, tensors, rank)
    share = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    for form in FORMS:
        part["model"] |= {f"{form}.{name}": value for name, value in model_step(share, world, form).items()}
    dist.destroy_process_group()
    torch.save(part, folder / f"rank{rank}_of_{world}.pt")


def main() -> None:
    folder = Path(sys.argv[1])
    forks = multiprocessing.get_context("fork")  # a fork costs no import; nothing was computed before it
    for world in (2, 3):
        ranks = [forks.Process(target=rank_of, args=(rank, world, folder)) for rank in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            sys.exit(f"exit codes of {world} processes: {[process.exitcode for process in ranks]}")
    alone = {f"{form}.{name}": value for form in FORMS for name, value in model_step(slice(None), 1, form).items()}
    torch.save(alone, folder / "alone.pt")


if __name__ == "__main__":
    main()
