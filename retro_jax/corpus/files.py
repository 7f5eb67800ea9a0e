"""Files of a corpus, here or in a bucket, plain or compressed, read a piece at a time."""

import glob
import io
import lzma
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pat

from retro_jax.corpus.document import Unusable
from retro_jax.errors import UserError

_COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}  # by Arrow
_ARCHIVES = {".zip", ".tar", ".tgz", ".7z", ".rar", ".lz4", ".br", ".z", ".lzma"}
_ROWS, _HELD = 1000, 2**26  # of a parquet file, read at a time, and bytes of them
_PIECE = 2**20  # bytes of a line that is too long, read at a time


def expand(pattern: str, named: str) -> list[tuple[str, str]]:
    """Files that match, sorted, and their names below the pattern's fixed folder: ids that do not
    change when the folder moves. `named`: who asks for them, for the error.

    A folder or file that is there by the very name that is written, '[2024]' for example, is meant.
    """
    if "://" in pattern:
        with _reading(pattern):
            system, path = fsspec.core.url_to_fs(pattern)
            there, rest = _there(path, system.exists)
            found = sorted(system.glob(glob.escape(there) + rest)) if rest else [path]
            found = [p for p in found if system.isfile(p)]
            root = PurePosixPath(there) if rest else PurePosixPath(there).parent
        paths = [(system.unstrip_protocol(p), PurePosixPath(p)) for p in found]
    else:
        there, rest = _there(pattern, os.path.exists)
        matching = glob.glob(glob.escape(there) + rest, recursive=True)
        found = sorted(p for p in matching if os.path.isfile(p))
        root = Path(there) if rest else Path(there).parent
        paths = [(p, Path(p)) for p in found]
    if not found and os.path.isdir(pattern):
        raise UserError(
            f"{named}: {pattern!r} is a folder; write /**/* after it, for all files below it"
        )
    if not found:
        raise UserError(
            f"{named}: no file matches {pattern!r} (searched from "
            f"{os.getcwd()}); quote the pattern, and use ** for folders of any depth"
        )
    # A name that is not UTF-8 would not go into a JSON file.
    return [
        (path, os.fsencode(p.relative_to(root).as_posix()).decode("utf-8", "backslashreplace"))
        for path, p in paths
    ]


def _there(pattern: str, exists: Callable[[str], bool]) -> tuple[str, str]:
    """The longest beginning of a pattern that is the path of something, and the rest."""
    parts = pattern.split("/")
    for count in range(len(parts), 0, -1):
        there = "/".join(parts[:count])
        if exists(there):
            return there, pattern[len(there) :]
    return ("/", pattern[1:]) if pattern.startswith("/") else ("", pattern)


def read(path: str, most: int) -> bytes | None:
    """All bytes of a file; None if it has more than `most`, of which no more is held."""
    with _reading(path), _open(path) as file:
        data = file.read(most + 1)
        return data if len(data) <= most else None


def lines(path: str, most: int) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their numbers, from 1; None in place of one that has more than `most` bytes."""
    number = 0
    with _reading(path, lambda: f"after line {number}"), _open(path) as file:
        while line := file.readline(most + 1):
            number += 1
            whole = len(line) <= most or line.endswith(b"\n")
            while not whole and not line.endswith(b"\n"):
                if not (line := file.readline(_PIECE)):
                    break
            yield number, line if whole else None


def parquet_rows(
    path: str, column: str, others: tuple[str, ...], most: int
) -> Iterator[tuple[int, dict | None]]:
    """Rows with their numbers, from 0: `column` and those of `others` that there are, texts as bytes; None in
    place of a row with a text of more than `most` bytes."""
    with _reading(path), fsspec.open(path, "rb") as file:
        schema = pq.read_schema(file)
        if column not in schema.names:
            raise UserError(
                f"{path}: no column {column!r} (found: {', '.join(schema.names)}); name it in "
                "the source as parquet:GLOB#COLUMN"
            )
        chosen = [column, *(n for n in others if n in schema.names and n != column)]
        if twice := [n for n in chosen if schema.names.count(n) > 1]:
            raise UserError(f"{path}: two columns have the name {twice[0]!r}; rename one of them")
        # A text that many rows share is held once.
        shared = [n for n in chosen if _is_text(schema.field(n).type)]
        table = pq.ParquetFile(file, read_dictionary=shared)
        rest = (schema.field(i).type for i in range(len(schema)) if schema.names[i] not in chosen)
        # Whether the size of a row is that of its text. (To look at a damaged column's aborts the process.)
        alone, row = all(map(pat.is_primitive, rest)), 0
        for group in range(table.num_row_groups):
            about = table.metadata.row_group(group)
            rows, each = about.num_rows, about.total_byte_size // max(1, about.num_rows)
            if each > most and alone:  # which ones, only what holds them all would know
                yield from ((row + i, None) for i in range(rows))
                row += rows
                continue
            size = max(1, min(_ROWS, _HELD // max(1, each)))
            for batch in table.iter_batches(size, [group], columns=chosen):
                names = batch.schema.names
                for cells in zip(*(batch.column(n) for n in names)):
                    large = any(_size(cell) > most for cell in cells)
                    yield row, None if large else dict(zip(names, map(_value, cells)))
                    row += 1


def _is_text(kind: pa.DataType) -> bool:
    return any(
        is_one(kind)
        for is_one in (pat.is_string, pat.is_large_string, pat.is_binary, pat.is_large_binary)
    )


def _size(cell: pa.Scalar) -> int:
    """Bytes of a text; 0 of anything else."""
    cell = cell.value if isinstance(cell, pa.DictionaryScalar) else cell
    return len(cell.as_buffer()) if isinstance(cell, pa.BinaryScalar) and cell.is_valid else 0


def _value(cell: pa.Scalar):
    """What a cell holds: bytes of a text, otherwise a value of Python's, or why it is none."""
    cell = cell.value if isinstance(cell, pa.DictionaryScalar) else cell
    if isinstance(cell, pa.BinaryScalar):
        return bytes(cell.as_buffer()) if cell.is_valid else None
    try:
        return _in_microseconds(cell).as_py()
    except (ValueError, OverflowError):  # nanoseconds, or a year past 9999
        try:
            text = cell.cast(pa.string()).as_py()
        except pa.ArrowException:
            text = "<"
        if text.startswith("<"):
            return Unusable("metadata", f"a value of type {cell.type} is out of range")
        return text.replace(" ", "T", 1)


def _in_microseconds(cell: pa.Scalar) -> pa.Scalar:
    """What is counted in nanoseconds in microseconds, if they are whole (ValueError): of nanoseconds Arrow makes values
    of pandas where pandas is installed, and those say a time in other words."""
    kind = cell.type
    if getattr(kind, "unit", None) != "ns":
        return cell
    if pat.is_timestamp(kind):
        return cell.cast(pa.timestamp("us", kind.tz))
    return cell.cast(pa.duration("us") if pat.is_duration(kind) else pa.time64("us"))


def tfds_rows(name: str, named: str) -> Iterator[tuple[int, dict]]:
    """Rows with their numbers, from 0, of NAME[/CONFIG][:SPLIT] or DIRECTORY[:SPLIT]; bytes are
    decoded. `named`: who asks for them, for the error."""
    import tensorflow_datasets as tfds  # takes seconds

    name, split = re.fullmatch(r"(.+?)(?::([^:/]+))?", name).groups(default="train")
    try:
        is_directory = os.path.isabs(name) or "://" in name
        builder = tfds.builder_from_directory(name) if is_directory else tfds.builder(name)
        try:
            rows = builder.as_data_source(split)
        except NotImplementedError:  # not in a format of random access: TensorFlow reads it
            rows = tfds.as_numpy(builder.as_dataset(split, shuffle_files=False))
    except tfds.core.registered.DatasetNotFoundError as error:
        raise UserError(f"{named}: TFDS knows no data set {name!r}") from error
    except Exception as error:  # whatever a data set can raise
        raise UserError(
            f"{named}: TFDS cannot open it ({' '.join(str(error).split())[:120]}); prepare it first "
            f"with `tfds build {name} --file_format=array_record`, which downloads it"
        ) from error
    yield from enumerate(rows)


@contextmanager
def _open(path: str):
    """A file's bytes, decompressed. By what notices a stream that ends too early."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in _ARCHIVES:
        raise UserError(f"{path}: {suffix} is not read; unpack it, or use .gz, .zst, .bz2 or .xz")
    with fsspec.open(path, "rb") as file:
        yield _decompressed(file, suffix)


def _decompressed(file, suffix: str):
    if suffix == ".xz":
        return lzma.LZMAFile(file)
    if suffix in _COMPRESSED:
        stream = pa.CompressedInputStream(pa.PythonFile(file, "r"), _COMPRESSED[suffix])
        return io.BufferedReader(stream)
    # One of a bucket may give less than it is asked for, and no line.
    return file if isinstance(file, io.BufferedIOBase) else io.BufferedReader(file)


@contextmanager
def _reading(path: str, position=lambda: ""):
    """What can go wrong in a file, as a UserError that names it."""
    try:
        yield
    except ImportError as error:  # of fsspec, for a kind of address
        raise UserError(f"{path}: {error}") from error
    except (OSError, EOFError, ValueError, lzma.LZMAError, pa.ArrowException) as error:
        where = f" {position()}".rstrip()
        remedy = "mend or remove it"
        if "too much memory" in str(error):
            remedy = "its window is larger than 128 MiB: compress it again without --long"
        raise UserError(f"{path}{where}: cannot be read ({error}); {remedy}") from error
