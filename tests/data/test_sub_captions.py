"""Sub-captions: what each sampler can draw, from bad rows too, and that the collator seeds it per epoch and item."""

from itertools import chain

import numpy as np
import pytest
from PIL import Image

from hf_clipplus.data.collators import ContrastiveCollator
from hf_clipplus.data.sub_captions import LongAndShortCaption, SubCaptions

ROW = {
    "caption": "a dog",
    "shortSV_captions": "A brown dog. On grass",
    "longSV_captions": "It runs. It weighs 1.5 kg.\nThe sky is blue",
    "longIB_captions": "x. A fence stands behind it",
    "pseudo_captions": ["From elsewhere."],
}


def draws(sampler, row, count=300):
    return [sampler(row, np.random.default_rng(seed)).captions for seed in range(count)]


def test_default_begins_with_the_raw_caption_and_reaches_every_sentence():
    sampler = SubCaptions(captions_per_image=4)
    found = draws(sampler, ROW)
    assert {captions[0] for captions in found} == {"a dog"}
    assert {len(captions) for captions in found} == {4}
    assert all(len(set(captions)) == 4 for captions in found)  # without replacement
    pool = sampler.pool(ROW)
    assert pool == [
        *("x", "A fence stands behind it", "A brown dog", "On grass"),
        *("It runs", "It weighs 1", "5 kg", "The sky is blue", "From elsewhere"),
    ]
    assert set(chain.from_iterable(found)) == {"a dog", *pool}


def test_choices_of_sentences():
    assert SubCaptions(sources=["SV"], lengths=["long"], keep_decimals=True, min_chars=8).pool(ROW) == [
        "It weighs 1.5 kg",
        "The sky is blue",
        "From elsewhere",
    ]
    merged = SubCaptions(captions_per_image=3, merged_sentences=2, sources=["SV"], lengths=["long"])
    assert set(chain.from_iterable(draws(merged, ROW))) == {
        *("a dog", "It runs. It weighs 1", "It weighs 1. 5 kg", "5 kg. The sky is blue"),
        "The sky is blue. From elsewhere",
    }


def test_paper_draws_from_raw_short_and_sentences():
    row = {name: text for name, text in ROW.items() if name != "pseudo_captions"}
    found = draws(SubCaptions(captions_per_image=2, sampler="paper", sources=["SV"]), row)
    union = {"a dog", "A brown dog. On grass", "It runs", "It weighs 1", "5 kg", "The sky is blue"}
    assert set(chain.from_iterable(found)) == union
    assert not all("a dog" in captions for captions in found)


def test_released_never_draws_the_last_sentence():
    sampler = SubCaptions(captions_per_image=3, sampler="released")
    assert set(chain.from_iterable(draws(sampler, ROW))) == {"a dog", *sampler.pool(ROW)[:-1]}


@pytest.mark.parametrize("sampler", ["default", "paper"])
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"caption": "a dog", "pseudo_captions": []}, {"a dog"}),
        ({"caption": "a dog", "longSV_captions": " . \n</s>"}, {"a dog"}),
        ({"caption": "a dog", "longSV_captions": "It runs."}, {"a dog", "It runs"}),
        ({"caption": " \t", "longSV_captions": "It runs."}, {"It runs"}),
        ({"caption": None, "longSV_captions": None}, set()),
    ],
    ids=["no sentence", "only blanks", "one sentence", "no raw caption", "nothing"],
)
def test_small_pools(row, expected, sampler):
    found = draws(SubCaptions(captions_per_image=5, sampler=sampler), row)
    assert set(chain.from_iterable(found)) == expected
    assert {len(captions) for captions in found} == ({5} if expected else {0})


def test_released_names_the_way_out_of_small_pools():
    with pytest.raises(IndexError, match="use sampler='default'"):
        SubCaptions(sampler="released")({"caption": "a dog", "longSV_captions": "It runs."}, np.random.default_rng(0))


@pytest.mark.parametrize(
    "options", [{"sampler": "x"}, {"sources": ["GPT"]}, {"lengths": ["mid"]}, {"captions_per_image": 0}]
)
def test_wrong_options_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SubCaptions(**options)


def test_the_collator_seeds_by_epoch_and_item():
    seen = []

    def processor(images, text, return_tensors):
        seen.append(text)
        return {}

    collator = ContrastiveCollator(processor, choose=SubCaptions(captions_per_image=4), seed=3)
    rows = [ROW | {"image": _picture(), "index": index, "epoch": 0} for index in range(4)]
    collator(rows)
    collator(rows[2:])
    collator([row | {"epoch": 1} for row in rows])
    first, part, later = seen
    assert part == first[2:]
    assert len(set(map(tuple, first))) > 1
    assert later != first


def test_a_row_without_captions_is_counted():
    collator = ContrastiveCollator(lambda **batch: {}, choose=SubCaptions())
    collator([ROW | {"image": _picture()}, {"caption": " ", "image": _picture(), "index": 1}])
    assert collator.report.counts()["image without captions"] == 1
    assert collator.report.counts()["empty caption"] == 1


def test_long_and_short_caption():
    choose = LongAndShortCaption("long_caption")
    row = {"long_caption": "A dog runs. The sky\nis blue. 1.5 kg. "}
    assert choose(row, np.random.default_rng(0)).captions == ["A dog runs. The sky is blue. 1.5 kg.", "A dog runs"]
    assert choose({"long_caption": " \n"}, np.random.default_rng(0)) == ([], 1, 0)


def _picture():
    return Image.new("RGB", (4, 4))
