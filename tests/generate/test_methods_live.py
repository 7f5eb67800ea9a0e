"""Every way to read, continuing live: what it says of the finished text at once."""

import time

import jax
import numpy as np
import pytest
from conftest import altered, drawn
from whole import TEXT, M

from retro_jax.config import Request
from retro_jax.corpus.tokenizer import EOS
from retro_jax.errors import UserError
from retro_jax.generate.generator import Generator
from retro_jax.generate.lookup import prompt_ids, window
from retro_jax.methods.method import Retrieved, method_of
from retro_jax.pipeline.prepared import Prepared
from retro_jax.store.workdir import WorkDir
from retro_jax.train import restore, sharding

PROMPTS = (TEXT[:30], TEXT[:120])
LONGER = ("rag", "rag_once", "rag_often", "rag_spliced", "rag_reranked", "replug", "retro_pp")


@pytest.fixture(scope="module")
def work(finished, small, tmp_path_factory):
    """Of `finished`, with room for neighbours in the prompt."""
    root = tmp_path_factory.mktemp("live")
    for stage in ("prepare", "train"):
        (root / stage).symlink_to(finished / stage)
    longer = {name: {"budget": "longer"} for name in LONGER}
    longer["rag_often"]["every"] = M // 2
    longer["rag_reranked"]["candidates"] = 3
    longer["atlas"] = {"retriever": "none"}  # which would be trained when the reader is
    return WorkDir(root, altered(small, method_settings=small.method_settings | longer))


@pytest.mark.parametrize(
    ("name", "looks_up"),
    [*((name, True) for name in (*LONGER, "atlas")), ("knn_lm", False)],
)
def test_live_it_says_what_it_says_of_the_whole_text(work, name, looks_up):
    """Past the end of the window, so that the oldest tokens have gone; three prompts in one batch."""
    method, mesh = method_of(work.experiment, name), sharding.one_device()
    retriever, tokenizer = method.retriever(work), Prepared(work).tokenizer
    with jax.set_mesh(mesh):
        if method.trained:  # random weights will do
            params = drawn(method.model, method.shapes(tokenizer.vocab))
        else:
            params = restore.restore_trained(work, method, mesh)
    # The logit of the end of a document is 0: some other token is more probable.
    params["embedding"] *= np.arange(tokenizer.vocab)[:, None] != EOS
    method.prepare(work)
    cuts = (TEXT[:end] for end in range(len(TEXT)))
    exact = next(t for t in cuts if len(prompt_ids(tokenizer, t)) == 2 * M)
    prompts = (*PROMPTS, exact)  # of the last one a chunk ends with it
    with Generator(method, params, tokenizer, retriever, rows=3, length=192) as generator:
        if method.by_chunk:
            with pytest.raises(UserError, match=f"in_prompt = True: {name} puts what it retrieves"):
                generator.check(Request(TEXT, in_prompt=True))
        requests = [Request(p, tokens=140, temperature=0) for p in prompts]
        made = generator.generate_all(requests)
        alone = None
        if name in ("replug", "retro_pp"):
            alone = generator.generate(PROMPTS[1], tokens=20, k=0)
            while generator.busy:  # its row is emptied after it is done
                time.sleep(0.01)
            # Of rows that are free nothing is read.
            assert not np.asarray(generator._schedule.engine._state.cache.cache.count).any()
        if method.splices:
            with pytest.raises(UserError, match="retrieval_step = 1: rag_spliced"):
                generator.check(Request(TEXT, retrieval_step=1))
    score = jax.jit(method.logprobs)
    if alone:  # asked for no neighbours, it is the language model, and keeps no room for them
        ids = np.array([prompt_ids(tokenizer, PROMPTS[1]) + alone.tokens])
        with jax.set_mesh(mesh):
            expected = np.asarray(score(params, ids, None))[0, alone.first :]
        np.testing.assert_allclose(alone.logprobs, expected, atol=1e-4)
    for prompt, completion in zip(prompts, made):
        ids = prompt_ids(tokenizer, prompt) + completion.tokens
        assert len(ids) > 2 * work.experiment.train.length
        every = method.look_ups.every if looks_up else M
        windows = np.stack([window(ids, end, M) for end in range(every, len(ids) + 1, every)])
        near = retriever.retrieve(windows, method.k)
        tokens, size = np.zeros((1, 192), np.int32), 192 // every
        tokens[0, : len(ids)] = ids
        texts = np.zeros((size, *near.tokens.shape[1:]), np.int32)
        distances = np.full((size, near.tokens.shape[1]), np.inf, np.float32)
        texts[: len(near.tokens)], distances[: len(near.tokens)] = near.tokens, near.distances
        texts = texts.reshape(
            1, 192 // M, -1, texts.shape[-1]
        )  # of a chunk those of all its look-ups
        distances = distances.reshape(texts.shape[:3])
        with jax.set_mesh(mesh):
            read = Retrieved(texts, distances) if looks_up else None
            expected = np.asarray(score(params, tokens, read))[0]
        own = np.arange(completion.first, len(ids))
        if name == "rag_once":  # its row is not begun again: all of the text stays in it
            own = own[own < work.experiment.train.length]
        # Which state is the last of the nearest 256 is a matter of rounding; its weight is 1/256 of a tenth here.
        near_enough = {"atol": 0.02} if name == "knn_lm" else {"atol": 1e-4}
        logprobs = np.array(completion.logprobs)[own - completion.first]
        assert len(own)
        np.testing.assert_allclose(logprobs, expected[own], **near_enough)
        read = [c["begin"] for c in completion.chunks if looks_up or c["neighbours"]]
        last = completion.first // every * every
        ends = [*range(M, completion.first // M * M, M), *([last] * bool(last))]
        ends += range(last + every, len(ids), every)
        assert read == {"atlas": ends[:1], "rag_once": ends[:1], "knn_lm": []}.get(name, ends)
