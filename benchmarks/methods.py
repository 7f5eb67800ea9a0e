"""What reading by the prompt takes beside what its FLOPs predict, and REPLUG's streams beside one.

    python benchmarks/methods.py
    python benchmarks/methods.py --smoke      # does it run? a tiny shape

log p of all tokens of windows of random tokens, with the quickstart's decoder and random weights, on all cores. The
ways take turns, round by round; milliseconds are medians. `predicted` is the language model's time times the ratio of
the FLOPs that are counted in the traced programs; `of predicted` is how much longer the way takes than that. Of REPLUG
`of k times one` is its time with k neighbours over k times that with one.
"""

import argparse
import statistics
import time

import common
import numpy as np
from rich.console import Console
from rich.progress import track

from retro_jax.config import DecoderConfig, EncoderConfig, ModelConfig, ReadingConfig
from retro_jax.methods.method import METHODS, Retrieved
from retro_jax.train import sharding

CHUNK, VOCAB = 64, 4096
FORMATS = {
    "ms": ",.1f",
    "GFLOP": ",.2f",
    "predicted ms": ",.1f",
    "of predicted": ".2f",
    "of k times one": ".2f",
}


def model(d: int, layers: int) -> ModelConfig:
    """The quickstart's, or one of another size."""
    heads = max(1, d // 32)
    return ModelConfig(
        decoder=DecoderConfig(d=d, layers=layers, heads=heads, head_size=32),
        encoder=EncoderConfig(d=d, layers=1, heads=heads, head_size=32, share_embedding=True),
        reading=ReadingConfig(cca_layers=(max(1, layers * 3 // 4),)),
    )


def ways(args: argparse.Namespace) -> dict[str, tuple]:
    """{name: (method, its neighbours)}."""
    config = model(args.d, args.layers)

    def of(name: str, k: int):
        return METHODS[name](config, k, None, args.length), k

    return {
        "language_model": of("language_model", 0),
        "rag, k = 2": of("rag", 2),
        **{f"replug, k = {k}": of("replug", k) for k in args.streams},
    }


def measured(args: argparse.Namespace) -> list[dict]:
    """A row for each way."""
    import jax

    rng = np.random.default_rng(0)
    tokens = rng.integers(1, VOCAB, (args.batch, args.length)).astype(np.int32)
    chunks, run, flops = args.length // CHUNK, {}, {}
    for name, (method, k) in ways(args).items():
        params = METHODS[method.trained_as](method.model).init(VOCAB, 0)
        near = rng.integers(1, VOCAB, (args.batch, chunks, k, 2 * CHUNK)).astype(np.int32)
        read = Retrieved(near, np.ones(near.shape[:3], np.float32)) if k else None
        score = jax.jit(method.logprobs)
        given = jax.device_put((params, tokens, read))
        run[name] = lambda score=score, given=given: jax.block_until_ready(score(*given))
        flops[name] = args.batch * method.flops(VOCAB, args.length)
    times = {name: [] for name in run}
    doing = "rounds (the first one does not count)"
    for i in track(range(args.rounds + 1), doing, console=Console(stderr=True)):
        for name, function in run.items():
            begin = time.perf_counter()
            function()
            times[name] += [1000 * (time.perf_counter() - begin)] if i else []
    ms = {name: statistics.median(x) for name, x in times.items()}
    base, rows = "language_model", []
    one = ms.get("replug, k = 1")
    for name, took in ms.items():
        predicted = ms[base] * flops[name] / flops[base]
        k = int(name.rpartition("= ")[2]) if name.startswith("replug") else None
        rows.append(
            {
                "way": name,
                "ms": took,
                "GFLOP": flops[name] / 1e9,
                "predicted ms": predicted,
                "of predicted": took / predicted,
                "of k times one": took / (k * one) if k and one else None,
            }
        )
    return rows


def main():
    parser = common.parser(__doc__, corpus=False)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--length", type=int, default=768, help="tokens of a window")
    parser.add_argument("--batch", type=int, default=4, help="windows")
    parser.add_argument("--d", type=int, default=128, help="width of the decoder")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 2, 4], help="REPLUG's k")
    args = common.parse(parser, length=512, batch=1, d=32, layers=2, streams=[1, 2])
    import jax

    sharding.set_up_cpu(1)
    with jax.set_mesh(sharding.one_device()):
        rows = measured(args)
    title = (
        f"log p of {args.batch} windows of {args.length} tokens, d = {args.d}, {args.layers} layers"
    )
    common.show({title: rows}, FORMATS, args.json)


if __name__ == "__main__":
    main()
