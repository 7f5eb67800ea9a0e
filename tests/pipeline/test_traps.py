"""A corpus of planted traps, from a compressed file to shards: nothing leaks and nothing is lost."""

import dataclasses
import gzip
import json

import numpy as np
import pytest
from conftest import small_experiment, write_corpus

from retro_jax.corpus import collect
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.corpus.tokenizer import open_tokenizer
from retro_jax.evaluate import leaks
from retro_jax.evaluate.text import Text
from retro_jax.pipeline import prepare
from retro_jax.store.workdir import WorkDir


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """id -> text, traps among ordinary documents."""
    directory = tmp_path_factory.mktemp("texts")
    write_corpus(directory)
    texts = {p.name: p.read_text() for p in sorted(directory.iterdir())}
    copied = next(n for n in texts if not collect.is_heldout(n, 0.2))
    # 10,000 chunks, each the nearest of the others (a chunk has 16 tokens).
    same = "kara lopo minel tenis surra " * 34_000
    return texts | {
        trained("copy"): texts[copied],
        trained("same"): same,
        trained("one chunk"): "ÀÁÂÃÄÅÆ",  # 14 bytes, a token each; with BOS and EOS a chunk of 16
        trained("emoji"): "👩‍👩‍👧‍👦 🏳️‍🌈 ⵣ \u202e abc é é \ufeff\U0010ffff " * 9,
        trained("nul"): "kara\0lopo \0\0 minel\r\n\ttenis\x7f" * 9,
        trained("line"): " ".join(texts.values()) * 20,  # 2 MB
        trained("empty"): " \n",
    }


def trained(name: str) -> str:
    """An id that begins so and falls into the training split."""
    return next(i for i in (f"{name} {n}" for n in range(99)) if not collect.is_heldout(i, 0.2))


@pytest.fixture(scope="module")
def prepared(texts, tmp_path_factory):
    """(working directory, WORKDIR/prepare, manifests)."""
    root = tmp_path_factory.mktemp("prepared")
    with gzip.open(root / "traps.jsonl.gz", "wt", encoding="utf-8") as file:
        for id, text in texts.items():
            file.write(json.dumps({"id": id, "text": text}) + "\n")
        file.write('{"text": null}\n{"text": "cut o\n{"text": ["a"]}\n{"words": "a"}\n')
        held_out = next(id for id in texts if collect.is_heldout(id, 0.2))
        for n, again in enumerate((trained("same"), trained("same"), held_out)):
            file.write(json.dumps({"id": again, "text": f"surra {n} " * 100}) + "\n")
    base = small_experiment(root)
    experiment = dataclasses.replace(
        base,
        corpus=dataclasses.replace(
            base.corpus,
            source=f"jsonl:{root}/traps.jsonl.gz#text",
            bad_documents="skip",
            vocab=350,
        ),
        retrieval=dataclasses.replace(base.retrieval, index="exact"),
    )
    return WorkDir(root, experiment), root / "prepare", prepare.prepare(WorkDir(root, experiment))


def test_every_document_is_there_to_the_last_byte(prepared, texts):
    _, base, manifests = prepared
    pieces, found = open_tokenizer(base / "tokenizer"), {}
    for split in ("train", "heldout"):
        table = ChunkTable(base / "chunks" / split)
        for entry in table.documents:
            rows = table.tokens[entry["first"] : entry["first"] + entry["chunks"]]
            text = pieces.decode(rows.reshape(-1).tolist())
            assert text == texts[entry["id"]]
            assert entry["bytes"] == len(text.encode())
            found[entry["id"]] = entry["chunks"]
    near = json.loads((base / "corpus" / "near_duplicates.json").read_text())
    left_out = texts.keys() - found.keys() - near.keys()
    assert left_out == {trained("empty")}
    counts = manifests["corpus"]["counts"]
    assert counts["bad_documents"] == {"empty": 1, "no text": 3, "not JSON": 1, "repeated id": 3}
    assert [x.partition(": ")[0][-3:] for x in counts["bad_documents_named"]["no text"]] == [
        f":{len(texts) + n}" for n in (1, 3, 4)
    ]
    assert manifests["corpus"]["counts"]["exact_duplicates_in_train"] == 1
    assert found[trained("same")] > 10_000
    assert found[trained("one chunk")] == 1


def _every_whole_chunk_is_named(text):
    """Compared with a loop over chunks and places."""
    table, expected = text.table, 0
    m, pairs = table.chunk, set()
    for row, after in enumerate(np.asarray(table.continuation).tolist()):
        if after < 0 or not table.tokens[after].all():
            continue
        target = table.tokens[after].tolist()
        holds = [
            id
            for id, near in zip(text.ids[row].tolist(), text.values(text.ids[row]).tolist())
            if any(near[i : i + m] == target for i in range(m + 1))
        ]
        expected += bool(holds)
        own = table.documents[int(table.document[row])]["id"]
        pairs |= {(own, text.source(id)["document"]) for id in holds}
    found = leaks.whole_chunks(text)
    assert found["chunks"] == expected > 0
    assert {(of, near) for of, near, _ in found["documents"]} <= pairs
    assert len(found["documents"]) == min(20, len(pairs))


def test_nothing_leaks_and_every_chunk_has_its_neighbours(prepared, texts):
    work, _, _ = prepared
    splits = {s: Text.prepared(work, s) for s in ("train", "heldout")}
    database, packed = splits["train"].table, 0
    assert not any(leaks.violations(splits, database, work.experiment).values())
    _every_whole_chunk_is_named(splits["train"])
    name = [d["id"] for d in database.documents]
    for record in splits["train"].records:
        own = {texts[name[d]] for d in record["documents"] if d >= 0}
        packed += len(own) > 1
        ids = record["neighbour_ids"][record["documents"] >= 0]
        assert (ids >= 0).all()  # also for the 10,000, whose nearest are all their own
        for document in np.unique(database.document[ids]):
            assert texts[name[document]] not in own
    assert packed > 10
