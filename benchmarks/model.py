"""A forward pass and a train step of RETRO beside retro-pytorch 0.3.9, and of the language model beside a plain
decoder of jax.nn, each pair at the same shapes.

    pip install -e . torch==2.13.0 retro-pytorch==0.3.9
    python benchmarks/model.py --size quickstart
    python benchmarks/model.py --size small --threads 1
    python benchmarks/model.py --size 172M --rounds 3
    python benchmarks/model.py --smoke      # does it run? a tiny shape

Each runs in a process of its own; they take turns, round by round, so that a machine that slows down
slows all. The plain decoder is what one writes in a page: RMS norms, `jax.nn.dot_product_attention`, a
feed-forward, a tied readout, no positions, AdamW of optax. Prints medians: tokens a second, how many
times as fast ours is, GFLOP/s and its share of the fastest large float32 matrix product that any of them
reached in the same run, and the peak memory of each process.

FLOPs are those of the matrix products of the forward pass, counted in each library's own program
(the jaxpr; torch's FlopCounterMode); a train step is three times that, and what is computed again
for the gradient counts for nothing. All compute in float32, with AdamW; `--only retro_jax bfloat16` has RETRO in
bfloat16 beside itself.
"""

import functools
import os
import sys

import common
import numpy as np

# d, layers, heads x head size, CCA layers, encoder, vocabulary, batch, length. retro-pytorch has
# 8 heads whatever it is asked for; inner widths and so FLOPs are equal.
SIZES = {
    "tiny": {
        "d": 32, "layers": 1, "heads": 8, "inner": 256, "cca": (1,), "encoder_d": 32,
        "encoder_layers": 1, "vocab": 512, "batch": 1, "length": 128, "product": 256,
    },
    "quickstart": {
        "d": 128, "layers": 4, "heads": 4, "inner": 128, "cca": (3,), "encoder_d": 128,
        "encoder_layers": 1, "vocab": 4096, "batch": 4, "length": 256, "product": 3072,
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


def ours(s: dict, retrieval: bool, threads: int, dtype: str = "float32"):
    """(what to run by name, FLOPs of a forward pass, parameters) of RETRO or of its language model.

    A device a thread, as the experiments say (`mesh.cpu_devices`), where the batch divides by it.
    """
    import jax

    from retro_jax.config import (
        DecoderConfig,
        EncoderConfig,
        MeshConfig,
        ModelConfig,
        ReadingConfig,
        TrainConfig,
    )
    from retro_jax.methods.language_model import LanguageModel
    from retro_jax.methods.method import Retrieved
    from retro_jax.methods.retro import Retro
    from retro_jax.train import sharding
    from retro_jax.train.step import init_state, make_train_step

    devices = threads if s["batch"] % threads == 0 else 1
    sharding.set_up_cpu(devices)
    sharding.keep_memory()  # as `retro train` does
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
    jax.set_mesh(mesh)
    size = s["inner"] // s["heads"]
    config = ModelConfig(
        decoder=DecoderConfig(d=s["d"], layers=s["layers"], heads=s["heads"], head_size=size),
        encoder=EncoderConfig(
            d=s["encoder_d"], layers=s["encoder_layers"], heads=s["heads"], head_size=size
        ),
        reading=ReadingConfig(cca_layers=s["cca"], chunk=CHUNK, retrieved=2 * CHUNK),
        dtype=dtype,
    )
    method = (Retro if retrieval else LanguageModel)(config, NEIGHBOURS)
    train = TrainConfig(length=s["length"], batch=s["batch"])
    names = ("tokens", "neighbours") if retrieval else ("tokens",)
    batch = {n: np.asarray(x, np.int32) for n, x in zip(names, example(s))}
    batch = sharding.shard_batch(mesh, batch)
    read = Retrieved(batch["neighbours"]) if retrieval else None
    step, logprobs = make_train_step(method, train), jax.jit(method.logprobs)
    state = [init_state(method, train, s["vocab"])]

    def forward():
        logprobs(state[0].params, batch["tokens"], read).block_until_ready()

    def train_step():
        state[0], metrics = step(state[0], batch)
        return float(metrics["loss"])

    flops = method.flops(s["vocab"], s["length"]) * s["batch"]
    work = {"matmul": jax_product(s), "forward": forward, "train": train_step}
    return work, flops, sum(p.size for p in state[0].weights().values())


def jax_product(s: dict):
    """A large product."""
    import jax

    a, product = jax.numpy.ones((s["product"], s["product"])), jax.jit(lambda a: a @ a)

    def matmul():
        product(a).block_until_ready()

    return matmul


def retro_jax(s: dict, threads: int):
    """RETRO; see `ours`."""
    return ours(s, True, threads)


def bfloat16(s: dict, threads: int):
    """RETRO, computed in bfloat16; its parameters are float32."""
    return ours(s, True, threads, "bfloat16")


def language_model(s: dict, threads: int):
    """RETRO's decoder alone; see `ours`."""
    return ours(s, False, threads)


def jax_nn(s: dict, threads: int):
    """(what to run by name, FLOPs of a forward pass, parameters)."""
    import jax
    import jax.numpy as jnp
    import optax

    from retro_jax.model.sizes import dot_flops
    from retro_jax.train import sharding

    sharding.keep_memory()  # both sides have it
    d, heads, inner, rng = s["d"], s["heads"], s["inner"], np.random.default_rng(0)

    def matrix(rows: int, columns: int):
        return jnp.asarray(rng.normal(0, rows**-0.5, (rows, columns)), jnp.float32)

    def layer():
        made = {"qkv": matrix(d, 3 * inner), "out": matrix(inner, d)}
        made |= {"up": matrix(d, 4 * d), "down": matrix(4 * d, d)}
        return made | {"scales": jnp.ones((2, d))}

    params = {"embedding": matrix(d, s["vocab"]).T, "scale": jnp.ones(d)}
    params["layers"] = [layer() for _ in range(s["layers"])]
    tokens = jnp.asarray(example(s)[0], jnp.int32)

    def norm(x, scale):
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * scale

    def loss(params, tokens):
        h = params["embedding"][tokens] * d**0.5
        shape = (*tokens.shape, 3, heads, inner // heads)
        for w in params["layers"]:
            qkv = (norm(h, w["scales"][0]) @ w["qkv"]).reshape(shape)
            y = jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0), is_causal=True)
            h = h + y.reshape(*tokens.shape, inner) @ w["out"]
            h = h + jax.nn.gelu(norm(h, w["scales"][1]) @ w["up"]) @ w["down"]
        logits = norm(h, params["scale"])[:, :-1] @ params["embedding"].T
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(2e-4))
    scored = jax.jit(loss)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, moments):
        value, grads = jax.value_and_grad(loss)(params, tokens)
        updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments, value

    state = [params, optimizer.init(params)]

    def train_step():
        *state[:], value = step(*state)
        return float(value)

    flops = dot_flops(jax.make_jaxpr(loss)(params, tokens).jaxpr)
    work = {"matmul": jax_product(s), "forward": lambda: float(scored(state[0], tokens))}
    count = sum(p.size for p in jax.tree.leaves(params))
    return work | {"train": train_step}, flops, count


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


LIBRARIES = {
    "retro_jax": retro_jax, "retro_pytorch": retro_pytorch, "language_model": language_model, "jax_nn": jax_nn,
    "bfloat16": bfloat16,
}  # fmt: skip
NEEDS = {"retro_pytorch": ("torch", "retro_pytorch")}
# Whose figures are whose measure.
OURS = {"retro_pytorch": "retro_jax", "jax_nn": "language_model", "bfloat16": "retro_jax"}


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
            own = answers[kind].get(OURS.get(name, name))
            rows.append(
                {
                    "library": name,
                    "what": kind,
                    "tokens/s": s["batch"] * s["length"] / took,
                    "ours, times as fast": took / own["seconds"] if own else None,
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
    parser.add_argument("--only", nargs="+", choices=LIBRARIES, help="by default all in float32")
    parser.add_argument("--worker", nargs=3, help="for itself")
    args = common.parse(parser, size="tiny")
    if args.worker:
        library, size, threads = args.worker
        return worker(library, size, int(threads))
    wanted = args.only or [name for name in LIBRARIES if name != "bfloat16"]
    libraries = [name for name in wanted if common.installed(name, *NEEDS.get(name, ()))]
    if "retro_pytorch" in libraries and SIZES[args.size]["inner"] < 8 * 32:
        libraries.remove("retro_pytorch")
        print(
            "retro_pytorch is left out: it refuses heads of less than 32 numbers", file=sys.stderr
        )
    if not libraries:
        sys.exit(2)
    tables = compare(libraries, args.size, args.threads, args.rounds)
    return common.show(tables, FORMATS, args.json)


if __name__ == "__main__":
    main()
