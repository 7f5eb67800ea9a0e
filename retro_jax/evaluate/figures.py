"""Everything that is said of a model, from the rows of one file."""

import numpy as np

from retro_jax.evaluate import chunks, retriever_health, signals, training, where
from retro_jax.evaluate.overlap import is_little
from retro_jax.evaluate.rows import Rows

ALARM = 1e-3  # a cross-attention that changes tokens by less has collapsed
FEW = 10  # documents
LEAST = 1e-3  # bits per byte: an effect below it is none that anyone would use retrieval for


def figures(rows: Rows) -> dict:
    """The metrics of an evaluation; see signals.py, retriever_health.py and chunks.py for each."""
    facts, m, k = rows.facts, rows.facts["chunk"], rows.facts["neighbours"]
    gathered, bits = chunks.gather(rows), signals.bits_per_byte(rows)
    words = words_of(rows)
    copies = [facts["documents"][n]["id"] for n in chunks.near_copies(gathered, m)]
    clean = rows.where(is_little(rows["overlap"], facts["filter_overlap"], m))
    out = {
        "documents": len(facts["documents"]),
        "tokens": len(rows),
        "bytes": int(rows["bytes"].sum()),
        "words": words,
        "bits_per_byte": bits,
        "perplexity": signals.perplexity(rows, words),
        "effects": signals.effects(rows),
        "gap_closed": signals.gap_closed(bits),
        "bits_per_byte_filtered": signals.bits_per_byte(clean),
        "effects_filtered": signals.effects(clean) if len(clean) else {},
        "filtered_share_of_bytes": float(clean["bytes"].sum() / rows["bytes"].sum()),
        "filtered": signals.filtered(rows, m),
        "nearest": where.nearest(rows),
        "far": where.far(rows),
        "harm": signals.harm(rows),
        "copied": signals.by_copied(rows),
        "by_place": signals.by_place(rows, m),
        "by_source": signals.by_source(rows),
        "failures": signals.failures(gathered),
        "distance": retriever_health.by_distance(gathered, rows.rank),
        "skipping": retriever_health.skipping(gathered, rows.rank),
        "retrieval": retriever_health.coverage(gathered, facts["database"]["chunks"]),
        "inside": signals.inside(rows, k),
        "verbatim": facts["verbatim"],
        "near_copies": copies,
        "violations": facts["violations"],
        "whole_chunks": facts["whole_chunks"],
        "training": {n: t for n, t in facts.get("models", {}).items() if "tokens" in t},
        "ms_per_token": facts.get("ms_per_token", {}),
        "conditions": facts["conditions"],
        "share_with_fewer_than_k": facts["share_with_fewer_than_k"],
    }
    return out | {"verdict": verdict(out)}


def words_of(rows: Rows) -> int:
    """How many words the documents have, as white space parts them."""
    pieces = [p.encode("latin-1") for p in rows.facts["vocabulary"]]
    begins = np.flatnonzero(np.diff(rows["document"], prepend=-1))
    parts = np.split(rows["target"], begins[1:])
    return sum(len(b"".join(pieces[t] for t in part.tolist()).split()) for part in parts)


def sign(effect: dict | None) -> int:
    """Whether an effect's interval is above 0 (1), below (-1), or holds it (0)."""
    return 0 if not effect else int(effect["low"] > 0) - int(effect["high"] < 0)


def counts(effect: dict | None) -> int:
    """The same, and 0 of an effect below LEAST."""
    return 0 if not effect or abs(effect["value"]) < LEAST else sign(effect)


def verdict(figures: dict) -> dict:
    """Whether retrieval helps, is neutral or hurts, compared with what one would use instead.

    early: whether a model was trained too shortly to say anything (training.py); then the word is neutral.
    word: helps if the whole 95 % interval of the gain over the language model without retrieval (the
      method language_model; where none was scored, the model itself with retrieval off) is above 0, and the content
      of the neighbours is what does it; hurts if the interval is below 0; else neutral, as of effects below LEAST, and
      of fewer than FEW documents, of which an interval says little.
    by, effect, filtered: the effect that decides, and the same where little is shared.
    reads: whether the content effect's interval is above 0. content, system: those effects.
    against_off_far, system_far: off - on, and the system effect, of the half whose nearest neighbour is farther.
    collapsed: cross-attention changes next to nothing, or what it reads makes no difference; and why.
    """
    effects, few, far = figures["effects"], figures["effects_filtered"], figures["far"]["effects"]
    by = "system" if "system" in effects else "on_against_off"
    effect, content = effects[by], effects.get("content", effects["on_against_off"])
    early = training.early(list(figures["training"].values()))
    reads = counts(content) > 0
    helps, hurts = counts(effect) > 0 and reads, counts(effect) < 0
    word = "helps" if helps else "hurts" if hurts else "neutral"
    if effect["documents"] < FEW or early:
        word = "neutral"
    why = None
    if figures["failures"]["nothing read"]["share"] == 1:
        why = "no chunk read anything: every text is as short as a chunk, or nothing was found"
    elif max(figures["inside"]["ratio"], default=0.0) < ALARM:
        why = "cross-attention adds less than a thousandth to what it is added to, in every layer"
    elif content["low"] <= 0 <= content["high"]:
        why = "the interval of the content effect holds 0: what is read makes no difference"
    return {
        "word": word,
        "early": early,
        "by": by,
        "effect": effect,
        "filtered": few.get(by),
        "reads": reads,
        "content": effects.get("content"),
        "content_filtered": few.get("content"),
        "system": effects.get("system"),
        "against_off_far": far["on_against_off"],
        "system_far": far.get("system"),
        "collapsed": why is not None,
        "why_collapsed": why,
    }
