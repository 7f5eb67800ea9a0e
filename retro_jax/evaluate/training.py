"""How long a model was trained, and whether that is long enough to say anything of it."""

import json
from pathlib import Path

from retro_jax.config import Experiment
from retro_jax.methods.method import Method
from retro_jax.model import functional
from retro_jax.pipeline.prepared import Prepared
from retro_jax.store import artefact
from retro_jax.store.workdir import WorkDir
from retro_jax.weights import directory

# Tokens of training for each parameter. The curves of docs/quickstart.md begin at 1.3; a language model wants about 20
# (Hoffmann et al. 2022), and what a database is worth changes most before.
ENOUGH = 1.0


def told(work: WorkDir, method: Method) -> dict:
    """What a training was.

    Returns:
      seed, steps, tokens, parameters, epochs, seconds. tokens_per_parameter: of those that were fresh, or None.
      base: whether it began with weights that were there. made: as its manifest says it. heldout: [[step, loss on
      held-out text, nats a token]] at its checkpoints. flops_per_token: forward, of held-out text, without the search;
      search_flops_per_token: of the look-up that its chunk wants, None where the text is not prepared.
    """
    e, where = method.trained_with(work.experiment), work.trained(method.trained_as)
    prepared = Prepared(work)
    made, size = artefact.read(where), e.train.batch * e.train.length
    counts, log = made["counts"], where / "metrics.jsonl"
    rows = map(json.loads, log.read_text().splitlines()) if log.exists() else ()
    tokens = counts["steps"] * size
    fresh = _fresh(e, method, prepared.tokenizer.vocab, counts["parameters"])
    return {
        "seed": e.train.seed,
        "steps": counts["steps"],
        "tokens": tokens,
        "parameters": counts["parameters"],
        "tokens_per_parameter": tokens / fresh if fresh else None,
        "epochs": tokens / (len(prepared.records("train")) * e.train.length),
        "seconds": made["seconds"],
        "base": bool(e.train.base),
        "made": made["made"],
        "heldout": [[r["step"], r["heldout_loss"]] for r in rows if "heldout_loss" in r],
        "flops_per_token": method.flops(prepared.tokenizer.vocab, e.train.length) / e.train.length,
        "search_flops_per_token": _searching(prepared, method),
    }


def _fresh(e: Experiment, method: Method, vocab: int, parameters: int) -> int:
    """How many parameters training began with at random."""
    if not e.train.base:
        return parameters
    if not method.network or directory.model_of(Path(e.train.base))[1]:
        return 0
    shapes = functional.shapes(method.model, vocab)
    return functional.count(
        {n: shapes[n] for n in functional.added_by_retrieval(method.model, vocab)}
    )


def _searching(prepared: Prepared, method: Method) -> float | None:
    if not method.look_ups:
        return 0.0
    if not prepared.work.prepared("index").exists():
        return None
    return prepared.look_up(method.k) / method.model.reading.chunk


def early(trainings: list[dict]) -> bool:
    """Whether one of them was too short to say anything: fewer than ENOUGH tokens for each fresh parameter."""
    seen = [t["tokens_per_parameter"] for t in trainings]
    return any(n is not None and n < ENOUGH for n in seen)
