import datetime
import gzip
import itertools
import json
import os

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
import zstandard

from retro_jax.corpus import collect, sources
from retro_jax.corpus.document import BadDocument, Document
from retro_jax.corpus.sources import documents
from retro_jax.errors import UserError


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
    """Where a list nests too deeply depends on the Python, and is not the same for the one and for the other."""
    depths = (*range(700, 999), 100_000)
    lines = [b'{"text": "a", "title": ' + b"[" * n + b"]" * n + b"}" for n in depths]
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


def test_a_bad_line_of_a_file_whose_name_is_not_utf8_can_be_kept(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jsonl", "wb") as file:
        file.write(b"{")
    (bad,) = documents(f"jsonl:{tmp_path}/*.jsonl")
    assert "caf\\udce9.jsonl:1" in bad.id
    bad.id.encode()


def test_shares_of_a_source_are_disjoint_and_together_all_of_it(tmp_path):
    for i in range(200):
        (tmp_path / f"{i:03}.txt").write_text(f"document {i}")
    whole = f"text:{tmp_path}/*.txt"
    parts = [list(documents(f"share:{share}:{whole}")) for share in ("0-0.5", "0.5-0.75", "0.75-1")]
    assert sorted(itertools.chain(*parts), key=lambda d: d.id) == list(documents(whole))
    assert 80 < len(parts[0]) < 120
    # What is held out of a share is chosen by another hash: it is not all of it, or nothing.
    assert 0 < sum(collect.is_heldout(d.id, 0.5) for d in parts[0]) < len(parts[0])


@pytest.mark.parametrize("bounds", ["0.5", "a-b", "0.5-0.5", "0-1.5", "-0.1-0.5"])
def test_a_share_that_is_none_is_refused_before_anything_is_read(bounds):
    for look in (sources.check, lambda *given: list(documents(*given))):
        with pytest.raises(UserError, match=r"corpus\.source = .*is no share; write LOW-HIGH"):
            look(f"share:{bounds}:python:", "corpus.source")
    with pytest.raises(UserError, match=r"corpus\.source = .*no file matches"):
        sources.check("share:0-0.5:text:nowhere/*.txt", "corpus.source")
