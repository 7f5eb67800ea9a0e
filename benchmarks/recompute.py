"""A long continuation of one row, beside what computes every token from the beginning: this model without its
cache, and retro-pytorch 0.3.9. Part of benchmarks/generate.py.

retro-pytorch has 8 heads of at least 32 numbers each, so that the quickstart's shape cannot be built."""

import contextlib
import dataclasses
import io
import json
import sys
import time

import common
import numpy as np
from generation import K, Setup, Turns

CALLS = 8  # of all its tokens: each has the same shape and so takes as long


def measure(s: Setup, torch_python: str | None, rounds: int) -> list[dict]:
    """Seconds of `size.long` tokens after an empty prompt."""
    import jax

    from retro_jax.model import functional
    from retro_jax.train import sharding

    generator, long, model = s.generator(1), s.size.long, s.method.model
    s.text.use("BM25")
    ids = np.full((1, long), 5, np.int32)
    chunks = s.text.some(long // s.chunk)
    near = s.text.now.retrieve(chunks).tokens[None].astype(np.int32)

    @jax.jit
    def one(params, ids, near, at):
        net = functional.network(model, params)
        h = jax.lax.dynamic_slice_in_dim(net(ids, near)[0], at, 1, 1)
        return net.logits(h).argmax()

    def from_the_beginning():
        with jax.set_mesh(sharding.one_device()):
            begin = time.perf_counter()
            for at in range(CALLS):
                one(s.params, ids, near, at).block_until_ready()
        return (time.perf_counter() - begin) / CALLS * long

    def cached():
        assert len(generator.generate("", tokens=long).tokens) == long

    ours, worker = "retro_jax, live retrieval", None
    work = {ours: cached, "retro_jax, every token from the beginning": from_the_beginning}
    inner = model.decoder.heads * model.decoder.head_size
    if not torch_python:
        print("retro-pytorch is left out: no --torch-python", file=sys.stderr)
    elif inner >= 8 * 32:
        vocab = s.params["embedding"].shape[0]
        shape = dataclasses.asdict(model) | {"vocab": vocab, "long": long}
        worker = common.Worker("--worker", json.dumps(shape), python=torch_python)
        work["retro-pytorch, lookups at no cost"] = lambda: worker.ask("generate")["seconds"]
    cached(), from_the_beginning()  # compile
    turns = Turns(work, max(1, rounds // 2), uncounted=0)
    generator.close()
    if worker:
        worker.close()
    return [
        {f"{long} tokens": name, "seconds": turns.median(name), "tokens/s": long / turns.median(name),
         "times as long": turns.ratio(name, ours)}
        for name in work
    ]  # fmt: skip


def retro_pytorch(shape: str):
    """Serves its own `generate`; but neighbours are there at once, and no document ends."""
    import torch
    from retro_pytorch import RETRO
    from retro_pytorch.retrieval import EOS_ID
    from retro_pytorch.training import TrainingWrapper

    s = json.loads(shape)
    long = s["long"]
    decoder, encoder, reading = s["decoder"], s["encoder"], s["reading"]
    torch.set_num_threads(common.THREADS)
    model = RETRO(
        num_tokens=s["vocab"], max_seq_len=long, enc_dim=encoder["d"], dec_dim=decoder["d"],
        enc_depth=encoder["layers"], enc_cross_attn_layers=(1,), dec_depth=decoder["layers"],
        dec_cross_attn_layers=reading["cca_layers"],
        dim_head=decoder["heads"] * decoder["head_size"] // 8, chunk_size=reading["chunk"],
    )  # fmt: skip
    with torch.no_grad():
        model.to_logits.bias[EOS_ID] = -1e9
    near = torch.randint(1, s["vocab"], (1, K, reading["retrieved"]))  # of one chunk
    wrapper = TrainingWrapper.__new__(TrainingWrapper)  # __init__ would make a database with a BERT
    torch.nn.Module.__init__(wrapper)
    wrapper.retro, wrapper.chunk_size, wrapper.max_seq_len = model, reading["chunk"], long
    wrapper.fetch_knn_chunks_fn = lambda chunks: near

    with torch.no_grad():  # warms up
        model(torch.full((1, long), 5), retrieved=near.expand(1, long // reading["chunk"], -1, -1))

    def generate():
        with contextlib.redirect_stdout(io.StringIO()):
            made = wrapper.generate(torch.full((1, 1), 5))
        assert made.shape[1] == long + 1

    common.serve({"generate": generate})
