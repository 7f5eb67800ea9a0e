"""Held-out text to one row a token: its log-probability under every condition, and what was read for it.

The rows are a parquet file; whatever is said of a model is computed from it (signals.py), so that a report
needs no model. See `schema` for its columns.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retro_jax import progress
from retro_jax.config import Experiment
from retro_jax.corpus.tokenizer import PAD
from retro_jax.evaluate import overlap
from retro_jax.evaluate.condition import Condition
from retro_jax.evaluate.text import Text
from retro_jax.methods.method import Method, Retrieved
from retro_jax.pipeline.prepared import Prepared
from retro_jax.store.workdir import WorkDir
from retro_jax.train import sharding
from retro_jax.train.restore import restore_trained

WRITING = {"compression": "zstd", "write_page_checksum": True}  # of a parquet file
MS = "ms_per_token"  # of each column, in the file's footer: known only when all is scored
CONTEXT = 32  # tokens before a chunk with which a run that it shares may begin


@dataclass(frozen=True)
class Column:
    """What tokens are scored by: a method, under a condition (None: it reads nothing); tuned: under each of the
    settings that it can choose from; measured: its cross-attention too, of one column at most."""

    name: str
    method: Method
    condition: Condition | None
    tuned: bool = False
    measured: bool = False

    @property
    def says(self) -> str:
        """Which of its method's programs scores."""
        return "measured" if self.measured else "tried" if self.tuned else "logprobs"


def schema(
    columns: Sequence[Column], k: int, layers: int, facts: dict, whole: bool = True
) -> pa.Schema:
    """What the rows have; `facts` go with them, as JSON. whole: all of the following, or just the document, the
    log-probabilities, and what was copied and shared.

    document: its number in the facts' `documents`. chunk: of the document. position: among the document's
      tokens, BOS being 0. target: the token. bytes: of it.
    logp_CONDITION: log p of the target, nats; of what is tuned under each setting (tuning.py chooses).
    copied: the longest run of tokens that ends with the target and stands in what was read for it.
    overlap: the longest run that the target's chunk shares with what it retrieves or reads, tokens.
    neighbours, distances: what is read for the target: what the chunk before retrieved; -1 for none.
    runs: the longest run that its chunk shares with each of them. twins: how many of them are nearly the same as
      one before them: their N share a run of four fifths.
    ratio: of every CCA layer, |what it adds| / |what it adds to|. mass: its attention on N and F of each
      neighbour, mean over layers [K, 2]; what is missing from 1 went to the null key. Without layers there are neither.
    read: at the first row of a chunk, the tokens of its neighbours [K, R]; elsewhere empty. sources: there,
      the document and chunk of each, "" for none.
    """
    real = pa.float32()
    said = [(f"logp_{c.name}", _kind(c)) for c in columns]
    metadata = {"retro_jax": json.dumps(facts)}
    if not whole:
        own = [("copied", pa.int16()), ("overlap", pa.int16())]
        return pa.schema([("document", pa.int32()), *said, *own], metadata=metadata)
    inside = [("ratio", pa.list_(real, layers)), ("mass", pa.list_(real, 2 * k))] if layers else []
    return pa.schema(
        [
            ("document", pa.int32()), ("chunk", pa.int32()), ("position", pa.int32()),
            ("target", pa.int32()), ("bytes", pa.int32()),
            *said,
            ("copied", pa.int16()), ("overlap", pa.int16()),
            ("neighbours", pa.list_(pa.int64(), k)), ("distances", pa.list_(real, k)),
            ("runs", pa.list_(pa.int16(), k)), ("twins", pa.int16()), *inside,
            ("read", pa.list_(pa.int32())),
            ("sources", pa.list_(pa.string())),
        ],
        metadata=metadata,
    )  # fmt: skip


def _kind(column: Column) -> pa.DataType:
    real = pa.float32()
    return pa.list_(real, len(column.method.choices())) if column.tuned else real


def score(
    work: WorkDir,
    text: Text,
    columns: Sequence[Column],
    facts: dict,
    file: Path,
    whole: bool = True,
):
    """Writes the rows of every token of every document of a text; each is scored once.

    Args:
      columns: what each token is scored by. whole: see `schema`.
    """
    e, tokenizer = work.experiment, Prepared(work).tokenizer
    mesh = sharding.make_mesh(e.mesh)
    sharding.check_divides(mesh, e.model, tokenizer.vocab, evaluate_batch=e.evaluate.batch)
    layers = len(e.model.reading.cca_layers) if any(c.measured for c in columns) else 0
    once = not whole and any(c.method.look_ups and c.method.look_ups.times for c in columns)
    out = schema(columns, e.retrieval.neighbours, layers, facts, whole)

    def put(x, dtype=np.int32):
        return sharding.shard_batch(mesh, {"x": x.astype(dtype)})["x"]

    with jax.set_mesh(mesh), pq.ParquetWriter(file, out, **WRITING) as writer:
        weights = {c.method.trained_as: c.method for c in columns}
        params = {name: restore_trained(work, m, mesh) for name, m in weights.items()}
        # One program for all conditions of a method, or each would be compiled by itself.
        wanted = {(c.method, c.says) for c in columns}
        programs = {(method, says): method.jitted(says) for method, says in wanted}
        took, places = dict.fromkeys((c.name for c in columns), 0.0), 0
        with progress.bar(f"{columns[0].name}: scoring {text.name}", len(text.records)) as advance:
            size = sharding.rows_for(mesh, len(text.records), e.evaluate.batch)
            for number, (batch, rows, count) in enumerate(_batches(e, text, size)):
                x, found, seen = put(batch["tokens"]), {}, {}
                distances = put(batch["distances"], np.float32)
                scored = _scored(batch, rows, tokenizer.byte_counts)
                asked = put(scored, bool)
                for c in columns:
                    begin = time.perf_counter()
                    near = c.condition and c.condition.neighbours(rows, batch["neighbours"])
                    near = None if near is None else Retrieved(put(near), distances)
                    some = {"asked": asked} if c.method.by_chunk else {}
                    of = programs[c.method, c.says]
                    logp = of(params[c.method.trained_as], x, near, **some)
                    if c.measured:
                        logp, seen = logp
                    found[f"logp_{c.name}"] = np.asarray(logp)
                    took[c.name] += (time.perf_counter() - begin) * (number > 0)
                places += x.size * (number > 0)  # the first batch compiles
                seen = {name: np.asarray(v) for name, v in seen.items()}
                writer.write_table(
                    _table(text, batch, rows, scored, found, seen, tokenizer.byte_counts, out, once)
                )
                advance(count)
        each = {n: 1000 * t / places for n, t in took.items()} if places else {}
        writer.add_key_value_metadata({MS: json.dumps(each)})


def _batches(e: Experiment, text: Text, size: int) -> Iterator[tuple[dict, np.ndarray, int]]:
    """Batches of `size` windows, the last one filled with PAD; the rows of the chunk table that they are cut
    from [B, C], -1 for padding; and how many windows are real."""
    chunks, cuts = e.chunks, text.cuts(e)
    for start in range(0, len(text.records), size):
        examples = [text.records[i] for i in range(start, min(start + size, len(text.records)))]
        count = len(examples)
        blank = {name: np.zeros_like(value) for name, value in examples[0].items()}
        examples += [blank] * (size - count)
        rows = np.full((size, chunks), -1, np.int64)
        for i in range(count):
            rows[i] = next(cuts)[0]
        yield {name: np.stack([x[name] for x in examples]) for name in blank}, rows, count


def _scored(batch: dict, rows: np.ndarray, byte_counts: np.ndarray) -> np.ndarray:
    """Which tokens of a batch are scored [B, L]. Special tokens hold no byte of the text; position 0 is predicted by
    nothing."""
    tokens, position = batch["tokens"], np.arange(batch["tokens"].shape[1])
    scored = (byte_counts[tokens] > 0) & (tokens != PAD)
    scored &= (position >= batch["first_scored"]) & (position > 0)
    return scored & (rows >= 0).repeat(tokens.shape[1] // rows.shape[1], axis=1)


def _table(
    text: Text, batch, rows, scored, found, seen, byte_counts, out: pa.Schema, once: bool
) -> pa.Table:
    """The scored tokens of a batch, one row each; once: what the first chunk retrieved is read by all after it."""
    tokens, near = batch["tokens"], batch["neighbours"]
    (size, length), m, k = tokens.shape, near.shape[3] // 2, near.shape[2]
    position = np.arange(length)

    def spread(x):  # of a chunk to its tokens
        return x.repeat(m, axis=1)[scored]

    at = np.maximum(rows, 0)
    number = text.table.document[at]
    said = {name: value[scored] for name, value in found.items()}

    def before(x, none):
        return np.concatenate([np.full_like(x[:, :1], none), x[:, :-1]], axis=1)

    chunk = at - np.array([text.table.documents[int(n)]["first"] for n in number.flat]).reshape(
        at.shape
    )
    read = before(near, PAD)  # what a chunk's tokens read is what the chunk before it retrieved
    if once:  # or the first one
        read[:, 1:] = near[:, :1]
    copied, of_each, longest = shared(tokens.reshape(size, -1, m), near, read)
    if "target" not in out.names:
        said |= {"document": spread(number), "overlap": spread(longest)}
        said["copied"] = copied.reshape(size, length)[scored]
        return pa.Table.from_arrays([_array(said[f.name], f.type) for f in out], schema=out)
    first = np.zeros_like(scored).reshape(size, -1, m)
    first[
        np.arange(size)[:, None], np.arange(first.shape[1]), scored.reshape(first.shape).argmax(-1)
    ] = True
    first = first.reshape(scored.shape)[scored]
    lengths = np.where(first, k * 2 * m, 0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    whole = spread(np.arange(rows.size).reshape(rows.shape))[first]
    values = read.reshape(rows.size, -1)[whole].astype(np.int32)

    # What a layer did at t - 1 is what predicted t.
    def moved(x):
        return np.roll(x, 1, axis=1)[scored]

    arrays = {
        "document": spread(number), "chunk": spread(chunk),
        "position": spread(chunk) * m + np.broadcast_to(position % m, scored.shape)[scored],
        "target": tokens[scored], "bytes": byte_counts[tokens][scored],
        **said,
        "copied": copied.reshape(size, length)[scored], "overlap": spread(longest),
        "neighbours": spread(before(batch["neighbour_ids"], -1)),
        "distances": spread(before(batch["distances"], np.inf)), "runs": spread(of_each),
        "twins": spread(twins(read[..., :m])),
    }  # fmt: skip
    if seen:
        arrays["ratio"] = moved(np.moveaxis(seen["ratio"], 0, -1))
        arrays["mass"] = moved(seen["mass"].mean(axis=0).reshape(size, length, -1))
    made = [_array(arrays[f.name], f.type) for f in out if f.name in arrays]
    made.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1))))
    ids = arrays["neighbours"][first].reshape(-1).tolist()
    sources = [_words(text.source(id)) if id >= 0 else "" for id in ids]
    offsets = (offsets // (2 * m)).astype(np.int32)
    made.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(sources, pa.string())))
    return pa.Table.from_arrays(made, schema=out)


def _words(source: dict) -> str:
    return f"{source['document']} chunk {source['chunk']}"


def _array(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(values, kind)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, kind.list_size)


def shared(tokens: np.ndarray, retrieved: np.ndarray, read: np.ndarray):
    """What chunks share with their neighbours: tokens [B, C, M], neighbours [B, C, K, R].

    Returns:
      copied [B, C, M]: of each token the longest run that ends with it, maybe begun in the chunk before,
        and stands in what is read. of_each [B, C, K]: the longest run of the chunk in each neighbour that
        is read. longest [B, C]: in those, or in what the chunk itself retrieved (r(C) of the paper's
        section 2.6, over K neighbours instead of 10, times M).
    """
    b, c, m = tokens.shape
    k, r = read.shape[2:]
    begin = max(0, m - CONTEXT)
    context = np.concatenate([np.zeros_like(tokens[:, :1]), tokens[:, :-1]], axis=1)[..., begin:]
    text = np.concatenate([context, tokens], axis=-1)

    def pairs(x):
        return np.repeat(x[:, :, None], k, axis=2).reshape(b * c * k, -1)

    ending = overlap.runs(pairs(text), read.reshape(-1, r)).reshape(b, c, k, -1)[..., -m:]
    inside = np.minimum(ending, np.arange(1, m + 1))  # what is of the chunk itself
    own = overlap.runs(pairs(tokens), retrieved.reshape(-1, r)).reshape(b, c, k, m)
    of_each = inside.max(axis=-1)
    longest = np.maximum(of_each.max(axis=-1), own.max(axis=(-1, -2)))
    return ending.max(axis=2), of_each, longest


def twins(near: np.ndarray) -> np.ndarray:
    """How many neighbours of a chunk are nearly one before them: N [B, C, K, M] -> [B, C] int."""
    b, c, k, m = near.shape
    each, count = [near[:, :, i].reshape(b * c, m) for i in range(k)], np.zeros(b * c, np.int16)
    for j in range(1, k):
        longest = np.max([overlap.runs(each[j], other).max(axis=1) for other in each[:j]], axis=0)
        count += longest >= 0.8 * m
    return count.reshape(b, c)
