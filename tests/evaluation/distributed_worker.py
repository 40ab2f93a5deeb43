"""Run by torchrun in test_encode.py: encodes on two gloo processes and saves what each rank received."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import CLIPModel, CLIPProcessor

from hf_clipplus.evaluation.encode import encode_images, encode_texts
from hf_clipplus.evaluation.retrieval import RetrievalEvaluator
from hf_clipplus.evaluation.zero_shot import ZeroShotClassification


def main() -> None:
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    model = CLIPModel.from_pretrained(folder / "model")
    processor = CLIPProcessor.from_pretrained(folder / "model")
    paths = [folder / f"{index}.png" for index in range(8)]
    texts = json.loads((folder / "texts.json").read_text())
    own = 0

    def counting(images, return_tensors):
        nonlocal own
        own += len(images)
        return processor(images=images, return_tensors=return_tensors)

    result = {"world_size": dist.get_world_size()}
    for count in (1, 2, 7):
        own = 0
        result[f"images{count}"] = encode_images(model, counting, paths[:count], batch_size=2)
    result["own_pictures"] = own
    result["stream"] = encode_images(model, processor, (path for path in paths), batch_size=3)
    result["texts"] = encode_texts(model, processor, texts, batch_size=2)
    rows = [{"image": path, "label": i % 3, "captions": texts[: 1 + i % 5]} for i, path in enumerate(paths)]
    result["zero_shot"] = ZeroShotClassification(rows, texts[:3], ["a {}"])(model, processor)
    result["retrieval"] = RetrievalEvaluator(rows)(model, processor)
    torch.save(result, folder / f"rank{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
