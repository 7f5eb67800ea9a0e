"""Arrays on disk that grow a block at a time and survive a kill.

A directory of columns: `NAME.bin` holds rows of one dtype and shape, `NAME.jsonl` lines of JSON (with
`NAME.ends.bin`, where each line ends). `columns.json` is their journal: what the columns are, how many
blocks and bytes are complete, and whatever the writer wants to know when it goes on. It is replaced
after each block; bytes that it does not count were never written.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

LINES = "lines"  # in place of (dtype, shape of a row)


class Writer:
    """Appends blocks; continues where an earlier writer of the same directory was killed.

    Args:
      directory: made if it is missing.
      columns: name -> (dtype, shape of a row), or LINES.

    Attributes:
      blocks: complete blocks. state: a dict, saved with each block.
    """

    def __init__(self, directory: Path, columns: dict):
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._columns = {
            name: c if c == LINES else [np.dtype(c[0]).newbyteorder("<").str, list(c[1])]
            for name, c in columns.items()
        }
        files = {f: 0 for name, c in self._columns.items() for f in _files(name, c)}
        path = self._directory / "columns.json"
        journal = json.loads(path.read_text()) if path.exists() else {}
        self.blocks, self.state = journal.get("blocks", 0), journal.get("state", {})
        self._bytes = files | journal.get("bytes", {})
        self._open = {}
        for name, size in self._bytes.items():
            file = (self._directory / name).open("ab")
            file.truncate(size)
            self._open[name] = file
        self._save()

    def append(self, **rows):
        """Adds rows [n, ...] to a column, or values that become lines of JSON."""
        for name, values in rows.items():
            column = self._columns[name]
            if column == LINES:
                lines = [json.dumps(v, ensure_ascii=False).encode() + b"\n" for v in values]
                ends = self._bytes[f"{name}.jsonl"] + np.cumsum(
                    [len(x) for x in lines], dtype="<u8"
                )
                self._write(f"{name}.jsonl", b"".join(lines))
                self._write(f"{name}.ends.bin", ends.astype("<u8").tobytes())
            else:
                dtype, shape = np.dtype(column[0]), tuple(column[1])
                values = np.ascontiguousarray(values, dtype)
                if values.shape[1:] != shape:
                    raise ValueError(f"rows of {name} must be {shape}, not {values.shape[1:]}")
                self._write(f"{name}.bin", values.tobytes())

    def rows(self, name: str) -> int:
        """Rows of a column so far."""
        column = self._columns[name]
        if column == LINES:
            return self._bytes[f"{name}.ends.bin"] // 8
        return self._bytes[f"{name}.bin"] // _row_bytes(column)

    def commit(self):
        """Completes a block, if there is anything new: from now on a kill loses none of it."""
        if self._saved == (self._bytes, self.state):
            return
        for file in self._open.values():
            file.flush()
            os.fsync(file.fileno())
        self.blocks += 1
        self._save()

    def close(self):
        """Closes the files. What no `commit` has counted does not exist."""
        for file in self._open.values():
            file.close()

    def _save(self):
        journal = {
            "columns": self._columns,
            "blocks": self.blocks,
            "bytes": self._bytes,
            "state": self.state,
        }
        self._saved = dict(self._bytes), dict(self.state)
        aside = self._directory / ".columns.json.partial"
        aside.write_text(json.dumps(journal, indent=1))
        os.replace(aside, self._directory / "columns.json")

    def _write(self, name: str, data: bytes):
        self._open[name].write(data)
        self._bytes[name] += len(data)


class Columns:
    """The columns of a directory, memory-mapped: columns["tokens"] is an array [rows, ...]."""

    def __init__(self, directory: Path):
        self._directory = Path(directory)
        self._journal = json.loads((self._directory / "columns.json").read_text())
        self.state = self._journal["state"]

    def __contains__(self, name: str) -> bool:
        return name in self._journal["columns"]

    def __getitem__(self, name: str):
        column = self._journal["columns"][name]
        if column == LINES:
            ends = self._array(f"{name}.ends.bin", ["<u8", []])
            return Lines(self._array(f"{name}.jsonl", ["|u1", []]), ends)
        return self._array(f"{name}.bin", column)

    def _array(self, name: str, column) -> np.ndarray:
        dtype, shape = np.dtype(column[0]), tuple(column[1])
        rows = self._journal["bytes"][name] // _row_bytes(column)
        if not rows:
            return np.zeros((0, *shape), dtype)
        return np.memmap(self._directory / name, dtype, "r", shape=(rows, *shape))


class Lines(Sequence):
    """Lines of JSON, parsed when they are asked for."""

    def __init__(self, data: np.ndarray, ends: np.ndarray):
        self._data, self._ends = data, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int):
        if not -len(self) <= i < len(self):
            raise IndexError(f"line {i} of {len(self)}")
        i %= len(self)
        start = int(self._ends[i - 1]) if i else 0
        return json.loads(self._data[start : int(self._ends[i])].tobytes())


def repeated(values: np.ndarray, most: int = 2**24) -> Iterator[int]:
    """Rows of `values` [N] (bytes or unsigned integers) that equal an earlier row, in no order.

    Hashes: they are taken in parts by their last byte, so that about `most` are sorted at a time.
    """
    parts = min(256, -(-len(values) // most))
    last = np.asarray(values).view(np.uint8).reshape(len(values), -1)[:, -1] if parts else None
    for part in range(parts):
        rows = np.flatnonzero(last % parts == part)
        _, first = np.unique(values[rows], return_index=True)
        again = np.ones(len(rows), bool)
        again[first] = False
        yield from rows[again].tolist()


def _files(name: str, column) -> list[str]:
    return [f"{name}.jsonl", f"{name}.ends.bin"] if column == LINES else [f"{name}.bin"]


def _row_bytes(column) -> int:
    return np.dtype(column[0]).itemsize * int(np.prod(column[1], dtype=int))
