"""Noun prompts: what may be chosen, the draw, and the collator that makes them."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer

from hf_clipplus import GroupViTPlusProcessor
from hf_clipplus.data.nouns import TEMPLATES, NounPromptCollator, noun_prompts, selectable_words
from hf_clipplus.data.scene_pairs import ScenePairs

TAGGED = [("big", "JJ"), ("dogs", "NNS"), ("chase", "VBP"), ("a", "DT"), ("red", "JJ"), ("ball", "NN")]


@pytest.fixture(scope="module")
def processor():
    texts = [template.replace("{}", "dog ball red chase cat") for template in TEMPLATES]
    tokenizer = CLIPTokenizer().train_new_from_iterator(texts, 600, show_progress=False)
    tokenizer.model_max_length = 32
    return GroupViTPlusProcessor.from_tokenizer(tokenizer, image_size=16)


def test_kinds_of_words():
    assert selectable_words(TAGGED) == ["dogs", "chase", "ball"]
    assert selectable_words(TAGGED, "nouns") == ["dogs", "ball"]
    assert selectable_words(TAGGED, "noun_phrases") == ["big dogs", "red ball"]
    assert selectable_words([("red", "JJ"), ("dog", "NN"), ("old", "JJ")], "noun_phrases") == ["red dog"]
    with pytest.raises(ValueError, match="'adverbs'"):
        selectable_words(TAGGED, "adverbs")


def test_draw_is_uniform_over_places_and_templates():
    generator = np.random.default_rng(0)
    words, counts, used = ["cat", "cat", "dog", "sun"], {}, set()
    for _ in range(1500):
        made = noun_prompts("x", words, 2, generator)
        assert len(made) == 2
        for prompt in made:
            word = prompt.rstrip(".").split()
            found = [each for each in ("cat", "dog", "sun") if each in word]
            counts[found[0]] = counts.get(found[0], 0) + 1
            used.add(prompt.replace(found[0], "{}"))
    assert used == set(TEMPLATES)
    assert counts["cat"] / 3000 == pytest.approx(1 / 2, abs=0.04)
    assert counts["sun"] / 3000 == pytest.approx(1 / 4, abs=0.04)
    assert noun_prompts("a caption", ["cat"], 3, generator)[1:] == ["a caption"] * 2
    assert noun_prompts("a caption", [], 2, generator) == ["a caption"] * 2


def rows(**columns):
    picture = Image.new("RGB", (20, 30), "red")
    return [
        {"image": picture, "caption": "big dogs chase a red ball", "index": i, "epoch": 0, **columns} for i in (0, 1)
    ]


def test_collator_makes_a_caption_and_prompts(processor):
    collator = NounPromptCollator(processor, prompts=3, tagger=lambda caption: TAGGED)
    batch = collator(rows())
    assert batch["input_ids"].shape[:2] == (2, 4)
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    again = collator(rows())
    assert torch.equal(batch["input_ids"], again["input_ids"])
    later = collator([row | {"epoch": 1} for row in rows()])
    assert batch["input_ids"].shape != later["input_ids"].shape or not batch["input_ids"].equal(later["input_ids"])
    captions = batch["input_ids"][:, 0]
    assert torch.equal(captions[0], captions[1])
    assert not torch.equal(batch["input_ids"][0, 1:], batch["input_ids"][1, 1:])


def test_where_words_come_from(processor):
    def decoded(**columns):
        batch = NounPromptCollator(processor, prompts=1, templates=("the {}.",))(rows(**columns))
        return processor.tokenizer.decode(batch["input_ids"][0, 1], skip_special_tokens=True)

    assert "ball" in decoded(nouns=["ball", " "])
    assert "chase" in decoded(tags=[["chase", "VB"], ["red", "JJ"]], nouns=None)
    with pytest.raises(ValueError, match="neither `nouns` nor `tags`"):
        decoded()
    with pytest.raises(ValueError, match="one caption per image"):
        NounPromptCollator(processor, mode="all")
    flat = NounPromptCollator(processor, prompts=0)(rows())
    assert flat["input_ids"].ndim == 2


def test_scene_pairs_tell_what_is_there_and_no_masks():
    from hf_clipplus.data.clipart_scenes import SceneWorld

    world = SceneWorld("validation", image_size=64, length=4)
    pairs = ScenePairs(world)
    row = pairs[2]
    background = f"{world[2]['background']} background"
    assert row["nouns"] == [*world[2]["class_names"], background]
    assert row["caption"].endswith(f" {background}.")
    assert row["caption"].startswith("A picture of")
    assert "mask" not in row
    pairs.set_epoch(1)
    assert pairs[2]["image_id"] != row["image_id"]
