"""Chunks to look at: the best, the worst and random ones, with what they read and what they share with it.

M tokens of a chunk, R of a neighbour (N and its continuation F, half each), K neighbours
"""

import codecs
from pathlib import Path

import numpy as np

from retro_jax.evaluate import rows as files
from retro_jax.evaluate.chunks import Chunks, classes
from retro_jax.evaluate.rows import Rows

EACH, SHARED, SEED = 5, 4, 0
_NONE = 0  # PAD
_BEGIN = 60  # characters


def choose(chunks: Chunks) -> list[tuple[str, int]]:
    """(best, worst or random; number of the chunk), of those that read anything, none twice."""
    read, gain = np.flatnonzero(chunks.read), chunks.gain()
    order = read[np.argsort(-gain[read], kind="stable")]
    best, others = order[:EACH], order[EACH:]
    worst, others = others[::-1][:EACH], others[: max(0, len(others) - EACH)]
    drawn = np.random.default_rng(SEED).permutation(np.sort(others))[:EACH]
    parts = {"best": best, "worst": worst, "random": drawn}
    return [(kind, int(i)) for kind, chosen in parts.items() for i in chosen]


def chosen(file: Path, rows: Rows, chunks: Chunks) -> list[dict]:
    """The examples.

    Returns:
      kind, document, chunk, place (positions of its first and last token), gain and against_random (nats per
      token), class; before: the text with which the neighbours were looked up; tokens: [text, gain in nats, whether
      it is of a shared run]; neighbours: source (document and chunk), distance, longest run, attention on N and F, and
      N, F: pieces [text, whether they are shared].
    """
    picked, of = choose(chunks), classes(chunks)
    k, pieces = rows.facts["neighbours"], [p.encode("latin-1") for p in rows.facts["vocabulary"]]
    read = files.texts(file, {int(chunks.first[i]) for _, i in picked})
    gain, out = rows.nats["off"] - rows.nats["on"], []
    against = chunks.gain("random") if "random" in rows.nats else None
    for kind, i in picked:
        first = int(chunks.first[i])
        mine = slice(first, first + int(chunks.tokens[i]))
        tokens, (values, sources) = rows["target"][mine], read[first]
        same = [shared(tokens, v) for v in values]
        marks = np.any([a for a, _ in same], axis=0)
        mass = rows["mass"][mine].mean(axis=0).reshape(k, 2)
        out.append(
            {
                "kind": kind,
                "document": str(rows.facts["documents"][int(chunks.document[i])]["id"]),
                "chunk": int(rows["chunk"][first]),
                "place": [int(rows["position"][first]), int(rows["position"][mine][-1])],
                "gain": float(chunks.gain()[i]),
                "against_random": None if against is None else float(against[i]),
                "class": str(of[i]),
                "before": "".join(text(_before(rows, chunks, i), pieces)),
                "tokens": [
                    [t, float(g), bool(m)]
                    for t, g, m in zip(text(tokens, pieces), gain[mine], marks)
                ],
                "neighbours": [
                    {
                        "source": sources[j],
                        "distance": float(chunks.distances[i, j]),
                        "run": int(chunks.runs[i, j]),
                        "mass": mass[j].tolist(),
                        "N": _marked(values[j], same[j][1], pieces)[0],
                        "F": _marked(values[j], same[j][1], pieces)[1],
                    }
                    for j in range(k)
                    if chunks.neighbours[i, j] >= 0
                ],
            }
        )
    return out


def begins(file: Path, rows: Rows, chunks: Chunks, ids: list[int]) -> dict[int, str]:
    """Where chunks of the database are from and how they begin, by their number."""
    pieces, at = [p.encode("latin-1") for p in rows.facts["vocabulary"]], {}
    for i in ids:
        unit, place = (int(x[0]) for x in np.nonzero(chunks.neighbours == i))
        at[i] = int(chunks.first[unit]), place
    read = files.texts(file, {first for first, _ in at.values()})
    out = {}
    for i, (first, place) in at.items():
        tokens, source = (x[place] for x in read[first])
        words = " ".join("".join(text(tokens[tokens != _NONE], pieces)).split())
        out[i] = f"{source}: {words[:_BEGIN]}…" if len(words) > _BEGIN else f"{source}: {words}"
    return out


def _before(rows: Rows, chunks: Chunks, i: int) -> np.ndarray:
    """Tokens of the chunk before, of the same document."""
    first, same = int(chunks.first[i]), i > 0 and chunks.document[i - 1] == chunks.document[i]
    return rows["target"][int(chunks.first[i - 1]) if same else first : first]


def shared(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens of a [M] and of b [R] are of a run of at least SHARED that stands in both."""
    same = (a[:, None] == b) & (b != _NONE)
    ends = np.zeros((len(a), len(b)), int)  # of the run that ends with both
    for i in range(len(a)):
        ends[i, 1:] = ends[i - 1, :-1] + 1 if i else 1
        ends[i, :1] = 1
        ends[i] *= same[i]
    of_a, of_b = np.zeros(len(a), bool), np.zeros(len(b), bool)
    for i, j in zip(*np.nonzero(ends >= SHARED)):
        of_a[i - ends[i, j] + 1 : i + 1] = True
        of_b[j - ends[i, j] + 1 : j + 1] = True
    return of_a, of_b


def text(tokens, pieces: list[bytes]) -> list[str]:
    """The text of each token; a character of several tokens stands with its last. What cannot be seen is shown
    by a sign."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    out = [decoder.decode(pieces[t]) for t in np.asarray(tokens).tolist()]
    if out:
        out[-1] += decoder.decode(b"", final=True)
    return [t.translate(_SIGNS) for t in out]


# HTML has no such characters, and would not show others.
_SIGNS = {i: chr(0x2400 + i) for i in range(32) if chr(i) not in "\n\t"}
_SIGNS |= {127: "\u2421"} | dict.fromkeys([*range(0x80, 0xA0), *range(0xFDD0, 0xFDF0)], "\ufffd")


def _marked(tokens: np.ndarray, marks: np.ndarray, pieces) -> tuple[list, list]:
    """N and F as [text, whether it is shared], neighbouring tokens that are alike together."""
    half, parts = len(tokens) // 2, ([], [])
    real = tokens != _NONE
    texts = np.full(len(tokens), "", object)
    texts[real] = text(tokens[real], pieces)
    for i in np.flatnonzero(real):
        part, mark = parts[int(i >= half)], bool(marks[i])
        if part and part[-1][1] == mark:
            part[-1][0] += texts[i]
        else:
            part.append([texts[i], mark])
    return parts
