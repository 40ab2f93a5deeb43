"""The collator: what is left out and counted, what goes with which caption, and the same batch whatever the order."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessorPil, CLIPProcessor

from hf_clipplus.data.captions import RandomWordDeletion
from hf_clipplus.data.collators import UNKNOWN_ID, ContrastiveCollator, contrastive_report, text_id
from hf_clipplus.data.images import image_augmentation
from hf_clipplus.data.sources import IndexedRows, load_pairs
from hf_clipplus.models.fff import FFFProcessor
from hf_clipplus.ops.positives import positives_from_ids
from hf_clipplus.training.scratch import train_tokenizer

CONTEXT, SIDE, WIDTH = 12, 16, 4


@pytest.fixture(scope="module")
def processor():
    texts = ["a red cat on a hill", "two green boats", "one cup of tea", "the number 0 1 2 3 4 5 6 7 8 9 words"] * 3
    tokenizer = train_tokenizer(texts, vocab_size=640, context=CONTEXT)
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return FFFProcessor(images, tokenizer)


def picture(number):
    draw = np.random.default_rng(number)
    return Image.fromarray(draw.integers(0, 255, (20, 30, 3), dtype=np.uint8))


def make_row(i, **columns):
    pseudo = [f"number {i}", f"the cat {i}", f"boats of {i}"]
    return {"image": picture(i), "caption": f"a red cat {i}", "pseudo_captions": pseudo, "index": i, **columns}


def texts_of(processor, batch):
    ids = batch["input_ids"].tolist()
    return [text.strip() for text in processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def assert_same(batch, expected):
    assert batch.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(batch[key], value) if isinstance(value, torch.Tensor) else batch[key] == value, key


def test_batch_of_good_rows(processor):
    report = contrastive_report()
    batch = ContrastiveCollator(processor, report=report)([make_row(3), make_row(5)])
    assert batch["pixel_values"].shape == (2, 3, SIDE, SIDE)
    assert texts_of(processor, batch) == [
        *("a red cat 3", "number 3", "the cat 3", "boats of 3"),
        *("a red cat 5", "number 5", "the cat 5", "boats of 5"),
    ]
    assert batch["caption_owner"].tolist() == [0] * 4 + [1] * 4
    assert batch["example_index"].tolist() == [3, 5]
    assert batch["return_loss"] is True
    assert not {"image_ids", "caption_ids", "mining_image_features", "mining_text_features"} & batch.keys()
    assert report.summary() == ""


def test_unreadable_images_are_skipped_counted_and_named(processor, tmp_path):
    good = io.BytesIO()
    picture(0).save(good, "PNG")
    (tmp_path / "cut.png").write_bytes(good.getvalue()[:200])
    rows = [
        make_row(0, image={"bytes": good.getvalue(), "path": None}),
        make_row(1, image={"bytes": None, "path": str(tmp_path / "cut.png")}),
        make_row(2, image=tmp_path / "missing.png"),
        make_row(3, image=None),
        make_row(4),
    ]
    report = contrastive_report()
    batch = ContrastiveCollator(processor, report=report)(rows)
    assert batch["example_index"].tolist() == [0, 4]
    assert batch["caption_owner"].tolist() == [0] * 4 + [1] * 4
    assert texts_of(processor, batch)[4] == "a red cat 4"
    assert report.counts()["unreadable image"] == 3
    assert report.names("unreadable image") == [
        f"row 1 ({tmp_path / 'cut.png'})",
        f"row 2 ({tmp_path / 'missing.png'})",
        "row 3",
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": {"bytes": b"no picture", "path": "x.png"}}, r"unreadable image: row 7 \(x.png\)"),
        ({"caption": " ", "pseudo_captions": []}, "image without captions: row 7"),
    ],
)
def test_bad_rows_stop_the_run_if_wanted(processor, columns, message):
    rows = [make_row(0), make_row(7, **columns)]
    with pytest.raises(ValueError, match=message):
        ContrastiveCollator(processor, on_bad_row="raise")(rows)
    assert ContrastiveCollator(processor)(rows)["example_index"].tolist() == [0]


def test_empty_and_missing_captions_are_counted(processor):
    report = contrastive_report()
    rows = [
        make_row(0, caption="", pseudo_captions=["the cat", "  ", "boats"]),
        make_row(1, caption=None, pseudo_captions=None),
        make_row(2, caption="a cat", pseudo_captions=None),
    ]
    batch = ContrastiveCollator(processor, report=report)(rows)
    assert texts_of(processor, batch) == ["the cat", "boats", "a cat"]
    assert batch["caption_owner"].tolist() == [0, 0, 1]
    counted = {kind: count for kind, count in report.counts().items() if count}
    assert counted == {"image without captions": 1, "empty caption": 3}
    assert report.names("image without captions") == ["row 1"]
    assert report.names("empty caption") == ["row 0", "row 1"]


def test_truncated_captions_are_counted_and_keep_their_end(processor):
    report = contrastive_report()
    rows = [make_row(0, caption="cat " * 30), make_row(1, pseudo_captions=["tea " * 40, "boats"])]
    batch = ContrastiveCollator(processor, report=report)(rows)
    assert report.counts()["truncated caption"] == 2
    assert batch["input_ids"].shape[1] == CONTEXT
    assert (batch["input_ids"] == processor.tokenizer.eos_token_id).any(1).all()


def test_nothing_usable_is_an_error_that_says_why(processor):
    rows = [make_row(0, image=None), make_row(1, caption="", pseudo_captions=[])]
    with pytest.raises(ValueError, match=r"Not one of the 2 rows.*1 x unreadable image \(row 0\).*1 x image without"):
        ContrastiveCollator(processor)(rows)


def test_bad_row_policy_must_be_known(processor):
    with pytest.raises(ValueError, match="on_bad_row must be 'skip' or 'raise', got 'ignore'"):
        ContrastiveCollator(processor, on_bad_row="ignore")


def seeded_collator(processor, seed=1):
    return ContrastiveCollator(
        processor,
        captions_per_image=2,
        augment_image=image_augmentation("fff"),
        augment_text=RandomWordDeletion(rate=0.5),
        seed=seed,
    )


def by_row(batches):
    """What each row became: its pixels and its ids without padding."""
    found = {}
    for batch in batches:
        for i, index in enumerate(batch["example_index"].tolist()):
            mine = batch["caption_owner"] == i
            tokens = zip(batch["input_ids"][mine], batch["attention_mask"][mine], strict=True)
            ids = [row[mask.bool()].tolist() for row, mask in tokens]
            found[index] = batch["pixel_values"][i].numpy().tobytes(), ids
    return found


def test_a_row_depends_on_seed_epoch_and_index_alone(processor):
    rows = IndexedRows([{k: v for k, v in make_row(i).items() if k != "index"} for i in range(12)])
    rows.set_epoch(3)
    collator = seeded_collator(processor)
    expected = by_row([collator([rows[i]]) for i in range(12)])
    backwards = by_row(DataLoader(rows, 4, sampler=range(11, -1, -1), collate_fn=collator))
    in_workers = by_row(DataLoader(rows, 3, shuffle=True, num_workers=2, collate_fn=collator))
    assert backwards == expected
    assert in_workers == expected
    assert len({repr(value) for value in expected.values()}) == 12
    assert by_row([seeded_collator(processor, seed=2)([rows[i]]) for i in range(12)]) != expected
    rows.set_epoch(4)
    again = by_row([collator([rows[i]]) for i in range(12)])
    assert all(again[i][0] != expected[i][0] for i in range(12))
    assert any(again[i][1] != expected[i][1] for i in range(12))


def test_the_same_call_gives_the_same_batch(processor):
    rows = [make_row(i, epoch=2) for i in range(4)]
    assert_same(seeded_collator(processor)(rows), seeded_collator(processor)(rows))


@pytest.mark.parametrize("options", [{}, {"captions_per_image": 2}, {"mode": "sample_one"}, {"mode": "raw"}])
def test_ids_and_features_stay_with_their_captions(processor, options):
    rows, known = [], {}
    for i in range(8):
        row = make_row(i)
        texts = [row["caption"], *row["pseudo_captions"]]
        row |= {
            "image_id": 100 + i,
            "caption_id": [10 * i + j for j in range(4)],
            "mining_image_features": np.full(WIDTH, i),
            "mining_text_features": np.array([[10 * i + j] * WIDTH for j in range(4)]).tolist(),
        }
        known |= {text: 10 * i + j for j, text in enumerate(texts)}
        rows.append(row)
    batch = ContrastiveCollator(processor, **options)(rows)
    expected = [known[text] for text in texts_of(processor, batch)]
    assert len(expected) == 8 * {"captions_per_image": 3, "mode": 1}.get(next(iter(options), None), 4)
    assert batch["caption_ids"].tolist() == expected
    assert batch["mining_text_features"].tolist() == [[float(id)] * WIDTH for id in expected]
    assert batch["mining_image_features"].tolist() == [[float(i)] * WIDTH for i in range(8)]
    assert batch["image_ids"].tolist() == list(range(100, 108))
    raw = [text for text in expected if text % 10 == 0]
    assert len(raw) == 8 or options == {"mode": "sample_one"}  # with the raw caption first, samples behind it


def test_augmented_captions_keep_their_ids(processor):
    row = make_row(0, caption_id=[4, 5, 6, 7])
    drop = ContrastiveCollator(processor, augment_text=lambda text, generator: text.split()[0])
    batch = drop([row])
    assert texts_of(processor, batch) == ["a", "number", "the", "boats"]
    assert batch["caption_ids"].tolist() == [4, 5, 6, 7]


def test_what_a_row_lacks_is_not_known(processor):
    report = contrastive_report()
    features = {"mining_image_features": [1.0] * WIDTH, "mining_text_features": [2.0] * WIDTH}
    rows = [
        make_row(0, image_id=None, caption_id=9, **features),
        make_row(1, image_id=7, caption_id=None, mining_image_features=None, mining_text_features=None),
    ]
    batch = ContrastiveCollator(processor, report=report)(rows)
    assert batch["image_ids"].tolist() == [UNKNOWN_ID, 7]
    assert batch["caption_ids"].tolist() == [9] + [UNKNOWN_ID] * 7  # one id belongs to the raw caption
    assert batch["mining_image_features"].tolist() == [[1.0] * WIDTH, [0.0] * WIDTH]
    assert batch["mining_text_features"].tolist() == [[2.0] * WIDTH] * 4 + [[0.0] * WIDTH] * 4
    assert report.names("row without mining features") == ["row 1"]
    none = ContrastiveCollator(processor)([rows[1]])
    assert none["caption_ids"].tolist() == [UNKNOWN_ID] * 4
    assert "mining_image_features" not in none


@pytest.mark.parametrize("column", ["caption_id", "mining_text_features"])
def test_columns_of_another_length_are_named(processor, column):
    values = {"caption_id": [1, 2], "mining_text_features": np.ones((2, WIDTH))}
    row = make_row(5, mining_image_features=np.ones(WIDTH), mining_text_features=np.ones(WIDTH))
    with pytest.raises(ValueError, match=f"row 5: column {column} has 2 entries, the row has 4 captions"):
        ContrastiveCollator(processor)([row | {column: values[column]}])


def test_equal_texts_can_be_positive(processor):
    rows = [
        make_row(0, caption="A red Cat", pseudo_captions=["two boats"]),
        make_row(1, caption="tea", pseudo_captions=[" a red cat "]),
        make_row(2, caption="two boats", caption_id=5, pseudo_captions=["a cup"]),
    ]
    batch = ContrastiveCollator(processor, equal_texts_are_positive=True)(rows)
    cat, boats, tea, again, given, cup = batch["caption_ids"].tolist()
    # b2sum -l 64 of the text, without its last bit: the same in every process
    assert cat == again == text_id("a red cat") == 7300015354096675818
    assert given == 5
    assert len({cat, boats, tea, given, cup}) == 5
    assert min(batch["caption_ids"]) >= 0
    found = positives_from_ids(batch["caption_owner"], 3, caption_ids=batch["caption_ids"])
    assert found.to_mask().int().tolist() == [[1, 1, 0, 1, 0, 0], [1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]
    assert "caption_ids" not in ContrastiveCollator(processor)(rows[:2])


def test_mining_processor_sees_what_is_not_augmented(processor):
    mining = CLIPProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}), processor.tokenizer
    )
    rows = [make_row(i, epoch=1) for i in range(3)]
    options = {"augment_image": image_augmentation("strong"), "augment_text": lambda text, generator: "tea"}
    batch = ContrastiveCollator(processor, mining_processor=mining, **options)(rows)
    texts = [text for row in rows for text in (row["caption"], *row["pseudo_captions"])]
    expected = mining(images=[row["image"] for row in rows], text=texts, return_tensors="pt", padding=True)
    for key in ("pixel_values", "input_ids", "attention_mask"):
        assert torch.equal(batch[f"mining_{key}"], expected[key]), key
    assert set(texts_of(processor, batch)) == {"tea"}
    plain = ContrastiveCollator(processor)(rows)
    assert not torch.equal(batch["pixel_values"], plain["pixel_values"])


def test_rows_of_a_folder_collate(processor, tmp_path):
    lines = []
    for i in range(3):
        picture(i).save(tmp_path / f"{i}.png")
        lines.append({"file_name": f"{i}.png", "caption": f"a red cat {i}", "caption_id": [4, None, 4][i]})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "1.png").write_bytes(b"")
    report = contrastive_report()
    rows = IndexedRows(load_pairs(tmp_path))
    batch = ContrastiveCollator(processor, report=report)(rows.__getitems__([0, 1, 2]))
    assert batch["example_index"].tolist() == [0, 2]
    assert batch["caption_ids"].tolist() == [4, 4]
    assert report.counts()["unreadable image"] == 1
