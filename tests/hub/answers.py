"""What a model says of one picture and some texts; imports nothing of the package, so that bundles are asked too."""

import numpy as np
import torch
from PIL import Image

LABELS = ["a red boat", "two cats", "a very " + "very " * 40 + "long label", "tea"]


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (60, 70, 3), dtype=np.uint8))


@torch.no_grad()
def answers(model, processor) -> dict[str, torch.Tensor]:
    """Inputs and outputs, by name."""
    if getattr(model, "support", model) is None:
        inputs = an_episode(processor)
        return {**inputs, **{name: each for name, each in model.eval()(**inputs).items() if torch.is_tensor(each)}}
    given = {"videos": [[picture(), picture()]]} if "video" in model.input_modalities else {"images": [picture()]}
    given |= {"text": LABELS} if "text" in model.input_modalities else {}
    inputs = {name: value for name, value in processor(**given, return_tensors="pt").items() if torch.is_tensor(value)}
    outputs = model.eval()(**inputs)
    found = {name: value for name, value in outputs.items() if torch.is_tensor(value)}
    return inputs | {name: value.clone() for name, value in found.items()}


def an_episode(processor) -> dict[str, torch.Tensor]:
    """Two classes with one video each, which are also asked for."""
    videos = processor(videos=[[picture(), picture()], [picture().rotate(90)] * 2], return_tensors="pt")[
        "pixel_values"
    ]
    texts = processor(text=LABELS[:2], return_tensors="pt")
    labels = torch.arange(2)
    episode = {"support_pixel_values": videos, "query_pixel_values": videos.flip(0).contiguous()}
    episode |= {"support_labels": labels, "support_class_ids": labels.clone()}
    return episode | {f"class_{name}": texts[name] for name in ("input_ids", "attention_mask")}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    """Equal to the last digits: where weights lie in memory decides in which order a product is summed."""
    return found.keys() == expected.keys() and all(
        torch.allclose(found[name], expected[name], rtol=1e-5, atol=1e-6) for name in expected
    )


def ask_pipeline(pipe, task: str):
    """One call of every task."""
    if task == "zero-shot-image-classification":
        return pipe(picture(), candidate_labels=LABELS)
    if task == "clipplus-zero-shot-segmentation":
        return pipe(picture(), class_names=["boat", "cat"], background=0.5, short_side=32)["labels"].tolist()
    return pipe("new.mp4" if "video" in task else picture())
