"""Labelled videos for few-shot recognition: published split lists, class folders, and the embedded clips."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hf_clipplus.models.video_frames import FRAME_SUFFIXES, VIDEO_SUFFIXES

from .clipart_clips import ACTIONS, ClipWorld

SPLIT_NAMES = ("train", "val", "test")
CLASS_TABLE = Path(__file__).with_name("few_shot_video_classes.json")
_PREFIXED = re.compile(r"^[A-Za-z_]+(\d+)/{1,2}(.+)$")  # "train12//relative/path" and "train12/VIDEOID"

# Families of the embedded actions by split. Actions of a family show the same frames in different orders.
CLIP_FAMILIES = {
    "train": ("horizontal", "rising_diagonal", "falling_diagonal", "size", "zigzag", "roll", "turn"),
    "val": ("fade", "circle"),
    "test": ("vertical", "spiral", "flight"),
}
CLIP_DRAWINGS = {"train": "train", "val": "validation", "test": "test"}


@dataclass
class VideoSplit:
    """The videos of one split.

    Args:
        class_names: C names, in the order of the class ids.
        videos: whatever `models.video_frames.load_frames` reads.
        labels: class id of each video.
        groups: class ids that are told apart only by the order of their frames, if any are known to be.
    """

    class_names: list[str]
    videos: Sequence[Any]
    labels: list[int]
    groups: list[list[int]] | None = None

    def __post_init__(self):
        if len(self.videos) != len(self.labels):
            raise ValueError(f"{len(self.videos)} videos but {len(self.labels)} labels.")
        repeated = sorted({name for name in self.class_names if self.class_names.count(name) > 1})
        if repeated:
            raise ValueError(f"class names must differ, these are there twice: {repeated}.")
        outside = sorted({label for label in self.labels if not 0 <= label < len(self.class_names)})
        if outside:
            raise ValueError(f"labels {outside[:5]} are not among the {len(self.class_names)} classes.")

    def __len__(self) -> int:
        return len(self.labels)

    def name_of(self, index: int) -> str:
        """What to call a video in an error."""
        video = self.videos[index] if isinstance(self.videos, list) else None
        return str(video) if isinstance(video, str | Path) else f"video {index}"


@cache
def _class_table() -> dict[str, dict[str, Any]]:
    return json.loads(CLASS_TABLE.read_text(encoding="utf-8"))["splits"]


def published_class_names(dataset: str, split: str) -> list[str]:
    """The class names of a published split in the order of its ids, as its prompts write them.

    Args:
        dataset: "ssv2_small", "ssv2_full", "kinetics100", "ucf101" or "hmdb51".
        split: "train", "val" or "test".

    Raises:
        ValueError: unknown data set or split, or a split for which only numbers were published (ssv2_full, val).
    """
    table = _class_table()
    if dataset not in table or split not in SPLIT_NAMES:
        raise ValueError(f"no class names of {dataset!r}, {split!r}: known are {', '.join(table)}; train, val, test.")
    names = table[dataset][split]
    if None in names:
        raise ValueError(f"the class names of {dataset}, {split}, are not published; give your own (class_names).")
    return list(names)


def read_split_list(
    file: str | Path, video_folder: str | Path, *, class_names: Sequence[str] | None = None
) -> VideoSplit:
    """A published list of one split, in either of the two formats.

    Lines are `<split><class id>//<relative path>` (or `<split><class id>/<video id>`, SSv2), as CLIP-FSAR's, or
    `<class>/<video>`, as TRX's. A path without suffix is completed with that of the file (or folder of frames) that is
    there.

    Args:
        file: the list.
        video_folder: what its paths are relative to.
        class_names: names by class id (numbered lists), or by the sorted order of the list's classes; None takes the
            folders' names, which numbered lists do not have.

    Raises:
        ValueError: an empty list, a line of neither format, both formats in one list, or ids without names.
    """
    lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    matches = [_PREFIXED.match(line) for line in lines]
    numbered = bool(lines) and matches[0] is not None
    wrong = [line for line, match in zip(lines, matches, strict=True) if (match is not None) != numbered]
    wrong += [] if numbered else [line for line in lines if "/" not in line]
    if not lines or wrong:
        raise ValueError(
            f"{file}: {'no line of' if not lines else repr(wrong[0]) + ' does not fit'} a split list; expected "
            "'train12//path', 'train12/id' or 'class/video' in every line."
        )
    folder = Path(video_folder)
    if numbered:
        labels = [int(match.group(1)) for match in matches]
        if class_names is None:
            raise ValueError(f"{file} has numbers for classes: give class_names (see published_class_names).")
        paths = [match.group(2) for match in matches]
    else:
        names = sorted({line.split("/")[0] for line in lines}, key=_number_or_name)
        labels = [names.index(line.split("/")[0]) for line in lines]
        class_names, paths = class_names or names, lines
        if len(class_names) != len(names):
            raise ValueError(f"{file} has {len(names)} classes, class_names {len(class_names)}.")
    return VideoSplit(list(class_names), [str(_existing(folder / path)) for path in paths], labels)


def read_class_folders(folder: str | Path) -> VideoSplit:
    """Videos in `<class>/<video>`: files, or folders of frames; classes in the order of their names.

    Raises:
        ValueError: there are no class folders with videos.
    """
    folder = Path(folder)
    classes = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    found = VideoSplit([], [], [])
    for path in classes:
        videos = sorted(each for each in path.iterdir() if each.is_dir() or each.suffix.lower() in VIDEO_SUFFIXES)
        if videos:
            found.labels += [len(found.class_names)] * len(videos)
            found.class_names.append(path.name)
            found.videos += [str(video) for video in videos]
    if not found.videos:
        raise ValueError(f"{folder}: expected folders <class>/<video>, with video files or folders of frames.")
    return found


def open_video_split(
    source: str, split: str, *, dataset: str | None = None, class_names: Sequence[str] | None = None
) -> VideoSplit:
    """The split of a folder: `<split>.txt` beside the videos (or in `splits/`), or `<split>/<class>/<video>`.

    Args:
        source: the folder.
        split: "train", "val" or "test".
        dataset: a published data set, whose class names numbered lists take.
        class_names: see `read_split_list`.

    Raises:
        ValueError: the folder has neither.
    """
    folder = Path(source)
    for file in (folder / f"{split}.txt", folder / "splits" / f"{split}.txt"):
        if file.is_file():
            names = class_names
            if names is None and dataset is not None:
                names = published_class_names(dataset, split)
            return read_split_list(file, folder, class_names=names)
    if (folder / split).is_dir():
        return read_class_folders(folder / split)
    raise ValueError(f"{folder} has no {split}.txt, no splits/{split}.txt and no folder {split}/.")


class ClipVideos(Sequence):
    """The frames of `ClipWorld`'s rows, drawn when asked for; kept once drawn, unless the world draws others."""

    def __init__(self, world: ClipWorld):
        self.world = world
        self._kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.world)

    def __getitem__(self, index: int) -> np.ndarray:
        if index not in self._kept:
            self._kept[index] = self.world[index]["frames"]
        return self._kept[index]


def embedded_clips(
    split: str, *, per_class: int = 40, frames: int = 8, image_size: int = 48, seed: int = 0, folder: str | None = None
) -> VideoSplit:
    """The embedded clips of one split: classes are actions, no action and no drawing is in two splits.

    Args:
        split: "train" (28 actions), "val" (6) or "test" (14); `groups` are the families, whose actions show the same
            frames in different orders.
        per_class: clips of each action.
        frames, image_size: of a clip.
        seed: other clips.
        folder: of the drawings, see `clipart.clipart_folder`.
    """
    if split not in CLIP_FAMILIES:
        raise ValueError(
            f"split {split!r} of the embedded clips is unknown: choose one of {', '.join(CLIP_FAMILIES)}."
        )
    keys = [key for key, action in ACTIONS.items() if action.family in CLIP_FAMILIES[split]]
    world = ClipWorld(
        CLIP_DRAWINGS[split],
        frames=frames,
        image_size=image_size,
        actions=keys,
        length=per_class * len(keys),
        seed=seed,
        train=False,
        folder=folder,
    )
    families = [
        [place for place, key in enumerate(keys) if ACTIONS[key].family == family] for family in CLIP_FAMILIES[split]
    ]
    labels = [index % len(keys) for index in range(len(world))]
    return VideoSplit([ACTIONS[key].phrase for key in keys], ClipVideos(world), labels, families)


def _existing(path: Path) -> Path:
    """The path, or the file beside it that has a suffix more; unchanged where there is none: loading will name it."""
    if path.exists() or path.suffix.lower() in VIDEO_SUFFIXES | FRAME_SUFFIXES:
        return path
    return next(
        (found for suffix in sorted(VIDEO_SUFFIXES) if (found := path.with_name(path.name + suffix)).exists()), path
    )


def _number_or_name(name: str) -> tuple:
    return (0, int(name), name) if name.isdigit() else (1, 0, name)
