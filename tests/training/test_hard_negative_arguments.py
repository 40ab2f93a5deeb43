"""Hard negatives by the arguments of the training scripts: who takes them, who refuses, and what wrong ones say."""

import sys

import numpy as np
import pytest

from hf_clipplus.data.clipart_scenes import SceneWorld
from hf_clipplus.data.collators import contrastive_report
from hf_clipplus.data.hard_negatives import KINDS
from hf_clipplus.data.sub_captions import SubCaptions
from hf_clipplus.models.dreamlip import DreamLIPModel, DreamLIPProcessor
from hf_clipplus.training import groupvit_build, long_caption_build, parse_arguments
from hf_clipplus.training.arguments import PairDataArguments
from hf_clipplus.training.build import hard_negatives_of
from hf_clipplus.training.scratch import build_from_nothing, train_tokenizer


def test_arguments():
    (none,) = parse_arguments((PairDataArguments,), "A test.", [])
    assert hard_negatives_of(none) is None
    argv = ["--hard_negatives", "2", "--hard_negative_kinds", "colour", "count"]
    hard = hard_negatives_of(*parse_arguments((PairDataArguments,), "A test.", argv))
    assert (hard.number, hard.kinds) == (2, ("colour", "count"))
    assert hard_negatives_of(PairDataArguments(hard_negatives=1)).kinds == KINDS
    with pytest.raises(ValueError, match=r"\['size'\] are unknown: choose among"):
        hard_negatives_of(PairDataArguments(hard_negatives=1, hard_negative_kinds=["size"]))


def test_texts_without_a_parser_stop(monkeypatch):
    for name in ("spacy", "nltk"):
        monkeypatch.setitem(sys.modules, name, None)
    hard = hard_negatives_of(PairDataArguments(hard_negatives=1))
    with pytest.raises(ImportError, match="neither spaCy nor NLTK can parse here"):
        hard({"caption": "a cat"}, ["a cat"], np.random.default_rng(0))


def test_dreamlip_trains_with_false_captions_of_scenes():
    world = SceneWorld("train", image_size=48, length=3)
    rows = [world[number] | {"index": number, "epoch": 0} for number in range(3)]
    texts = [sentence for row in rows for sentence in row["sentences"]]
    tokenizer = train_tokenizer(texts, vocab_size=700, context=32)
    model, processor = build_from_nothing(DreamLIPModel, DreamLIPProcessor, "scene", tokenizer)
    report = contrastive_report()
    data = PairDataArguments(hard_negatives=2)
    collator = long_caption_build.build_collator(
        processor, data, SubCaptions(captions_per_image=4), seed=0, report=report
    )
    batch = collator(rows)
    batch.pop("example_index")
    assert (batch["caption_owner"] == -1).sum() == 6 - report.counts()["missing hard negative"] > 0
    assert model(**batch).loss.isfinite()


def test_groupvit_refuses():
    data = PairDataArguments(hard_negatives=1)
    with pytest.raises(ValueError, match="GroupViT takes no hard negatives: its text projector normalises over"):
        groupvit_build.build_collator(None, groupvit_build.GroupViTModelArguments(), data, seed=0, report=None)
