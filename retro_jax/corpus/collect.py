"""The corpus stage: documents read from their source, split, and compared with one another.

A directory of columns (`columns.py`): the documents of each split as lines, and for each a hash of its
id and of its text. Beside it, the rows that are left out: held-out documents that nearly repeat a
training document, and exact duplicates if the config says so.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from retro_jax import columns, progress
from retro_jax.config import CorpusConfig
from retro_jax.corpus import sources
from retro_jax.corpus.dedup import HeldOut
from retro_jax.corpus.sources import BadDocument, Document
from retro_jax.errors import UserError

SPLITS = ("train", "heldout")
_BLOCK = 1000  # documents


def collect(config: CorpusConfig, out: Path) -> dict:
    """Reads the source into `out`, or goes on where an earlier call was killed.

    Memory holds a block of documents and what `HeldOut` says of held-out text. Returns the counts.

    Raises:
      UserError: a bad document (if they are refused), two of one id, or an empty split.
    """
    counts = _read(config, out)
    documents = columns.Columns(out)
    dropped = {split: np.zeros(0, np.int64) for split in SPLITS}
    for split in SPLITS:
        if not len(documents[split]):
            raise UserError(
                f"config field corpus.source = {config.source!r}: no document falls into the "
                f"{split} split ({counts['documents']} documents, corpus.heldout = "
                f"{config.heldout}); give more documents or change corpus.heldout"
            )
        for row in columns.repeated(documents[f"{split}_ids"]):
            id = documents[split][row]["id"]
            raise UserError(f"{id}: two documents have this id; make ids unique")
    copies = np.array(sorted(columns.repeated(documents["train_texts"])), np.int64)
    if config.exact_duplicates == "drop":
        dropped["train"] = copies
    near = _near_duplicates(config, documents, out)
    dropped["heldout"] = np.array(sorted({row for row, _ in near}), np.int64)
    if len(dropped["heldout"]) == len(documents["heldout"]):
        raise UserError(
            "every held-out document nearly repeats a training document "
            f"(corpus.near_duplicate = {config.near_duplicate}); give more varied documents"
        )
    for split in SPLITS:
        np.save(out / f"{split}_dropped.npy", dropped[split])
    found = {}
    for row, other in near:
        found.setdefault(documents["heldout"][row]["id"], other)
    (out / "near_duplicates.json").write_text(json.dumps(found, indent=2, ensure_ascii=False))
    for row in dropped["heldout"]:
        counts["heldout_bytes"] -= len(documents["heldout"][int(row)]["text"].encode())
    for row in dropped["train"]:
        counts["train_bytes"] -= len(documents["train"][int(row)]["text"].encode())
    return {
        "train_documents": len(documents["train"]) - len(dropped["train"]),
        "train_bytes": counts["train_bytes"],
        "heldout_documents": len(documents["heldout"]) - len(dropped["heldout"]),
        "heldout_bytes": counts["heldout_bytes"],
        "near_duplicates_dropped": len(dropped["heldout"]),
        "exact_duplicates_in_train": len(copies),
        "bad_documents_skipped": counts["skipped"],
    }


def read(corpus: Path, split: str) -> Iterator[Document]:
    """The documents of a split, but for those left out."""
    documents = columns.Columns(corpus)[split]
    dropped = set(np.load(corpus / f"{split}_dropped.npy").tolist())
    for row, fields in enumerate(documents):
        if row not in dropped:
            yield Document(**fields)


def is_heldout(id: str, share: float) -> bool:
    """Whether a document is held out: a fixed hash of its id, the same on every machine."""
    return int.from_bytes(_hash(id, 8), "big") < share * 2**64


def refuse_or_skip(config: CorpusConfig, document: BadDocument):
    """Raises UserError for a bad document unless the config says to leave such out."""
    if config.bad_documents == "refuse":
        raise UserError(
            f"{document.id}: {document.reason}; mend or remove it, or leave such documents out "
            "with --config.corpus.bad_documents=skip"
        )


def _hash(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()


def _read(config: CorpusConfig, out: Path) -> dict:
    layout = {}
    for split in SPLITS:
        layout |= {split: columns.LINES, f"{split}_ids": ("S8", ()), f"{split}_texts": ("S16", ())}
    writer = columns.Writer(out, layout)
    empty = {"documents": 0, "skipped": 0, "train_bytes": 0, "heldout_bytes": 0, "complete": False}
    counts = writer.state = empty | writer.state
    if counts["complete"]:
        writer.close()
        return counts
    found = sources.documents(config.source)
    with progress.bar("reading documents", None) as advance:
        advance(sum(1 for _ in itertools.islice(found, counts["documents"])))
        while block := list(itertools.islice(found, _BLOCK)):
            good = {split: [] for split in SPLITS}
            for document in block:
                if isinstance(document, BadDocument):
                    refuse_or_skip(config, document)
                    counts["skipped"] += 1
                else:
                    held_out = is_heldout(document.id, config.heldout)
                    good["heldout" if held_out else "train"].append(document)
            for split, documents in good.items():
                counts[f"{split}_bytes"] += sum(len(d.text.encode()) for d in documents)
                writer.append(**{
                    split: [vars(d) for d in documents],
                    f"{split}_ids": np.array([_hash(d.id, 8) for d in documents], "S8"),
                    f"{split}_texts": np.array([_hash(d.text, 16) for d in documents], "S16"),
                })  # fmt: skip
            counts["documents"] += len(block)
            writer.commit()
            advance(len(block))
    counts["complete"] = True
    writer.commit()
    writer.close()
    return counts


def _near_duplicates(config: CorpusConfig, documents: columns.Columns, out: Path) -> list:
    """[row of a held-out document, id of a training document that it nearly repeats]."""
    train, heldout = documents["train"], documents["heldout"]
    writer = columns.Writer(out / "near_duplicates", {"pairs": columns.LINES})
    start = writer.blocks * _BLOCK
    if start < len(train):
        sketches = HeldOut(
            ((row, d["text"]) for row, d in enumerate(heldout)), config.near_duplicate
        )
        with progress.bar("near-duplicates", len(train)) as advance:
            advance(start)
            for begin in range(start, len(train), _BLOCK):
                block = [train[i] for i in range(begin, min(begin + _BLOCK, len(train)))]
                pairs = [[row, d["id"]] for d in block for row in sketches.near(d["text"])]
                writer.append(pairs=pairs)
                writer.commit()
                advance(len(block))
    writer.close()
    return list(columns.Columns(out / "near_duplicates")["pairs"])
