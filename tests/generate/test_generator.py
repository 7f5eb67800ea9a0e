"""Generation with live retrieval is what one pass over the finished text gives, with everything retrieved
again; for every kind of request, alone or beside others."""

import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest
from conftest import tables

from retro_jax.config.request import Request
from retro_jax.corpus.tokenizer import BOS, PAD, UNK
from retro_jax.errors import UserError
from retro_jax.generate.generator import Generator
from retro_jax.generate.lookup import prompt_ids

M = 16
TEXT = (
    "kara lopo minel tenis surra kais lora mipo tenra surpo kanel lois mira tenpo surnel kapo lonel"
)


def prompts_by_length(tokenizer) -> dict[int, str]:
    """Texts by their number of tokens, BOS included."""
    text = TEXT[5:] * 3
    return {len(prompt_ids(tokenizer, text[:n])): text[:n] for n in range(len(text))}


def chosen_well(whole, completion, near):
    """Whether its tokens are the most probable ones of the full pass, and their log p that pass's."""
    ids, first = whole.ids(completion), completion.first
    everything = whole.logprobs(ids, near)[first - 1 : -1]
    own = everything[np.arange(len(completion.tokens)), completion.tokens]
    np.testing.assert_allclose(completion.logprobs, own, atol=2e-5)
    everything = everything.copy()
    everything[:, [PAD, BOS, UNK]] = -np.inf
    np.testing.assert_allclose(own, everything.max(axis=-1), atol=2e-5)


def read_as_retrieved(whole, completion, ids):
    """Whether what its chunks read is what a full retrieval gives, none left out."""
    again = [c for c in completion.chunks if c["begin"] % M == 0]
    assert [c["begin"] for c in again] == list(range(M, len(ids), M))
    for u, chunk in enumerate(again):
        found = whole.retriever.retrieve(np.array([ids[u * M : (u + 1) * M]]))
        expected = [whole.retriever.source_of(i) for i in found.ids[0] if i >= 0]
        names = ("database", "document", "chunk", "offset", "metadata")
        assert [{n: near[n] for n in names} for near in chunk["neighbours"]] == expected
        got = [near["distance"] for near in chunk["neighbours"]]
        np.testing.assert_allclose(got, found.distances[0][found.ids[0] >= 0], atol=1e-3)


@pytest.mark.parametrize("length", [1, 2, M - 1, M, M + 1, 2 * M - 1, 2 * M, 2 * M + 1])
def test_text_over_three_boundaries_is_that_of_one_pass_over_the_whole(generator, whole, length):
    """Wherever in its chunk the prompt ends (traps 21, 22)."""
    prompt = prompts_by_length(generator.tokenizer)[length]
    completion = generator.generate(prompt, tokens=3 * M + 2)
    ids = whole.ids(completion)
    assert (completion.first, len(ids)) == (length, length + 3 * M + 2)
    chosen_well(whole, completion, whole.neighbours(ids))
    read_as_retrieved(whole, completion, ids)
    assert completion.finish == "length"
    assert completion.retrieval == "on"


MIXED = [
    Request(TEXT[:40], tokens=40),
    Request(TEXT[:7], tokens=50, temperature=1.0, seed=3),
    Request(TEXT, tokens=20, k=0),
    Request("", tokens=35, k=1, temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, seed=9),
    Request(TEXT[:50], tokens=33, retrieval_step=5, align=True, temperature=1.5, seed=4),
    Request(TEXT[:20], tokens=24, in_prompt=True, repetition_penalty=1.3, logprobs=2),
    Request(TEXT[:30], tokens=30, neighbours=("lopo minel tenis", TEXT)),
    Request(TEXT[:60], tokens=40, contributions=True),
]


def test_requests_of_any_kind_beside_one_another_are_each_as_alone(generator):
    """More than there are rows, ending at different times."""
    together = generator.generate_all(MIXED)
    for request, beside in zip(MIXED, together):
        alone = generator.generate_all([request])[0]
        assert beside.tokens == alone.tokens
        assert beside.text == alone.text
        np.testing.assert_allclose(beside.logprobs, alone.logprobs, atol=2e-5)
        assert [[n["document"] if "document" in n else n["given"] for n in c["neighbours"]]
                for c in beside.chunks] == [
               [n["document"] if "document" in n else n["given"] for n in c["neighbours"]]
                for c in alone.chunks]  # fmt: skip


def test_after_it_is_warm_no_request_compiles_anything(small, whole, generator):
    """Whatever its length and kind, and whoever reads with it."""
    with Generator(
        generator.method, whole.params, generator.tokenizer, generator.retriever, rows=4, length=160
    ) as other:
        compiler = threading.Event()
        slow = other._schedule.when_idle([compiler.wait, lambda: 1 // 0])
        warm, asked = other.warm_up(), other.submit(Request("kara lopo minel", tokens=9))
        assert not warm.done()
        compiler.set()
        first = asked.result()
        with pytest.raises(ZeroDivisionError):  # which ends nothing else
            slow.result()
        warm.result()
        assert other.generate("kara lopo minel", tokens=9).tokens == first.tokens
        before = other._schedule.engine.programs()
        other.generate_all(MIXED)
        other.generate_all(
            [
                Request("kara " * n, tokens=n, retrieval_step=s, contributions=n % 5 == 0, k=n % 3)
                for n in range(1, 25)
                for s in (0, 1, 7)
            ]
        )
        assert other._schedule.engine.programs() == before
        waiting = other._schedule.when_idle([lambda: time.sleep(0.2)] * 1000)
    with pytest.raises(CancelledError):
        waiting.result()
    with pytest.raises(RuntimeError, match="closed"):
        other.warm_up()


def test_without_retrieval_it_is_the_language_model(generator, whole):
    completion = generator.generate(TEXT[:40], tokens=40, k=0)
    chosen_well(whole, completion, whole.neighbours(whole.ids(completion))[:, :0])
    assert completion.chunks == []
    assert completion.retrieval == "off"


def test_a_field_that_there_is_not_is_named(generator):
    with pytest.raises(UserError, match=r"no field max_tokens: did you mean tokens\?"):
        generator.generate("kara", max_tokens=3)


def test_fewer_neighbours_than_there_is_room_for(generator, whole):
    completion = generator.generate(TEXT[:40], tokens=40, k=1)
    chosen_well(whole, completion, whole.neighbours(whole.ids(completion), 1))
    assert {len(c["neighbours"]) for c in completion.chunks} == {1}


def test_given_neighbours_are_what_every_chunk_reads(generator, whole):
    texts = ("lopo minel tenis", TEXT)
    completion = generator.generate(TEXT[:40], tokens=40, neighbours=texts)
    ids = whole.ids(completion)
    near = np.zeros((-(-len(ids) // M), 2, 2 * M), np.int32)
    for j, text in enumerate(texts):
        given = generator.tokenizer.encode(text)[: 2 * M]
        near[: len(ids) // M, j, : len(given)] = given
    chosen_well(whole, completion, near)
    told = completion.chunks[0]["neighbours"]
    assert [n["given"] for n in told] == [0, 1]
    assert told[0]["text"] == texts[0]


def test_the_nearest_passage_before_the_prompt_is_read_as_a_prompt(generator, whole):
    """RETRO++ (Wang et al. 2023): it is that of the prompt's last tokens."""
    prompt = TEXT[:60]
    completion = generator.generate(prompt, tokens=40, in_prompt=True)
    ids = prompt_ids(generator.tokenizer, prompt)
    nearest = whole.retriever.retrieve(np.array([ids[-M:]]))
    assert (
        completion.passage["document"] == whole.retriever.source_of(nearest.ids[0, 0])["document"]
    )
    passage = [t for t in nearest.tokens[0, 0].tolist() if t > 3]
    ids = [BOS, *passage, *generator.tokenizer.encode("\n"), *ids[1:], *completion.tokens]
    assert completion.first == len(ids) - 40
    everything = whole.logprobs(ids, whole.neighbours(ids))
    own = everything[np.arange(completion.first - 1, len(ids) - 1), completion.tokens]
    np.testing.assert_allclose(completion.logprobs, own, atol=2e-5)
    assert completion.prompt == prompt
    assert prompt not in completion.text


@pytest.mark.parametrize("step", [1, 5, M])
def test_aligned_and_more_often(generator, whole, step):
    """The prompt's last M tokens retrieve at once; then, every `step` tokens, the last M of all."""
    prompt = TEXT[:50]
    completion = generator.generate(prompt, tokens=20, align=True, retrieval_step=step)
    first, ids = completion.first, whole.ids(completion)
    begins = [c["begin"] for c in completion.chunks]
    assert [b for b in begins if b >= first] == list(range(first, len(ids), step))
    assert [b for b in begins if b < first] == list(range(first % M or M, first, M))
    for chunk in completion.chunks:
        asked = ids[max(0, chunk["begin"] - M) : chunk["begin"]]
        query = np.array([[PAD] * (M - len(asked)) + asked])
        found = whole.retriever.retrieve(query)
        expected = [whole.retriever.source_of(i)["document"] for i in found.ids[0] if i >= 0]
        assert [n["document"] for n in chunk["neighbours"]] == expected


def test_a_contribution_is_what_is_lost_when_one_neighbour_is_masked(generator, whole):
    completion = generator.generate(TEXT[:60], tokens=40, contributions=True)
    ids = whole.ids(completion)
    near = whole.neighbours(ids)
    have = whole.of(completion, near)
    compared = 0
    for chunk in completion.chunks:
        for j, neighbour in enumerate(chunk["neighbours"]):
            without = near.copy()
            without[chunk["begin"] // M - 1, j] = 0
            begin = max(chunk["begin"], completion.first) - completion.first
            gain = (have - whole.of(completion, without))[begin : begin + M]
            gained = neighbour.get("contributions", [])
            if chunk["begin"] + M <= completion.first:
                assert gained == []
                continue
            np.testing.assert_allclose(gained, gain[: len(gained)], atol=5e-5)
            assert len(gained) == min(M, chunk["begin"] + M - completion.first, 40 - begin)
            assert neighbour["contribution"] == pytest.approx(sum(gained), abs=1e-5)
            compared += np.abs(gained).max() > 1e-3
    assert compared > 2


def test_the_same_seed_gives_the_same_text_and_another_another(generator):
    texts = [
        generator.generate(TEXT[:9], tokens=30, temperature=1.0, seed=s).text for s in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_stop_text_ends_it_and_streaming_tells_the_same(generator):
    whole_text = generator.generate(TEXT[:9], tokens=40, temperature=0.7, seed=5).text
    stop = whole_text[len(whole_text) // 2 :][:3]
    short = generator.generate(TEXT[:9], tokens=40, temperature=0.7, seed=5, stop=(stop,))
    assert short.text == whole_text[: whole_text.find(stop)]
    assert short.finish == "stop"
    assert short.ends[-1] == len(short.text)
    assert len(short.ends) == len(short.logprobs) == len(short.tokens)
    pieces = list(generator.stream(TEXT[:9], tokens=40, temperature=0.7, seed=5, stop=(stop,)))
    assert "".join(pieces) == short.text
    assert len(list(generator.stream(TEXT[:9], tokens=40))) > 2


def test_the_most_probable_tokens_are_reported_if_asked_for(generator, whole):
    completion = generator.generate(TEXT[:40], tokens=20, temperature=1.0, logprobs=3)
    ids = whole.ids(completion)
    everything = whole.logprobs(ids, whole.neighbours(ids))[completion.first - 1 : -1]
    for top, row in zip(completion.top, everything):
        values = sorted(top.values(), reverse=True)
        np.testing.assert_allclose(values, np.sort(row)[::-1][:3], atol=2e-5)
    assert len(completion.top) == 20


def test_neighbours_are_reported_with_their_source(generator, finished):
    completion = generator.generate(TEXT[:40], tokens=40)
    table = tables(finished)["train"]
    documents = {d["id"]: d for d in table.documents}
    for chunk in completion.chunks:
        distances = [n["distance"] for n in chunk["neighbours"]]
        assert distances == sorted(distances)
        assert len(distances) == 2
        for n in chunk["neighbours"]:
            document = documents[n["document"]]
            row = document["first"] + n["chunk"]
            assert generator.tokenizer.decode(table.values(np.array(row)).tolist()) == n["text"]
            assert n["metadata"] == document["metadata"]
            assert n["database"] == "prepared"
            assert n["offset"] == max(0, n["chunk"] * M - 1)
