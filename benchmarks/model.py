"""A forward pass and a train step of retro_jax beside retro-pytorch 0.3.9, at the same shapes.

    pip install -e . torch==2.13.0 retro-pytorch==0.3.9
    python benchmarks/model.py --size small --threads 1
    python benchmarks/model.py --size 172M --rounds 3

Each library runs in a process of its own; the two take turns, round by round, so that a machine that
slows down slows both. Prints medians: tokens a second, their ratio, GFLOP/s and its share of the
fastest large float32 matrix product that either library reached in the same run, and the peak memory
of each process.

FLOPs are those of the matrix products of the forward pass, counted in each library's own program
(the jaxpr; torch's FlopCounterMode); a train step is three times that, and what is computed again
for the gradient counts for nothing. Both sides compute in float32, with AdamW.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
from rich.progress import track

# d, layers, heads x head size, CCA layers, encoder, vocabulary, batch, length. retro-pytorch has
# 8 heads whatever it is asked for; inner widths and so FLOPs are equal.
SIZES = {
    "small": {
        "d": 256, "layers": 6, "heads": 8, "inner": 512, "cca": (3, 6), "encoder_d": 128,
        "encoder_layers": 2, "vocab": 4096, "batch": 8, "length": 512,
    },
    "172M": {
        "d": 896, "layers": 12, "heads": 16, "inner": 1024, "cca": (6, 9, 12), "encoder_d": 896,
        "encoder_layers": 2, "vocab": 32_000, "batch": 1, "length": 2048,
    },
}  # fmt: skip
NEIGHBOURS, CHUNK = 2, 64


def example(s: dict) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, s["vocab"], (s["batch"], s["length"]))
    shape = (s["batch"], s["length"] // CHUNK, NEIGHBOURS, 2 * CHUNK)
    return tokens, rng.integers(1, s["vocab"], shape)


def retro_jax(s: dict, threads: int):
    """(what to run by name, FLOPs of a forward pass)."""
    import jax

    from retro_jax.config import ModelConfig, TrainConfig
    from retro_jax.model import functional, sizes
    from retro_jax.train import sharding
    from retro_jax.train.step import init_state, make_train_step

    sharding.set_up_cpu(1)
    jax.set_mesh(sharding.one_device())
    size = s["inner"] // s["heads"]
    config = ModelConfig(
        d=s["d"], layers=s["layers"], heads=s["heads"], head_size=size, cca_layers=s["cca"],
        encoder_d=s["encoder_d"], encoder_layers=s["encoder_layers"], encoder_heads=s["heads"],
        encoder_head_size=size,
    )  # fmt: skip
    tokens, neighbours = (jax.numpy.asarray(x, np.int32) for x in example(s))
    train = TrainConfig(length=s["length"], batch=s["batch"])
    step = make_train_step(config, train)
    logprobs = jax.jit(lambda p, x, n: functional.token_logprobs(config, p, x, n))
    state = [init_state(config, train, s["vocab"], True)]
    a = jax.numpy.ones((3072, 3072))
    product = jax.jit(lambda a: a @ a)

    def train_step():
        state[0], metrics = step(state[0], tokens, neighbours)
        return float(metrics["loss"])

    work = {
        "matmul": lambda: product(a).block_until_ready(),
        "forward": lambda: logprobs(state[0].params, tokens, neighbours).block_until_ready(),
        "train": train_step,
    }
    flops = sizes.forward_flops(config, s["vocab"], s["length"], NEIGHBOURS) * s["batch"]
    return work, flops, sum(p.size for p in state[0].params.values())


def retro_pytorch(s: dict, threads: int):
    """(what to run by name, FLOPs of a forward pass)."""
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
    a = torch.ones(3072, 3072)

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
    work = {"matmul": lambda: a @ a, "forward": forward, "train": train_step}
    return work, counter.get_total_flops(), sum(p.numel() for p in model.parameters())


def worker(library: str, size: str, threads: int):
    """Runs what its standard input names, a line each; answers with seconds."""
    if threads == 1:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    # JAX sizes its pool by the processors that it may use when it starts.
    work, flops, parameters = globals()[library](SIZES[size], threads)
    print(json.dumps({"flops": flops, "parameters": parameters}), flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        work[line.strip()]()
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB
        print(json.dumps({"seconds": seconds, "peak": peak}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", choices=("retro_jax", "retro_pytorch"), help="time one library")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker, args.size, args.threads)
    libraries = [args.only] if args.only else ["retro_jax", "retro_pytorch"]
    processes, about = {}, {}
    for name in libraries:
        command = [sys.executable, __file__, "--worker", name, "--size", args.size]
        processes[name] = subprocess.Popen(
            [*command, "--threads", str(args.threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        about[name] = json.loads(processes[name].stdout.readline())

    def run(name, what):
        processes[name].stdin.write(what + "\n")
        processes[name].stdin.flush()
        return json.loads(processes[name].stdout.readline())

    kinds = ("matmul", "forward", "train")
    seconds = {name: {kind: [] for kind in kinds} for name in libraries}
    # A kind after the other, as a process that trains does nothing else; in each, the two take turns.
    rounds = [(kind, i) for kind in kinds for i in range(args.rounds + 1)]
    for kind, i in track(rounds, "rounds (the first of each kind compiles)"):
        for name in libraries:
            answer = run(name, kind)
            about[name]["peak"] = answer["peak"]
            if i:
                seconds[name][kind].append(answer["seconds"])
    median = {n: {k: statistics.median(s) for k, s in by.items()} for n, by in seconds.items()}
    peak = max(2 * 3072**3 / by["matmul"] for by in median.values())
    s = SIZES[args.size]
    tokens = s["batch"] * s["length"]
    print(
        f"{args.size}: {tokens} tokens a step, {args.threads} thread(s), medians of {args.rounds}"
    )
    print(f"fastest 3072 x 3072 float32 product: {peak / 1e9:.1f} GFLOP/s")
    for name in libraries:
        a = about[name]
        print(f"{name}: {a['parameters']:,} parameters, {a['peak']:.2f} GiB peak")
        for kind, factor in (("forward", 1), ("train", 3)):
            took = median[name][kind]
            rate = factor * a["flops"] / took
            print(
                f"  {kind:8} {tokens / took:10.1f} tokens/s  {factor * a['flops'] / 1e9:8.1f} GFLOP"
                f"  {rate / 1e9:7.1f} GFLOP/s  {rate / peak:5.2f} of the product's"
            )
    if len(libraries) == 2:
        for kind in ("forward", "train"):
            ratio = median["retro_pytorch"][kind] / median["retro_jax"][kind]
            print(f"{kind}: retro_jax is {ratio:.2f} times as fast")
        print(
            f"memory: {about['retro_jax']['peak'] / about['retro_pytorch']['peak']:.2f} times as much"
        )
    return None


if __name__ == "__main__":
    main()
