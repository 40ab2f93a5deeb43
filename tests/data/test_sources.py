"""load_pairs on every kind of source, and rows that know their index and epoch."""

import io
import json
import logging
import tarfile

import datasets
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from hf_clipplus.data import sources
from hf_clipplus.data.images import UnreadableImageError, load_image
from hf_clipplus.data.sources import IndexedRows, IndexedStream, caption_list, load_pairs, stable_id


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(i):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (i, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


ROWS = [
    {
        "image": {"bytes": png(i), "path": f"{i}.png"},
        "caption": f"raw {i}",
        "pseudo_captions": [f"a{i}", f"b{i}"],
        "image_id": i // 2,
        "caption_id": i,
        "mining_image_features": [float(i), 1.0],
        "unused": "x",
    }
    for i in range(6)
]
ROWS[4]["image"]["bytes"] = b"corrupt"


def write_parquet(path, rows=ROWS):
    path.parent.mkdir(exist_ok=True, parents=True)
    features = datasets.Dataset.from_list(rows).features
    features["image"] = datasets.Image()
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(path)


def write_folder(folder, kind="jsonl", split="."):
    root = folder / split
    (root / "pictures").mkdir(parents=True)
    for i in range(3):
        (root / f"pictures/{i}.png").write_bytes(png(i))
    (root / "pictures/1.png").write_bytes(b"corrupt")
    (root / "pictures/2.png").unlink()
    rows = [{"file_name": f"pictures/{i}.png", "text": f"12{i}", "captions": [f"a{i}", f"b{i}"]} for i in range(3)]
    if kind == "jsonl":
        (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = ["file_name,text,captions"]
        lines += [f'{r["file_name"]},{r["text"]},"{r["captions"][0]}\n{r["captions"][1]}"' for r in rows]
        (root / "metadata.csv").write_text("\n".join(lines) + "\n")


def check_rows(rows):
    assert len(rows) == 6
    for i, row in enumerate(rows):
        expected = {key: value for key, value in ROWS[i].items() if key != "unused"}
        assert row == expected
        if i != 4:
            assert load_image(row["image"]).getpixel((0, 0)) == (i, 0, 0)
    with pytest.raises(UnreadableImageError, match=r"4\.png"):
        load_image(rows[4]["image"])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["file", "glob", "folder"])
def test_parquet(tmp_path, form, streaming):
    write_parquet(tmp_path / "d/train-00000.parquet", ROWS[:3])
    write_parquet(tmp_path / "d/train-00001.parquet", ROWS[3:])
    source = {"file": "train-00000.parquet", "glob": "train-*.parquet", "folder": ""}[form]
    rows = list(load_pairs(tmp_path / "d" / source, streaming=streaming))
    if form == "file":
        assert [row["caption"] for row in rows] == ["raw 0", "raw 1", "raw 2"]
    else:
        check_rows(rows)


def test_parquet_folder_keeps_splits_apart(tmp_path):
    write_parquet(tmp_path / "d/train.parquet", ROWS[:4])
    write_parquet(tmp_path / "d/test.parquet", ROWS[4:])
    assert [len(load_pairs(tmp_path / "d", split=split)) for split in ("train", "test")] == [4, 2]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("split", [".", "train"])
def test_image_folder_with_corrupt_and_missing_files(tmp_path, kind, streaming, split):
    write_folder(tmp_path / "d", kind, split)
    rows = list(load_pairs(tmp_path / "d", streaming=streaming))
    assert [row["caption"] for row in rows] == ["120", "121", "122"]
    assert [row["pseudo_captions"] for row in rows] == [[f"a{i}", f"b{i}"] for i in range(3)]
    assert load_image(rows[0]["image"]).size == (4, 4)
    for i in (1, 2):
        with pytest.raises(UnreadableImageError, match=f"{i}.png"):
            load_image(rows[i]["image"])


def test_image_folder_errors(tmp_path):
    write_folder(tmp_path / "d")
    with pytest.raises(FileNotFoundError, match="'test'"):
        load_pairs(tmp_path / "d", split="test")
    (tmp_path / "d/metadata.jsonl").write_text('{"name": "x.png"}\n')
    with pytest.raises(ValueError, match=r"Row 1 .* no `file_name`"):
        load_pairs(tmp_path / "d")


def test_image_folder_without_text(tmp_path):
    for i in range(2):
        (tmp_path / f"d/{i}.png").parent.mkdir(exist_ok=True)
        (tmp_path / f"d/{i}.png").write_bytes(png(i))
    with pytest.raises(ValueError, match="no text column"):
        load_pairs(tmp_path / "d")
    rows = list(load_pairs(tmp_path / "d", require_text=False))
    assert [load_image(row["image"]).getpixel((0, 0))[0] for row in rows] == [0, 1]


@pytest.mark.parametrize("streaming", [False, True])
def test_webdataset(tmp_path, streaming):
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for row in ROWS[3 * shard : 3 * shard + 3]:
                files = {
                    "jpg": row["image"]["bytes"],
                    "txt": row["caption"].encode(),
                    "captions.json": json.dumps(row["pseudo_captions"]).encode(),
                }
                for extension, data in files.items():
                    info = tarfile.TarInfo(f"{row['caption_id']:04d}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    rows = list(load_pairs(tmp_path / "*.tar", streaming=streaming))
    assert [row["caption"] for row in rows] == [row["caption"] for row in ROWS]
    assert [row["pseudo_captions"] for row in rows] == [row["pseudo_captions"] for row in ROWS]
    assert [row["image"]["bytes"] for row in rows] == [row["image"]["bytes"] for row in ROWS]


@pytest.mark.parametrize("streaming", [False, True])
def test_named_columns_and_odd_types(tmp_path, streaming):
    rows = [
        {"picture": png(i), "words": i, "text": "not this", "many": f'["a{i}", "b{i}"]', "key": f"id {i // 2}"}
        for i in range(4)
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "x.parquet")
    dataset = load_pairs(
        tmp_path / "x.parquet",
        image_column="picture",
        caption_column="words",
        pseudo_captions_column="many",
        image_id_column="key",
        streaming=streaming,
    )
    loaded = list(dataset)
    assert set(dataset.column_names) == set(loaded[0]) == {"image", "caption", "pseudo_captions", "image_id"}
    assert [row["caption"] for row in loaded] == ["0", "1", "2", "3"]
    assert loaded[3]["pseudo_captions"] == ["a3", "b3"]
    ids = [row["image_id"] for row in loaded]
    assert ids[0] == ids[1] != ids[2] == ids[3]
    assert load_image(loaded[2]["image"]).getpixel((0, 0)) == (2, 0, 0)


@pytest.mark.parametrize("streaming", [False, True])
def test_folder_of_json_lines_with_paths(tmp_path, streaming):
    (tmp_path / "0.png").write_bytes(png(7))
    lines = [{"image": str(tmp_path / "0.png"), "caption": "c", "captions": "one\n\n two \n"}]
    (tmp_path / "d").mkdir()
    (tmp_path / "d/train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (row,) = load_pairs(tmp_path / "d", streaming=streaming)
    assert load_image(row["image"]).getpixel((0, 0)) == (7, 0, 0)
    assert row["pseudo_captions"] == ["one", "two"]


def test_column_errors_and_choice_in_the_log(tmp_path, caplog):
    path = tmp_path / "x.parquet"
    write_parquet(path)
    with pytest.raises(ValueError, match=r"no column 'capshun' \(asked for as caption\).*'caption'.*'unused'"):
        load_pairs(path, caption_column="capshun")
    with pytest.raises(ValueError, match="name a list of captions as pseudo_captions_column"):
        load_pairs(path, caption_column="pseudo_captions")
    with pytest.raises(ValueError, match="not images"):
        load_pairs(path, image_column="caption_id")
    with caplog.at_level(logging.INFO, logger=sources.__name__):
        load_pairs(path, caption_column="unused")
    assert "image <- image" in caplog.text
    assert "caption <-" not in caplog.text
    datasets.Dataset.from_dict({"picture": ["a"], "text": ["b"]}).to_parquet(path)
    with pytest.raises(ValueError, match=r"image_column.*\['picture', 'text'\]"):
        load_pairs(path)


def test_sources_that_are_not_there(tmp_path):
    for source in (tmp_path / "*.parquet", tmp_path / "gone", "./gone"):
        with pytest.raises(FileNotFoundError):
            load_pairs(source)


def test_caption_list_and_stable_id():
    assert caption_list(None) == []
    assert caption_list('["a", null, "b"]') == ["a", "", "b"]
    assert caption_list("[cat] on a mat\ndog") == ["[cat] on a mat", "dog"]
    with pytest.raises(TypeError, match="3"):
        caption_list(3)
    assert [stable_id(v) for v in (5, "5", "-5", None, "")] == [5, 5, -5, None, None]
    hashed = [stable_id(v) for v in ("05", "a", "b", 1.5)]
    assert len(set(hashed)) == 4
    assert all(0 <= h < 2**63 for h in hashed)


class Wrapped:
    def __init__(self):
        self.rows, self.epochs = [{"x": i} for i in range(8)], []

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self.rows[index]

    def __iter__(self):
        return iter(self.rows)

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


def test_indexed_rows_tell_persistent_workers_the_epoch():
    rows = IndexedRows(Wrapped())
    assert rows[-1] == {"x": 7, "index": 7, "epoch": 0}
    with pytest.raises(IndexError):
        rows[8]
    loader = DataLoader(rows, batch_size=4, num_workers=2, persistent_workers=True, collate_fn=list)
    for epoch in (0, 3):
        rows.set_epoch(epoch)
        seen = [row for batch in loader for row in batch]
        assert seen == [{"x": i, "index": i, "epoch": epoch} for i in range(8)]
    assert rows.dataset.epochs == [0, 3]


def test_indexed_rows_of_arrow_come_in_batches():
    rows = IndexedRows(datasets.Dataset.from_dict({"x": [10, 11, 12, 13]}))
    rows.set_epoch(1)
    loader = DataLoader(rows, sampler=[3, 1, 2], batch_size=2, collate_fn=list)
    assert [row for batch in loader for row in batch] == [{"x": 10 + i, "index": i, "epoch": 1} for i in (3, 1, 2)]
    assert rows[3] == {"x": 13, "index": 3, "epoch": 1}


def test_indexed_stream_without_workers():
    stream = IndexedStream(Wrapped())
    stream.set_epoch(2)
    assert list(stream) == [{"x": i, "index": i, "epoch": 2} for i in range(8)]
    assert stream.dataset.epochs == [2]


def test_indexed_stream_shares_shards_and_gives_each_row_its_own_index():
    shards = datasets.Dataset.from_dict({"x": list(range(8))}).to_iterable_dataset(num_shards=4)
    stream = IndexedStream(shards.shuffle(seed=0, buffer_size=4))
    loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
    orders = []
    for epoch in range(4):
        stream.set_epoch(epoch)
        rows = list(loader)
        assert sorted(row["x"] for row in rows) == list(range(8))
        assert sorted(row["index"] for row in rows) == list(range(8))
        assert {row["epoch"] for row in rows} == {epoch}
        orders.append(tuple(row["x"] for row in rows))
    assert len(set(orders)) > 1  # the epoch reached the shuffling in the workers
