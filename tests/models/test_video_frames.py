"""Which frames are taken, and reading them from files, folders, lists and arrays; what is refused."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from video_files import grey_levels, write_sound, write_video

from hf_clipplus.models.video_frames import (
    UnreadableVideoError,
    frame_sampler,
    is_single_video,
    kinetics_clip,
    load_frames,
    random_in_segments,
    segment_centres,
    trx_span,
)
from hf_clipplus.models.video_processing import ClipView, VideoFrameProcessor

LEVELS = [8 * i for i in range(30)]


def test_segment_centres_cover_the_video_and_repeat_frames_of_a_short_one():
    assert segment_centres(80, 8) == [5, 15, 25, 35, 45, 55, 65, 75]
    assert segment_centres(8, 8) == list(range(8))
    assert segment_centres(3, 6) == [0, 0, 1, 1, 2, 2]
    assert segment_centres(1, 4) == [0, 0, 0, 0]


def test_random_frames_stay_in_their_segments_and_depend_on_the_generator():
    draws = [random_in_segments(83, 8, np.random.default_rng(seed)) for seed in range(50)]
    assert all(i * 10 <= frame < i * 10 + 10 for drawn in draws for i, frame in enumerate(drawn))
    assert len({tuple(drawn) for drawn in draws}) == 50
    assert draws[3] == random_in_segments(83, 8, np.random.default_rng(3))
    assert random_in_segments(5, 8, np.random.default_rng(0)) == segment_centres(5, 8)


@pytest.mark.parametrize("total", [1, 5, 8, 33, 41, 300, 500])
@pytest.mark.parametrize("random", [True, False])
def test_kinetics_and_trx_rules_go_forward_inside_the_video(total, random):
    for seed in range(20):
        for rule in (
            lambda draw: kinetics_clip(total, 30.0, 8, draw),
            lambda draw: trx_span(total, 8, draw),
        ):
            found = rule(np.random.default_rng(seed) if random else None)
            assert len(found) == 8
            assert 0 <= found[0] <= found[-1] < total
            assert found == sorted(found)


def test_trx_without_a_generator_spans_the_video():
    assert trx_span(64, 8)[0] == 0
    assert trx_span(64, 8)[-1] == 63


def test_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="'segments', 'kinetics' or 'trx'"):
        frame_sampler("dense", 8)


def forms(tmp_path):
    frames = grey_levels(LEVELS)
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number:03}.png")
    pictures = [Image.fromarray(frame) for frame in frames]
    return {
        "array": frames,
        "channels first": frames.transpose(0, 3, 1, 2),
        "tensor": torch.from_numpy(frames),
        "floats": frames / 255.0,
        "pictures": pictures,
        "list of arrays": list(frames),
        "list of paths": sorted(folder.iterdir()),
        "folder": folder,
        "file": write_video(tmp_path / "video.mp4", frames),
    }


def test_every_form_gives_the_same_frames(tmp_path):
    sample = frame_sampler("segments", 6)
    expected = [LEVELS[index] for index in segment_centres(30, 6)]
    for name, video in forms(tmp_path).items():
        frames = load_frames(video, sample)
        assert frames.dtype == np.uint8
        assert frames.shape == (6, 32, 32, 3), name
        np.testing.assert_allclose(frames.mean((1, 2, 3)), expected, atol=4 if name == "file" else 0, err_msg=name)
        assert is_single_video(video), name
        assert not is_single_video([video, video]), name


def test_arrays_and_folders_need_no_decoder(tmp_path, monkeypatch):
    videos = forms(tmp_path)
    file = videos.pop("file")
    monkeypatch.setitem(sys.modules, "av", None)
    for video in videos.values():
        assert len(load_frames(video, frame_sampler("segments", 4))) == 4
    with pytest.raises(ImportError, match=r"video\.mp4 needs PyAV.*hf_clipplus\[video\]"):
        load_frames(file, frame_sampler("segments", 4))


def bad_videos(tmp_path):
    empty, broken, cut = tmp_path / "empty.mp4", tmp_path / "broken.mp4", tmp_path / "cut.mp4"
    empty.write_bytes(b"")
    broken.write_bytes(b"no video at all" * 50)
    whole = write_video(tmp_path / "whole.mp4", grey_levels(LEVELS)).read_bytes()
    cut.write_bytes(whole[: len(whole) // 3])
    (tmp_path / "nothing").mkdir()
    return {
        "empty.mp4 is an empty file": empty,
        "cannot read the video .*broken.mp4": broken,
        "cannot read the video .*cut.mp4": cut,
        "no video .*missing.mp4": tmp_path / "missing.mp4",
        "sound.mp4 has no pictures, only sound": write_sound(tmp_path / "sound.mp4"),
        "nothing has no pictures": tmp_path / "nothing",
        "has no pictures": [],
        "has no frames": np.zeros((0, 4, 4, 3), np.uint8),
        "expected frames": np.zeros((3, 4, 4, 7), np.uint8),
        "floats in 0..1": np.full((3, 4, 4, 3), 7.0),
        "frames of different sizes": [Image.new("RGB", (4, 4)), Image.new("RGB", (5, 4))],
    }


def test_bad_videos_are_errors_that_name_them(tmp_path):
    for message, video in bad_videos(tmp_path).items():
        with pytest.raises(UnreadableVideoError, match=message):
            load_frames(video, frame_sampler("segments", 2))


def test_a_file_that_promises_too_many_frames_is_sampled_by_those_it_has(tmp_path):
    path = write_video(tmp_path / "video.mp4", grey_levels(LEVELS))
    asked = []

    def sample(total, fps):
        asked.append(total)
        return [0, total - 1] if len(asked) > 1 else [0, total + 5]  # as if the header had lied

    assert len(load_frames(path, sample)) == 2
    assert asked == [30, 30]


def test_videos_of_different_lengths_and_sizes_make_a_batch():
    processor = VideoFrameProcessor(resize=20, crop=16, num_frames=4)
    videos = [grey_levels([100]), grey_levels(LEVELS, side=24), grey_levels([0, 255], side=50)]
    pixels = processor(videos, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (3, 4, 3, 16, 16)
    levels = (pixels[:, :, 0, 0, 0] * processor.image_std[0] + processor.image_mean[0]) * 255
    torch.testing.assert_close(levels[0], torch.full((4,), 100.0), rtol=0, atol=0.1)
    torch.testing.assert_close(levels[2], torch.tensor([0.0, 0.0, 255.0, 255.0]), rtol=0, atol=0.1)
    with pytest.raises(ValueError, match=r"\[1, 2, 30\] frames do not make a batch"):
        processor(videos, do_sample_frames=False, return_tensors="pt")


def test_a_view_is_the_same_for_every_frame():
    draw = np.random.default_rng(0)
    frame = draw.integers(0, 255, (24, 30, 3), dtype=np.uint8)
    processor = VideoFrameProcessor(resize=20, crop=12)
    jitter = (("hue", 0.2), ("contrast", 1.3), ("brightness", 0.8), ("saturation", 0.5))
    view = ClipView((0.0, 1.0), mirror=True, colour=jitter)
    shown = processor.pixel_values(np.stack([frame] * 3), view)
    assert torch.equal(shown[0], shown[2])
    plain = processor.pixel_values(np.stack([frame]))
    assert not torch.equal(plain[0], shown[0])
    corner = processor.pixel_values(np.stack([frame]), ClipView((0.0, 1.0)))
    assert torch.equal(processor.pixel_values(np.stack([frame]), ClipView((0.0, 1.0), mirror=True)), corner.flip(-1))


def test_colours_are_changed_as_they_are_called():
    pixels = torch.tensor([1.0, 0.5, 0.0])[None, :, None, None].expand(1, 3, 2, 2)
    processor = VideoFrameProcessor(resize=2, crop=2, image_mean=(0.0,) * 3, image_std=(1.0,) * 3)
    frames = (pixels.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()

    def shown(**view):
        return processor.pixel_values(frames, ClipView(**view))[0, :, 0, 0]

    orange = torch.tensor([1.0, 128 / 255, 0.0])
    torch.testing.assert_close(shown(), orange)
    torch.testing.assert_close(shown(colour=(("hue", 1 / 3),)), orange.roll(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(shown(colour=(("hue", -1 / 3),)), orange.roll(-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(shown(colour=(("brightness", 0.5),)), orange / 2)
    grey = shown(grey=True)
    assert grey[0] == grey[1] == grey[2]
    torch.testing.assert_close(shown(colour=(("saturation", 0.0),)), grey)
    flat = shown(colour=(("contrast", 0.0),))
    torch.testing.assert_close(flat, grey)  # one colour everywhere: its mean luma is its luma


def test_a_crop_larger_than_the_frame_is_refused():
    with pytest.raises(ValueError, match="crop=30 is larger than resize=20"):
        VideoFrameProcessor(resize=20, crop=30)
