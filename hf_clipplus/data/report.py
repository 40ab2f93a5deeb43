"""Counts what was skipped or altered while reading data, across DataLoader workers: nothing is lost silently."""

import multiprocessing
from collections.abc import Sequence

import torch

MAX_NAMES = 10
_NAME_BYTES = 256


class DataReport:
    """Counts per kind, with the first 10 distinct names of each, kept in shared memory.

    Make it in the main process and hand it to whatever the DataLoader runs in its workers (data set or collator):
    what a worker adds, started by fork or by spawn, persistent or not, the main process reads. Each process of a
    distributed run has a report of its own.

    Args:
        kinds: everything that can be counted, e.g. `("unreadable image", "empty caption")`.

    Example:
        >>> report = DataReport(["unreadable image"])
        >>> report.add("unreadable image", "cat.png")
        >>> report.summary()
        'While reading the data: 1 x unreadable image (cat.png).'
    """

    def __init__(self, kinds: Sequence[str]):
        if not kinds or len(set(kinds)) != len(kinds):
            raise ValueError(f"DataReport needs at least one kind and no kind twice, got {list(kinds)}.")
        self.kinds = tuple(kinds)
        self._counts = torch.zeros(len(kinds), dtype=torch.int64).share_memory_()
        self._names = torch.zeros(len(kinds), MAX_NAMES, _NAME_BYTES, dtype=torch.uint8).share_memory_()
        # A lock of the spawn context can be handed to forked and to spawned workers; one of the fork context cannot.
        self._lock = multiprocessing.get_context("spawn").Lock()

    def add(self, kind: str, name: str, count: int = 1) -> None:
        """Count `count` cases of `kind`; `name` says which item (file, row, caption), cut at 256 bytes of UTF-8.

        Raises:
            KeyError: `kind` was not given at construction.
        """
        row = self._row(kind)
        encoded = str(name).encode("utf-8", "replace")[:_NAME_BYTES].decode("utf-8", "ignore")
        with self._lock:
            self._counts[row] += count
            known = self._read_names(row)
            if encoded and len(known) < MAX_NAMES and encoded not in known:
                data = torch.tensor(list(encoded.encode("utf-8")), dtype=torch.uint8)
                self._names[row, len(known), : len(data)] = data

    def counts(self) -> dict[str, int]:
        """Cases counted so far for every kind, zeros included."""
        with self._lock:
            return dict(zip(self.kinds, self._counts.tolist(), strict=True))

    def names(self, kind: str) -> list[str]:
        """The first (at most 10) distinct names counted under `kind`."""
        row = self._row(kind)
        with self._lock:
            return self._read_names(row)

    def summary(self) -> str:
        """One paragraph with every kind that happened and its names; empty when nothing did."""
        parts = []
        for kind, count in self.counts().items():
            if count:
                names = self.names(kind)
                more = ", ..." if count > len(names) == MAX_NAMES else ""
                parts.append(f"{count:,} x {kind}" + (f" ({', '.join(names)}{more})" if names else ""))
        return f"While reading the data: {'; '.join(parts)}." if parts else ""

    def _row(self, kind: str) -> int:
        if kind not in self.kinds:
            raise KeyError(f"Unknown kind {kind!r} for this DataReport; it was made with {list(self.kinds)}.")
        return self.kinds.index(kind)

    def _read_names(self, row: int) -> list[str]:
        names = (bytes(line.tolist()).rstrip(b"\0").decode("utf-8") for line in self._names[row])
        return [name for name in names if name]
