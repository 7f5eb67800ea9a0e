"""The step `corpus` (and one for each other corpus): documents, split, and compared with one another."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from retro_jax.corpus import collect, near_duplicates, sources
from retro_jax.corpus.collect import HELDOUT, TRAIN, Rules, Source
from retro_jax.corpus.document import BadDocument
from retro_jax.pipeline.step import Some, Whole
from retro_jax.store.columns import Columns

DATABASE = "database"  # the split of a retrieval corpus of its own


class Corpus(Whole):
    """The documents of a corpus.

    The split "" is the training corpus and its held-out split; `database` the retrieval corpus, less every
    document whose id or text is that of one that the former holds out; others are held out as a whole.

    Held-out documents are left out that nearly repeat a training document, of this corpus or of those
    that are its inputs.
    """

    unit = "documents and their copies"

    @property
    def rules(self) -> Rules:
        """What is refused, and what is left out."""
        return Rules(*(self.settings[f"corpus.{name}"] for name in Rules._fields))

    @property
    def source(self) -> Source:
        """Where the documents come from, and which split each goes into."""
        if self.split == "":
            return self._own_source
        if self.split == DATABASE:
            return self._of("retrieval.source", (TRAIN,), self._retrieved)
        return self._of("corpus.heldout_sources", (HELDOUT,), lambda document: HELDOUT)

    def _of(self, field: str, splits: tuple[str, ...], split_of: Callable) -> Source:
        return Source(self.settings[field], field, self.rules.largest_document, splits, split_of)

    @property
    def _own_source(self) -> Source:
        splits = (TRAIN, HELDOUT) if self.rules.heldout else (TRAIN,)
        return self._of("corpus.source", splits, self._own)

    def _own(self, document) -> str:
        return HELDOUT if collect.is_heldout(document.id, self.rules.heldout) else TRAIN

    def _retrieved(self, document) -> str | None:
        return None if collect.is_among(document, self._held_out) else TRAIN

    @functools.cached_property
    def _held_out(self) -> set[bytes]:
        return collect.held_out(self._own_source)

    def check(self):
        """Raises UserError for a source of no kind, or that matches no file."""
        source = self.source
        sources.check(source.text, source.field)

    def make(self, out: Path) -> dict:
        """See `collect.collect`."""
        return collect.collect(self.rules, self.source, out, self._others())

    def _others(self) -> tuple[Path, ...]:
        """The corpora that must not nearly repeat a held-out document of this one, beside itself."""
        return tuple(self.at(name) for name in self.inputs)

    def again(self, some: Some) -> Iterator[tuple[str, bool]]:
        """Documents read again; and what duplicates were left out, of a share of what is compared."""
        source, documents = self.source, Columns(self.out)
        stored = {part: documents[part] for part in source.splits}
        chosen = {part: some(len(lines)) for part, lines in stored.items()}
        last = dict.fromkeys(stored, -1)
        for document in source.documents():
            part = source.split_of(document)
            if part is None or isinstance(document, BadDocument):
                continue
            last[part] += 1
            if last[part] in chosen[part]:
                lines = stored[part]
                same = last[part] < len(lines) and lines[last[part]] == vars(document)
                yield document.id, same
        for part, lines in stored.items():
            if last[part] + 1 != len(lines):
                yield f"{len(lines)} {part} documents, the source has {last[part] + 1}", False
        yield from self._left_out(documents, stored, some)

    def _repeats(self, documents: Columns, part: str) -> set[int]:
        rows = collect.left_out(self.rules, documents, part).values()
        return set(np.concatenate(list(rows)).tolist())

    def _left_out(self, documents: Columns, stored: dict, some: Some) -> Iterator[tuple[str, bool]]:
        rows = {part: self._repeats(documents, part) for part in stored}
        if TRAIN in stored:
            dropped = np.load(self.out / "train_dropped.npy").tolist()
            yield "exact copies left out", dropped == sorted(rows[TRAIN])
        if HELDOUT not in stored:
            return
        pairs = [tuple(pair) for pair in Columns(self.out / "near_duplicates")["pairs"]]
        dropped = np.load(self.out / "heldout_dropped.npy").tolist()
        repeats = rows[HELDOUT] | {row for row, _ in pairs}
        yield "near-duplicates left out", dropped == sorted(repeats)
        texts = ((row, d["text"]) for row, d in enumerate(stored[HELDOUT]))
        sketches = near_duplicates.HeldOut(texts, self.rules.near_duplicate)
        training = [stored[TRAIN]] if TRAIN in stored else []
        training += [Columns(path)[TRAIN] for path in self._others()]
        for lines in training:
            for row in sorted(some(len(lines))):
                id = lines[row]["id"]
                near = {(other, id) for other in sketches.near(lines[row]["text"])}
                yield f"near-duplicates of {id}", near <= set(pairs)
