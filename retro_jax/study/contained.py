"""How much of each held-out document stands in one document of a database, by 13-grams: what Jaccard does not see."""

import numpy as np

from retro_jax import progress
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.corpus.near_duplicates import Contained
from retro_jax.corpus.tokenizer import Tokenizer
from retro_jax.databases.database import PREPARED, Databases
from retro_jax.pipeline.prepared import Prepared
from retro_jax.pipeline.recipe import heldout_splits
from retro_jax.store import files
from retro_jax.store.workdir import WorkDir

FILE = "contained.json"


def contained(work: WorkDir, heldout: str, databases: list[str]) -> dict[str, list[float]]:
    """Of each held-out split, looked up in what was prepared, the shares of its documents in their order; and of the
    split `heldout` in each further database, SPLIT-NAME. Kept beside what is prepared.
    """
    file = work.root / FILE
    if file.exists():
        return files.read_json(file, "delete it, and run the study again")
    of = Prepared(work)
    asked = {split: (split, PREPARED) for split in heldout_splits(work.experiment)}
    asked |= {f"{heldout}-{name}": (heldout, name) for name in databases}
    known, found = Databases(of), {}
    for name, (split, database) in asked.items():
        shares = Contained(_texts(of.table(split), of.tokenizer))
        parts = [known.open(database, p["number"]).table for p in known.state(database)["parts"]]
        total = sum(len(table.documents) for table in parts)
        with progress.bar(f"13-grams of {name}", total) as advance:
            for table in parts:
                for text in _texts(table, of.tokenizer):
                    shares.add(text)
                    advance(1)
        found[name] = shares.shares.tolist()
    files.write_json(file, found)
    return found


def _texts(table: ChunkTable, tokenizer: Tokenizer):
    """The texts of a table's documents, of their tokens."""
    for document in table.documents:
        rows = np.arange(document["first"], document["first"] + document["chunks"])
        yield tokenizer.decode(np.asarray(table.tokens[rows]).reshape(-1).tolist())
