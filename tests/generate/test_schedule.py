"""Requests that share the rows: order, look-ups that fail or hang, cancelling, what is refused, and the end."""

import threading
import time

import numpy as np
import pytest
from conftest import altered, weights

from retro_jax.config.request import Request
from retro_jax.errors import UserError
from retro_jax.generate import schedule
from retro_jax.generate.generator import Generator
from retro_jax.generate.lookup import prompt_ids
from retro_jax.methods.retro import Retro

M = 16
TEXT = (
    "kara lopo minel tenis surra kais lora mipo tenra surpo kanel lois mira tenpo surnel kapo lonel"
)


def test_if_the_index_fails_the_text_goes_on_without_neighbours_and_says_so(generator, monkeypatch):
    plain = generator.generate(TEXT[:40], tokens=40)
    calls, retrieve = [], generator.retriever.retrieve

    def fails(*arguments):
        calls.append(arguments)
        if len(calls) > at:
            raise OSError("the disk is gone")
        return retrieve(*arguments)

    monkeypatch.setattr(generator.retriever, "retrieve", fails)
    for at, read in ((0, 0), (1, M * 2 - plain.first)):  # noqa: B007
        calls.clear()
        completion = generator.generate(TEXT[:40], tokens=40)
        assert completion.retrieval == "failed: the disk is gone"
        assert len(completion.tokens) == 40
        assert completion.tokens[:read] == plain.tokens[:read]
    monkeypatch.undo()
    assert generator.generate(TEXT[:40], tokens=40).tokens == plain.tokens


def test_a_look_up_that_fails_is_no_other_requests(generator, monkeypatch):
    """Though both are due at once."""
    retrieve = generator.retriever.retrieve

    def fails(chunks, k, where, databases):
        if k == 1:
            raise OSError("the disk is gone")
        return retrieve(chunks, k, where, databases)

    monkeypatch.setattr(generator.retriever, "retrieve", fails)
    asked = [Request(TEXT[:9], tokens=40, k=k) for k in (1, 2)]
    bad, good = generator.generate_all(asked)
    assert (bad.retrieval, good.retrieval) == ("failed: the disk is gone", "on")


def test_a_look_up_that_hangs_holds_up_no_one_else(generator, monkeypatch):
    retrieve, free = generator.retriever.retrieve, threading.Event()

    def hangs(chunks, k, where, databases):
        if k == 1:
            free.wait(60)
        return retrieve(chunks, k, where, databases)

    monkeypatch.setattr(generator.retriever, "retrieve", hangs)
    monkeypatch.setattr(schedule, "_DEADLINE", 2)
    stuck = [generator.submit(Request(TEXT[:60], tokens=20, k=1)) for _ in range(2)]
    assert generator.generate(TEXT[:60], tokens=20, k=0).retrieval == "off"
    assert all("nothing was found within 2 seconds" in w.result(60).retrieval for w in stuck)
    free.set()


def test_a_listener_that_fails_ends_its_own_request_only(generator):
    def fails(piece):
        raise ValueError("no more")

    bad = generator.submit(Request(TEXT[:20], tokens=50), fails)
    good = generator.submit(Request(TEXT[:20], tokens=50))
    assert len(good.result(60).tokens) == 50
    with pytest.raises(ValueError, match="no more"):
        bad.result(60)


def test_a_prompt_that_is_too_long_is_not_even_read(generator, monkeypatch):
    monkeypatch.setattr(generator.lookup, "ids", lambda prompt: 1 / 0)
    with pytest.raises(UserError, match=r"more than the 160 that there is room for"):
        generator.check(Request("kara " * 10_000))


def test_a_text_is_not_taken_for_a_list_of_texts():
    with pytest.raises(UserError, match=r"stop = 'abc': must be a list of texts"):
        Request(stop="abc")
    assert Request(databases=["prepared"]).databases == ("prepared",)


def test_what_is_cancelled_gives_its_row_back(generator):
    begun = threading.Event()
    work = generator.submit(
        Request(TEXT[:40], tokens=100, temperature=1.0), lambda piece: begun.set()
    )
    queued = [generator.submit(Request(TEXT[:40], tokens=100)) for _ in range(6)]
    assert begun.wait(60)
    for w in (work, *queued):
        w.cancel()
    for w in (work, *queued):
        assert w.result(60).finish == "cancelled"
    end = time.monotonic() + 60
    while generator.busy and time.monotonic() < end:
        time.sleep(0.01)
    assert (generator.busy, generator.waiting) == (0, 0)


def test_a_row_that_is_free_holds_nothing(generator):
    """So that steps of others do not read its places."""
    generator.generate_all([Request(TEXT[:40], tokens=n) for n in (5, 40)])
    end = time.monotonic() + 60
    while generator.busy and time.monotonic() < end:
        time.sleep(0.01)
    assert not np.asarray(generator._schedule.engine._state.cache.count).any()


def test_what_is_cancelled_while_it_waits_leaves_the_queue_at_once(generator):
    long = Request(TEXT[:20], tokens=100, temperature=1.0)
    work = [generator.submit(long) for _ in range(10)]
    work[8].cancel()
    assert work[8].result(60).tokens == []
    assert not work[-1].done
    for w in work:
        w.cancel()
        w.result(60)


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_row_that_is_free_is_taken_at_once(generator, monkeypatch, tokens):
    """Not after the thread has looked for what is cancelled: that cost every queued request 0.2 seconds."""
    monkeypatch.setattr(schedule, "_LOOK", 1000)
    work = [generator.submit(Request(TEXT[:40], tokens)) for _ in range(9)]
    assert [len(w.result(60).tokens) for w in work] == [tokens] * 9


def test_a_chunk_that_ends_with_the_first_token_is_looked_up_at_once(generator, monkeypatch):
    """Not after the thread has looked for what is cancelled."""
    monkeypatch.setattr(schedule, "_LOOK", 1000)
    cuts = (TEXT[:n] for n in range(len(TEXT)))
    prompt = next(t for t in cuts if len(prompt_ids(generator.tokenizer, t)) == M - 1)
    assert len(generator.submit(Request(prompt, tokens=4)).result(60).tokens) == 4


def test_first_come_first_served(generator):
    """Also where one needs more rows than are free, and the one after it does not."""
    long, wide = Request(TEXT[:20], tokens=100), Request(TEXT[:20], tokens=10, contributions=True)
    work = [generator.submit(r) for r in (long, long, wide, Request(TEXT[:20], tokens=2))]
    begun = [w.submitted + w.result(60).seconds["waiting"] for w in work]
    ended = [w.submitted + w.result(60).seconds["total"] for w in work]
    assert begun[3] >= begun[2] - 1e-3 > min(ended[:2]) - 2e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"tokens": 200},
            r"tokens = 200: with a prompt of 3 tokens that is 203 in all, more than the 160",
        ),
        ({"k": 3}, "k: 3 neighbours, but at most 2 can be read here"),
        ({"neighbours": ("a", "b", "c")}, "neighbours: 3 neighbours, but at most 2"),
        ({"retrieval_step": 17}, "retrieval_step = 17: must be at most the chunk's 16 tokens"),
        ({"top_p": 0}, "top_p = 0: must be above 0"),
        ({"temperature": float("nan")}, "temperature = nan: must lie between 0 and 100"),
        ({"stop": ("",)}, "stop = .*: must be at most 16 texts, none of them empty"),
        ({"databases": ("other",)}, "other"),
    ],
)
def test_what_cannot_work_is_refused_before_it_is_queued(generator, fields, message):
    with pytest.raises(UserError, match=message):
        generator.submit(Request("kara lopo", **fields))


def test_more_tokens_than_learned_positions_are_refused(generator, small, whole):
    model = altered(small.model, decoder={"positions": "learned", "max_length": 40})
    params = weights(model, generator.tokenizer.vocab)
    with Generator(Retro(model, 2), params, generator.tokenizer, generator.retriever) as learned:
        with pytest.raises(
            UserError, match=r"tokens = 40: .*more than the 40 that there is room for"
        ):
            learned.generate("kara", tokens=40)
        assert len(learned.generate("kara", tokens=20).tokens) == 20


def test_a_defect_reaches_who_waits_and_who_comes(generator, small, whole, monkeypatch):
    with Generator(
        generator.method, whole.params, generator.tokenizer, generator.retriever
    ) as broken:
        monkeypatch.setattr(broken._schedule.engine, "advance", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            broken.generate("kara", tokens=5)
        with pytest.raises(ZeroDivisionError):
            broken.submit(Request("kara"))


def test_who_closes_it_leaves_no_one_waiting(small, whole, generator):
    other = Generator(
        generator.method, whole.params, generator.tokenizer, generator.retriever, length=4096
    )
    work = [other.submit(Request("kara", tokens=4000)) for _ in range(2)]
    other.close()
    for w in work:
        assert len(w.result(10).tokens) < 4000
    with pytest.raises(RuntimeError, match="closed"):
        other.submit(Request("kara"))
