"""Episodes of videos: drawn from the seed and their number alone, read with counted replacements, batched."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from hf_clipplus.data.episodes import UNREADABLE, EpisodeCollator, EpisodeDataset, EpisodeSampler
from hf_clipplus.data.few_shot_videos import (
    CLASS_TABLE,
    CLIP_FAMILIES,
    VideoSplit,
    embedded_clips,
    open_video_split,
    published_class_names,
    read_class_folders,
    read_split_list,
)
from hf_clipplus.data.report import DataReport
from hf_clipplus.data.video_views import CROP_ONLY, KINETICS_QUERIES, ViewSampler
from hf_clipplus.models.clip_fsar import CLIPFSARProcessor
from hf_clipplus.models.processing_few_shot_video import clean_class_name
from hf_clipplus.models.video_frames import UnreadableVideoError
from hf_clipplus.models.video_processing import VideoFrameProcessor

LABELS = [label for label in range(6) for _ in range(5 + label)]


def grey_split(classes=4, per_class=5):
    """Videos whose grey level is their row number."""
    labels = [label for label in range(classes) for _ in range(per_class)]
    videos = [np.full((12, 10, 10, 3), 5 * row, np.uint8) for row in range(len(labels))]
    return VideoSplit([f"class {label}" for label in range(classes)], videos, labels)


# which videos


def test_an_episode_has_distinct_videos_of_its_classes():
    sampler = EpisodeSampler(LABELS, way=4, shots=2, queries=3, seed=7)
    for number in range(50):
        episode = sampler(number)
        assert len(set(episode.classes)) == 4
        rows = episode.support + episode.query
        assert len(set(rows)) == len(rows) == 4 * 5
        for side, each in (("support", 2), ("query", 3)):
            labels = getattr(episode, f"{side}_labels")
            assert sorted(labels) == sorted(list(range(4)) * each)
            assert [episode.classes[label] for label in labels] == [LABELS[row] for row in getattr(episode, side)]


def test_an_episode_depends_on_seed_and_number_alone():
    sampler, again = (EpisodeSampler(LABELS, way=3, shots=1, queries=1, seed=7) for _ in range(2))
    forwards = [sampler(number) for number in range(20)]
    assert [again(number) for number in reversed(range(20))][::-1] == forwards
    assert len({str(episode) for episode in forwards}) > 15
    assert EpisodeSampler(LABELS, way=3, shots=1, queries=1, seed=8)(0) != forwards[0]


def test_all_classes_and_videos_are_drawn_alike():
    sampler = EpisodeSampler(LABELS, way=2, shots=1, queries=1, seed=0)
    rows = [row for number in range(3000) for row in _rows(sampler(number))]
    classes = np.bincount([LABELS[row] for row in rows]) / len(rows)
    np.testing.assert_allclose(classes, 1 / 6, atol=0.02)
    assert set(rows) == set(range(len(LABELS)))


def _rows(episode):
    return episode.support + episode.query


def test_groups_keep_an_episode_in_one_group():
    sampler = EpisodeSampler(LABELS, way=2, shots=1, queries=1, groups=[[0, 1, 2], [4, 5]])
    seen = {tuple(sorted(sampler(number).classes)) for number in range(100)}
    assert seen == {(0, 1), (0, 2), (1, 2), (4, 5)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"way": 7}, "7-way episodes need 7 classes, got 6"),
        ({"way": 5, "shots": 5}, r"need 6 videos of a class; .*\{0: 5\}"),
        ({"way": 1}, "expected way >= 2"),
        ({"way": 3, "groups": [[0, 1]]}, "3-way episodes need 3 classes, got 2"),
    ],
)
def test_impossible_episodes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EpisodeSampler(LABELS, **options)


# their frames


def dataset(split, length=6, **options):
    sampler = EpisodeSampler(split.labels, way=3, shots=1, queries=1, seed=3)
    return EpisodeDataset(split, sampler, length=length, num_frames=4, **options)


def test_an_episode_brings_its_own_videos_and_another_epoch_others():
    split = grey_split()
    episodes = dataset(split)
    first = [episodes[number] for number in range(6)]
    for number, found in enumerate(first):
        drawn = episodes.sampler(number)
        levels = [int(frames[0, 0, 0, 0]) // 5 for frames, _ in found["support_videos"]]
        assert levels == drawn.support
        assert found["support_videos"][0][0].shape == (4, 10, 10, 3)
    episodes.set_epoch(1)
    assert [episodes[number]["number"] for number in range(6)] == list(range(6, 12))
    assert episodes[0]["classes"] == episodes.sampler(6).classes
    with pytest.raises(IndexError):
        episodes[6]


def test_frames_and_views_repeat_for_the_same_episode_and_differ_between_videos():
    ramp = np.arange(80, dtype=np.uint8)[:, None, None, None].repeat(6, 1).repeat(6, 2).repeat(3, 3)
    split = VideoSplit(["a", "b", "c"], [ramp] * 9, [0, 1, 2] * 3)
    one, two = dataset(split)[2], dataset(split)[2]
    frames = [tuple(video[:, 0, 0, 0]) for video, _ in one["support_videos"] + one["query_videos"]]
    assert frames == [tuple(video[:, 0, 0, 0]) for video, _ in two["support_videos"] + two["query_videos"]]
    assert len(set(frames)) > 3
    views = [view for _, view in one["support_videos"] + one["query_videos"]]
    assert len({view.place for view in views}) == len(views)


def test_views_of_kinetics_are_for_queries_and_crops_for_all():
    draw = np.random.default_rng(0)
    plain = [CROP_ONLY(draw) for _ in range(50)]
    assert not any(view.mirror or view.grey or view.colour for view in plain)
    strong = [KINETICS_QUERIES(draw) for _ in range(400)]
    assert 0.4 < np.mean([view.mirror for view in strong]) < 0.6
    assert 0.2 < np.mean([view.grey for view in strong]) < 0.4
    changes = [dict(view.colour) for view in strong]
    assert all(0.5 <= change["contrast"] <= 1.5 and abs(change["hue"]) <= 0.25 for change in changes)
    assert len({tuple(kind for kind, _ in view.colour) for view in strong}) == 24
    assert ViewSampler(mirror=1.0)(draw).mirror


def test_a_broken_video_is_an_error_that_names_it_or_a_counted_replacement(tmp_path):
    split = grey_split(classes=3)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"")
    split.videos[1] = str(bad)
    with pytest.raises(UnreadableVideoError, match=r"bad\.mp4 is an empty file"):
        list(dataset(split, length=20))
    report = DataReport([UNREADABLE])
    found = [dataset(split, length=20, on_bad_video="replace", report=report)[number] for number in range(20)]
    drawn = [dataset(split).sampler(number) for number in range(20)]
    hit = sum(1 in episode.support + episode.query for episode in drawn)
    assert report.counts() == {UNREADABLE: hit}
    assert report.names(UNREADABLE) == [str(bad)]
    for episode, shown in zip(drawn, found, strict=True):
        videos = shown["support_videos"] + shown["query_videos"]
        rows = [int(frames[0, 0, 0, 0]) // 5 for frames, _ in videos]
        assert len(set(rows)) == 6
        assert [split.labels[row] for row in rows] == [split.labels[r] for r in episode.support + episode.query]


def test_a_class_without_readable_videos_is_an_error(tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"")
    split = VideoSplit(["a", "b", "c"], [str(bad)] * 6, [0, 1, 2] * 2)
    with pytest.raises(UnreadableVideoError, match="No other video of its class is left"):
        dataset(split, on_bad_video="replace")[0]
    with pytest.raises(ValueError, match="'raise' or 'replace'"):
        dataset(split, on_bad_video="ignore")


def test_a_batch_of_episodes():
    split = grey_split()
    tokenizer = CLIPTokenizer().train_new_from_iterator(["a photo of class 0 1 2 3"] * 4, 400)
    processor = CLIPFSARProcessor(VideoFrameProcessor(resize=10, crop=8, num_frames=4), tokenizer)
    rows = [dataset(split)[number] for number in range(2)]
    batch = EpisodeCollator(processor, split.class_names)(rows)
    assert batch["support_pixel_values"].shape == batch["query_pixel_values"].shape == (2, 3, 4, 3, 8, 8)
    assert batch["class_input_ids"].shape == batch["class_attention_mask"].shape
    assert len(batch["class_input_ids"]) == 4
    for number, row in enumerate(rows):
        assert batch["query_labels"][number].tolist() == row["query_labels"]
        ids = batch["query_class_ids"][number].tolist()
        assert ids == [row["classes"][label] for label in row["query_labels"]]


# where videos come from


def test_both_published_list_formats_are_read(tmp_path):
    (tmp_path / "videos" / "b").mkdir(parents=True)
    (tmp_path / "videos" / "171.webm").write_bytes(b"x")
    numbered = tmp_path / "train.txt"
    numbered.write_text("train1//b/one.avi\ntrain0//a/two.avi\n\ntrain1/171\n")
    found = read_split_list(numbered, tmp_path / "videos", class_names=["aa", "bb"])
    assert found.labels == [1, 0, 1]
    assert [Path(video).name for video in found.videos] == ["one.avi", "two.avi", "171.webm"]
    assert found.name_of(0).endswith("b/one.avi")
    named = tmp_path / "test.txt"
    named.write_text("10/v1\n2/v2\n2/v3\n")
    found = read_split_list(named, tmp_path)
    assert found.class_names == ["2", "10"]
    assert found.labels == [1, 0, 0]
    assert read_split_list(named, tmp_path, class_names=["two", "ten"]).class_names == ["two", "ten"]


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("", None, "no line of a split list"),
        ("train1//a/b.avi\nclass/video\n", ["x", "y"], "'class/video' does not fit"),
        ("justaname\n", None, "'justaname' does not fit"),
        ("train1//a/b.avi\n", None, "give class_names"),
        ("train3//a/b.avi\n", ["x", "y"], "not among the 2 classes"),
        ("a/1\nb/2\n", ["x"], "2 classes, class_names 1"),
        ("a/1\nb/2\n", ["x", "x"], "there twice"),
    ],
)
def test_bad_lists_are_refused(tmp_path, text, names, message):
    file = tmp_path / "train.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_split_list(file, tmp_path, class_names=names)


def test_folders_and_lists_are_found_by_split(tmp_path):
    for split, name in (("train", "run"), ("train", "jump"), ("val", "sit")):
        (tmp_path / split / name).mkdir(parents=True)
        (tmp_path / split / name / "1.mp4").write_bytes(b"x")
        (tmp_path / split / name / "frames").mkdir()
    found = open_video_split(str(tmp_path), "train")
    assert found.class_names == ["jump", "run"]
    assert found.labels == [0, 0, 1, 1]
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "test.txt").write_text("test2//kick/a.avi\n")
    assert open_video_split(str(tmp_path), "test", dataset="hmdb51").class_names[2] == "kick ball"
    with pytest.raises(ValueError, match="no folder other/"):
        open_video_split(str(tmp_path), "other")
    with pytest.raises(ValueError, match="expected folders <class>/<video>"):
        read_class_folders(tmp_path / "nothing")


def test_class_names_of_published_splits():
    table = json.loads(CLASS_TABLE.read_text())["splits"]
    counts = {name: tuple(len(splits[split]) for split in ("train", "val", "test")) for name, splits in table.items()}
    expected = {"ssv2_small": (64, 12, 24), "ssv2_full": (64, 12, 24), "kinetics100": (64, 12, 24)}
    assert counts == expected | {"ucf101": (70, 10, 21), "hmdb51": (31, 10, 10)}
    with pytest.raises(ValueError, match="no class names of 'kinetics'"):
        published_class_names("kinetics", "train")
    assert clean_class_name("Pouring [something] into [something]") == "Pouring something into something"
    assert clean_class_name("draw_sword") == "draw sword"
    assert clean_class_name("YoYo") == "Yo Yo"


def test_embedded_clips_share_no_action_and_differ_in_order_only_within_a_family():
    splits = {split: embedded_clips(split, per_class=2, image_size=24) for split in CLIP_FAMILIES}
    names = [name for split in splits.values() for name in split.class_names]
    assert len(names) == len(set(names)) == 48
    test = splits["test"]
    assert len(test) == 28
    assert test.videos[0].shape == (8, 24, 24, 3)
    assert np.array_equal(test.videos[0], test.videos[0])
    rise, fall = test.class_names.index("rises"), test.class_names.index("falls")
    assert any({rise, fall} <= set(group) for group in test.groups)
    with pytest.raises(ValueError, match="'training' of the embedded clips is unknown"):
        embedded_clips("training")


def test_labels_fit_their_videos():
    with pytest.raises(ValueError, match="1 videos but 2 labels"):
        VideoSplit(["a", "b"], ["x"], [0, 1])
    assert torch.tensor(grey_split().labels).bincount().tolist() == [5] * 4
