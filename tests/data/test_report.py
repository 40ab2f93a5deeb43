"""DataReport: what workers count arrives in the main process."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from hf_clipplus.data.report import DataReport


class Reporting(Dataset):
    def __init__(self, report):
        self.report = report

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index % 4 == 0:
            self.report.add("unreadable image", f"bild-ü{index}.png")
        if index == 7:
            self.report.add("truncated caption", "row 7", count=3)
        return torch.tensor(index)


@pytest.mark.parametrize(("context", "persistent"), [("fork", False), ("fork", True), ("spawn", False)])
def test_counts_made_in_workers_arrive(context, persistent):
    report = DataReport(["unreadable image", "truncated caption", "no caption"])
    loader = DataLoader(
        Reporting(report),
        batch_size=4,
        num_workers=2,
        multiprocessing_context=context,
        persistent_workers=persistent,
    )
    assert len(list(loader)) == 10
    assert report.counts() == {"unreadable image": 10, "truncated caption": 3, "no caption": 0}
    assert set(report.names("unreadable image")) == {f"bild-ü{i}.png" for i in range(0, 40, 4)}
    list(loader)  # a second epoch counts again, but names nothing twice
    assert report.counts()["unreadable image"] == 20
    assert len(report.names("unreadable image")) == 10
    assert report.summary().startswith("While reading the data: 20 x unreadable image (")
    assert ", ...); " in report.summary()
    assert "6 x truncated caption (row 7)." in report.summary()
    assert "no caption" not in report.summary()


def test_first_ten_names_in_order_and_long_names_are_cut():
    report = DataReport(["no caption"])
    assert report.summary() == ""
    report.add("no caption", "é" * 300)
    for i in range(20):
        report.add("no caption", f"row {i}")
    assert report.names("no caption") == ["é" * 128] + [f"row {i}" for i in range(9)]
    assert report.counts() == {"no caption": 21}


def test_unknown_kind_is_an_error():
    report = DataReport(["no caption"])
    with pytest.raises(KeyError, match="made with"):
        report.add("no captoin", "x")
    with pytest.raises(ValueError, match="no kind twice"):
        DataReport(["a", "a"])
