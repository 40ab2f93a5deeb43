"""Few-shot classification from images to a trained head: episodes, augmented views kept on disk, training, search."""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from hf_clipplus.data.images import HorizontalFlip, RandomResizedCrop, load_image
from hf_clipplus.data.seeding import item_generator
from hf_clipplus.models.ape import APEForImageClassification, SearchGrid
from hf_clipplus.ops.cache_search import first_maximum

logger = logging.get_logger(__name__)

AUGMENTATION_SEED, EPISODE_STREAM, VIEW_STREAM = 1, 71, 72
HONEST_VALIDATION = 4


@dataclass(frozen=True)
class Episode:
    """Row numbers of one few-shot problem; the three sets are disjoint."""

    support: list[int]
    validation: list[int]
    test: list[int]


def draw_episode(
    labels: Sequence[int],
    shots: int,
    *,
    seed: int,
    validation: int | None = None,
    test: Sequence[int] | None = None,
    allow_fewer: bool = False,
) -> Episode:
    """Draw a support set and a validation set, the same number of rows of every class.

    Args:
        labels: class of every row.
        shots: support rows per class.
        seed: equal seeds draw equal episodes.
        validation: rows per class; None takes min(shots, 4), the honest protocol.
        test: rows of an own test split, which nothing is drawn from; None takes all that are left.
        allow_fewer: take what a class has where it has too few rows, instead of an error.

    Raises:
        ValueError: a class has too few rows (it is named), or fewer than two.
    """
    per_class = min(shots, HONEST_VALIDATION) if validation is None else validation
    kept, by_class = set(test or ()), {}
    for row, label in enumerate(labels):
        if row not in kept:
            by_class.setdefault(label, []).append(row)
    support, chosen_on, rest = [], [], []
    for number, label in enumerate(sorted(set(labels))):
        rows = by_class.get(label, [])
        least = 2 if allow_fewer else shots + per_class + (test is None)
        if len(rows) < least:
            raise ValueError(
                f"class {label!r} has {len(rows)} rows to draw from; {shots} shots, {per_class} for validation"
                f"{' and one to test' if test is None else ''} need {least}."
            )
        rows = item_generator(seed, 0, number, EPISODE_STREAM).permutation(rows).tolist()
        held = min(per_class, len(rows) // 2)
        chosen_on += rows[:held]
        support += rows[held : held + shots]
        rest += rows[held + shots :]
    return Episode(support, chosen_on, sorted(rest) if test is None else list(test))


@dataclass(frozen=True)
class CacheAugmentation:
    """The published augmentation of cache views: crop of 50 to 100% of the area, mirrored half the time.

    View a of image i depends on (seed, a, i) alone. The image processor does the one real resize.
    """

    seed: int = AUGMENTATION_SEED
    crop: RandomResizedCrop = field(default_factory=lambda: RandomResizedCrop((0.5, 1.0), (3 / 4, 4 / 3)))

    def __call__(self, image: Image.Image, view: int, index: int) -> Image.Image:
        generator = item_generator(self.seed, view, index)
        return HorizontalFlip()(self.crop(image, generator), generator)


def encode_with_cache(
    model: APEForImageClassification,
    processor: Any,
    images: Sequence[Any],
    *,
    views: int = 1,
    augment: Callable | None = None,
    cache_dir: str | Path | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Raw encoder outputs `[views, N, D]` of images, from disk where the same were encoded before.

    Args:
        model, processor, views, batch_size: see `APEForImageClassification.encode_views`.
        images: whatever `data.images.load_image` reads.
        augment: None leaves images as they are; its `repr` is part of the key on disk.
        cache_dir: folder of safetensors files, named after backbone weights, pixels, processor and views.
    """
    pictures = [load_image(image) for image in images]
    file = None
    if cache_dir is not None:
        key = _digest(model.backbone, pictures, f"{processor.image_processor}|{views}|{augment!r}")
        file = Path(cache_dir) / f"{key}.safetensors"
        if file.is_file():
            return load_file(file)["features"]
    found = model.encode_views(pictures, processor, views=views, augment=augment, batch_size=batch_size)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        save_file({"features": found.contiguous()}, part)
        part.replace(file)
    return found


def fit_few_shot(
    model: APEForImageClassification,
    processor: Any,
    images: Sequence[Any],
    labels: Sequence[int | str],
    class_names: Sequence[str],
    *,
    validation: tuple[Sequence[Any], Sequence[int | str]] | None = None,
    views: int = 10,
    seed: int = AUGMENTATION_SEED,
    cache_dir: str | Path | None = None,
    batch_size: int = 64,
    **options: Any,
) -> APEForImageClassification:
    """`APEForImageClassification.fit` on images, with the published views and features kept on disk.

    Args:
        model, processor: see `APEForImageClassification.from_clip`.
        images, labels, class_names: the support set; whatever `load_image` reads.
        validation: images, not augmented, with labels.
        views, seed: augmented views of each image.
        cache_dir, batch_size: see `encode_with_cache`.
        options: of `APEForImageClassification.fit` (`head`, `templates`, `prompts`, `protocol`, `grid`, ...).
    """
    kept = {"cache_dir": cache_dir, "batch_size": batch_size}
    features = encode_with_cache(model, processor, images, views=views, augment=CacheAugmentation(seed), **kept)
    if validation is not None:
        encoded = encode_with_cache(model, processor, validation[0], **kept)[0]
        validation = (normalize(encoded, dim=-1), validation[1])
    model.fit(features, labels, class_names, processor=processor, validation=validation, **options)
    model.config.fit_report["augmentation_seed"] = seed
    return model


class FeatureRows(Dataset):
    """Rows to train a head on without the encoder: a random view of each image, another one each epoch.

    Args:
        views: `[A, N, D]`.
        labels: `[N]`.
        seed: row i of epoch e depends on (seed, e, i).
    """

    def __init__(self, views: Tensor, labels: Tensor, seed: int = 0):
        self.views, self.labels, self.seed, self.epoch = normalize(views, dim=-1), labels, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        view = int(item_generator(self.seed, self.epoch, index, VIEW_STREAM).integers(len(self.views)))
        return {"image_embeds": self.views[view, index], "labels": self.labels[index]}


def ape_t_arguments(**overrides: Any) -> TrainingArguments:
    """The published optimisation of APE-T: AdamW with decay 0.1 on everything, cosine, batch 256."""
    return _arguments(
        {"learning_rate": 1e-3, "adam_epsilon": 1e-3, "weight_decay": 0.1, "num_train_epochs": 30}, overrides
    )


def tip_f_arguments(**overrides: Any) -> TrainingArguments:
    """The published optimisation of Tip-Adapter-F."""
    return _arguments(
        {"learning_rate": 1e-3, "adam_epsilon": 1e-4, "weight_decay": 0.01, "num_train_epochs": 20}, overrides
    )


def _arguments(recipe: dict[str, Any], overrides: dict[str, Any]) -> TrainingArguments:
    shared = {
        "per_device_train_batch_size": 256,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 0.0,
        "optim": "adamw_torch",
        "save_strategy": "no",
        "logging_strategy": "no",
        "label_names": ["labels"],
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    return TrainingArguments(**{"output_dir": tempfile.gettempdir(), **shared, **recipe, **overrides})


def train_few_shot(
    model: nn.Module,
    rows: Dataset,
    *,
    validation: tuple[Tensor, Tensor],
    args: TrainingArguments,
    grid: SearchGrid | None = None,
    data_collator: Callable | None = None,
) -> dict[str, Any]:
    """Train Tip-Adapter-F's keys or an APE-T adapter with HF Trainer; keep the best epoch; search alpha and beta.

    Args:
        model: `APEForImageClassification` with the head "tip_f", or the PeftModel of `attach_ape_t`.
        rows: give `image_embeds` (see `FeatureRows`) or `pixel_values`, and `labels`.
        validation: `[V, D]` unit features and labels; decides the epoch (first best) and then alpha and beta. Never
            the test set, as in Tip-Adapter's published code.
        args: see `ape_t_arguments`, `tip_f_arguments`.
        grid: None takes `SearchGrid()`; alpha and beta stay fixed while training.
        data_collator: for image rows.

    Returns:
        `trained_parameters`, `best_epoch`, `validation_accuracies` per epoch, `validation_accuracy`, `alpha`, `beta`.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.backbone.requires_grad_(False)
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    if not trained:
        raise ValueError("nothing of the model is trainable: fit head='tip_f', or use attach_ape_t.")
    best = _BestEpoch(model, trained, rows, validation)
    trainer = Trainer(model=model, args=args, train_dataset=rows, data_collator=data_collator, callbacks=[best])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    best.restore()
    device = next(model.parameters()).device
    queries, targets = (each.to(device) for each in validation)
    report = {
        "trained_parameters": sum(each.numel() for each in trained.values()),
        "best_epoch": best.epoch,
        "validation_accuracies": best.accuracies,
    }
    head = base.classifier
    if hasattr(head, "ape_t_res"):
        grid = grid or SearchGrid()
        (name,) = head.active_adapters
        settings = head.settings[name]
        counts = head.correct_on_grid(name, queries, targets, grid.betas, grid.alphas)
        i, j = first_maximum(counts)
        settings.beta, settings.alpha = float(grid.betas[i]), float(grid.alphas[j])
        model.peft_config[name].beta, model.peft_config[name].alpha = settings.beta, settings.alpha
        found = {
            "beta": settings.beta,
            "alpha": settings.alpha,
            "validation_accuracy": int(counts.max()) / len(queries),
        }
    else:
        head.search(queries, targets, grid)
        found = {key: head.fit_report[key] for key in ("beta", "alpha", "validation_accuracy")}
        head.fit_report |= {"trained_parameters": report["trained_parameters"], "best_epoch": best.epoch}
        head.cache_keys.requires_grad_(False)
        base.set_head(head)
    return report | found


class _BestEpoch(TrainerCallback):
    """Tells the rows their epoch, and keeps the trained tensors of the first epoch with the best validation."""

    def __init__(self, model: nn.Module, trained: dict[str, nn.Parameter], rows: Dataset, validation: tuple):
        self.model, self.trained, self.rows, self.validation = model, trained, rows, validation
        self.accuracies: list[float] = []
        self.epoch, self.kept = -1, {}

    def on_epoch_begin(self, args, state, control, **kwargs):
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(int(state.epoch + 1e-6))

    def on_epoch_end(self, args, state, control, **kwargs):
        self.accuracies.append(self._accuracy(*self.validation))
        if self.accuracies[-1] > max(self.accuracies[:-1], default=-1.0):
            self.epoch = len(self.accuracies) - 1
            self.kept = {name: each.detach().clone() for name, each in self.trained.items()}
        first = len(self.accuracies) == 1 and isinstance(self.rows, FeatureRows)
        if first and self._accuracy(self.rows.views[0], self.rows.labels) == 1.0:
            logger.warning(
                "After one epoch all training images are classified right (accuracy saturates at 100%): there is "
                "hardly any loss to learn from. A smaller alpha while training, or more shots, leave some."
            )

    def restore(self) -> None:
        for name, value in self.kept.items():
            self.trained[name].data.copy_(value)

    @torch.no_grad()
    def _accuracy(self, features: Tensor, labels: Tensor) -> float:
        device = next(self.model.parameters()).device
        logits = self.model(image_embeds=features.to(device)).logits
        return (logits.argmax(1).cpu() == labels.cpu()).double().mean().item()


def _digest(backbone: nn.Module, pictures: Sequence[Image.Image], settings: str) -> str:
    """A name for the features of these pictures under this backbone."""
    digest = hashlib.sha256(settings.encode())
    for name, tensor in backbone.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for picture in pictures:
        digest.update(str(picture.size).encode() + np.asarray(picture).tobytes())
    return digest.hexdigest()[:32]
