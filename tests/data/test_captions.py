"""Choosing and augmenting captions."""

import importlib.util
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MarianConfig, MarianMTModel, PreTrainedTokenizerFast
from transformers.utils import logging

from hf_clipplus.data import captions as captions_module
from hf_clipplus.data.captions import (
    BackTranslation,
    RandomWordDeletion,
    SentenceReordering,
    SynonymReplacement,
    select_captions,
    wordnet_synonyms,
)
from hf_clipplus.data.compose import Compose

ROW = {"caption": " raw ", "pseudo_captions": ["a", "", "b", "a", None, "c", "raw", "  ", "d"]}


def rng(seed=0):
    return np.random.default_rng(seed)


def select(row=ROW, seed=0, **options):
    return select_captions(row, generator=rng(seed), **options)


def test_all_captions_in_order_without_blanks_and_repeats():
    assert select(captions_per_image=5) == (["raw", "a", "b", "c", "d"], 3, 2)
    assert select(captions_per_image=5, use_raw_caption="replace") == (["a", "b", "c", "raw", "d"], 3, 1)


def test_more_than_k_are_sampled_without_replacement_in_order_and_evenly():
    seen = Counter()
    for seed in range(300):
        chosen = select(captions_per_image=2, seed=seed).captions
        assert chosen == select(captions_per_image=2, seed=seed).captions
        assert chosen[0] == "raw"
        assert len(set(chosen)) == 3
        assert chosen[1:] == sorted(chosen[1:])
        seen.update(chosen[1:])
    assert set(seen) == set("abcd")
    assert min(seen.values()) > 110  # 150 expected


def test_k_counts_pseudo_captions_when_the_raw_one_is_blank():
    row = {"caption": "  ", "pseudo_captions": ["a", "b", "c"]}
    assert len(select(row, captions_per_image=2).captions) == 2
    assert select(row, captions_per_image=2).blank == 1


def test_sample_one_and_raw():
    assert {select(mode="sample_one", seed=s).captions[0] for s in range(60)} == {"raw", "a", "b", "c", "d"}
    only_pseudo = {"caption": "raw", "pseudo_captions": ["a", "b"]}
    drawn = {select(only_pseudo, mode="sample_one", seed=s, use_raw_caption="replace").captions[0] for s in range(40)}
    assert drawn == {"a", "b"}
    for use in ("append", "replace"):
        assert select(mode="raw", use_raw_caption=use) == (["raw"], 0, 0)


@pytest.mark.parametrize("mode", ["all", "sample_one", "raw"])
def test_nothing_to_choose_from(mode):
    assert select({}, mode=mode) == ([], 0, 0)
    assert select({"caption": None, "pseudo_captions": None}, mode=mode) == ([], 1, 0)
    assert select({"caption": "x"}, mode="all", use_raw_caption="replace").captions == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "al"}, "sample_one"),
        ({"use_raw_caption": "keep"}, "replace"),
        ({"captions_per_image": 0}, "at least"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        select(**options)


def test_pseudo_captions_as_one_string():
    with pytest.raises(ValueError, match="load_pairs"):
        select({"pseudo_captions": "abc"})


def test_word_deletion():
    text = " ".join(f"w{i}" for i in range(1000))
    left = RandomWordDeletion(rate=0.3)(text, rng()).split()
    assert 640 < len(left) < 760
    assert left == sorted(left, key=lambda word: int(word[1:]))
    gone = {RandomWordDeletion(rate=1.0)("a red fox", rng(seed)) for seed in range(30)}
    assert gone == {"a", "red", "fox"}
    assert RandomWordDeletion(rate=1.0)("fox", rng()) == "fox"
    assert RandomWordDeletion(rate=1.0)("", rng()) == ""
    assert RandomWordDeletion(rate=1.0, p=0.0)("a fox", rng()) == "a fox"


def test_sentence_reordering():
    orders = {SentenceReordering()("One 1.5 m tall. Two! Three?", rng(seed)) for seed in range(40)}
    assert len(orders) == 6
    assert "Three? One 1.5 m tall. Two!" in orders
    assert SentenceReordering()("一匹の犬。二匹の猫。", rng(1)) in {"一匹の犬。 二匹の猫。", "二匹の猫。 一匹の犬。"}
    assert SentenceReordering()("no full stop", rng()) == "no full stop"
    assert SentenceReordering(p=0.0)("A. B.", rng(3)) == "A. B."


def test_synonyms_from_a_dict_or_a_function():
    table = {"dog": ["hound", "cur"]}
    always = SynonymReplacement(table, rate=1.0)
    assert {always('A big "Dog", running', rng(s)) for s in range(20)} == {
        'A big "Hound", running',
        'A big "Cur", running',
    }
    assert SynonymReplacement(lambda word: table.get(word, []), rate=1.0)("dog ...", rng()) in {"hound ...", "cur ..."}
    assert SynonymReplacement(table, rate=0.0)("dog", rng()) == "dog"
    assert SynonymReplacement(table, rate=1.0, p=0.0)("dog", rng()) == "dog"
    replaced = SynonymReplacement(table, rate=0.2)("dog " * 1000, rng()).split().count("dog")
    assert 740 < replaced < 860


def test_wordnet():
    """With NLTK and its data the synonyms are real ones; without, the error says what to run."""
    captions_module._wordnet_lookup.cache_clear()
    try:
        synonyms = wordnet_synonyms()
    except (ImportError, LookupError) as error:
        problem = error
    else:
        assert "domestic dog" in synonyms("dog")
        assert synonyms("dogs") == synonyms("are") == synonyms("qwxz") == ()
        return
    assert "python -m nltk.downloader wordnet" in str(problem)
    assert isinstance(problem, LookupError) == (importlib.util.find_spec("nltk") is not None)


def test_augmentations_compose_reproducibly_and_pickle():
    chain = Compose((SentenceReordering(), RandomWordDeletion(rate=0.2), SynonymReplacement({"w3": ["x"]}, rate=1.0)))
    text = "w1 w2 w3 w4. w5 w6 w3. w8 w9."
    results = [chain(text, rng(seed)) for seed in range(10)]
    assert results == [pickle.loads(pickle.dumps(chain))(text, rng(seed)) for seed in range(10)]
    assert len(set(results)) == 10


@pytest.fixture(scope="module")
def translators(tmp_path_factory):
    words = ["<pad>", "</s>", "<unk>", "deu", "eng", *(f"w{i}" for i in range(40))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=12
    )
    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = MarianConfig(
            vocab_size=len(words),
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            max_position_embeddings=12,
            pad_token_id=0,
            eos_token_id=1,
            forced_eos_token_id=1,
            decoder_start_token_id=0,
            init_std=1.0,
        )
        model = MarianMTModel(config)
        model.generation_config.max_length = 8
        folder = tmp_path_factory.mktemp(f"marian{seed}")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders.append(str(folder))
    return folders


def test_back_translation_runs_both_models_once_and_caches(translators, tmp_path):
    texts = ["w1 w2 w3", "w4 w5", "w1 w2 w3", "w6 w7 w8 w9"]
    first = BackTranslation(*translators, tmp_path / "cache", batch_size=2)
    result = first.translate(texts)
    assert len(result) == 4
    assert result[0] == result[2] != texts[0]
    there = first._run(translators[0], None, texts)
    assert there != texts
    assert first._run(translators[1], None, there) == result

    again = pickle.loads(pickle.dumps(first))
    assert again.translate(texts[::-1]) == result[::-1]
    assert again._models == {}  # everything came from the file
    assert again(texts[1], rng()) == result[1]
    assert BackTranslation(*translators, tmp_path / "cache", p=0.0)("w1", rng()) == "w1"

    swapped = BackTranslation(*translators[::-1], tmp_path / "cache")  # another pair does not read these results
    swapped.translate(texts[:1])
    assert len(swapped._models) == 2


def test_back_translation_leaves_what_a_model_cannot_hold(translators, tmp_path, caplog):
    long = " ".join(["w1"] * 30)
    logging.enable_propagation()
    result = BackTranslation(*translators, tmp_path).translate([long, "w1 w2"])
    logging.disable_propagation()
    assert "1 captions are longer than the 12 tokens" in caplog.text
    assert result[0] == long
    assert result[1] == BackTranslation(*translators, tmp_path / "other").translate(["w1 w2"])[0]


def test_back_translation_with_language_codes(translators, tmp_path):
    coded = BackTranslation(*translators, tmp_path, languages=("eng", "deu"))
    assert coded._run(*coded.directions[0], ["w1 w2"])[0].startswith("deu")
    assert coded._run(*coded.directions[1], ["w1 w2"])[0].startswith("eng")
    with pytest.raises(ValueError, match="fra"):
        BackTranslation(*translators, tmp_path, languages=("eng", "fra")).translate(["w3"])
