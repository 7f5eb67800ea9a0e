"""A forward pass and a train step of retro_jax beside retro-pytorch 0.3.9, at the same shapes.

    pip install -e . torch==2.13.0 retro-pytorch==0.3.9
    python benchmarks/model.py --size small --threads 1
    python benchmarks/model.py --size 172M --rounds 3
    python benchmarks/model.py --smoke      # does it run? a tiny shape

Each library runs in a process of its own; the two take turns, round by round, so that a machine that
slows down slows both. Prints medians: tokens a second, their ratio to ours, GFLOP/s and its share of the
fastest large float32 matrix product that either library reached in the same run, and the peak memory
of each process.

FLOPs are those of the matrix products of the forward pass, counted in each library's own program
(the jaxpr; torch's FlopCounterMode); a train step is three times that, and what is computed again
for the gradient counts for nothing. Both sides compute in float32, with AdamW.
"""

import os

import common
import numpy as np

# d, layers, heads x head size, CCA layers, encoder, vocabulary, batch, length. retro-pytorch has
# 8 heads whatever it is asked for; inner widths and so FLOPs are equal.
SIZES = {
    "tiny": {
        "d": 32, "layers": 1, "heads": 8, "inner": 256, "cca": (1,), "encoder_d": 32,
        "encoder_layers": 1, "vocab": 512, "batch": 1, "length": 128, "product": 256,
    },
    "small": {
        "d": 256, "layers": 6, "heads": 8, "inner": 512, "cca": (3, 6), "encoder_d": 128,
        "encoder_layers": 2, "vocab": 4096, "batch": 8, "length": 512, "product": 3072,
    },
    "172M": {
        "d": 896, "layers": 12, "heads": 16, "inner": 1024, "cca": (6, 9, 12), "encoder_d": 896,
        "encoder_layers": 2, "vocab": 32_000, "batch": 1, "length": 2048, "product": 3072,
    },
}  # fmt: skip
NEIGHBOURS, CHUNK = 2, 64
KINDS = {"forward": 1, "train": 3}  # and how many forward passes it counts for
FORMATS = {
    "tokens/s": ",.1f", "ours, times as fast": ".2f", "GFLOP": ",.1f", "GFLOP/s": ",.1f",
    "of the product's": ".2f", "parameters": ",d", "peak GiB": ".2f",
}  # fmt: skip


def example(s: dict) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [B, L] and neighbours [B, C, K, R]."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, s["vocab"], (s["batch"], s["length"]))
    shape = (s["batch"], s["length"] // CHUNK, NEIGHBOURS, 2 * CHUNK)
    return tokens, rng.integers(1, s["vocab"], shape)


def retro_jax(s: dict, threads: int):
    """(what to run by name, FLOPs of a forward pass, parameters)."""
    import jax

    from retro_jax.config import (
        DecoderConfig,
        EncoderConfig,
        ModelConfig,
        ReadingConfig,
        TrainConfig,
    )
    from retro_jax.methods.method import Retrieved
    from retro_jax.methods.retro import Retro
    from retro_jax.train import sharding
    from retro_jax.train.step import init_state, make_train_step

    sharding.set_up_cpu(1)
    jax.set_mesh(sharding.one_device())
    size = s["inner"] // s["heads"]
    config = ModelConfig(
        decoder=DecoderConfig(d=s["d"], layers=s["layers"], heads=s["heads"], head_size=size),
        encoder=EncoderConfig(
            d=s["encoder_d"], layers=s["encoder_layers"], heads=s["heads"], head_size=size
        ),
        reading=ReadingConfig(cca_layers=s["cca"], chunk=CHUNK, retrieved=2 * CHUNK),
    )
    method, train = Retro(config, NEIGHBOURS), TrainConfig(length=s["length"], batch=s["batch"])
    tokens, neighbours = (jax.numpy.asarray(x, np.int32) for x in example(s))
    read = Retrieved(neighbours)
    step, logprobs = make_train_step(method, train), jax.jit(method.logprobs)
    state = [init_state(method, train, s["vocab"])]
    a = jax.numpy.ones((s["product"], s["product"]))
    product = jax.jit(lambda a: a @ a)

    def matmul():
        product(a).block_until_ready()

    def forward():
        logprobs(state[0].params, tokens, read).block_until_ready()

    def train_step():
        state[0], metrics = step(state[0], {"tokens": tokens, "neighbours": neighbours})
        return float(metrics["loss"])

    flops = method.flops(s["vocab"], s["length"]) * s["batch"]
    work = {"matmul": matmul, "forward": forward, "train": train_step}
    return work, flops, sum(p.size for p in state[0].weights().values())


def retro_pytorch(s: dict, threads: int):
    """(what to run by name, FLOPs of a forward pass, parameters)."""
    import torch
    from retro_pytorch import RETRO
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(threads)
    model = RETRO(
        num_tokens=s["vocab"], max_seq_len=s["length"], enc_dim=s["encoder_d"], dec_dim=s["d"],
        enc_depth=s["encoder_layers"], enc_cross_attn_layers=(1,), dec_depth=s["layers"],
        dec_cross_attn_layers=s["cca"], dim_head=s["inner"] // 8, chunk_size=CHUNK,
    )  # fmt: skip
    tokens, neighbours = (torch.from_numpy(x) for x in example(s))
    # Its loss predicts the token after each of `length` tokens.
    tokens = torch.cat([tokens, tokens[:, :1]], dim=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, betas=(0.9, 0.95), weight_decay=0.1)
    a = torch.ones(s["product"], s["product"])

    def matmul():
        a @ a  # the seconds are what is asked for

    def forward():
        with torch.no_grad():
            return model(tokens, retrieved=neighbours, return_loss=True).item()

    def train_step():
        loss = model(tokens, retrieved=neighbours, return_loss=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    with FlopCounterMode(display=False) as counter:
        forward()
    work = {"matmul": matmul, "forward": forward, "train": train_step}
    return work, counter.get_total_flops(), sum(p.numel() for p in model.parameters())


LIBRARIES = {"retro_jax": retro_jax, "retro_pytorch": retro_pytorch}
NEEDS = {"retro_jax": ("retro_jax",), "retro_pytorch": ("torch", "retro_pytorch")}


def worker(library: str, size: str, threads: int):
    """Runs what its standard input names."""
    if threads == 1:  # JAX sizes its pool by the processors that it may use when it starts
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    work, flops, parameters = LIBRARIES[library](SIZES[size], threads)
    common.serve(work | {"about": lambda: {"flops": flops, "parameters": parameters}})


def compare(libraries: list[str], size: str, threads: int, rounds: int) -> dict[str, list[dict]]:
    """The tables of some libraries."""
    workers = {n: common.Worker("--worker", n, size, str(threads)) for n in libraries}
    about = {name: one.ask("about")["result"] for name, one in workers.items()}
    # A kind after the other, as a process that trains does nothing else; in each, libraries take turns.
    answers = {kind: common.in_turns(workers, kind, rounds) for kind in ("matmul", *KINDS)}
    for one in workers.values():
        one.close()
    s, rows = SIZES[size], []
    fastest = 2 * s["product"] ** 3 / min(a["seconds"] for a in answers["matmul"].values())
    for kind, passes in KINDS.items():
        for name in libraries:
            took, flops = answers[kind][name]["seconds"], passes * about[name]["flops"]
            ours = answers[kind].get("retro_jax")
            rows.append(
                {
                    "library": name,
                    "what": kind,
                    "tokens/s": s["batch"] * s["length"] / took,
                    "ours, times as fast": took / ours["seconds"] if ours else None,
                    "GFLOP": flops / 1e9,
                    "GFLOP/s": flops / took / 1e9,
                    "of the product's": flops / took / fastest,
                }
            )
    memory = [
        {
            "library": name,
            "parameters": about[name]["parameters"],
            "peak GiB": answers["train"][name]["peak"] / 2**30,
        }
        for name in libraries
    ]
    title = f"{size}: {s['batch'] * s['length']:,} tokens a step, {threads} thread(s), "
    title += f"medians of {rounds}; fastest {s['product']} x {s['product']} float32 product: "
    return {f"{title}{fastest / 1e9:.1f} GFLOP/s": rows, "memory": memory}


def main():
    parser = common.parser(__doc__, corpus=False)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=common.THREADS)
    parser.add_argument("--only", choices=LIBRARIES, help="time one library")
    parser.add_argument("--worker", nargs=3, help="for itself")
    args = common.parse(parser, size="tiny")
    if args.worker:
        library, size, threads = args.worker
        return worker(library, size, int(threads))
    wanted = [args.only] if args.only else list(LIBRARIES)
    libraries = [name for name in wanted if common.installed(name, *NEEDS[name])]
    tables = compare(libraries, args.size, args.threads, args.rounds)
    return common.show(tables, FORMATS, args.json)


if __name__ == "__main__":
    main()
