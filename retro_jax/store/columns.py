"""Arrays on disk that grow a block at a time and survive a kill.

A directory of columns: `NAME.bin` holds rows of one dtype and shape, `NAME.jsonl` lines of JSON (with
`NAME.ends.bin`, where each line ends). `columns.json` is their journal: what the columns are, how many
bytes are complete, and whatever the writer wants to know when it goes on. It is replaced
after each block; bytes that it does not count were never written.

The directory may lie in a bucket (a UPath): there it is read by ranges, and written whole by `join`.
"""

import json
import mmap
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from upath import UPath

from retro_jax.store import files

JOURNAL = "columns.json"
LINES = "lines"  # in place of (dtype, shape of a row)
_AT_ONCE = 16  # files
_READ = 2**26  # bytes of a bucket that scattered rows are picked from
_ANEW = "delete the folder that it is in, and run the same stage again"
_MAPPED: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()  # that are open


class Writer:
    """Appends blocks; continues where an earlier writer of the same directory was killed.

    Args:
      directory: made if it is missing.
      columns: name -> (dtype, shape of a row), or LINES.

    Attributes:
      state: a dict, saved with each block.
    """

    def __init__(self, directory: Path, columns: dict):
        self._directory = Path(directory)
        files.make_directory(self._directory)
        self._columns = _layout(columns)
        empty = {f: 0 for name, c in self._columns.items() for f in _files(name, c)}
        path = self._directory / JOURNAL
        journal = files.read_json(path, _ANEW) if path.exists() else {}
        self.state = journal.get("state", {})
        self._bytes = empty | journal.get("bytes", {})
        self._open = {}
        for name, size in self._bytes.items():
            file = (self._directory / name).open("ab")
            file.truncate(size)
            self._open[name] = file
        self._save()

    def append(self, **rows):
        """Adds rows [n, ...] to a column, or values that become lines of JSON."""
        columns = {name: self._columns[name] for name in rows}
        for name, data in encode(columns, rows, self._bytes).items():
            self._open[name].write(data)
            self._bytes[name] += len(data)

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
        self._save()

    def close(self):
        """Closes the files. What no `commit` has counted does not exist."""
        for file in self._open.values():
            file.close()

    def _save(self):
        self._saved = dict(self._bytes), dict(self.state)
        files.write(self._directory / JOURNAL, _journal(self._columns, self._bytes, self.state))


def encode(columns: dict, rows: dict, sizes: dict[str, int]) -> dict[str, bytes]:
    """File -> the bytes to add to it for rows of each column.

    Args:
      columns: name -> (dtype, shape of a row), or LINES.
      rows: name -> rows [n, ...], or values that become lines of JSON.
      sizes: file -> what it holds already; lines are counted from there.
    """
    out = {}
    for name, column in _layout(columns).items():
        values = rows[name]
        if column == LINES:
            lines = [json.dumps(v, ensure_ascii=False).encode() + b"\n" for v in values]
            ends = np.cumsum([len(x) for x in lines], dtype="<u8")
            out[f"{name}.jsonl"] = b"".join(lines)
            out[f"{name}.ends.bin"] = (ends + np.uint64(sizes.get(f"{name}.jsonl", 0))).tobytes()
        else:
            dtype, shape = np.dtype(column[0]), tuple(column[1])
            values = np.ascontiguousarray(values, dtype)
            if values.shape[1:] != shape:
                raise ValueError(f"rows of {name} must be {shape}, not {values.shape[1:]}")
            out[f"{name}.bin"] = values.tobytes()
    return out


def join(directory: UPath, columns: dict, parts: Sequence[UPath], state: dict):
    """Writes a directory of columns from the directories that hold its blocks, in order: each has what
    `encode` gave for it, lines counted from 0. `state` is what a Writer would have had."""
    layout, sizes = _layout(columns), {}
    for name, column in layout.items():
        for file in _files(name, column):
            size, lines = 0, 0
            with (directory / file).open("wb") as out:
                for data in _contents([part / file for part in parts]):
                    if file.endswith(".ends.bin") and data:
                        ends = np.frombuffer(data, "<u8") + np.uint64(lines)
                        data, lines = ends.tobytes(), int(ends[-1])
                    out.write(data)
                    size += len(data)
            sizes[file] = size
    files.write(directory / JOURNAL, _journal(layout, sizes, state))


def _contents(paths: Sequence[UPath]) -> Iterator[bytes]:
    """What files hold; in a bucket several are asked for at a time."""
    for begin in range(0, len(paths), _AT_ONCE):
        some = [str(path.path) for path in paths[begin : begin + _AT_ONCE]]
        found = paths[0].fs.cat(some)
        yield from (found[path] for path in some)


class Columns:
    """The columns of a directory, memory-mapped: columns["tokens"] is an array [rows, ...]. In a bucket
    it is a `Ranges`."""

    def __init__(self, directory: Path):
        self._directory = UPath(directory)
        self._journal = files.read_json(self._directory / JOURNAL, _ANEW)
        self.state = self._journal["state"]

    def __contains__(self, name: str) -> bool:
        return name in self._journal["columns"]

    def __getitem__(self, name: str):
        column = self._journal["columns"][name]
        if column == LINES:
            ends = self._array(f"{name}.ends.bin", ["<u8", []])
            return Lines(self._array(f"{name}.jsonl", ["|u1", []]), ends)
        return self._array(f"{name}.bin", column)

    def _array(self, name: str, column):
        dtype, shape = np.dtype(column[0]), tuple(column[1])
        rows = self._journal["bytes"][name] // _row_bytes(column)
        if not rows:
            return np.zeros((0, *shape), dtype)
        path = self._directory / name
        if not isinstance(path, Path):
            return Ranges(path, dtype, (rows, *shape))
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _MAPPED.add(mapped)
        count = rows * int(np.prod(shape, dtype=int))  # a killed writer may have left more
        return np.frombuffer(mapped, dtype, count).reshape(rows, *shape)


def let_go():
    """Gives the memory back into which mapped columns were read. What of them is asked for again comes from the
    system's cache, or from the disk."""
    if hasattr(mmap, "MADV_DONTNEED"):
        for mapped in list(_MAPPED):
            mapped.madvise(mmap.MADV_DONTNEED)


class Ranges:
    """An array [rows, ...] in a bucket: what is indexed is read, a range of rows at a time."""

    def __init__(self, path: UPath, dtype: np.dtype, shape: tuple[int, ...], first: int = 0):
        self._path, self.dtype, self.shape, self._first = path, dtype, shape, first

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows):
        """Rows of a slice, a number or an array of numbers: of these all between the first and the last of each
        _READ bytes are read."""
        if isinstance(rows, slice):
            begin, end, _ = rows.indices(len(self))
            return self._read(begin, max(begin, end))
        rows = np.asarray(rows)
        if not rows.size:
            return np.zeros((*rows.shape, *self.shape[1:]), self.dtype)
        flat = rows.reshape(-1)
        out = np.empty((len(flat), *self.shape[1:]), self.dtype)
        run = flat // max(1, _READ // self._row)
        order = np.argsort(run, kind="stable")
        for at in np.split(order, np.flatnonzero(np.diff(run[order])) + 1):
            first = int(flat[at].min())
            out[at] = self._read(first, int(flat[at].max()) + 1)[flat[at] - first]
        return out.reshape(*rows.shape, *self.shape[1:])

    @property
    def _row(self) -> int:
        """Bytes of a row."""
        return self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=int))

    def part(self, begin: int, end: int) -> "Ranges":
        """Rows begin .. end - 1, not read yet."""
        return Ranges(self._path, self.dtype, (end - begin, *self.shape[1:]), self._first + begin)

    def __array__(self, dtype=None, copy=None):
        return self[:].astype(dtype or self.dtype)

    def _read(self, begin: int, end: int) -> np.ndarray:
        shape = (end - begin, *self.shape[1:])
        with self._path.open("rb") as file:
            file.seek((self._first + begin) * self._row)
            return np.frombuffer(file.read((end - begin) * self._row), self.dtype).reshape(shape)


class Lines(Sequence):
    """Lines of JSON, parsed when they are asked for."""

    def __init__(self, data, ends):
        self._data, self._ends = data, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int):
        if not -len(self) <= i < len(self):
            raise IndexError(f"line {i} of {len(self)}")
        i %= len(self)
        return self.range(i, i + 1)[0]

    def __iter__(self):
        for begin in range(0, len(self), 1000):
            yield from self.range(begin, begin + 1000)

    def blocks(self, begin: int, end: int, rows: int, size: int) -> Iterator[list]:
        """Lines begin .. end - 1, at most `rows` of them and, but for single ones, `size` bytes at a
        time."""
        while begin < end:
            ends = np.asarray(self._ends[max(0, begin - 1) : min(begin + rows, end)]).astype(int)
            first, ends = (int(ends[0]), ends[1:]) if begin else (0, ends)
            stop = begin + max(1, int(np.searchsorted(ends, first + size, side="right")))
            yield self.range(begin, stop)
            begin = stop

    def range(self, begin: int, end: int) -> list:
        """Lines begin .. end - 1, or up to the last."""
        ends = np.asarray(self._ends[max(0, begin - 1) : end]).astype(int)
        starts = ends[:-1] if begin else np.concatenate([[0], ends[:-1]])
        ends = ends[len(ends) - len(starts) :]
        if not len(ends):
            return []
        data = self._data[int(starts[0]) : int(ends[-1])]
        return [
            json.loads(data[a - starts[0] : b - starts[0]].tobytes()) for a, b in zip(starts, ends)
        ]


def decode(columns: dict, read: Callable[[str], bytes]) -> dict:
    """The inverse of `encode` for rows that stand alone: column -> rows, or a list of values.

    read: from the name of a file to its bytes.
    """
    out = {}
    for name, column in _layout(columns).items():
        if column == LINES:
            out[name] = [json.loads(line) for line in read(f"{name}.jsonl").splitlines()]
        else:
            rows = np.frombuffer(read(f"{name}.bin"), column[0])
            out[name] = rows.reshape(-1, *column[1])
    return out


def equal(stored, made) -> bool:
    """Whether rows are the same, bit for bit (NaN is NaN): arrays, or values of lines."""
    if isinstance(made, list):
        return list(stored) == made
    stored, made = np.asarray(stored), np.asarray(made)
    return stored.shape == made.shape and stored.tobytes() == made.astype(stored.dtype).tobytes()


def part(array, begin: int, end: int):
    """Rows begin .. end - 1 of an array or a `Ranges`, of which nothing is read yet."""
    return array.part(begin, end) if isinstance(array, Ranges) else array[begin:end]


def _layout(columns: dict) -> dict:
    """What `columns.json` says of columns."""
    return {
        name: c if c == LINES else [np.dtype(c[0]).newbyteorder("<").str, list(c[1])]
        for name, c in columns.items()
    }


def _journal(layout: dict, sizes: dict, state: dict) -> str:
    fields = {"columns": layout, "bytes": sizes, "state": state}
    return json.dumps(fields, indent=1)


def _files(name: str, column) -> list[str]:
    return [f"{name}.jsonl", f"{name}.ends.bin"] if column == LINES else [f"{name}.bin"]


def _row_bytes(column) -> int:
    return np.dtype(column[0]).itemsize * int(np.prod(column[1], dtype=int))
