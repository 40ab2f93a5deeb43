"""Few-shot episodes of videos: which videos (from the seed and the episode's number alone), their frames, batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hf_clipplus.models.video_frames import UnreadableVideoError, frame_sampler, load_frames
from hf_clipplus.models.video_processing import ClipView

from .few_shot_videos import VideoSplit
from .report import DataReport
from .seeding import item_generator
from .video_views import CROP_ONLY, ViewSampler

UNREADABLE = "unreadable video replaced by another one of its class"
EPISODE_STREAM, VIDEO_STREAM, SPARE_STREAM = 81, 82, 83


@dataclass(frozen=True)
class VideoEpisode:
    """Row numbers of one episode; support and query videos are distinct, both in random order.

    Args:
        classes: class id of each episode label 0..N-1.
        support, query: rows; support_labels, query_labels: their episode labels.
    """

    classes: list[int]
    support: list[int]
    support_labels: list[int]
    query: list[int]
    query_labels: list[int]


class EpisodeSampler:
    """Draws episodes; episode i depends on (seed, i) alone, so that ranks and workers agree without talking.

    Classes are drawn without replacement, then distinct videos of each: the first `shots` are support.

    Args:
        labels: class id of every row.
        way, shots, queries: classes, support videos and query videos per class.
        seed: >= 0.
        groups: lists of class ids; the classes of an episode are then all of one group.

    Raises:
        ValueError: fewer classes than `way`, or a class with too few videos (named by its id).
    """

    def __init__(
        self,
        labels: Sequence[int],
        *,
        way: int = 5,
        shots: int = 1,
        queries: int = 1,
        seed: int = 0,
        groups: Sequence[Sequence[int]] | None = None,
    ):
        if min(way, shots, queries) < 1 or way < 2:
            raise ValueError(f"expected way >= 2, shots >= 1, queries >= 1, got {way}, {shots}, {queries}.")
        self.rows = {label: np.flatnonzero(np.asarray(labels) == label) for label in sorted(set(labels))}
        self.groups = [sorted(group) for group in groups] if groups else [list(self.rows)]
        small = {label: len(rows) for label, rows in self.rows.items() if len(rows) < shots + queries}
        used = {label for group in self.groups for label in group}
        if too_few := {label: count for label, count in small.items() if label in used}:
            raise ValueError(
                f"{shots} shots and {queries} queries need {shots + queries} videos of a class; classes (and their "
                f"videos): {dict(list(too_few.items())[:10])}."
            )
        if short := [group for group in self.groups if len(group) < way]:
            raise ValueError(f"{way}-way episodes need {way} classes, got {len(short[0])}.")
        self.way, self.shots, self.queries, self.seed = way, shots, queries, seed

    def __call__(self, number: int) -> VideoEpisode:
        draw = item_generator(self.seed, 0, number, EPISODE_STREAM)
        group = self.groups[int(draw.integers(len(self.groups)))] if len(self.groups) > 1 else self.groups[0]
        classes = [group[place] for place in draw.permutation(len(group))[: self.way]]
        support, query = [], []
        for label, class_id in enumerate(classes):
            rows = self.rows[class_id]
            chosen = rows[draw.choice(len(rows), self.shots + self.queries, replace=False)].tolist()
            support += [(row, label) for row in chosen[: self.shots]]
            query += [(row, label) for row in chosen[self.shots :]]
        support = [support[place] for place in draw.permutation(len(support))]
        query = [query[place] for place in draw.permutation(len(query))]
        return VideoEpisode(
            classes, [r for r, _ in support], [n for _, n in support], [r for r, _ in query], [n for _, n in query]
        )


class EpisodeDataset(Dataset):
    """Episodes with their frames, for a collator; item i of epoch e is the episode number e * length + i.

    Args:
        split: the videos.
        sampler: of episodes.
        length: episodes of an epoch.
        num_frames: T.
        frame_sampling: see `models.video_frames.frame_sampler`; random frames, as published for training.
        support_view, query_view: how videos are shown.
        on_bad_video: "raise", or "replace": another video of the class takes its place, counted in `report`.
        report: made with the kind `UNREADABLE`.
    """

    def __init__(
        self,
        split: VideoSplit,
        sampler: EpisodeSampler,
        *,
        length: int,
        num_frames: int = 8,
        frame_sampling: str = "segments",
        support_view: ViewSampler = CROP_ONLY,
        query_view: ViewSampler = CROP_ONLY,
        on_bad_video: str = "raise",
        report: DataReport | None = None,
    ):
        if on_bad_video not in ("raise", "replace"):
            raise ValueError(f"on_bad_video={on_bad_video!r}: choose 'raise' or 'replace'.")
        self.split, self.sampler, self.length = split, sampler, length
        self.num_frames, self.frame_sampling = num_frames, frame_sampling
        self.support_view, self.query_view = support_view, query_view
        self.on_bad_video, self.report = on_bad_video, report
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see set_epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch: other episodes."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(f"EpisodeDataset: expected an episode below {self.length}, got {index}")
        number = int(self._epoch) * self.length + index
        episode = self.sampler(number)
        used = set(episode.support) | set(episode.query)
        found = {"classes": episode.classes, "number": number}
        for side, view in (("support", self.support_view), ("query", self.query_view)):
            rows = getattr(episode, side)
            shown = [
                self._video(row, number, (side == "query") * 10_000 + n, view, used) for n, row in enumerate(rows)
            ]
            found[f"{side}_videos"] = shown
            found[f"{side}_labels"] = getattr(episode, f"{side}_labels")
        return found

    def _video(
        self, row: int, number: int, place: int, view: ViewSampler, used: set[int]
    ) -> tuple[np.ndarray, ClipView]:
        draw = item_generator(self.sampler.seed, number, place, VIDEO_STREAM)
        sample = frame_sampler(self.frame_sampling, self.num_frames, draw)
        try:
            frames = load_frames(self.split.videos[row], sample, name=self.split.name_of(row))
        except UnreadableVideoError as error:
            if self.on_bad_video == "raise":
                raise
            if self.report is not None:
                self.report.add(UNREADABLE, self.split.name_of(row))
            return self._video(self._spare(row, number, place, used, error), number, place, view, used)
        return frames, view(draw)

    def _spare(self, row: int, number: int, place: int, used: set[int], error: UnreadableVideoError) -> int:
        """Another video of the row's class that the episode does not have yet."""
        left = [each for each in self.sampler.rows[self.split.labels[row]].tolist() if each not in used]
        if not left:
            raise UnreadableVideoError(f"{error} No other video of its class is left for the episode.") from error
        spare = left[int(item_generator(self.sampler.seed, number, place, SPARE_STREAM).integers(len(left)))]
        used.add(spare)
        return spare


class EpisodeCollator:
    """Episodes to what a few-shot video model takes, several episodes in a batch.

    Args:
        processor: of the model.
        class_names: all classes of the split; their texts go along, for the support's classes and for the video-text
            loss against all of them.
    """

    def __init__(self, processor: Any, class_names: Sequence[str]):
        self.processor = processor
        texts = processor(text=processor.class_texts(class_names), return_tensors="pt")
        self.class_texts = {f"class_{name}": texts[name] for name in ("input_ids", "attention_mask")}

    def __call__(self, episodes: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        show = self.processor.image_processor.pixel_values
        batch = dict(self.class_texts)
        for side in ("support", "query"):
            batch[f"{side}_pixel_values"] = torch.stack(
                [torch.stack([show(*video) for video in episode[f"{side}_videos"]]) for episode in episodes]
            )
            labels = torch.tensor([episode[f"{side}_labels"] for episode in episodes])
            classes = torch.tensor([episode["classes"] for episode in episodes])
            batch[f"{side}_labels"] = labels
            batch[f"{side}_class_ids"] = classes.gather(1, labels)
        return batch


class FeatureEpisodes(Dataset):
    """Episodes of videos that were encoded before, for a frozen tower; numbered as in `EpisodeDataset`.

    A batch is made by `feature_episode_batch`. Frames are those that were encoded, the same in every episode.

    Args:
        features: `[V, T, D]`, from `evaluation.few_shot_video.encode_videos`.
        class_embeds: `[C, D]`, texts of all classes.
        sampler: of episodes.
        length: episodes of an epoch.
    """

    def __init__(self, features: torch.Tensor, class_embeds: torch.Tensor, sampler: EpisodeSampler, *, length: int):
        self.features, self.class_embeds, self.sampler, self.length = features, class_embeds, sampler, length
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < self.length:
            raise IndexError(f"FeatureEpisodes: expected an episode below {self.length}, got {index}")
        episode = self.sampler(int(self._epoch) * self.length + index)
        found, classes = {"class_embeds": self.class_embeds}, torch.tensor(episode.classes)
        for side in ("support", "query"):
            labels = torch.tensor(getattr(episode, f"{side}_labels"))
            found[f"{side}_features"] = self.features[getattr(episode, side)]
            found[f"{side}_labels"], found[f"{side}_class_ids"] = labels, classes[labels]
        return found


def feature_episode_batch(episodes: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A batch of `FeatureEpisodes`: what differs between episodes is stacked, class texts are the same in all."""
    batch = {name: torch.stack([episode[name] for episode in episodes]) for name in episodes[0]}
    return batch | {"class_embeds": episodes[0]["class_embeds"]}
