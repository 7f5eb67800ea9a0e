"""Documents that are rows of Parquet."""

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retro_jax.corpus.document import BadDocument
from retro_jax.corpus.sources import documents
from retro_jax.errors import UserError


def test_columns_of_one_name_are_refused(tmp_path):
    for names in (["text", "text"], ["text", "id", "id"]):
        table = pa.Table.from_arrays([pa.array(["a"])] * len(names), names=names)
        pq.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(UserError, match=f"two columns have the name '{names[-1]}'"):
            list(documents(f"parquet:{tmp_path}/a.parquet"))


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no parquet at all")
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read"):
        list(documents(f"parquet:{tmp_path}/*.parquet#text"))


def test_a_null_id_is_none(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "b", "id": null}\n')
    (good,) = documents(f"jsonl:{tmp_path}/a.jsonl")
    assert good.id == "a.jsonl:1"


def test_every_type_of_parquet_is_text_or_named(tmp_path):
    nano = pa.array([1700000000123456789], pa.timestamp("ns", "UTC"))
    columns = {
        "decimal": (pa.array([decimal.Decimal("20240101")]), "20240101"),
        "time": (pa.array([datetime.time(1, 2)]), "01:02:00"),
        "duration": (pa.array([datetime.timedelta(1)]), "1 day, 0:00:00"),
        "struct": (
            pa.array([{"seen": datetime.datetime(2024, 1, 1), "n": 1}]),
            '{"seen": "2024-01-01T00:00:00", "n": 1}',
        ),
        "nanoseconds": (nano, "2023-11-14T22:13:20.123456789Z"),
        # Where pandas is installed, too.
        "whole microseconds": (
            pa.array([1700000000123456000], pa.timestamp("ns", "UTC")),
            "2023-11-14T22:13:20.123456+00:00",
        ),
        "duration, nanoseconds": (pa.array([86_400 * 10**9], pa.duration("ns")), "1 day, 0:00:00"),
        "after 9999": (pa.array([10**6 * 4], pa.date32()), "12921-08-18"),
        "integer": (pa.array([2024], pa.int16()), "2024"),
        "bytes": (pa.array([b"2024"]), "2024"),
        "dictionary": (pa.array(["2024"]).dictionary_encode(), "2024"),
        "list": (pa.array([["a", "b"]]), '["a", "b"]'),
        "float": (pa.array([float("nan")]), None),
        "null": (pa.array([None]), None),
        "out of range": (pa.array([10**12], pa.timestamp("s")), BadDocument),
        "not UTF-8": (pa.array([b"caf\xe9"]), BadDocument),
    }
    for name, (column, kept) in columns.items():
        pq.write_table(pa.table({"text": ["one"], "date": column}), tmp_path / "a.parquet")
        (found,) = documents(f"parquet:{tmp_path}/a.parquet")
        if kept is BadDocument:
            assert found.id == f"{tmp_path}/a.parquet: row 0", name
        else:
            assert found.metadata == ({} if kept is None else {"date": kept}), name


def test_texts_of_parquet_are_counted_and_decoded_one_by_one(tmp_path):
    good, large = "naïve " * 10, "x" * 1_000_001
    for kind in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary()):
        texts = pa.array(
            [good.encode(), b"caf\xe9", large.encode(), None, good.encode()], pa.binary()
        )
        texts = texts.cast(kind) if pa.types.is_large_binary(kind) else texts
        if kind in (pa.string(), pa.large_string()):  # Arrow does not look whether it is UTF-8
            texts = pa.Array.from_buffers(pa.string(), len(texts), texts.buffers()).cast(kind)
        pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
        found = list(documents(f"parquet:{tmp_path}/a.parquet", largest=1_000_000))
        kinds = [d.kind if isinstance(d, BadDocument) else d.text for d in found]
        assert kinds == [good, "not UTF-8", "too large", "no text", good], kind
    # Of a row group whose rows are too large in the mean nothing is read.
    pq.write_table(pa.table({"text": ["x" * 30_000_000] * 2}), tmp_path / "a.parquet")
    before = pa.total_allocated_bytes()
    peak = pa.default_memory_pool().max_memory()
    both = list(documents(f"parquet:{tmp_path}/a.parquet", largest=1_000_000))
    assert [d.kind for d in both] == ["too large", "too large"]
    assert pa.default_memory_pool().max_memory() == peak
    assert pa.total_allocated_bytes() == before
    # A text that 5,000 rows share would take 5 GB if each had its own.
    shared = pa.DictionaryArray.from_arrays(np.zeros(5000, np.int32), [large])
    pq.write_table(pa.table({"text": shared}), tmp_path / "a.parquet")
    one = next(documents(f"parquet:{tmp_path}/a.parquet"))
    assert one.text == large
    assert pa.total_allocated_bytes() < 100_000_000
