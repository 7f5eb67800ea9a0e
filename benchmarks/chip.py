"""The parts of benchmarks/accelerator.py: each measures one thing on the chip that is there, and says it in rows."""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np

VOCAB = 32_000


def seconds(do: Callable, rounds: int = 10, warm: int = 2) -> float:
    """Of one call of `do`, which waits for what it computes: the median."""
    each = []
    for i in range(warm + rounds):
        begin = time.perf_counter()
        do()
        each += [time.perf_counter() - begin] if i >= warm else []
    return statistics.median(each)


def peaks(args: argparse.Namespace) -> list[dict]:
    """What products of large matrices and a copy of a large array reach."""
    import jax
    import jax.numpy as jnp

    n, rows = args.product, []
    for dtype in ("bfloat16", "float32"):
        a, b = (jax.random.normal(jax.random.key(i), (n, n), dtype) for i in (0, 1))

        @jax.jit
        def products(a, b):  # several in a row: of one a launch is a part
            for _ in range(8):
                a = (a @ b) * n**-0.5
            return a

        took = seconds(lambda f=products, a=a, b=b: f(a, b).block_until_ready()) / 8
        what = f"product of {n} x {n}, {dtype}"
        rows.append(
            {"what": what, "ms": 1e3 * took, "TFLOP/s": 2 * n**3 / took / 1e12, "GB/s": None}
        )
    x = jnp.ones((n * n * 4,), jnp.float32)
    add = jax.jit(lambda x: x + 1)
    took = seconds(lambda: add(x).block_until_ready())
    rows.append(
        {"what": f"reading and writing {x.nbytes / 2**30:.2f} GiB", "ms": 1e3 * took, "TFLOP/s": None,
         "GB/s": 2 * x.nbytes / took / 1e9}
    )  # fmt: skip
    return rows


def experiment(
    size: str, batch: int, remat: str, block: int, attention: str, args: argparse.Namespace
):
    """An experiment of one of the paper's sizes, or of a tiny one."""
    from retro_jax.config import TrainConfig, experiment_beside, from_config_dict

    config = experiment_beside(common.QUICKSTART, "quickstart" if args.smoke else "retro")
    e = from_config_dict(config.get_config(*[size] * (not args.smoke)))
    if args.smoke:
        tiny = {"d": 32, "layers": 3, "heads": 2, "head_size": 16}
        decoder = dataclasses.replace(e.model.decoder, **tiny)
        encoder = dataclasses.replace(e.model.encoder, **tiny | {"layers": 1})
        e = dataclasses.replace(
            e, model=dataclasses.replace(e.model, decoder=decoder, encoder=encoder)
        )
    model = dataclasses.replace(
        e.model, remat=remat, attention_block=block, attention=attention, dtype="bfloat16"
    )
    train = TrainConfig(length=args.length, batch=batch)
    return dataclasses.replace(e, model=model, train=train)


def work_of(e) -> dict[str, float]:
    """FLOPs of a step of RETRO, with all of self-attention and with the unmasked half of it."""
    from retro_jax.methods.method import method_of
    from retro_jax.train.log import step_flops

    d, length = e.model.decoder, e.train.length
    plain = dataclasses.replace(e.model, attention_block=length, attention="reference")
    whole = step_flops(method_of(dataclasses.replace(e, model=plain), "retro"), e.train, VOCAB)
    # Of each head: logits of the content and of the positions, and the sum of values.
    attention = 3 * 2 * length**2 * d.heads * d.head_size * d.layers
    return {"whole": whole, "half": whole - 3 * e.train.batch * attention / 2}


def batch_of(e, vocab: int = VOCAB) -> dict:
    """A batch of random tokens and neighbours."""
    rng = np.random.default_rng(0)
    b, shape = e.train.batch, (e.chunks, e.retrieval.neighbours, e.model.reading.retrieved)
    tokens = rng.integers(1, vocab, (b, e.train.length)).astype(np.int32)
    return {"tokens": tokens, "neighbours": rng.integers(1, vocab, (b, *shape)).astype(np.int32)}


def planned(e, method) -> dict:
    """What `retro plan` counts for one chip of this kind: GiB, and milliseconds of a step, at best and at worst; None
    where it has no such chip, or does not count its attention."""
    import jax

    from retro_jax.plan import plan, topology
    from retro_jax.train.hardware import CHIPS

    kind = jax.devices()[0].device_kind
    name = next((n for n, c in CHIPS.items() if kind.startswith(c.kind)), None)
    if name is None or e.model.attention == "cudnn":
        return dict.fromkeys(("planned GiB", "planned ms, best", "planned ms, worst"))
    on = topology.parse(f"{name}:1")
    told = plan.estimate(e, on, VOCAB, method)
    best, worst = (1e3 * s for s in told["seconds_per_step"])
    return {
        "planned GiB": told["bytes_per_chip"]["total"] / 2**30,
        "planned ms, best": best,
        "planned ms, worst": worst,
    }


def peak_bytes() -> int | None:
    """The most memory of the accelerator that this process held."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def step(args: argparse.Namespace, number: int) -> list[dict]:
    """One train step and one forward pass of STEPS: its rows."""
    import jax

    from retro_jax.methods.method import Retrieved, method_of
    from retro_jax.train import sharding
    from retro_jax.train.hardware import peak_flops
    from retro_jax.train.step import init_state, make_train_step

    size, sequences, remat, block, attention = args.steps[number]
    e = experiment(size, sequences, remat, block, attention, args)
    method, flops, rows = method_of(e, "retro"), work_of(e), []
    peak, tokens = peak_flops(jax.devices()[:1]), sequences * e.train.length
    with jax.set_mesh(sharding.one_device()):
        state = [init_state(method, e.train, VOCAB)]
        given = jax.device_put(batch_of(e))
        make, last = make_train_step(method, e.train), []

        def train():
            state[0], metrics = make(state[0], given)
            last[:] = [float(metrics["loss"])]

        begin = time.perf_counter()
        train()
        compiled = time.perf_counter() - begin
        took = {"train": seconds(train, args.rounds)}
        if not np.isfinite(last[0]):
            raise FloatingPointError(f"the loss is {last[0]}")
        held = peak_bytes()
        if remat == "full":
            score, read = jax.jit(method.logprobs), Retrieved(given["neighbours"])
            weights = state[0].weights()
            took["forward"] = seconds(
                lambda: score(weights, given["tokens"], read).block_until_ready(), args.rounds
            )
    for what, s in took.items():
        share = 1 if what == "train" else 1 / 3
        rows.append(
            {
                "what": what, "size": size, "sequences": sequences, "remat": remat, "block": block,
                "attention": attention,
                "ms": 1e3 * s, "tokens/s": tokens / s,
                **{f"MFU, {n}": f * share / s / peak if peak else None for n, f in flops.items()},
                "of the product": flops["half"] * share / s / args.reached if args.reached else None,
                "peak GiB": held / 2**30 if held and what == "train" else None,
                "compiled in s": compiled if what == "train" else None,
            }
            | (planned(e, method) if what == "train" else {})
        )  # fmt: skip
    return rows


def generate(args: argparse.Namespace, number: int) -> list[dict]:
    """The 172M RETRO that generates `args.rows[number]` texts: with live retrieval, without waiting for the search, and
    without retrieval."""
    import generation

    from retro_jax.config.request import Request

    class Known(generation.RealText):
        """Answers at once, with what was found once."""

        kept = None

        def retrieve(self, chunks, *rest):
            n = len(chunks)
            if self.kept is None or len(self.kept.tokens) < n:
                self.kept = super().retrieve(np.zeros((max(n, rows), 1)), *rest)
            return self.kept.of(slice(0, n))

    args.size, rows = "smoke" if args.smoke else "172m", args.rows[number]
    s = generation.set_up(args)
    model = dataclasses.replace(s.method.model, dtype="bfloat16")
    known = Known(s.text.all, s.text.some(256))
    size = s.size._replace(long=s.size.tokens)  # no longer than needed: fewer programs
    s = s._replace(method=type(s.method)(model, generation.K), size=size)
    prompt, tokens = s.size.prompt, s.size.tokens
    spread = min(s.chunk, prompt // 2)
    together = s.prompts([prompt] * rows)
    apart = s.prompts([prompt - spread * i // rows for i in range(rows)])
    live, plain = s.generator(rows), s.generator(rows, 0)
    with generation.all_places_read():
        all_read = s.generator(rows, 0)
    at_once = s._replace(text=known).generator(rows)

    def run(generator, texts, k):
        for c in generator.generate_all([Request(t, tokens, k=k) for t in texts]):
            assert len(c.tokens) == tokens

    off = "off: no neighbours asked for"
    ways = {
        "BM25, live": (live, together, generation.K),
        "the same, chunks end at different times": (live, apart, generation.K),
        "neighbours known, nothing searched": (at_once, together, generation.K),
        off: (live, together, 0),
        "language model alone": (plain, together, 0),
        "the same, all places of a row read": (all_read, together, 0),
    }
    took = {n: seconds(lambda w=w: run(*w), args.rounds // 2 or 1) for n, w in ways.items()}
    for generator in (live, plain, at_once, all_read):
        generator.close()
    held = peak_bytes()
    return [
        {"rows": rows, "retrieval": name, "ms": 1e3 * each / tokens, "tokens/s": rows * tokens / each,
         "of off": each / took[off], "peak GiB": held / 2**30 if held else None}
        for name, each in took.items()
    ]  # fmt: skip


def search(args: argparse.Namespace) -> list[dict]:
    """Exact search on the accelerator beside ScaNN on the host's cores: vectors in clusters, ten nearest."""
    from retro_jax.retrieval.index import INDEXES, Given

    rng, n, d = np.random.default_rng(0), args.vectors, 256
    centres = rng.standard_normal((n // 100, d)).astype(np.float32)
    vectors = centres[rng.integers(len(centres), size=n)]
    vectors += 0.7 * rng.standard_normal((n, d)).astype(np.float32)
    queries = vectors[rng.integers(n, size=4096)] + 0.3 * rng.standard_normal((4096, d)).astype(
        np.float32
    )
    rows, best = [], None
    for name in ("exact", "scann"):
        cls = INDEXES[name]
        with tempfile.TemporaryDirectory() as folder:
            settings = cls.Settings()
            report = cls.build(vectors, Path(folder), settings, Given(10))
            index = cls.open(Path(folder), report | {"size": n})
            for block in (1, 64, 4096):
                took = seconds(lambda index=index, b=block: index.search(queries[:b], 10), 5)
                found = np.asarray(index.search(queries, 10)[0])
                best = found if best is None else best
                same = [len(set(a) & set(b)) / 10 for a, b in zip(found, best)]
                rows.append(
                    {"index": name, "vectors": f"{n:,}", "queries at a time": str(block),
                     "us a query": 1e6 * took / block, "recall@10": statistics.mean(same)}
                )  # fmt: skip
    return rows


def retro_pytorch(args: argparse.Namespace) -> list[dict]:
    """retro-pytorch 0.3.9 at the 172M shape (benchmarks/model.py): bfloat16 by autocast, no recomputation."""
    import model
    import torch
    from retro_pytorch import RETRO

    where = "cuda" if torch.cuda.is_available() else "cpu"
    s = model.SIZES["tiny" if args.smoke else "172M"] | {"batch": 1 if args.smoke else 8}
    net = RETRO(
        num_tokens=s["vocab"], max_seq_len=s["length"], enc_dim=s["encoder_d"], dec_dim=s["d"],
        enc_depth=s["encoder_layers"], enc_cross_attn_layers=(1,), dec_depth=s["layers"],
        dec_cross_attn_layers=s["cca"], dim_head=s["inner"] // 8, chunk_size=model.CHUNK,
    ).to(where)  # fmt: skip
    tokens, neighbours = (torch.from_numpy(x).to(where) for x in model.example(s))
    tokens = torch.cat([tokens, tokens[:, :1]], dim=1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-4, betas=(0.9, 0.95), weight_decay=0.1)

    def loss():
        with torch.autocast(where, torch.bfloat16):
            return net(tokens, retrieved=neighbours, return_loss=True)

    def forward():
        with torch.no_grad():
            return loss().item()

    def train():
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return value.item()

    rows = []
    for what, do in (("train", train), ("forward", forward)):
        took = seconds(do, args.rounds)
        held = torch.cuda.max_memory_allocated() if where == "cuda" else None
        rows.append(
            {"what": what, "library": "retro-pytorch", "sequences": s["batch"], "ms": 1e3 * took,
             "tokens/s": s["batch"] * s["length"] / took, "peak GiB": held / 2**30 if held else None}
        )  # fmt: skip
    return rows
