"""Generation with live retrieval: tokens a second, where the time goes, and what the cache is worth.

    pip install -e .
    python benchmarks/generate.py --size=quickstart
    python benchmarks/generate.py --size=small --torch-python=PATH
    python benchmarks/generate.py --smoke      # does it run? the tiny model of common.SMALL

PATH: an interpreter with torch 2.13.0, retro-pytorch 0.3.9 and pyarrow<18; without it that part is left out.
WORKDIR has two databases of the experiment's corpus, BM25 and TF-IDF with ScaNN; they are made first, which
takes 2 minutes or more. With the default of 5 rounds count on 5 to 30 minutes after that, by size and by
what else the machine does; --rows and --rounds make it shorter.

Weights are random and no document ends; that changes no speed. Prompts are held-out text of 128
tokens, sampling is greedy. What random weights say is no text, so a held-out chunk is looked up in
its place. What is compared takes turns, round by round; printed are medians and, of ratios, the
median of the rounds' own with their range. The first two rounds compile and do not count.
"""

import functools
import itertools
import time

import common
import numpy as np
import recompute
from generation import SIZES, K, Setup, Turns, all_places_read, set_up

ON, SCANN, APART = "on, BM25", "on, ScaNN", "on, BM25, chunks end at different times"
# Tokens that a row has, where is measured what reading the begun part is worth.
BEGUN = (60, 120, 180)
OFF, PLAIN = "off: k = 0 asked for", "language model alone"
FORMATS = {
    "rows": "d", "tokens/s": ",.0f", "ms": ",.2f", "ms in all": ",.1f", "bytes": ",d",
    "seconds": ",.2f", "times": ".3g", "embedding": ".2f", "search": ".2f", "as text": ".2f",
}  # fmt: skip


def anew(rows: int) -> list[int]:
    """How many rows read new neighbours at once, of those that are tried."""
    return sorted({min(rows, 1 << i) for i in range(rows.bit_length() + 1)})


def generations(s: Setup, rows: int):
    """What generates, by name, and what has to be closed."""
    from retro_jax.config.request import Request

    prompt, tokens = s.size.prompt, s.size.tokens
    together = s.prompts([prompt] * rows)
    apart = s.prompts([prompt - s.chunk * i // rows for i in range(rows)])
    retro, plain = s.generator(rows), s.generator(rows, 0)

    def run(generator, retriever, texts, k):
        def do():
            s.text.use(retriever)
            for c in generator.generate_all([Request(t, tokens, k=k) for t in texts]):
                assert len(c.tokens) == tokens

        return do

    work = {ON: run(retro, "BM25", together, K), SCANN: run(retro, "ScaNN", together, K)}
    if rows > 1:
        work[APART] = run(retro, "BM25", apart, K)
    work |= {OFF: run(retro, "BM25", together, 0), PLAIN: run(plain, "BM25", together, 0)}
    return work, (retro, plain)


def pieces(s: Setup, rows: int):
    """Parts of it alone, by name; rows are half-way through."""
    import jax

    from retro_jax.generate.engine import Engine
    from retro_jax.generate.lookup import Lookup
    from retro_jax.generate.programs import SEGMENT
    from retro_jax.methods.method import Retrieved

    silent = s.tokenizer.silent
    engine, all_read = (Engine(s.method, s.params, rows, s.length, K, silent) for _ in range(2))
    with all_places_read():
        all_read.advance(np.zeros(rows))
    lookup = Lookup(s.text, s.tokenizer, s.chunk, s.method.model.reading.retrieved, K)
    whole = s.size.prompt // s.chunk  # chunks of a prompt
    found = s.text.retrieve(s.text.some(max(rows, whole + 1)))
    text, every = s.text.some(whole + 1).ravel(), zip(found.tokens, found.distances)
    near = {row: Retrieved(*one) for row, one in zip(range(rows), every)}

    def first(chunks):
        return Retrieved(found.tokens[:chunks], found.distances[:chunks])

    for row in range(rows):
        engine.admit(row, text, first(whole + 1))

    def go_on(steps):
        engine.advance(np.full(rows, steps))

    def anew_(some):  # rows that stood still beside others have been shown what they read next
        engine.show(list(some))
        jax.block_until_ready(engine._state)
        begin = time.perf_counter()
        engine.read(some)
        jax.block_until_ready(engine._state)
        return time.perf_counter() - begin

    def begun(engine, n: int) -> float:
        for row in range(rows):
            engine.admit(row, text[:n], first(0))
        begin = time.perf_counter()
        engine.advance(np.full(rows, SEGMENT))
        return time.perf_counter() - begin

    def pass_():
        engine.admit(0, text[: s.size.prompt], first(whole))
        engine.copy([0], rows - 1)

    work = {
        "pass": pass_,
        "step": lambda: go_on(SEGMENT),
        "tell": lambda: [lookup.describe(found.of(slice(i, i + 1))) for i in range(rows)],
    }
    for n in anew(rows):
        some = dict(itertools.islice(near.items(), n))
        work[f"{n} anew"] = functools.partial(anew_, some)
    for n in BEGUN:
        work[f"{n}, begun"] = functools.partial(begun, engine, n)
        work[f"{n}, all"] = functools.partial(begun, all_read, n)
    for name, retriever in s.text.all.items():
        embed, chunks = retriever.databases.prepared.encoder, s.text.some(rows)
        texts = [s.tokenizer.decode(c) for c in chunks.tolist()]
        work[f"{name} embed"] = lambda embed=embed, texts=texts: [embed(texts)]
        work[f"{name} whole"] = lambda r=retriever, chunks=chunks: r.retrieve(chunks)
    return work, lookup


def measure(s: Setup, rows: int, rounds: int) -> dict[str, list[dict]]:
    """The tables of so many rows."""
    from retro_jax.generate.programs import SEGMENT

    prompt, tokens, m = s.size.prompt, s.size.tokens, s.chunk
    (whole, open_), (alone, lookup) = generations(s, rows), pieces(s, rows)
    turns = Turns(whole | alone, rounds, uncounted=2)
    for x in (*open_, lookup):
        x.close()
    ms = {name: 1e3 * turns.median(name) for name in turns.seconds}
    step = ms["step"] / SEGMENT
    ends = (prompt + tokens - 1) // m - prompt // m  # chunks whose neighbours are read
    looked = {n: (ms[f"{n} embed"], ms[f"{n} whole"] - ms[f"{n} embed"]) for n in s.text.all}
    parts = [
        ("prompt's pass, one row at a time", ms["pass"], rows),
        ("embedding what is looked up", looked["BM25"][0], ends),
        ("searching it", looked["BM25"][1], ends),
        ("what was read, as text", ms["tell"], ends),
        ("encoding neighbours", ms[f"{rows} anew"], ends),
        (f"decoding {m} tokens", step * m, (tokens - 1) / m),
    ]
    rest = ms[ON] - sum(each * times for _, each, times in parts)
    parts += [("all else, less what overlaps", rest, 1), ("measured", ms[ON], 1)]
    return {
        "tokens a second, prompts included": [
            {"rows": rows, "retrieval": n, "tokens/s": 1e3 * rows * tokens / ms[n],
             "time / off": turns.ratio(n, OFF), "time / language model": turns.ratio(n, PLAIN)}
            for n in whole
        ],
        f"where the time of {tokens} tokens a row goes, BM25": [
            {"rows": rows, "part": part, "ms": each, "times": times, "ms in all": each * times,
             "share": f"{each * times / ms[ON]:.0%}"}
            for part, each, times in parts
        ],
        "some rows read new neighbours": [
            {"rows": rows, "of them anew": n, "ms": ms[f"{n} anew"],
             f"time / {SEGMENT} steps": turns.ratio(f"{n} anew", "step")}
            for n in anew(rows)
        ],
        f"{SEGMENT} tokens of rows of {s.length} places, the begun part of which is read": [
            {"rows": rows, "tokens before": n, "time / all read": turns.ratio(f"{n}, begun", f"{n}, all")}
            for n in BEGUN
        ],
        "ms to look up one chunk of every row": [
            {"rows": rows, "retriever": n, "embedding": embed, "search": search, "as text": ms["tell"]}
            for n, (embed, search) in looked.items()
        ],
    }  # fmt: skip


def first_token(s: Setup, rounds: int) -> list[dict]:
    """From a request to its first token."""
    from retro_jax.config.request import Request

    generator, prompt = s.generator(1), s.prompts([s.size.prompt])[0]

    def run(name, k):
        def do():
            s.text.use(name)
            return generator.generate_all([Request(prompt, 1, k=k)])[0].seconds["first"]

        return do

    turns = Turns({ON: run("BM25", K), SCANN: run("ScaNN", K), OFF: run("BM25", 0)}, 4 * rounds)
    generator.close()
    return [
        {"retrieval": n, "ms": 1e3 * turns.median(n), "time / off": turns.ratio(n, OFF)}
        for n in turns.seconds
    ]


def memory(s: Setup) -> list[dict]:
    """Bytes of what a row keeps, counted from shapes, and of the process."""
    import jax

    from retro_jax.train import sharding

    def size(rows: int, k: int) -> int:
        def start(params):
            return s.method.start(s.method.decoder(params), rows, s.length, k)

        with jax.set_mesh(sharding.one_device()):
            state = jax.eval_shape(start, s.params)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))

    row = {k: size(2, k) - size(1, k) for k in (0, K)}
    found = {
        f"cache of a row of {s.length} tokens": row[K],
        "of it, what is read of neighbours": row[K] - row[0],
        "cache that all rows share (positions)": size(1, K) - row[K],
        "weights": sum(p.nbytes for p in s.params.values()),
        "process at its peak": common.peak_memory(),
    }
    return [{"memory": name, "bytes": value} for name, value in found.items()]


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--size", choices=SIZES, default="quickstart")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", help="instead of the size's own")
    parser.add_argument("--torch-python", metavar="PATH", help="interpreter with retro-pytorch")
    parser.add_argument("--worker", help="for this program itself")
    args = common.parse(parser, size="smoke")
    if args.worker:
        return recompute.retro_pytorch(args.worker)
    s, tables = set_up(args), {}

    def report(found: dict[str, list[dict]]):
        common.show(found, FORMATS, None)
        for title, rows in found.items():
            tables.setdefault(title, []).extend(rows)
        if args.json:  # as far as it got
            common.save(tables, args.json)

    for rows in args.rows or s.size.rows:
        report(measure(s, rows, args.rounds))
    report({"first token": first_token(s, args.rounds)})
    report({"memory": memory(s)})
    report({"without a cache": recompute.measure(s, args.torch_python, args.rounds)})
    return None


if __name__ == "__main__":
    main()
