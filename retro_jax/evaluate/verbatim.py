"""How much of what a model generates stands word for word in what it was shown, and in its database."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from retro_jax import progress
from retro_jax.config.request import Request
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.evaluate.text import Text
from retro_jax.generate.completion import Completion
from retro_jax.generate.generator import Generator
from retro_jax.generate.lookup import prompt_ids
from retro_jax.methods.method import Method
from retro_jax.store.workdir import WorkDir

RUNS = (8, 13, 50)  # tokens
PROMPT, TOKENS, ROWS = 2, 128, 8  # chunks of a prompt; tokens generated; prompts at a time
_BLOCK = 2**22  # tokens of a database at a time
_PRIME = np.uint64(1_000_003)


def verbatim(work: WorkDir, method: Method, text: Text) -> dict:
    """Continues the beginnings of `evaluate.generated` documents with and without retrieval.

    Drawn at temperature 1, so that what is said is the model's, and not the most probable text's.

    Returns:
      prompts, tokens (of a continuation); for on and off: shown (off: what retrieval would have shown) and
      database, each the share of the generated tokens inside a run of 8, 13 and 50 tokens that stands there.
    """
    # In the order of their ids, so that it does not matter how they came.
    long = sorted((d for d in text.table.documents if d["chunks"] > PROMPT), key=lambda d: d["id"])
    long = long[: work.experiment.evaluate.generated]
    if not long:
        return {}
    m, out = method.model.reading.chunk, {"prompts": len(long), "tokens": TOKENS}
    sizes = {"rows": ROWS, "length": (PROMPT + 1) * m + TOKENS}
    with Generator.open(work, method.name, **sizes) as generator:
        decode = generator.tokenizer.decode
        rows = [text.table.tokens[d["first"] : d["first"] + PROMPT].ravel() for d in long]
        for name, k in (("on", -1), ("off", 0)):
            asked = [
                Request(decode(row.tolist()), TOKENS, 1.0, seed=i, k=k, databases=text.databases)
                for i, row in enumerate(rows)
            ]
            with progress.bar(f"generating, retrieval {name}", len(asked) * TOKENS) as advance:
                made = generator.generate_all(asked, advance)
            said = [np.array(c.tokens, np.int64) for c in made]
            shown = [_shown(generator, text.databases, c, m) for c in made]
            out[name] = {
                "shown": {str(n): _share([x[n] for x in shown]) for n in RUNS},
                "database": {str(n): _share(_in_any(said, text.tables, n)) for n in RUNS},
            }
    return out


def _shown(generator: Generator, databases: Sequence[str], c: Completion, m: int) -> dict:
    """Which tokens of a continuation are inside a run that stands in what had been shown when they were
    generated, by the run's length: what chunks before theirs retrieve."""
    ids = np.array(prompt_ids(generator.tokenizer, c.prompt) + c.tokens)
    chunks = ids[: len(ids) // m * m].reshape(-1, m)
    near = generator.retriever.retrieve(chunks, databases=databases).tokens
    masks = {n: np.zeros(len(ids), bool) for n in RUNS}
    for u in range(1, -(-len(ids) // m)):
        here = slice((u - 1) * m, (u + 1) * m)
        for n, mask in masks.items():
            found = inside(ids[here], near[:u].reshape(-1, near.shape[-1]), n)
            mask[u * m : (u + 1) * m] |= found[m:]
    return {n: mask[c.first :] for n, mask in masks.items()}


def inside(tokens: np.ndarray, texts: np.ndarray, n: int) -> np.ndarray:
    """Which tokens [T] are inside a run of n that stands in one of `texts` [P, J]; bool [T]."""
    return _marked(
        tokens, np.concatenate([np.zeros(0, np.uint64), *(_hashes(x, n) for x in texts)]), n
    )


def _in_any(said: list[np.ndarray], tables: Sequence[ChunkTable], n: int) -> list[np.ndarray]:
    """Which tokens of each text are inside a run of n that stands in a document of the tables."""
    wanted = np.unique(np.concatenate([_hashes(s, n) for s in said]))
    found = [wanted[np.isin(wanted, _hashes(part, n))] for part in _parts(tables, n)]
    found = np.concatenate([np.zeros(0, np.uint64), *found])
    return [_marked(s, found, n) for s in said]


def _parts(tables: Iterable[ChunkTable], n: int) -> Iterator[np.ndarray]:
    """The tokens of tables, a part at a time; each begins with the last n - 1 of the one before."""
    for table in tables:
        rows, before = max(1, _BLOCK // table.chunk), np.zeros(0, np.int64)
        for begin in range(0, len(table), rows):
            part = np.concatenate([before, np.asarray(table.tokens[begin : begin + rows]).ravel()])
            yield part
            before = part[-(n - 1) :]


def _marked(tokens: np.ndarray, found: np.ndarray, n: int) -> np.ndarray:
    begins = np.flatnonzero(np.isin(_hashes(tokens, n), found))
    mask = np.zeros(len(tokens), bool)
    mask[(begins[:, None] + np.arange(n)).ravel()] = True
    return mask


def _hashes(tokens: np.ndarray, n: int) -> np.ndarray:
    """Of each run of n tokens 64 bits, alike for the same run [T - n + 1]."""
    count = max(0, len(tokens) - n + 1)
    out = np.zeros(count, np.uint64)
    for j in range(n):
        out = out * _PRIME + tokens[j : j + count].astype(np.uint64) + np.uint64(1)
        out ^= out >> np.uint64(29)  # no two runs differ in sums only
    return out


def _share(masks: list[np.ndarray]) -> float:
    total = sum(map(len, masks))
    return float(sum(mask.sum() for mask in masks) / total) if total else 0.0
