"""What a client or a file can send, driven by which lines of the code it reaches.

    pip install atheris
    python tests/faults/fuzz.py -max_total_time=1200

Each input is a line of JSON lines, a body for the server, and the bytes of a tokenizer.json. What is refused is refused
as it should be; any other exception ends the run, with the input in a file `crash-...`.
"""

import json
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["retro_jax.corpus", "retro_jax.serve"]):
    from retro_jax.config.request import Request
    from retro_jax.corpus import document, sources
    from retro_jax.corpus.tokenizer_json import PretrainedTokenizer
    from retro_jax.errors import UserError
    from retro_jax.serve import api, documents
    from retro_jax.serve.reading import Refused, fields, json_of

FILE = Path(tempfile.mkdtemp()) / "a.jsonl"


class Letters:
    """A tokenizer whose tokens are bytes."""

    vocab, first = 256, 0

    def decode(self, ids):
        """The text of bytes."""
        return bytes(ids).decode("utf-8", "replace")

    def encode(self, text):
        """The bytes of a text."""
        return list(text.encode())


def one(data: bytes):
    """Tries an input."""
    FILE.write_bytes(data)
    for found in sources.documents(f"jsonl:{FILE}", largest=500):
        json.dumps(vars(found), ensure_ascii=False, allow_nan=False).encode()
    for read in (
        lambda value: api.asked(value, "m", Letters(), 64, 512, ("retro", "rag")),
        lambda value: fields(value, "", documents._ADDED),
    ):
        try:
            read(json_of(data))
        except Refused as refused:
            json.dumps(refused.to_json(), allow_nan=False).encode()
    try:
        document.parsed(data)
        PretrainedTokenizer(data, "t.json")
    except (UserError, document.Unusable):
        pass


if __name__ == "__main__":
    seeds = Path(tempfile.mkdtemp())
    for name, value in {
        "document": {"id": "a", "text": "b", "date": "2024-01-01", "title": ["c", 1.5]},
        "body": {"prompt": ["a"], "max_tokens": 3, "stop": ["b"], "retrieval": {"where": {"licence": ["c"]}}},
        "added": {"database": "a", "documents": [{"id": "b", "text": "c", "date": "2024"}]},
        "request": {**vars(Request("a")), "where": None},
        "tokenizer": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "decoder": {"type": "ByteLevel"}},
    }.items():  # fmt: skip
        (seeds / name).write_text(json.dumps(value))
    atheris.Setup([*sys.argv, str(seeds)], one)
    atheris.Fuzz()
