"""How long a model was trained, and whether that is long enough to say anything of it."""

import json

from retro_jax.methods.method import Method
from retro_jax.pipeline.prepared import Prepared
from retro_jax.store import artefact
from retro_jax.store.workdir import WorkDir

# Tokens of training for each parameter. The curves of docs/quickstart.md begin at 1.3; a language model wants about 20
# (Hoffmann et al. 2022), and what a database is worth changes most before.
ENOUGH = 1.0


def told(work: WorkDir, method: Method) -> dict:
    """What a training was.

    Returns:
      seed, steps, tokens, parameters, tokens_per_parameter, epochs, seconds; base: whether it began with weights that
      were there; made: as its manifest says it; heldout: [[step, loss on held-out text, nats a token]] at its
      checkpoints. flops_per_token: forward, of held-out text, without the search; search_flops_per_token: of the
      look-up that its chunk wants, None where the text is not prepared.
    """
    e, where = method.trained_with(work.experiment), work.trained(method.trained_as)
    prepared = Prepared(work)
    made, size = artefact.read(where), e.train.batch * e.train.length
    counts, log = made["counts"], where / "metrics.jsonl"
    rows = map(json.loads, log.read_text().splitlines()) if log.exists() else ()
    tokens = counts["steps"] * size
    return {
        "seed": e.train.seed,
        "steps": counts["steps"],
        "tokens": tokens,
        "parameters": counts["parameters"],
        "tokens_per_parameter": tokens / counts["parameters"],
        "epochs": tokens / (len(prepared.records("train")) * e.train.length),
        "seconds": made["seconds"],
        "base": bool(e.train.base),
        "made": made["made"],
        "heldout": [[r["step"], r["heldout_loss"]] for r in rows if "heldout_loss" in r],
        "flops_per_token": method.flops(prepared.tokenizer.vocab, e.train.length) / e.train.length,
        "search_flops_per_token": _searching(prepared, method),
    }


def _searching(prepared: Prepared, method: Method) -> float | None:
    if not method.look_ups:
        return 0.0
    if not prepared.work.prepared("index").exists():
        return None
    return prepared.look_up(method.k) / method.model.reading.chunk


def early(trainings: list[dict]) -> bool:
    """Whether one of them was too short to say anything: fewer than ENOUGH tokens for each parameter, all of them
    fresh."""
    return any(t["tokens_per_parameter"] < ENOUGH and not t["base"] for t in trainings)
