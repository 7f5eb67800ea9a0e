"""What a method costs: counted in its programs, and measured while it generates."""

import statistics
import time
from dataclasses import replace

import numpy as np

from retro_jax import progress
from retro_jax.config import Request
from retro_jax.generate.generator import Generator
from retro_jax.methods.method import Method, to_train
from retro_jax.pipeline.prepared import Prepared
from retro_jax.store import artefact
from retro_jax.store.workdir import WorkDir
from retro_jax.train.log import run_flops

ROWS = (1, 8)  # requests that are decoded together
_TIMES, _ENOUGH = 5, 20  # repetitions at most; seconds after which there are no more
_PROMPT, _TOKENS = 1, 128  # chunks of a prompt; tokens that are drawn after it


def costs(work: WorkDir, method: Method, split: str) -> dict:
    """What a trained method takes.

    Returns:
      gflops_per_token: of a window of held-out text, forward, GFLOP; searching is not counted. parameters.
      training_flops: of its weights (`log.run_flops`), those that they began with included. index_bytes: of what is
      searched. And what `generated` says.
    """
    e, vocab = work.experiment, Prepared(work).tokenizer.vocab
    training = 0
    for trained in to_train(e, [method]):
        counts = artefact.read(work.trained(trained.name))["counts"]
        training += run_flops(trained, e.train, vocab, 0, counts["steps"])
    own = work.datastore(method.name)
    searched = [work.prepared("index")] if method.look_ups and not (own / "index").exists() else []
    searched += [own] if own.exists() else []
    return {
        "gflops_per_token": method.flops(vocab, e.train.length) / e.train.length / 1e9,
        "parameters": counts["parameters"],
        "training_flops": training,
        "index_bytes": sum(sum(artefact.sizes(path).values()) for path in searched),
    } | generated(work, method, split)


def generated(work: WorkDir, method: Method, split: str) -> dict:
    """What it takes to continue the beginnings of held-out documents, greedily: the median of five times, or of as many
    as begin within 20 seconds.

    Returns:
      ms_per_token: {rows: milliseconds from one token of a row to its next}, so many rows together, look-ups included.
      retrieved_per_token: tokens that were looked up for a generated one. state_bytes: of one row.
    """
    m = method.model.reading.chunk
    table, pieces = Prepared(work).table(split), Prepared(work).tokenizer
    firsts = [d["first"] for d in table.documents]
    firsts = [firsts[i % len(firsts)] for i in range(max(ROWS))]
    prompts = [table.texts_of(pieces, np.array([first]))[0] for first in firsts]
    length = (_PROMPT + 1) * m + _TOKENS
    warm = m + 2  # tokens after which every program has run
    out = {"ms_per_token": {}}
    with progress.bar(f"{method.name}: generating", len(ROWS)) as advance:
        for rows in ROWS:
            requests = [Request(p, tokens=_TOKENS, temperature=0) for p in prompts[:rows]]
            sizes = {"rows": rows, "length": length, "k": method.k}
            with Generator.open(work, method.name, **sizes) as generator:
                generator.generate_all([replace(r, tokens=warm) for r in requests])  # compiles
                taken = []
                while len(taken) < _TIMES and sum(taken) < _ENOUGH:
                    begin = time.perf_counter()
                    made = generator.generate_all(requests)
                    taken.append(time.perf_counter() - begin)
                seconds = statistics.median(taken)
                state = generator.state_bytes / rows
            tokens = [len(c.tokens) for c in made]
            out["ms_per_token"][str(rows)] = 1000 * seconds / max(1, *tokens)
            out["state_bytes"] = int(state)
            near = sum(len(c["neighbours"]) for completion in made for c in completion.chunks)
            read = near * method.model.reading.retrieved
            out["retrieved_per_token"] = read / max(1, sum(tokens))
            advance(1)
    return out
