"""Every way to read, continuing live: what it says of the finished text at once."""

import jax
import numpy as np
import pytest
from conftest import altered, drawn
from whole import TEXT, M

from retro_jax.config import Request
from retro_jax.databases.retriever import open_retriever
from retro_jax.generate.generator import Generator
from retro_jax.generate.lookup import prompt_ids
from retro_jax.methods.method import Retrieved, method_of
from retro_jax.pipeline.prepared import Prepared
from retro_jax.store.workdir import WorkDir
from retro_jax.train import restore, sharding

PROMPTS = (TEXT[:30], TEXT[:120])


@pytest.fixture(scope="module")
def work(finished, small, tmp_path_factory):
    """Of `finished`, with room for neighbours in the prompt."""
    root = tmp_path_factory.mktemp("live")
    for stage in ("prepare", "train"):
        (root / stage).symlink_to(finished / stage)
    longer = {name: {"budget": "longer"} for name in ("rag", "replug", "retro_pp")}
    return WorkDir(root, altered(small, method_settings=small.method_settings | longer))


@pytest.mark.parametrize(
    ("name", "looks_up"),
    [("rag", True), ("replug", True), ("knn_lm", False), ("atlas", True), ("retro_pp", True)],
)
def test_live_it_says_what_it_says_of_the_whole_text(work, name, looks_up):
    """Past the end of the window, so that the oldest tokens have gone; two prompts in one batch."""
    method, mesh = method_of(work.experiment, name), sharding.one_device()
    retriever, tokenizer = open_retriever(work), Prepared(work).tokenizer
    with jax.set_mesh(mesh):
        if method.trained:  # random weights will do
            params = drawn(method.model, method.shapes(tokenizer.vocab))
        else:
            params = restore.restore_trained(work, method, mesh)
    method.prepare(work)
    with Generator(method, params, tokenizer, retriever, rows=2, length=192) as generator:
        requests = [Request(p, tokens=140, temperature=0) for p in PROMPTS]
        made = generator.generate_all(requests)
    score = jax.jit(method.logprobs)
    for prompt, completion in zip(PROMPTS, made):
        ids = prompt_ids(tokenizer, prompt) + completion.tokens
        assert len(ids) > 2 * work.experiment.train.length
        chunks = np.array(ids[: len(ids) // M * M]).reshape(-1, M)
        near = retriever.retrieve(chunks, 2)
        tokens, size = np.zeros((1, 192), np.int32), 192 // M
        tokens[0, : len(ids)] = ids
        texts = np.zeros((1, size, *near.tokens.shape[1:]), np.int32)
        distances = np.full((1, size, 2), np.inf, np.float32)
        texts[0, : len(near.tokens)], distances[0, : len(near.tokens)] = near.tokens, near.distances
        with jax.set_mesh(mesh):
            read = Retrieved(texts, distances) if looks_up else None
            expected = np.asarray(score(params, tokens, read))[0]
        own = slice(completion.first, len(ids))
        # Which state is the last of the nearest 256 is a matter of rounding; its weight is 1/256 of a tenth here.
        near_enough = {"atol": 0.02} if name == "knn_lm" else {"atol": 1e-4}
        np.testing.assert_allclose(completion.logprobs, expected[own], **near_enough)
        every = len(chunks) - (len(ids) % M == 0)
        read = [c for c in completion.chunks if looks_up or c["neighbours"]]
        assert len(read) == {"atlas": 1, "knn_lm": 0}.get(name, every)
