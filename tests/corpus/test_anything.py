"""Whatever a file holds, it is documents, bad documents, or refused in one line: never an exception of another kind.

FUZZ=100000 python -m pytest -n0 tests/corpus/test_anything.py    # examples a test; 100 by default
"""

import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Pieces
from tokenizers import decoders, models, pre_tokenizers, trainers

from retro_jax.corpus.document import MOST_ID, MOST_METADATA, BadDocument, Document
from retro_jax.corpus.sources import documents
from retro_jax.corpus.tokenizer_json import PretrainedTokenizer
from retro_jax.errors import UserError

LARGEST = 300
quick = settings(
    max_examples=int(os.environ.get("FUZZ", "100")),
    deadline=None,
    derandomize="FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
ANY_TEXT = st.text(st.characters(), max_size=40) | st.just("\ud800")  # which is half a pair
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=6,
)
NAMES = ("id", "text", "date", "title", "licence", "source")
ROW = st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, ANY_TEXT | JSON)) | JSON
LINE = (
    ROW.map(lambda row: json.dumps(row).encode())
    | st.binary(max_size=60)
    | st.text('[]{}:,"\\u0d8ae1-.NIntx ', max_size=60).map(str.encode)
    | st.integers(1, 6000).map(lambda n: b'{"text": "a", "n": ' + b"9" * n + b"}")
    | st.tuples(st.sampled_from(NAMES), st.integers(1, 3000)).map(
        lambda x: b'{"text": "a", "%s": ' % x[0].encode() + b"[" * x[1] + b"]" * x[1] + b"}"
    )
)


def read(function):
    """(what a function returns, None) or (None, its refusal)."""
    try:
        return function(), None
    except UserError as error:
        return None, str(error)


def held(found):
    """The documents, which can be kept and shown."""
    for one in found:
        json.dumps(vars(one), ensure_ascii=False, allow_nan=False).encode()
        if isinstance(one, Document):
            assert one.text.strip()
            assert len(one.text.encode()) <= LARGEST
            assert 0 < len(one.id.encode()) <= MOST_ID
            assert set(one.metadata) <= {*NAMES} - {"id", "text"}
            assert all(len(v.encode()) <= MOST_METADATA for v in one.metadata.values())
        else:
            assert isinstance(one, BadDocument)
            assert one.reason
            assert len(one.reason) < 500
    return found


@quick
@given(lines=st.lists(LINE, max_size=5), compressed=st.booleans(), cut=st.integers(0, 20))
def test_lines(tmp_path_factory, lines, compressed, cut):
    path = tmp_path_factory.getbasetemp() / f"fuzz.jsonl{'.gz' * compressed}"
    data = b"\n".join(lines)
    data = gzip.compress(data)[: -cut or None] if compressed else data
    path.write_bytes(data)
    found, refused = read(lambda: held(list(documents(f"jsonl:{path}", largest=LARGEST))))
    if refused:
        assert compressed
        assert refused.startswith(str(path))
        return
    whole = [x for line in lines for x in line.split(b"\n") if x.strip()]
    assert len(found) == len(whole)


@quick
@given(data=st.binary(max_size=400))
def test_files_of_text(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.txt"
    path.write_bytes(data)
    (found,) = held(list(documents(f"text:{path}", largest=LARGEST)))
    if isinstance(found, Document):
        assert found.text.encode() == data


TYPES = (
    pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.bool_(), pa.string(), pa.large_binary(), pa.date32(),
    pa.date64(), pa.timestamp("ns", "UTC"), pa.timestamp("s"), pa.time64("ns"), pa.duration("ns"),
    pa.decimal128(20, 3), pa.list_(pa.timestamp("ns")), pa.struct([("a", pa.duration("us"))]),
)  # fmt: skip


@st.composite
def columns(draw):
    """A table with random bytes for the numbers of each type: dates of any year, NaN, anything."""
    rows = draw(st.integers(1, 4))
    table = {
        "text": draw(st.lists(st.binary(max_size=400) | st.none(), min_size=rows, max_size=rows))
    }
    table["text"] = pa.array(table["text"], pa.binary())
    for name in draw(st.sets(st.sampled_from(("id", "date", "title")), max_size=3)):
        kind = draw(st.sampled_from(TYPES))
        table[name] = _array(kind, rows, draw(st.binary(min_size=64 * rows, max_size=64 * rows)))
    return pa.table(table)


def _array(kind: pa.DataType, rows: int, data: bytes) -> pa.Array:
    if pa.types.is_list(kind):
        inner = _array(kind.value_type, rows, data)
        return pa.ListArray.from_arrays(list(range(rows + 1)), inner)
    if pa.types.is_struct(kind):
        return pa.StructArray.from_arrays([_array(kind.field(0).type, rows, data)], ["a"])
    if kind in (pa.string(), pa.large_binary()):
        width = {pa.string(): "int32", pa.large_binary(): "int64"}[kind]
        ends = pa.array([3 * i for i in range(rows + 1)], getattr(pa, width)()).buffers()[1]
        return pa.Array.from_buffers(kind, rows, [None, ends, pa.py_buffer(data)])
    if pa.types.is_decimal(kind):  # within its digits
        data = b"".join(data[16 * i : 16 * i + 7] + bytes(9) for i in range(rows))
    if kind == pa.date64():  # whole days
        days = pa.array([int.from_bytes(data[8 * i : 8 * i + 4], "little") for i in range(rows)])
        return (
            days.cast(pa.int64()).cast(pa.int32(), safe=False).cast(pa.date32()).cast(pa.date64())
        )
    if pa.types.is_time(kind):
        return pa.array(
            [int.from_bytes(data[8 * i : 8 * i + 5], "little") for i in range(rows)], kind
        )
    return pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(data)])


@quick
@given(table=columns())
def test_tables(tmp_path_factory, table):
    path = tmp_path_factory.getbasetemp() / "fuzz.parquet"
    try:
        pq.write_table(table, path)
    except pa.ArrowInvalid:  # it cannot stand in such a file
        reject()
    found = held(list(documents(f"parquet:{path}", largest=LARGEST)))
    assert len(found) == len(table)


@quick
@given(data=st.binary(max_size=40), at=st.integers(0, 600))
def test_damaged_tables(tmp_path_factory, data, at):
    path = tmp_path_factory.getbasetemp() / "damaged.parquet"
    pq.write_table(pa.table({"text": ["one", "two"] * 9, "date": [1.5] * 18}), path)
    whole = bytearray(path.read_bytes())
    whole[at : at + len(data)] = data
    path.write_bytes(whole)
    _, refused = read(lambda: held(list(documents(f"parquet:{path}", largest=LARGEST))))
    assert not refused or refused.startswith(str(path))


@pytest.fixture(scope="module")
def fields():
    """Of a small tokenizer.json of bytes."""
    made = Pieces(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet)
    made.train_from_iterator(["kara lopo minel"] * 9, trainer)
    return json.loads(made.to_str())


ADDED = st.fixed_dictionaries(
    {
        "id": st.integers(0, 400), "content": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6),
        **{n: st.booleans() for n in ("special", "lstrip", "rstrip", "single_word", "normalized")},
    }
)  # fmt: skip
PLACES = (
    "model",
    "decoder",
    "pre_tokenizer",
    "added_tokens",
    "normalizer",
    "truncation",
    "version",
)


@quick
@given(
    added=st.lists(ADDED, max_size=4, unique_by=lambda t: t["content"]),
    changed=st.dictionaries(st.sampled_from(PLACES), JSON, max_size=1),
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
)
def test_tokenizer_files(fields, added, changed, text):
    data = json.dumps(fields | {"added_tokens": added} | changed).encode()
    pieces, refused = read(lambda: PretrainedTokenizer(data, "t.json"))
    if refused:
        assert refused.startswith("t.json: ")
        return
    for said in (text, text.join(t["content"] for t in added)):
        ids = pieces.encode(said)
        assert pieces.decode_bytes(ids) == said.encode()
        assert pieces.byte_counts[ids].sum() == len(said.encode())
