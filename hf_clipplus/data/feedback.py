"""Batches for diffusion feedback: one square crop per picture for tower and diffusion model, and a latent cache."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from .collators import is_plain_rgb, row_name
from .images import RandomResizedCrop, UnreadableImageError, load_image
from .report import DataReport
from .seeding import item_generator

REPORT_KINDS = ("unreadable image",)
CROPS = ("random", "center")
CROP_STREAM, DRAW_STREAM = 0, 1
TODO, DONE = 0, 1
SAMPLED_ROWS = 8


def feedback_report() -> DataReport:
    """A report of the kinds that `FeedbackCollator` and `LatentCache` count."""
    return DataReport(REPORT_KINDS)


@dataclass(frozen=True)
class CenterCrop:
    """The largest central square, resized to `size` pixels."""

    size: int

    def __call__(self, image: Image.Image, generator: np.random.Generator | None = None) -> Image.Image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        if (side, side) == image.size == (self.size, self.size):
            return image
        box = (left, top, left + side, top + side)
        return image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)


def square_crop(kind: str, size: int) -> Callable[[Image.Image, np.random.Generator], Image.Image]:
    """How pictures become squares of `size` pixels.

    Args:
        kind: "random" (published: 90 to 100% of the area, aspect 3/4 to 4/3, bicubic, no flip) or "center" (always the
            same square, so that latents can be cached).

    Raises:
        ValueError: another kind.
    """
    if kind not in CROPS:
        raise ValueError(f"crop {kind!r} is unknown: choose one of {CROPS}.")
    return CenterCrop(size) if kind == "center" else RandomResizedCrop((0.9, 1.0), (3 / 4, 4 / 3), size)


class FeedbackCollator:
    """Makes `{pixel_values, vae_pixel_values or latents, draw_seeds, example_index}` from rows with an `image`.

    What happens to row i in epoch e, the diffusion model's times, noise and patches included, depends only on
    (seed, e, i). A row whose image cannot be read is left out and counted, or stops the run. Rows that have `latents`
    (a column, or `CachedLatents`) do not go through the VAE.

    Args:
        processor: a `DIVAProcessor`.
        crop: from `square_crop`.
        seed: of crops and draws.
        on_bad_row: "skip" (and count) or "raise".
        report: where to count; `feedback_report()` shared with whoever prints it.

    Raises:
        ValueError: when called, rows with latents and random crops: the latents would be those of another picture.
    """

    def __init__(
        self,
        processor: Any,
        crop: Callable[[Image.Image, np.random.Generator], Image.Image],
        *,
        seed: int = 0,
        on_bad_row: str = "skip",
        report: DataReport | None = None,
    ):
        if on_bad_row not in ("skip", "raise"):
            raise ValueError(f"on_bad_row must be 'skip' or 'raise', got {on_bad_row!r}.")
        self.processor, self.crop, self.seed, self.on_bad_row = processor, crop, seed, on_bad_row
        self.report = report or feedback_report()

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        examples = [example for row in rows if (example := self._example(row)) is not None]
        if not examples:
            raise ValueError(f"Not one of the {len(rows)} rows of a batch could be used. {self.report.summary()}")
        pictures, indices, seeds, latents = zip(*examples, strict=True)
        cached = [part is not None for part in latents]
        if any(cached) and not isinstance(self.crop, CenterCrop):
            raise ValueError("rows have latents, but pictures are cropped at random: use crop 'center' with a cache.")
        batch = dict(self.processor.feedback_inputs(list(pictures), vae_pixels=not all(cached)))
        if all(cached):
            batch["latents"] = torch.from_numpy(np.stack([np.asarray(part, np.float32) for part in latents]))
        elif any(cached):
            raise ValueError("some rows of a batch have latents and some have none: fill the cache to its end.")
        return batch | {"draw_seeds": torch.tensor(seeds), "example_index": torch.tensor(indices)}

    def _example(self, row: Mapping[str, Any]) -> tuple | None:
        index, epoch = int(row.get("index", 0)), int(row.get("epoch", 0))
        try:
            picture = read_picture(row, index)
        except UnreadableImageError:
            self.report.add("unreadable image", row_name(row, index))
            if self.on_bad_row == "raise":
                raise
            return None
        picture = self.crop(picture, item_generator(self.seed, epoch, index, CROP_STREAM))
        seed = int(item_generator(self.seed, epoch, index, DRAW_STREAM).integers(2**63 - 1))
        return picture, index, seed, row.get("latents")


def read_picture(row: Mapping[str, Any], index: int) -> Image.Image:
    """The row's image as RGB; raises `UnreadableImageError`."""
    return row["image"] if is_plain_rgb(row["image"]) else load_image(row["image"], name=row_name(row, index))


class LatentCache:
    """Latents of every picture of a data set, central crops, in a memory-mapped file that goes on where it stopped.

    Exact: float32, as the VAE gives them. `cache.json` says what they were made of, the VAE's weights and a sample of
    the pictures included, and a cache of anything else is refused.

    Args:
        folder: where `latents.npy`, `done.npy` and `cache.json` are or will be.
        rows: map-style data set with an `image`.
        processor: a `DIVAProcessor`; its `generator_image_size` is the side of the crops.
        generator: a `DiffusionGenerator` with its VAE.

    Raises:
        ValueError: the folder holds another cache.
    """

    def __init__(self, folder: str | Path, rows: Any, processor: Any, generator: Any):
        self.folder, self.rows, self.processor, self.generator = Path(folder), rows, processor, generator
        self.crop = CenterCrop(processor.generator_image_size)
        generator.check_image_size(self.crop.size)
        side = self.crop.size // generator.vae_factor
        shape = (len(rows), generator.vae.config.latent_channels, side, side)
        key = {
            "shape": list(shape),
            "vae": fingerprint(generator.vae),
            "legacy_vae_renorm": processor.legacy_vae_renorm,
            "pictures": self._sample_of_pictures(),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        note = self.folder / "cache.json"
        if note.exists() and (found := json.loads(note.read_text(encoding="utf-8"))) != key:
            other = sorted(name for name in key if found.get(name) != key[name])
            raise ValueError(f"{folder} holds latents of another run ({', '.join(other)} differ): delete it.")
        mode = "r+" if note.exists() else "w+"
        open_map = np.lib.format.open_memmap
        self.latents = open_map(self.folder / "latents.npy", mode=mode, dtype=np.float32, shape=shape)
        self.state = open_map(self.folder / "done.npy", mode=mode, dtype=np.uint8, shape=(len(rows),))
        note.write_text(json.dumps(key), encoding="utf-8")  # last: without it, both files are made anew

    def fill(self, *, batch_size: int = 16, report: DataReport | None = None, progress: bool = False) -> None:
        """Encode what is not there yet; rows whose picture cannot be read are counted and stay without latents."""
        report = report or feedback_report()
        todo = np.flatnonzero(self.state == TODO)
        for start in tqdm(range(0, len(todo), batch_size), desc="encoding latents", disable=not progress):
            numbers, pictures = [], []
            for number in todo[start : start + batch_size].tolist():
                row = self.rows[number]
                try:
                    pictures.append(self.crop(read_picture(row, number)))
                    numbers.append(number)
                except UnreadableImageError:
                    report.add("unreadable image", row_name(row, number))
            if numbers:
                pixels = self.processor.feedback_inputs(pictures)["vae_pixel_values"]
                self.latents[numbers] = self.generator.encode_images(pixels).cpu().numpy()
                self.latents.flush()
                self.state[numbers] = DONE  # only now: a crash before leaves the rows to do
                self.state.flush()

    def _sample_of_pictures(self) -> str:
        """A digest of a few pictures, so that a cache is not taken for other data of the same size."""
        digest = hashlib.sha256()
        for number in np.linspace(0, len(self.rows) - 1, SAMPLED_ROWS).astype(int).tolist():
            try:
                digest.update(self.crop(read_picture(self.rows[number], number)).tobytes())
            except UnreadableImageError:
                digest.update(b"unreadable")
        return digest.hexdigest()[:16]


def fingerprint(module: torch.nn.Module) -> str:
    """16 hexadecimal digits that follow from the weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class CachedLatents(Dataset):
    """Rows with their `latents` from the folder of a `LatentCache`; None where a picture could not be read.

    Args:
        rows: the data set that the cache was made of.
        folder: of the cache, filled.
    """

    def __init__(self, rows: Any, folder: str | Path):
        self.rows, self.folder = rows, Path(folder)
        self._open_maps()

    def _open_maps(self) -> None:
        self.latents, self.state = (
            np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in ("latents", "done")
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without the maps: a worker that is started anew opens the files itself."""
        return {"rows": self.rows, "folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_maps()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        latents = np.array(self.latents[index]) if self.state[index] == DONE else None
        return {**self.rows[index], "latents": latents}
