import gzip
import json

import pytest

from retro_jax.corpus.sources import BadDocument, Document, documents
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


def test_jsonl_keeps_id_date_and_licence_and_reads_gzip(tmp_path):
    row = {"id": 7, "body": "text", "date": "2024-01-01", "licence": "CC0", "other": 1}
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps(row) + "\n\n" + json.dumps({"body": "more"}) + "\n")
    one, two = documents(f"jsonl:{tmp_path}/*.gz#body")
    assert one == Document("7", "text", {"date": "2024-01-01", "licence": "CC0"})
    assert two.id == "a.jsonl.gz:3"


@pytest.mark.parametrize(
    ("line", "message"), [("{", "not a line of JSON"), ('{"a": 1}', "no text")]
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(UserError, match=rf"a\.jsonl:2: {message}"):
        list(documents(f"jsonl:{tmp_path}/a.jsonl"))


def test_python_yields_the_standard_library_without_tests_and_packages():
    ids = {d.id for d in documents("python:") if isinstance(d, Document)}
    assert {"json/decoder.py", "argparse.py"} <= ids
    assert not [
        i for i in ids if {"site-packages", "test", "tests", "encodings"} & set(i.split("/"))
    ]


def test_files_that_cannot_be_decompressed_are_named(tmp_path):
    whole = gzip.compress(json.dumps({"text": "long " * 1000}).encode())
    for data in (whole[:-20], b"no gzip at all"):
        (tmp_path / "a.jsonl.gz").write_bytes(data)
        with pytest.raises(UserError, match=r"a\.jsonl\.gz: cannot be read"):
            list(documents(f"jsonl:{tmp_path}/a.jsonl.gz"))


def test_half_a_surrogate_pair_is_not_text_and_a_null_id_is_none(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "\\ud800", "id": null}\n{"text": "b", "id": null}\n'
    )
    bad, good = documents(f"jsonl:{tmp_path}/a.jsonl")
    assert "not UTF-8" in bad.reason
    assert (bad.id, good.id) == ("a.jsonl:1", "a.jsonl:2")
