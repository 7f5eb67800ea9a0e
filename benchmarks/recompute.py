"""512 tokens of one row, beside what computes every token from the beginning: this model without its
cache, and retro-pytorch 0.3.9. Part of benchmarks/generate.py.

retro-pytorch has 8 heads of at least 32 numbers each, so that the quickstart's shape cannot be built."""

import contextlib
import dataclasses
import io
import json
import time

import common
import numpy as np
from generation import LONG, K, Setup, Turns

CALLS = 8  # of 512: each has the same shape and so takes as long


def measure(s: Setup, torch_python: str | None, rounds: int) -> list[dict]:
    """Seconds of 512 tokens after an empty prompt."""
    import jax

    from retro_jax.model import functional
    from retro_jax.train import sharding

    generator = s.generator(1)
    s.text.use("BM25")
    ids = np.full((1, LONG), 5, np.int32)
    near = s.text.now.retrieve(s.text.some(LONG // s.model.chunk)).tokens[None].astype(np.int32)

    @jax.jit
    def one(params, ids, near, at):
        net = functional.network(s.model, params)
        h = jax.lax.dynamic_slice_in_dim(net(ids, near)[0], at, 1, 1)
        return net.logits(h).argmax()

    def from_the_beginning():
        with jax.set_mesh(sharding.one_device()):
            begin = time.perf_counter()
            for at in range(CALLS):
                one(s.params, ids, near, at).block_until_ready()
        return (time.perf_counter() - begin) / CALLS * LONG

    def cached():
        assert len(generator.generate("", tokens=LONG).tokens) == LONG

    ours, worker = "retro_jax, live retrieval", None
    work = {ours: cached, "retro_jax, every token from the beginning": from_the_beginning}
    inner = s.model.heads * s.model.head_size
    if torch_python and inner >= 8 * 32:
        shape = dataclasses.asdict(s.model) | {"vocab": s.params["embedding"].shape[0]}
        worker = common.Worker("--worker", json.dumps(shape), python=torch_python)
        work["retro-pytorch, lookups at no cost"] = lambda: worker.ask("generate")["seconds"]
    cached(), from_the_beginning()  # compile
    turns = Turns(work, max(1, rounds // 2), uncounted=0)
    generator.close()
    if worker:
        worker.close()
    return [
        {"512 tokens": name, "seconds": turns.median(name), "tokens/s": LONG / turns.median(name),
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
    torch.set_num_threads(common.THREADS)
    model = RETRO(
        num_tokens=s["vocab"], max_seq_len=LONG, enc_dim=s["encoder_d"], dec_dim=s["d"],
        enc_depth=s["encoder_layers"], enc_cross_attn_layers=(1,), dec_depth=s["layers"],
        dec_cross_attn_layers=s["cca_layers"], dim_head=s["heads"] * s["head_size"] // 8,
        chunk_size=s["chunk"],
    )  # fmt: skip
    with torch.no_grad():
        model.to_logits.bias[EOS_ID] = -1e9
    near = torch.randint(1, s["vocab"], (1, K, s["retrieved"]))  # of one chunk
    wrapper = TrainingWrapper.__new__(TrainingWrapper)  # __init__ would make a database with a BERT
    torch.nn.Module.__init__(wrapper)
    wrapper.retro, wrapper.chunk_size, wrapper.max_seq_len = model, s["chunk"], LONG
    wrapper.fetch_knn_chunks_fn = lambda chunks: near

    with torch.no_grad():  # warms up
        model(torch.full((1, LONG), 5), retrieved=near.expand(1, LONG // s["chunk"], -1, -1))

    def generate():
        with contextlib.redirect_stdout(io.StringIO()):
            made = wrapper.generate(torch.full((1, 1), 5))
        assert made.shape[1] == LONG + 1

    common.serve({"generate": generate})
