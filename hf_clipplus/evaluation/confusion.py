"""Intersection over union of label maps from one confusion matrix of a whole data set, mergeable across processes.

Example::

    matrix = ConfusionMatrix(21)
    for prediction, truth in maps:
        matrix.update(prediction, truth)
    matrix.all_reduce()  # with several processes, each of which has seen its share
    matrix.compute()  # {"mIoU": ..., "mean_accuracy": ..., "pixel_accuracy": ...}
"""

import torch
import torch.distributed as dist
from torch import Tensor

from hf_clipplus.ops.distributed import world_size

IGNORED = 255


class ConfusionMatrix:
    """Counts of (true class, predicted class) over pixels.

    Args:
        classes: number of classes, the background included.
        ignored: true label of pixels that do not count.
    """

    def __init__(self, classes: int, *, ignored: int = IGNORED):
        self.ignored = ignored
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Add the pixels of one picture or batch.

        Args:
            predicted, truth: integer label maps of equal shape.

        Raises:
            ValueError: the shapes differ, or a label is no class; names it.
        """
        if predicted.shape != truth.shape:
            raise ValueError(
                f"a prediction of {list(predicted.shape)} does not fit a mask of {list(truth.shape)}: resize the "
                "prediction to the mask (target_sizes)."
            )
        counted = truth != self.ignored
        predicted, truth = predicted[counted].long().cpu(), truth[counted].long().cpu()
        classes = len(self.counts)
        for what, labels in (("predicted", predicted), ("true", truth)):
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
                wrong = labels[(labels < 0) | (labels >= classes)][0].item()
                raise ValueError(f"a {what} label is {wrong}, there are {classes} classes (0 to {classes - 1}).")
        self.counts += torch.bincount(truth * classes + predicted, minlength=classes**2).view(classes, classes)

    def merge(self, other: "ConfusionMatrix") -> None:
        """Add what another matrix of the same classes has counted."""
        self.counts += other.counts

    def all_reduce(self) -> None:
        """Add what the other processes have counted; every process must call."""
        if world_size() == 1:
            return
        device = torch.device("cuda") if "nccl" in dist.get_backend() else torch.device("cpu")
        counts = self.counts.to(device)
        dist.all_reduce(counts)
        self.counts = counts.cpu()

    def iou_per_class(self) -> Tensor:
        """`[classes]` float64; NaN for classes that are neither in the truth nor predicted."""
        hits = self.counts.diagonal().double()
        return hits / (self.counts.sum(0) + self.counts.sum(1) - hits)

    def accuracy_per_class(self) -> Tensor:
        """`[classes]` float64, share of a class's true pixels that are found; NaN for classes not in the truth."""
        return self.counts.diagonal().double() / self.counts.sum(1)

    def compute(self) -> dict[str, float]:
        """`mIoU` (mean over classes that occur), `mean_accuracy`, `pixel_accuracy`; NaN when nothing was counted."""
        return {
            "mIoU": self.iou_per_class().nanmean().item(),
            "mean_accuracy": self.accuracy_per_class().nanmean().item(),
            "pixel_accuracy": (self.counts.diagonal().sum().double() / self.counts.sum()).item(),
        }
