"""Few-shot video recognition: N-way K-shot accuracy over many random episodes on features that are encoded once.

Use:
    evaluate = FewShotVideoEvaluation(embedded_clips("test"), way=5, shots=1, episodes=10_000)
    print(evaluate(model, processor))
    print(evaluate.confusion.worst_pairs(evaluate.split.class_names))

Exact: a query depends on its video alone, and a support on its video and its class text, so nothing changes but the
time. Where the tower itself sees the text of a support video (MA-CLIP), every video is encoded twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_clipplus.data.episodes import EpisodeSampler, VideoEpisode
from hf_clipplus.data.few_shot_videos import VideoSplit
from hf_clipplus.data.seeding import item_generator
from hf_clipplus.evaluation.confusion import ConfusionMatrix
from hf_clipplus.models.evaluation_mode import evaluation_mode
from hf_clipplus.models.few_shot_video import FewShotVideoModel
from hf_clipplus.models.video_frames import frame_sampler, load_frames

FRAME_RULES = ("centre", "random")
FRAME_STREAM, DRAW_STREAM = 91, 92
EPISODES_AT_A_TIME = 50  # few enough for a processor's cache: a quarter faster than 250
VIDEOS_AT_A_TIME = 256


@torch.no_grad()
def encode_videos(
    model: FewShotVideoModel,
    processor: Any,
    split: VideoSplit,
    *,
    draws: int = 0,
    seed: int = 0,
    batch_size: int = 16,
    text_embeds: Tensor | None = None,
) -> Tensor:
    """Frame features of every video, `[draws or 1, V, T, D]` on the CPU.

    Args:
        model, processor: see `FewShotVideoModel`.
        split: the videos.
        draws: how often random frames of each video are taken; 0 takes the same frames always.
        seed: of the random frames; draw d of video v depends on (seed, d, v).
        batch_size: videos in one pass of the tower.
        text_embeds: `[C, D]` class texts for a tower that sees them (`model.text_in_tower`): each video is then
            encoded as a support video of its class. None encodes queries.

    Raises:
        UnreadableVideoError: names the video.
    """
    frames_processor, weight = processor.image_processor, model.text_projection.weight
    rule, wanted = frames_processor.frame_sampling, frames_processor.num_frames
    passes, texts = [], None
    if text_embeds is not None:
        texts = text_embeds.to(weight.device, weight.dtype)[torch.as_tensor(split.labels, device=weight.device)]
    with evaluation_mode(model):
        for draw in range(max(draws, 1)):
            parts = []
            for start in range(0, len(split), batch_size):
                clips = []
                for row in range(start, min(start + batch_size, len(split))):
                    generator = item_generator(seed, draw, row, FRAME_STREAM) if draws else None
                    sample = frame_sampler(rule, wanted, generator)
                    frames = load_frames(split.videos[row], sample, name=split.name_of(row))
                    clips.append(frames_processor.pixel_values(frames))
                pixels = torch.stack(clips).to(weight.device, weight.dtype)
                seen = {} if texts is None else {"text_embeds": texts[start : start + batch_size]}
                parts.append(model.frame_features(pixels, **seen).float().cpu())
            passes.append(torch.cat(parts))
    return torch.stack(passes)


@torch.no_grad()
def encode_class_names(model: FewShotVideoModel, processor: Any, class_names: Sequence[str]) -> Tensor:
    """Features of the class texts, `[C, D]` float32 on the CPU."""
    texts = processor(text=processor.class_texts(class_names), return_tensors="pt").to(model.device)
    with evaluation_mode(model):
        return model.encode_classes(texts["input_ids"], texts["attention_mask"]).float().cpu()


def encode_split(
    model: FewShotVideoModel, processor: Any, split: VideoSplit, **options: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All that episodes of a split need: features of the videos, of the class texts, and of the videos as supports.

    Args:
        model, processor, split: see `encode_videos`; options: its others.

    Returns:
        `features`, `text_embeds`, and `support_features` where the tower sees texts, else None.
    """
    texts = encode_class_names(model, processor, split.class_names)
    features = encode_videos(model, processor, split, **options)
    supports = encode_videos(model, processor, split, text_embeds=texts, **options) if model.text_in_tower else None
    return features, texts, supports


@torch.no_grad()
def predict_episodes(
    model: FewShotVideoModel,
    features: Tensor,
    text_embeds: Tensor,
    labels: Sequence[int],
    episodes: Sequence[VideoEpisode],
    *,
    support_features: Tensor | None = None,
    mode: str | None = None,
    seed: int = 0,
) -> Tensor:
    """Predicted labels `[episodes, Q]` of episodes of equal size.

    What depends on one video alone is computed once per video; prototypes of several shots, where the model averages
    before its temporal module, once per episode, many episodes at a time.

    Args:
        model: in any mode; left as it is.
        features: `[R, V, T, D]` from `encode_videos`; with several draws each occurrence of a video takes one.
        text_embeds: `[C, D]`; labels: class id of each video.
        episodes: see `EpisodeSampler`.
        support_features: the same of `encode_videos` with class texts; None takes `features`.
        mode: of inference; None takes the model's.
        seed: of the draws.
    """
    draws, videos = features.shape[:2]
    weight = model.text_projection.weight
    rows = features.flatten(0, 1).to(weight.device, weight.dtype)  # [R V, T, D]
    text = text_embeds.to(weight.device, weight.dtype)
    seen = rows if support_features is None else support_features.flatten(0, 1).to(weight.device, weight.dtype)
    own_text = text[torch.as_tensor(labels, device=text.device)].repeat(draws, 1)
    way = len(episodes[0].classes)
    shots = len(episodes[0].support) // way
    found = []
    with evaluation_mode(model):
        queries = torch.cat([model.represent_queries(part) for part in rows.split(VIDEOS_AT_A_TIME)])
        pairs = zip(seen.split(VIDEOS_AT_A_TIME), own_text.split(VIDEOS_AT_A_TIME), strict=True)
        supports = torch.cat([model.represent_supports(part, own, shots=shots) for part, own in pairs])
        means = rows.mean(-2)
        for start in range(0, len(episodes), EPISODES_AT_A_TIME):
            some = episodes[start : start + EPISODES_AT_A_TIME]
            support, query, support_labels, classes = (
                torch.tensor([getattr(episode, name) for episode in some], device=rows.device)
                for name in ("support", "query", "support_labels", "classes")
            )
            if draws > 1:
                support, query = _with_draws(support, query, videos, draws, seed, start)
            class_text = text[classes]
            prototypes = model.build_prototypes(supports[support], support_labels, class_text, way, shots=shots)
            rows_of = model.prototype_labels(support_labels, way)
            logits = model.score(
                queries[query], prototypes, rows_of, query_means=means[query], text_embeds=class_text, mode=mode
            )
            found.append(logits.argmax(-1).cpu())
    return torch.cat(found)


def _with_draws(support: Tensor, query: Tensor, videos: int, draws: int, seed: int, start: int) -> tuple:
    """The rows of a random draw of each occurrence of a video; episode i depends on (seed, i) alone."""
    own, asked = support.shape[1], query.shape[1]
    generators = (item_generator(seed, 0, start + number, DRAW_STREAM) for number in range(len(support)))
    chosen = torch.stack([torch.from_numpy(each.integers(draws, size=own + asked)) for each in generators])
    return tuple(
        rows + videos * picked.to(rows)
        for rows, picked in zip((support, query), chosen.split([own, asked], 1), strict=True)
    )


@dataclass
class EpisodeConfusion:
    """How often queries of each class were taken for each class.

    Args:
        matrix: counts, true class by row; `matrix.accuracy_per_class()`.
        offered: `[C, C]`, how often a query of the row's class had the column's class in its episode.
    """

    matrix: ConfusionMatrix
    offered: Tensor

    def worst_pairs(self, class_names: Sequence[str], top: int = 10) -> list[tuple[str, str, float]]:
        """(true, predicted, share of the episodes in which both were there), most confused first."""
        shares = (self.matrix.counts / self.offered.clamp_min(1)).fill_diagonal_(0)
        worst, places = shares.flatten().topk(min(top, shares.numel()))
        pairs = zip(worst.tolist(), places.tolist(), strict=True)
        count = len(shares)
        return [
            (class_names[place // count], class_names[place % count], share) for share, place in pairs if share > 0
        ]


@dataclass
class FewShotVideoEvaluation:
    """N-way K-shot accuracy; an evaluator of `EpisodicTrainer`.

    Args:
        split: videos of classes unseen in training.
        way, shots, queries: of an episode; published 5, 1 or 5, 1.
        episodes: published 10,000.
        seed: of the episodes (and of random frames).
        mode: of inference; None takes the model's.
        frames: "centre" (the same frames always), or "random" as in the published tests.
        draws: random takes of each video that occurrences choose from; the published code takes a new one each time.
        same_group: whether the classes of an episode differ only in the order of frames, see `VideoSplit.groups`.
        batch_size: videos in one pass of the tower.
        name: of the evaluator in a log.

    After a call, `confusion` holds what was taken for what.
    """

    split: VideoSplit
    way: int = 5
    shots: int = 1
    queries: int = 1
    episodes: int = 10_000
    seed: int = 0
    mode: str | None = None
    frames: str = "centre"
    draws: int = 4
    same_group: bool = False
    batch_size: int = 16
    name: str = "few_shot"
    confusion: EpisodeConfusion | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        if self.frames not in FRAME_RULES:
            raise ValueError(f"frames={self.frames!r}: choose one of {', '.join(FRAME_RULES)}.")
        if self.same_group and not self.split.groups:
            raise ValueError(
                "same_group=True, but the split knows no classes that differ only in the order of frames."
            )
        self.sampler = EpisodeSampler(
            self.split.labels,
            way=self.way,
            shots=self.shots,
            queries=self.queries,
            seed=self.seed,
            groups=self.split.groups if self.same_group else None,
        )

    def __call__(self, model: FewShotVideoModel, processor: Any) -> dict[str, float]:
        """`accuracy` (mean over episodes), `interval` (1.96 standard errors), `chance_accuracy`, `episodes`."""
        draws = self.draws if self.frames == "random" else 0
        options = {"draws": draws, "seed": self.seed, "batch_size": self.batch_size}
        return self.score(model, *encode_split(model, processor, self.split, **options))

    def score(
        self, model: FewShotVideoModel, features: Tensor, text_embeds: Tensor, support_features: Tensor | None = None
    ) -> dict[str, float]:
        """The same from features that are there already, see `encode_split`."""
        episodes = [self.sampler(number) for number in range(self.episodes)]
        options = {"support_features": support_features, "mode": self.mode, "seed": self.seed}
        predicted = predict_episodes(model, features, text_embeds, self.split.labels, episodes, **options)
        truth = torch.tensor([episode.query_labels for episode in episodes])
        classes = torch.tensor([episode.classes for episode in episodes])
        self.confusion = _confusion(classes, truth, predicted, len(self.split.class_names))
        accuracies = (predicted == truth).double().mean(1)
        spread = accuracies.std().item() if len(accuracies) > 1 else 0.0
        return {
            "accuracy": accuracies.mean().item(),
            "interval": 1.96 * spread / len(accuracies) ** 0.5,
            "chance_accuracy": 1 / self.way,
            "episodes": self.episodes,
        }


def _confusion(classes: Tensor, truth: Tensor, predicted: Tensor, count: int) -> EpisodeConfusion:
    asked = classes.gather(1, truth)  # [E, Q] class ids
    matrix = ConfusionMatrix(count, ignored=-1)
    matrix.update(classes.gather(1, predicted), asked)
    pairs = (asked[:, :, None] * count + classes[:, None, :]).flatten()
    return EpisodeConfusion(matrix, torch.bincount(pairs, minlength=count**2).view(count, count))
