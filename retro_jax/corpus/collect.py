"""The corpus steps: documents read from a source, split, and compared with one another.

A directory of columns (`columns.py`): the documents of each split as lines, and for each a hash of its
id and of its text. Beside it, the rows that are left out: held-out documents that nearly repeat a document that is
trained on or retrieved, and if the config says so exact duplicates, and documents whose id an earlier one has.
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from upath import UPath

from retro_jax import progress
from retro_jax.corpus import sources
from retro_jax.corpus.document import BadDocument, Document, digest, in_words
from retro_jax.corpus.near_duplicates import HeldOut
from retro_jax.errors import UserError
from retro_jax.store import columns, files

TRAIN, HELDOUT = "train", "heldout"
REPEATED, _COPIES = "repeated id", "exact copies"  # kinds of what is left out
_PLACES = 2**64
_NAMED = 100  # bad documents of a kind that the manifest names


class Rules(NamedTuple):
    """What is refused or left out: fields of the config's `corpus`."""

    bad_documents: str
    largest_document: int
    heldout: float
    near_duplicate: float
    exact_duplicates: str


class Source(NamedTuple):
    """What a corpus is made of: a source (see `sources.documents`), the config's field that names it, bytes that a
    document may have, the splits that there are (train, heldout or both), and which a document goes into; None:
    neither."""

    text: str
    field: str
    largest: int
    splits: tuple[str, ...]
    split_of: Callable[[Document | BadDocument], str | None]

    def documents(self) -> Iterator[Document | BadDocument]:
        """All of them, whichever split they go into."""
        return sources.documents(self.text, self.field, self.largest)


def collect(rules: Rules, source: Source, out: Path, others: tuple[Path, ...] = ()) -> dict:
    """Reads a source into `out`, or goes on where an earlier call was killed.

    Memory holds a block of documents and what `HeldOut` says of held-out text.

    Args:
      others: directories of this kind; held-out documents that nearly repeat one of their training
        documents are left out too.

    Returns:
      The counts.

    Raises:
      UserError: a bad document (if they are refused), or an empty split.
    """
    splits, counts = source.splits, _read(rules, source, out)
    documents = columns.Columns(out)
    bad, named = Counter(counts["bad"]), counts["named"]
    dropped, result = {}, {}
    for split in splits:
        if not len(documents[split]):
            why = "".join(f"; {some[0]}" for some in named.values())
            raise UserError(
                f"config field {source.field} = {source.text!r}: no document falls into the {split} split "
                f"({counts['documents']} documents, {bad.total()} of them bad, corpus.heldout = "
                f"{rules.heldout}); {_remedy(documents, splits, split)}{why}"
            )
        again = left_out(rules, documents, split)
        for row in again[REPEATED]:
            id = documents[split][row]["id"]
            refuse_or_skip(rules.bad_documents, repeats(id))
            _count(repeats(id), bad, named)
        dropped[split] = np.unique(np.concatenate(list(again.values())))
        if split == TRAIN:
            copies = again[_COPIES] if _COPIES in again else _again(documents, "train_texts")
            copies = np.setdiff1d(copies, again[REPEATED])  # each is counted once
            result["exact_duplicates_in_train"] = len(copies)
    if HELDOUT in splits:
        near = _drop_near_duplicates(rules, documents, splits, others, out, dropped[HELDOUT])
        result["near_duplicates_dropped"] = len(near)
        dropped[HELDOUT] = np.union1d(dropped[HELDOUT], near)
    for split, rows in dropped.items():
        np.save(out / f"{split}_dropped.npy", rows)
        sizes = sum(len(documents[split][int(row)]["text"].encode()) for row in rows)
        result[f"{split}_documents"] = len(documents[split]) - len(rows)
        result[f"{split}_bytes"] = counts[f"{split}_bytes"] - sizes
    if bad:
        some = "; ".join(next(iter(of)) for of in named.values())
        progress.say(f"bad documents left out of {source.field}: {in_words(bad)} ({some})")
    return result | {"bad_documents": dict(bad), "bad_documents_named": named}


def _remedy(documents: columns.Columns, splits: tuple[str, ...], empty: str) -> str:
    """What to do where a split has no document: a share that gives it the one whose hash is next."""
    given = (documents[s] for s in splits)
    blocks = (b for g in given for b in g.blocks(0, len(g), sources.BLOCK, sources.BLOCK_SIZE))
    places = sorted({_place(d["id"]) / _PLACES for block in blocks for d in block})
    if len(splits) < 2:
        return "give one at least that can be used"
    if len(places) < 2:
        return "give two documents at least, or --config.corpus.heldout=0 if nothing is to be trained or scored"
    below, above = places[:2] if empty == HELDOUT else places[-2:]
    digits = next(n for n in range(1, 20) if below < round((below + above) / 2, n) < above)
    share = round((below + above) / 2, digits)
    return f"give more documents, or --config.corpus.heldout={share}"


def left_out(rules: Rules, documents: columns.Columns, split: str) -> dict[str, np.ndarray]:
    """Rows of a split that are left out of it whatever else there is, sorted: those whose id an earlier one has,
    and exact copies of training documents if the rules say so."""
    found = {REPEATED: _again(documents, f"{split}_ids")}
    if split == TRAIN and rules.exact_duplicates == "drop":
        found[_COPIES] = _again(documents, f"{split}_texts")
    return found


def _again(documents: columns.Columns, name: str) -> np.ndarray:
    """The rows of a column that equal an earlier one, sorted."""
    return np.array(sorted(repeated(documents[name])), np.int64)


def read(corpus: Path, split: str, begin: int = 0, end: int | None = None) -> Iterator[Document]:
    """The documents of a split, but for those left out; from number `begin` to before `end` of them."""
    documents = columns.Columns(corpus)[split]
    with (UPath(corpus) / f"{split}_dropped.npy").open("rb") as file:
        dropped = np.load(file)
    count = len(documents) - len(dropped)
    end = count if end is None else min(end, count)
    before = dropped - np.arange(len(dropped))  # how many are kept before each that is not
    row, last = (n + int(np.searchsorted(before, n, side="right")) for n in (begin, end - 1))
    for block in documents.blocks(row, last + 1, sources.BLOCK, sources.BLOCK_SIZE):
        out = dropped[slice(*np.searchsorted(dropped, (row, row + len(block))))].tolist()
        for number, fields in enumerate(block, row):
            if number not in out:
                yield Document(**fields)
        row += len(block)


def is_heldout(id: str, share: float) -> bool:
    """Whether a document is held out: a fixed hash of its id, the same on every machine."""
    return _place(id) < share * _PLACES


def _place(id: str) -> int:
    """Where a document stands among all that there can be, below _PLACES."""
    return int.from_bytes(digest(id, 8), "big")


def held_out(source: Source) -> set[bytes]:
    """Hashes of the ids and of the texts that a source holds out; reads all of it."""
    found = set()
    with progress.bar("reading what is held out", None) as advance:
        for document in source.documents():
            if isinstance(document, Document) and source.split_of(document) == HELDOUT:
                found |= _hashes(document)
            advance(1)
    return found


def is_among(document: Document | BadDocument, held_out: set[bytes]) -> bool:
    """Whether a document has the id or the text of one that is held out."""
    return isinstance(document, Document) and not held_out.isdisjoint(_hashes(document))


def _hashes(document: Document) -> set[bytes]:
    return {digest(document.id, 8), digest(document.text, 16)}


def repeats(id: str) -> BadDocument:
    """A document whose id an earlier one has."""
    return BadDocument(id, REPEATED, "an earlier document has this id; make ids unique")


def refuse_or_skip(bad_documents: str, document: BadDocument):
    """Raises UserError for a bad document unless such are left out.

    bad_documents: refuse or skip, corpus.bad_documents.
    """
    if bad_documents == "refuse":
        raise UserError(
            f"{document.id}: {document.reason}; mend or remove it, or leave bad documents out "
            "with --config.corpus.bad_documents=skip"
        )


def _count(document: BadDocument, bad: dict[str, int], named: dict[str, list[str]]):
    """Adds a bad document to how many there are of each kind, and to the first of each."""
    bad[document.kind] = bad.get(document.kind, 0) + 1
    if len(some := named.setdefault(document.kind, [])) < _NAMED:
        some.append(f"{document.id}: {document.reason}")


def _read(rules: Rules, source: Source, out: Path) -> dict:
    layout, splits = {}, source.splits
    for split in splits:
        layout |= {split: columns.LINES, f"{split}_ids": ("S8", ()), f"{split}_texts": ("S16", ())}
    writer = columns.Writer(out, layout)
    empty = {"documents": 0, "bad": {}, "named": {}, "complete": False}
    counts = writer.state = empty | {f"{s}_bytes": 0 for s in splits} | writer.state
    if counts["complete"]:
        writer.close()
        return counts
    found = source.documents()
    with progress.bar("reading documents", None) as advance:
        advance(sum(1 for _ in itertools.islice(found, counts["documents"])))
        for block in sources.blocks(found):
            good = {split: [] for split in splits}
            for document in block:
                split = source.split_of(document)
                if split is None:
                    continue
                if isinstance(document, BadDocument):
                    refuse_or_skip(rules.bad_documents, document)
                    _count(document, counts["bad"], counts["named"])
                else:
                    good[split].append(document)
            for split, documents in good.items():
                counts[f"{split}_bytes"] += sum(len(d.text.encode()) for d in documents)
                writer.append(**{
                    split: [vars(d) for d in documents],
                    f"{split}_ids": np.array([digest(d.id, 8) for d in documents], "S8"),
                    f"{split}_texts": np.array([digest(d.text, 16) for d in documents], "S16"),
                })  # fmt: skip
            counts["documents"] += len(block)
            writer.commit()
            advance(len(block))
    counts["complete"] = True
    writer.commit()
    writer.close()
    return counts


def _drop_near_duplicates(
    rules: Rules, documents, splits, others, out: Path, gone: np.ndarray
) -> np.ndarray:
    """Rows of held-out documents that nearly repeat a training document, but for those that are gone already; writes
    which it repeats."""
    heldout = documents[HELDOUT]
    training = [documents[TRAIN]] if TRAIN in splits else []
    training += [columns.Columns(path)[TRAIN] for path in others]
    writer = columns.Writer(out / "near_duplicates", {"pairs": columns.LINES})
    compared = writer.state.get("compared", 0)
    total, first = sum(map(len, training)), 0
    if compared < total:
        texts = ((row, d["text"]) for row, d in enumerate(heldout))
        sketches = HeldOut(texts, rules.near_duplicate)
        with progress.bar("near-duplicates", total) as advance:
            advance(compared)
            for lines in training:
                begin = max(0, compared - first)
                for block in lines.blocks(begin, len(lines), sources.BLOCK, sources.BLOCK_SIZE):
                    pairs = [[row, d["id"]] for d in block for row in sketches.near(d["text"])]
                    writer.append(pairs=pairs)
                    begin += len(block)
                    writer.state["compared"] = first + begin
                    writer.commit()
                    advance(len(block))
                first += len(lines)
    writer.close()
    found, before = {}, set(gone.tolist())
    for row, other in columns.Columns(out / "near_duplicates")["pairs"]:
        if row not in before:
            found.setdefault(row, other)
    if len(found) + len(before) == len(heldout):
        raise UserError(
            "every held-out document nearly repeats a training document "
            f"(corpus.near_duplicate = {rules.near_duplicate}), or one that is retrieved; give "
            "more varied documents"
        )
    names = {heldout[row]["id"]: other for row, other in found.items()}
    text = json.dumps(names, indent=2, ensure_ascii=False)
    files.write(out / "near_duplicates.json", text)
    return np.array(sorted(found), np.int64)


def repeated(values: np.ndarray, most: int = 2**24) -> Iterator[int]:
    """Rows of `values` [N] (bytes or unsigned integers) that equal an earlier row, in no order.

    Hashes: they are taken in parts by their last byte, so that about `most` are sorted at a time.
    """
    parts = min(256, -(-len(values) // most))
    last = np.asarray(values).view(np.uint8).reshape(len(values), -1)[:, -1] if parts else None
    for part in range(parts):
        rows = np.flatnonzero(last % parts == part)
        _, first = np.unique(values[rows], return_index=True)
        again = np.ones(len(rows), bool)
        again[first] = False
        yield from rows[again].tolist()
