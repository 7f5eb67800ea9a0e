"""Where the time of a training step goes that fits retrieval to a language model (RETROfit).

    python benchmarks/fitted.py --workdir=runs/smollm2 --dtype=bfloat16

WORKDIR: what `retro prepare` made of an experiment with a base (experiments/retrofit.py, experiments/smollm2.py).
Each program does what the one before it does, and more, by turns on one batch of random tokens; *more* is what it takes
beyond that one. The last row is no part of the step: what the gradient takes where the base is trained too.
"""

import dataclasses
import statistics
import time
from pathlib import Path

import common

FORMATS = {"s": ".2f", "more, s": ".2f", "of the step": ".0%", "TFLOP": ".3f", "GFLOP/s": ",.0f"}


def programs(work, train, batch: dict) -> dict:
    """By what they do: (a jitted function, its arguments). train: a TrainConfig; batch: see `Method.loss`."""
    import jax

    from retro_jax.methods.method import method_of
    from retro_jax.train import optimizer
    from retro_jax.train.restore import weights_of_base
    from retro_jax.train.step import gradients, init_state

    mesh = jax.sharding.get_mesh()
    retro, language = (method_of(work.experiment, n) for n in ("retro", "language_model"))
    base = weights_of_base(work.experiment, work, retro, mesh)
    vocab = base["embedding"].shape[0]
    state = init_state(retro, train, vocab, base)
    whole = dataclasses.replace(state, params=state.frozen | state.params, frozen={})

    def loss(method, params, batch):
        return method.loss(params, batch)[0]

    def grad(state, batch):
        return gradients(retro, train, state, batch)

    def step(state, batch):  # without donating what the next round needs
        value, grads = gradients(retro, train, state, batch)
        return value, optimizer.adamw(train).update(grads, state.opt_state, state.params)

    text = {"tokens": batch["tokens"]}
    alone = {n: p for n, p in state.frozen.items() if n in language.shapes(vocab)}
    return {
        "the language model": (jax.jit(lambda p, b: loss(language, p, b)), (alone, text)),
        "and encoder, cross-attention": (
            jax.jit(lambda p, b: loss(retro, p, b)),
            (whole.params, batch),
        ),
        "and the gradient of these": (jax.jit(grad), (state, batch)),
        "and the optimizer: a step": (jax.jit(step), (state, batch)),
        "the gradient of everything": (jax.jit(grad), (whole, batch)),
    }


def measured(made: dict, rounds: int) -> list[dict]:
    """A row for each program."""
    import jax

    from retro_jax.model.sizes import dot_flops, live

    seconds = {what: [] for what in made}
    for i in range(rounds + 1):
        for what, (run, given) in made.items():
            begin = time.perf_counter()
            jax.block_until_ready(run(*given))
            if i:  # the first one compiles
                seconds[what].append(time.perf_counter() - begin)
    *parts, beside = made
    of, before, rows = statistics.median(seconds[parts[-1]]), 0.0, []
    for what, (run, given) in made.items():
        took = statistics.median(seconds[what])
        flops = dot_flops(live(jax.make_jaxpr(run)(*given).jaxpr))
        row = {"what": what, "s": took, "TFLOP": flops / 1e12, "GFLOP/s": flops / took / 1e9}
        if what != beside:
            row |= {"more, s": took - before, "of the step": (took - before) / of}
        before = took
        rows.append(row)
    return rows


def main():
    """Measures and prints it."""
    made = common.parser(__doc__, corpus=False)
    made.add_argument("--workdir", type=Path, default=Path("runs/smollm2"))
    made.add_argument("--batch", type=int, default=4)
    made.add_argument("--dtype", default="float32", help="of activations, and of frozen weights")
    made.add_argument("--rounds", type=int, default=3)
    args = common.parse(made, batch=1)
    import jax
    import numpy as np

    from retro_jax.model.layers import AXES
    from retro_jax.store.workdir import WorkDir

    stored = WorkDir(args.workdir)
    e = stored.experiment
    model = dataclasses.replace(e.model, dtype=args.dtype)
    train = dataclasses.replace(e.train, batch=args.batch)
    work = WorkDir(stored.root, dataclasses.replace(e, model=model, train=train))
    rng, chunks = np.random.default_rng(0), train.length // model.reading.chunk
    shape = (args.batch, chunks, e.retrieval.neighbours, model.reading.retrieved)
    most = 10_000 if not args.smoke else 200
    batch = {
        "tokens": rng.integers(4, most, (args.batch, train.length)).astype(np.int32),
        "neighbours": rng.integers(4, most, shape).astype(np.int32),
    }
    with jax.set_mesh(jax.make_mesh((1, 1, 1), AXES, devices=jax.devices()[:1])):
        rows = measured(programs(work, train, batch), args.rounds)
    tokens = args.batch * train.length / next(r["s"] for r in rows[::-1] if "more, s" in r)
    print(f"{tokens:,.0f} tokens a second")
    common.show({"a training step": rows}, FORMATS, args.json)


if __name__ == "__main__":
    main()
