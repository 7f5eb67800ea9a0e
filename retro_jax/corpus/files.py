"""Files of a corpus, here or in a bucket, plain or compressed, read a piece at a time."""

import datetime
import glob
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from retro_jax.errors import UserError

_COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
_ROWS = 1000  # of a parquet file, read at a time


def expand(pattern: str, named: str) -> list[tuple[str, str]]:
    """Files that match, sorted, and their names below the pattern's fixed folder: ids that do not
    change when the folder moves. `named`: who asks for them, for the error."""
    if "://" in pattern:
        with _reading(pattern):
            system, path = fsspec.core.url_to_fs(pattern)
            found = [p for p in sorted(system.glob(path)) if system.isfile(p)]
            root = PurePosixPath(path)
        while glob.has_magic(str(root)) or str(root) in found:
            root = root.parent
        paths = [(system.unstrip_protocol(p), PurePosixPath(p)) for p in found]
    else:
        found = sorted(p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p))
        root = Path(pattern)
        while glob.has_magic(str(root)) or not root.is_dir():
            root = root.parent
        paths = [(p, Path(p)) for p in found]
    if not found and os.path.isdir(pattern):
        raise UserError(
            f"{named}: {pattern!r} is a folder; write {pattern.rstrip('/') + '/**/*'!r}"
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


def read(path: str) -> bytes:
    """All bytes of a file."""
    with _reading(path), _open(path) as file:
        return file.read()


def lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, from 1."""
    number = 0
    with _reading(path, lambda: f"after line {number}"), _open(path) as file:
        for number, line in enumerate(file, 1):
            yield number, line


def parquet_rows(path: str, column: str, others: tuple[str, ...]) -> Iterator[tuple[int, dict]]:
    """Rows with their numbers, from 0: `column` and those of `others` that there are."""
    with _reading(path), fsspec.open(path, "rb") as file:
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
        if column not in names:
            raise UserError(
                f"{path}: no column {column!r} (found: {', '.join(names)}); name it in "
                "the source as parquet:GLOB#COLUMN"
            )
        chosen = [column, *(n for n in others if n in names and n != column)]
        row = 0
        for batch in table.iter_batches(batch_size=_ROWS, columns=chosen):
            for fields in batch.to_pylist():
                yield row, {n: _plain(v) for n, v in fields.items()}
                row += 1


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
    for row, fields in enumerate(rows):
        yield row, {n: _plain(v) for n, v in fields.items()}


@contextmanager
def _open(path: str):
    """A file's bytes, decompressed. Through Arrow, which notices a stream that ends too early."""
    compression = _COMPRESSED.get(os.path.splitext(path)[1])
    with fsspec.open(path, "rb") as file:
        if compression:
            file = io.BufferedReader(
                pa.CompressedInputStream(pa.PythonFile(file, "r"), compression)
            )
        yield file


@contextmanager
def _reading(path: str, position=lambda: ""):
    """What can go wrong in a file, as a UserError that names it."""
    try:
        yield
    except ImportError as error:  # of fsspec, for a kind of address
        raise UserError(f"{path}: {error}") from error
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        where = f" {position()}".rstrip()
        raise UserError(f"{path}{where}: cannot be read ({error}); mend or remove it") from error


def _plain(value):
    """A value as JSON can hold it: bytes are UTF-8, dates are ISO 8601."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.isoformat() if isinstance(value, datetime.date) else value
