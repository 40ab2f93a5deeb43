"""Reads one column of a data set lazily, whether it is a `datasets.Dataset` or any sequence of dicts."""

from collections.abc import Iterator, Sequence
from typing import Any


class Column(Sequence):
    """One entry per row, read when asked for; a `datasets.Dataset` then decodes no other column.

    Args:
        rows: sequence of dicts.
        name: the column.

    Raises:
        KeyError: the first row has no such column.
    """

    def __init__(self, rows: Sequence, name: str):
        self.rows, self.name = rows, name
        names = getattr(rows, "column_names", None)  # a datasets.Dataset knows them without decoding a row
        known = names if names is not None else list(rows[0]) if len(rows) else [name]
        if name not in known:
            raise KeyError(f"the rows have no column {name!r}, they have {known}")
        self.stored = None if names is None else rows[name]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Any:
        return self.rows[index][self.name] if self.stored is None else self.stored[index]
