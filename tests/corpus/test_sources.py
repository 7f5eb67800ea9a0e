import bz2
import datetime
import decimal
import functools
import gzip
import json
import lzma
import os
import tracemalloc
from typing import ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
import zstandard
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from retro_jax.corpus import sources
from retro_jax.corpus.document import BadDocument, Document
from retro_jax.corpus.sources import documents
from retro_jax.errors import UserError

COMPRESS = {
    "gz": gzip.compress,
    "zst": zstandard.compress,
    "bz2": bz2.compress,
    "xz": functools.partial(lzma.compress, preset=0),
    "GZ": gzip.compress,
}


def test_text_yields_a_document_a_file_named_below_the_pattern(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt").write_text("zwei", encoding="utf-8")
    (tmp_path / "one.txt").write_text("eins", encoding="utf-8")
    got = list(documents(f"text:{tmp_path}/**/*.txt"))
    assert got == [Document("b/two.txt", "zwei"), Document("one.txt", "eins")]


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "empty"), (b" \n", "empty"), (b"a\0b", "binary"), (b"caf\xe9", "not UTF-8 (byte 3")],
)
def test_files_that_hold_no_text_are_named_with_the_reason(tmp_path, data, reason):
    (tmp_path / "x.txt").write_bytes(data)
    (bad,) = documents(f"text:{tmp_path}/*.txt")
    assert isinstance(bad, BadDocument)
    assert bad.id == "x.txt"
    assert reason in bad.reason


def test_a_pattern_that_matches_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="no file matches"):
        list(documents(f"text:{tmp_path}/*.txt"))


@pytest.mark.parametrize("source", ["python", "python:x", "text:", "csv:a.csv", ""])
def test_unknown_sources_are_refused_with_an_example(source):
    with pytest.raises(UserError, match=r"corpus\.source.*for example"):
        list(documents(source))


def test_a_source_is_checked_before_it_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_text("not JSON, which is found when it is read")
    whole = f"jsonl:{tmp_path}/a.jsonl"
    sources.check(f"1*{whole} + 1*python:", "retrieval.source")
    for source, message in (
        ("csv:a.csv", "must be"),
        (f"1*{whole} + 1*text:{tmp_path}/*.txt", "no file matches"),
        (f"1*{whole} + text:{tmp_path}/*.txt", "has no weight"),
    ):
        with pytest.raises(UserError, match=rf"retrieval\.source = .*{message}"):
            sources.check(source, "retrieval.source")


def test_blocks_are_small_where_documents_are_large(monkeypatch):
    monkeypatch.setattr(sources, "BLOCK", 3)
    monkeypatch.setattr(sources, "BLOCK_SIZE", 10)
    found = [Document(str(i), "x" * size) for i, size in enumerate((1, 1, 1, 1, 20, 9, 9, 0))]
    found.insert(7, BadDocument("7", "empty", "the document is empty"))
    sizes = [len(block) for block in sources.blocks(found)]
    assert sizes == [3, 2, 2, 2]


def test_jsonl_keeps_id_date_and_licence_and_reads_gzip(tmp_path):
    row = {"id": 7, "body": "text", "date": "2024-01-01", "licence": "CC0", "other": 1}
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps(row) + "\n\n" + json.dumps({"body": "more"}) + "\n")
    one, two = documents(f"jsonl:{tmp_path}/*.gz#body")
    assert one == Document("7", "text", {"date": "2024-01-01", "licence": "CC0"})
    assert two.id == "a.jsonl.gz:3"


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        (b"{", "not JSON", "not a line of JSON"),
        (b'{"text": "cut o', "not JSON", "not a line of JSON"),
        (b'{"text": "caf\xe9"}', "not UTF-8", "not a line of JSON in UTF-8"),
        (b'{"a": 1}', "no text", "no text in field 'text' (found: a)"),
        (b'["a"]', "no text", "no text in field 'text' (found: list)"),
        (b'{"text": 7}', "no text", "no text in field 'text' (found: a int in it"),
        (b'{"text": null}', "no text", "no text in field 'text' (found: a NoneType"),
        (b'{"text": ["a", "b"]}', "no text", "no text in field 'text' (found: a list"),
        (b'{"text": " "}', "empty", "empty"),
        (b'{"text": "\\ud800"}', "not UTF-8", "half of a surrogate pair"),
        (b'{"text": "a", "id": "\\ud83d"}', "not UTF-8", "field id is not UTF-8"),
        (b'{"text": "a", "title": "\\udc00"}', "not UTF-8", "field title is not UTF-8"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "not JSON", "Exceeds the limit"),
        (b'{"text": "a", "n": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "not JSON", "recursion"),
        (b'{"text": "a", "date": -Infinity}', "metadata", "field date = -inf"),
        (b'{"text": "a", "title": "' + b"x" * 5000 + b'"}', "metadata", "title has 5,000 bytes"),
        (b'{"text": "a", "id": "' + b"x" * 2000 + b'"}', "metadata", "id has 2,000 bytes"),
        (b'{"text": "' + b"x" * 200_000 + b'"}', "too large", "more than 150,000 bytes"),
        (b" " * 200_000, "too large", "more than 150,000 bytes"),
        (b'{"\\ud800": 1}', "no text", "found: \\ud800"),
        (b'{"text": "a", "title": [1e999]}', "metadata", "no value of JSON"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_by_file_and_number_and_the_next_is_read(tmp_path, line, kind, message):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "fine"}\n' + line + b'\n{"text": "fine, too"}\n')
    first, bad, last = documents(f"jsonl:{file}", largest=150_000)
    assert (first.text, last.text) == ("fine", "fine, too")
    assert (bad.id, bad.kind) == (f"{file}:2", kind)
    assert message in bad.reason
    json.dumps(vars(bad)).encode()


def test_metadata_that_can_be_read_but_not_written_are_refused(tmp_path):
    """Somewhere below 1,000 a list nests too deeply for the one and not for the other."""
    lines = [b'{"text": "a", "title": ' + b"[" * n + b"]" * n + b"}" for n in range(700, 1000)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    found = list(documents(f"jsonl:{tmp_path}/a.jsonl"))
    kinds = [d.kind if isinstance(d, BadDocument) else "fine" for d in found]
    assert len(kinds) == 300
    assert set(kinds) <= {"fine", "metadata", "not JSON"}
    assert kinds[0] == "fine"
    assert kinds[-1] == "not JSON"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("NaN", None),
        ("null", None),
        ('"2024"', "2024"),
        ("2024", "2024"),
        ("2024.0", "2024"),  # as pandas writes a year where others are missing
        ("1e300", "1e+300"),
        ("true", "True"),
        ('{"a": [1, null]}', '{"a": [1, null]}'),
        ('"\\u001b[31m"', "\x1b[31m"),
    ],
)
def test_metadata_are_texts_and_nan_is_nothing(tmp_path, value, kept):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "date": ' + value + ', "id": NaN}')
    (found,) = documents(f"jsonl:{tmp_path}/a.jsonl")
    assert found == Document("a.jsonl:1", "a", {} if kept is None else {"date": kept})


def test_python_yields_the_standard_library_without_tests_and_packages():
    ids = {d.id for d in documents("python:") if isinstance(d, Document)}
    assert {"json/decoder.py", "argparse.py"} <= ids
    assert not [
        i for i in ids if {"site-packages", "test", "tests", "encodings"} & set(i.split("/"))
    ]


def test_files_that_cannot_be_decompressed_are_named(tmp_path):
    text = "".join(json.dumps({"text": f"{i} " * 1000}) + "\n" for i in range(2000)).encode()
    for suffix, compress in COMPRESS.items():
        whole = compress(text)
        for data, line in ((whole[:-20], r" after line [1-9]\d+"), (b"not compressed", " after")):
            (tmp_path / f"a.jsonl.{suffix}").write_bytes(data)
            with pytest.raises(UserError, match=rf"a\.jsonl\.{suffix}{line}.*: cannot be read"):
                list(documents(f"jsonl:{tmp_path}/a.jsonl.{suffix}"))


def test_zstandard_and_parquet_and_buckets_are_read(tmp_path):
    row = {"id": "x", "text": "eins", "date": datetime.date(2024, 1, 1), "licence": None}
    pq.write_table(pa.Table.from_pylist([row, row | {"id": None}]), tmp_path / "a.parquet")
    one, two = documents(f"parquet:{tmp_path}/*.parquet#text")
    assert one == Document("x", "eins", {"date": "2024-01-01"})
    assert two.id == "a.parquet:1"
    with pytest.raises(UserError, match=r"a\.parquet: no column 'body' \(found: id, text"):
        list(documents(f"parquet:{tmp_path}/*.parquet#body"))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(b'{"text": "zwei"}\n'))
    assert [d.text for d in documents(f"jsonl:{tmp_path}/*.zst")] == ["zwei"]
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/deep/er/b.txt", b"drei")
    memory.pipe("/bucket/a.txt", b"vier")
    got = list(documents("text:memory://bucket/**/*.txt"))
    assert got == [Document("a.txt", "vier"), Document("deep/er/b.txt", "drei")]


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


def test_a_mixture_takes_documents_by_weight_until_one_source_ends(tmp_path, capfd):
    for name, count in (("a", 30), ("b", 4)):
        lines = [json.dumps({"id": i, "text": f"{name}{i}"}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    got = list(documents(f"3*jsonl:{tmp_path}/a.jsonl + 1*jsonl:{tmp_path}/b.jsonl#text"))
    assert [d.id for d in got[:8]] == ["0/0", "0/1", "1/0", "0/2", "0/3", "0/4", "1/1", "0/5"]
    assert sum(d.id.startswith("1/") for d in got) == 4
    assert len(got) in (16, 17, 18)
    assert len({d.id for d in got}) == len(got)
    said = capfd.readouterr().err.replace("\n", "")
    assert f"4 of jsonl:{tmp_path}/b.jsonl#text" in said
    assert f"{tmp_path}/b.jsonl#text has no more" in said
    with pytest.raises(UserError, match="has no weight"):
        list(documents(f"text:{tmp_path}/a + 1*text:{tmp_path}/b"))


class Sayings(tfds.core.GeneratorBasedBuilder):
    """A data set."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = tfds.features.Text()
        features = tfds.features.FeaturesDict({"text": text, "date": text})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield from ((i, {"text": f"naïve {i}", "date": "2024"}) for i in range(3))


def test_a_prepared_tfds_data_set_is_read(tmp_path):
    builder = Sayings(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    source = f"tfds:{tmp_path}/sayings/1.0.0:train"
    got = list(documents(source))
    assert [d.id for d in got] == ["0", "1", "2"]
    assert {d.text for d in got} == {
        "naïve 0",
        "naïve 1",
        "naïve 2",
    }  # TFDS shuffles what it writes
    assert got[0].metadata == {"date": "2024"}
    with pytest.raises(UserError, match=r"TFDS cannot open it .*tfds build"):
        list(documents(f"tfds:{tmp_path}/sayings/1.0.0:test"))
    with pytest.raises(UserError, match=r"TFDS knows no data set 'nothing_of_this_name'"):
        list(documents("tfds:nothing_of_this_name"))
    bad = list(documents(f"{source}#body"))
    assert all(b.kind == "no text" for b in bad)
    assert bad[0].id.endswith("row 0")


def test_a_null_id_is_none(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "b", "id": null}\n')
    (good,) = documents(f"jsonl:{tmp_path}/a.jsonl")
    assert good.id == "a.jsonl:1"


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_text_is_read_and_a_bomb_is_not_held(tmp_path, suffix):
    data = b"naive" + b" " * 12_000_000
    (tmp_path / f"a.txt.{suffix}").write_bytes(COMPRESS[suffix](data[:9]))
    (tmp_path / f"b.txt.{suffix}").write_bytes(COMPRESS[suffix](data))
    (tmp_path / f"b.jsonl.{suffix}").write_bytes(COMPRESS[suffix](data + b'\n{"text": "b"}'))
    tracemalloc.start()
    try:
        good, bad = documents(f"text:{tmp_path}/*.txt.{suffix}", largest=100_000)
        long, short = documents(f"jsonl:{tmp_path}/b.jsonl.{suffix}", largest=100_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (good.text, bad.kind, long.kind, short.text) == (
        "naive    ",
        "too large",
        "too large",
        "b",
    )
    assert peak < 8_000_000


class _Remote(AbstractFileSystem):
    """As those of buckets: files without lines, which give less than they are asked for."""

    protocol, cachable = "remote", False
    files: ClassVar[dict[str, bytes]] = {}

    def _open(self, path, mode="rb", **given):
        return _Pieces(self, path, mode, size=len(self.files[path]), block_size=7)

    def info(self, path, **given):
        path = self._strip_protocol(path)
        if path in self.files:
            return {"name": path, "size": len(self.files[path]), "type": "file"}
        if any(name.startswith(f"{path}/") for name in self.files):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path, detail=True, **given):
        path = self._strip_protocol(path)
        below = {
            f"{path}/{n[len(path) + 1 :].split('/')[0]}"
            for n in self.files
            if n.startswith(f"{path}/")
        }
        found = [self.info(name) for name in sorted(below)] or [self.info(path)]
        return found if detail else [x["name"] for x in found]


class _Pieces(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        return self.fs.files[self.path][start:end]

    def read(self, length=-1):
        return super().read(min(length, 5) if length > 0 else length)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
def test_files_of_buckets_are_read_to_their_end(monkeypatch, suffix):
    fsspec.register_implementation("remote", _Remote, clobber=True)
    lines = b"".join(b'{"text": "number %d"}\n' % i for i in range(50))
    compress = COMPRESS.get(suffix[1:], bytes)
    stored = {
        f"b/[2024]/deep/a.jsonl{suffix}": compress(lines),
        f"b/a.txt{suffix}": compress(lines),
    }
    monkeypatch.setattr(_Remote, "files", stored)
    found = list(documents(f"jsonl:remote://b/[2024]/*/*.jsonl{suffix}#text"))
    assert [d.text for d in found] == [f"number {i}" for i in range(50)]
    assert found[0].id == f"deep/a.jsonl{suffix}:1"
    (one,) = documents(f"text:remote://b/a.txt{suffix}")
    assert one == Document(f"a.txt{suffix}", lines.decode())


def test_a_bad_line_of_a_file_whose_name_is_not_utf8_can_be_kept(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jsonl", "wb") as file:
        file.write(b"{")
    (bad,) = documents(f"jsonl:{tmp_path}/*.jsonl")
    assert "caf\\udce9.jsonl:1" in bad.id
    bad.id.encode()


def test_archives_and_long_windows_are_refused_with_the_remedy(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"a\.zip: \.zip is not read; unpack it"):
        list(documents(f"text:{tmp_path}/a.zip"))
    asked = zstandard.ZstdCompressionParameters(window_log=29, compression_level=1)
    made = zstandard.ZstdCompressor(compression_params=asked).compressobj()
    (tmp_path / "a.jsonl.zst").write_bytes(made.compress(b"{}") + made.flush())
    with pytest.raises(UserError, match="compress it again without --long"):
        list(documents(f"jsonl:{tmp_path}/a.jsonl.zst"))


@pytest.mark.parametrize("name", ["[2024]", "C + D", "a#b", "a*b", "x? + y", "two  spaces"])
def test_folders_of_any_name_are_read(tmp_path, name):
    (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / name / "deep" / "a.jsonl").write_text('{"text": "b"}\n')
    for source in (
        f"jsonl:{tmp_path}/{name}/**/*.jsonl#text",
        f"jsonl:{tmp_path}/{name}/deep/a.jsonl#text",
        f"1*jsonl:{tmp_path}/{name}/*/*.jsonl#text + 2*jsonl:{tmp_path}/{name}/**/a.jsonl#text",
    ):
        sources.check(source, "corpus.source")
        assert {d.text for d in documents(source)} == {"b"}
    assert next(documents(f"jsonl:{tmp_path}/{name}/**/*.jsonl#text")).id == "deep/a.jsonl:1"


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
