"""What goes in and out of the few-shot video models: labels of episodes, outputs, support sets."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput

from hf_clipplus.ops.few_shot_video import check_episode_labels


@dataclass
class SupportSet:
    """What a model keeps of labelled videos.

    Args:
        features: `[R, T, D]`, prototypes or what prototypes are made of.
        labels: `[R]` int64, class of each row.
        text_embeds: `[N, D]`, features of the class texts.
        class_names: N names.
    """

    features: Tensor
    labels: Tensor
    text_embeds: Tensor
    class_names: list[str]

    def to(self, device: torch.device | str) -> "SupportSet":
        tensors = (each.to(device) for each in (self.features, self.labels, self.text_embeds))
        return SupportSet(*tensors, self.class_names)


@dataclass
class FewShotVideoOutput(ModelOutput):
    """What a few-shot video model returns; without a leading episode dimension if the inputs had none.

    Args:
        loss: when query labels were given.
        loss_few_shot, loss_video_text: its parts, without their weights.
        logits: `[E, Q, N]`, classes in the order of the episode labels.
        class_logits: `[E, S + Q, C]` against all classes given (CLIP-FSAR) or the episode's (MA-CLIP), support first.
        prototypes: `[E, R, T, D]`, see `build_prototypes`; query_features: `[E, Q, T, D]`.
    """

    loss: Tensor | None = None
    loss_few_shot: Tensor | None = None
    loss_video_text: Tensor | None = None
    logits: Tensor | None = None
    class_logits: Tensor | None = None
    prototypes: Tensor | None = None
    query_features: Tensor | None = None


@dataclass
class EpisodeLabels:
    """What is known of the videos of E episodes.

    Args:
        support: `[E, S]`, query: `[E, Q]` or None: labels 0..N-1.
        support_class_ids: `[E, S]`, query_class_ids: `[E, Q]`, or None: rows of the class texts.
    """

    support: Tensor
    query: Tensor | None = None
    support_class_ids: Tensor | None = None
    query_class_ids: Tensor | None = None


class StoredSupport(nn.Module):
    """The support set as buffers, so that it is saved, moved and pushed with the model."""

    def __init__(self, rows: int, frames: int, classes: int, dim: int):
        super().__init__()
        self.register_buffer("features", torch.zeros(rows, frames, dim))
        self.register_buffer("labels", torch.arange(rows) % classes)
        self.register_buffer("text_embeds", torch.zeros(classes, dim))


def labelled_episode(
    support_labels: Tensor, query_labels: Tensor | None, support_class_ids: Tensor | None
) -> tuple[int, int, Tensor | None]:
    """N, the largest number of shots, and the class id of each episode label `[E, N]` (None without ids).

    Raises:
        ValueError: see `check_episode_labels`; or two support videos of one label with different class ids.
    """
    classes = check_episode_labels(support_labels, query_labels)
    member = F.one_hot(support_labels, classes)  # [E, S, N]
    shots = int(member.sum(1).max())
    if support_class_ids is None:
        return classes, shots, None
    ids = support_class_ids.gather(1, member.argmax(1))  # the id of each label's first video
    if not torch.equal(ids.gather(1, support_labels), support_class_ids):
        raise ValueError("support videos of one episode label have different class ids.")
    return classes, shots, ids
