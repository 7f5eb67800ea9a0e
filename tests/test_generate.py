"""Retrieval in the loop: causal, re-done exactly while text is generated, and reported."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from conftest import tables

from retro_jax import generate, steps
from retro_jax.corpus.tokenizer import BOS, PAD, UNK
from retro_jax.errors import UserError
from retro_jax.model import functional
from retro_jax.train import loop

M = 16
token_logprobs = jax.jit(functional.token_logprobs, static_argnums=0)
apply = jax.jit(functional.apply, static_argnums=0)


@pytest.fixture
def live(finished, small, mesh):
    """(pipe, retriever, params): tokens [L] -> log-probabilities, with retrieval in the loop."""
    base = finished / "prepare"
    retriever = steps.load_retriever(small, base)
    params = loop.restore_trained(small, finished, True, mesh)

    def pipe(tokens):
        tokens = np.asarray(tokens, np.int32)
        chunks = -(-len(tokens) // M)
        whole = len(tokens) // M
        neighbours = np.zeros((1, chunks, 2, 2 * M), np.int32)
        neighbours[0, :whole] = retriever.retrieve(tokens[: whole * M].reshape(whole, M)).tokens
        return np.asarray(token_logprobs(small.model, params, tokens[None], neighbours))[0]

    return pipe, retriever, params


def test_replacing_later_text_changes_no_earlier_prediction(live, finished, small):
    """With retrieval in the loop: what is retrieved for the changed text must not leak back, also not
    to the position before it, whose prediction it is (trap 3)."""
    _, retriever, params = live

    def pipe(tokens):
        near = retriever.retrieve(tokens.reshape(4, M)).tokens[None]
        return np.asarray(apply(small.model, params, tokens[None], near.astype(np.int32)))[0]

    tokens = tables(finished)["heldout"].tokens[:4].reshape(-1).astype(np.int32)
    other = tables(finished)["train"].tokens[40:44].reshape(-1).astype(np.int32)
    before = pipe(tokens)  # row t predicts token t + 1
    for t in range(1, 3 * M + 1):
        changed = np.concatenate([tokens[:t], other[t:]])
        np.testing.assert_array_equal(pipe(changed)[:t], before[:t])
    # and the change does reach what is retrieved: the last text of chunk 1 is its query's too
    changed = np.concatenate([tokens[: 2 * M - 4], other[2 * M - 4 : 2 * M], tokens[2 * M :]])
    retrieved = [retriever.retrieve(x.reshape(4, M)).ids for x in (tokens, changed)]
    assert (retrieved[0][1] != retrieved[1][1]).any()
    np.testing.assert_array_equal(np.delete(retrieved[0], 1, 0), np.delete(retrieved[1], 1, 0))


def test_what_a_chunk_retrieves_first_moves_the_prediction_of_the_next_chunks_first_token(
    live, finished, small
):
    """Position u m + m - 1 (0-based) is the first to read chunk u's neighbours; it predicts the
    next token, whose log-probability is entry u m + m."""
    _, retriever, params = live
    tokens = tables(finished)["heldout"].tokens[:4].reshape(1, -1).astype(np.int32)
    neighbours = retriever.retrieve(tokens.reshape(4, M)).tokens[None].astype(np.int32)
    before = np.asarray(token_logprobs(small.model, params, tokens, neighbours))[0]
    for u in range(3):
        changed = neighbours.copy()
        changed[0, u] = neighbours[0, 3]
        after = np.asarray(token_logprobs(small.model, params, tokens, changed))[0]
        assert np.flatnonzero(after != before)[0] == u * M + M


def test_generation_takes_the_most_probable_token_given_what_it_retrieved(live, small, finished):
    pipe, retriever, params = live
    tokenizer = steps.load_tokenizer(finished / "prepare")
    prompt = [BOS, *tokenizer.encode("kara lopo minel tenis surra")]
    tokens, found = generate.continue_tokens(small.model, params, prompt, 40, retriever)
    assert len(tokens) == len(prompt) + 40
    assert len(found) == (len(tokens) - 1) // M  # one retrieval a complete chunk, none left out
    for u, neighbours in enumerate(found):
        again = retriever.retrieve(np.array([tokens[u * M : (u + 1) * M]]))
        np.testing.assert_array_equal(neighbours.ids, again.ids)
    for t in (len(prompt), len(prompt) + 20, len(tokens) - 1):
        best = max((pipe([*tokens[:t], v])[-1], v) for v in range(2, 320))
        np.testing.assert_allclose(pipe(tokens[: t + 1])[-1], best[0], atol=1e-4)


@pytest.mark.parametrize("length", [1, M - 1, M, M + 1])
def test_text_over_three_boundaries_is_that_of_one_pass_over_the_whole(live, small, length):
    """Wherever in its chunk the prompt ends (traps 21, 22): each token is the most probable one in a
    single full pass over the finished text, with everything retrieved again."""
    _, retriever, params = live
    prompt = [BOS, *range(60, 60 + length - 1)]
    tokens, _ = generate.continue_tokens(small.model, params, prompt, 3 * M + 2, retriever)
    assert len(tokens) == length + 3 * M + 2
    x = np.zeros(5 * M, np.int32)
    x[: len(tokens)] = tokens
    neighbours = np.zeros((1, 5, 2, 2 * M), np.int32)
    whole = len(tokens) // M
    again = retriever.retrieve(x[: whole * M].reshape(whole, M))
    neighbours[0, :whole] = again.tokens
    logits = np.array(apply(small.model, params, x[None], neighbours))[0]
    logits[:, [PAD, BOS, UNK]] = -np.inf
    chosen = logits[np.arange(length - 1, len(tokens) - 1), tokens[length:]]
    best = logits[length - 1 : len(tokens) - 1].max(-1)
    np.testing.assert_allclose(chosen, best, atol=1e-4)


def test_more_tokens_than_positions_are_refused(live, small):
    _, retriever, params = live
    model = dataclasses.replace(small.model, positions="learned", max_length=40)
    with pytest.raises(UserError, match=r"generate\.tokens = 40: .*model's 40 positions"):
        generate.continue_tokens(model, params, [BOS, 60], 40, retriever)


def test_the_same_seed_gives_the_same_sample_and_another_another(live, small):
    _, retriever, params = live
    runs = [
        generate.continue_tokens(small.model, params, [BOS, 50, 60], 20, retriever, 1.0, seed)[0]
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_neighbours_that_were_read_are_reported_with_their_source(finished):
    result = json.loads((finished / "generate.json").read_text())
    assert result["prompt"] == "kara lopo minel "
    table = tables(finished)["train"]
    tokenizer = steps.load_tokenizer(finished / "prepare")
    documents = {d["id"]: d for d in table.documents}
    assert result["chunks"]
    for chunk in result["chunks"]:
        distances = [n["distance"] for n in chunk["neighbours"]]
        assert distances == sorted(distances)
        for n in chunk["neighbours"]:
            row = documents[n["document"]]["first"] + n["chunk"]
            assert tokenizer.decode(table.values(np.array(row)).tolist()) == n["text"]
