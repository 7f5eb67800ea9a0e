"""What a client cannot do to the others: limits, keys, failures, and what is counted of it all."""

import contextlib
import json
import select
import socket
import threading

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import JSON, PROMPT, ask, connect, post, serving, until

from retro_jax.config.request import Request
from retro_jax.generate.generator import Generator
from retro_jax.serve import server
from retro_jax.store.workdir import WorkDir

# More than the kernel keeps for who does not read.
LONG = {"prompt": ["kara lopo "] * 4, "max_tokens": 140, "n": 8, "seed": 1, "stream": True}


def measured(address) -> dict:
    """{name with labels: value}"""
    families = text_string_to_metric_families(httpx.get(f"{address}/metrics").text)
    return {
        s.name + "".join(f" {k}={v}" for k, v in s.labels.items()): s.value
        for family in families
        for s in family.samples
    }


def idle(generator) -> bool:
    return generator.busy == generator.waiting == 0


def rest(connection: socket.socket) -> bytes:
    """What comes until the connection is closed."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(2**16):
            parts.append(part)
    return b"".join(parts)


def test_what_is_counted(generator):
    with serving(generator) as (address, _):
        before = measured(address)
        post(address, prompt=PROMPT, max_tokens=20, seed=1, n=2)
        post(address, prompt=PROMPT, max_tokens=-1)
        after = measured(address)
        assert httpx.get(f"{address}/healthz").json() == {"status": "ok"}
    assert before["retro_rows"] == generator.rows
    assert after["retro_http_requests_total status=200"] == 1
    assert after["retro_http_requests_total status=400"] == 1
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["retro_tokens_total"] == 40
    assert grown["retro_lookups_total"] >= 2
    assert grown["retro_lookups_failed_total"] == 0
    for name in ("queue", "first_token", "request"):
        assert grown[f"retro_{name}_seconds_count"] == 2
    assert after["retro_rows_busy"] == after["retro_queue_length"] == 0


def test_who_has_no_key_is_not_let_in(generator):
    with serving(generator, key="schlüssel") as (address, _):
        for given in ({}, {"authorization": "Bearer no"}, {"authorization": "schlüssel".encode()}):
            for path in ("completions", "models", "documents", "nothing"):
                answer = httpx.post(f"{address}/v1/{path}", json={"prompt": "a"}, headers=given)
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "invalid_api_key"
                wrong = "the one that was given is not it" in answer.json()["error"]["message"]
                assert wrong == bool(given)
        mine = {"authorization": "Bearer schlüssel".encode()}
        answer = httpx.post(
            f"{address}/v1/completions", json={"prompt": "a"}, headers=mine, timeout=60
        )
        assert answer.status_code == 200
        assert (
            httpx.get(f"{address}/v1/documents", headers=mine).json()["data"][0]["documents"] > 40
        )
        assert (
            httpx.get(f"{address}/").status_code
            == httpx.get(f"{address}/healthz").status_code
            == 200
        )


def test_a_page_of_another_name_is_told_nothing(generator):
    """DNS rebinding: a browser sends the name that led it here."""
    with serving(generator) as (address, _):
        for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.x"):
            for path in ("/", "/healthz", "/metrics", "/v1/models"):
                answer = httpx.get(address + path, headers={"host": host})
                assert answer.status_code == 421
                assert "answers to 127.0.0.1, [::1], localhost" in answer.json()["error"]["message"]
        for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8000"):
            assert httpx.get(f"{address}/v1/models", headers={"host": host}).status_code == 200


def test_names_are_looked_at_where_only_this_machine_is_served():
    this = {"localhost", "127.0.0.1", "[::1]"}
    assert server.names_of("127.0.0.1") == server.names_of("localhost") == this
    assert server.names_of("::1", ["a.example"]) == this | {"a.example"}
    assert server.names_of("127.8.0.1") == this | {"127.8.0.1"}
    assert server.names_of("LocalHost") == this
    assert server.names_of("::ffff:127.0.0.1") == this | {"[::ffff:127.0.0.1]"}
    assert server.names_of("0.0.0.0") is server.names_of("::") is server.names_of("host.a") is None
    assert server.names_of("0.0.0.0", ["a.example"]) == {"a.example"}


@pytest.mark.parametrize(
    ("host", "key", "warns"),
    [
        ("0.0.0.0", None, True),
        ("::", None, True),
        ("0.0.0.0", "a", False),
        ("127.0.0.1", None, False),
    ],
)
def test_a_server_for_all_without_a_key_is_a_warning(capfd, host, key, warns):
    server.warn(host, key)
    assert (f"WARNING: --host={host} can be reached" in capfd.readouterr().err) == warns


def test_long_neighbours_are_tokenized_once_and_no_further_than_they_are_read(
    generator, monkeypatch
):
    encode, read = generator.tokenizer.encode, []
    long = "lopo kara minel " * 30_000

    def counted(text):
        read.append(len(text))
        return encode(text)

    monkeypatch.setattr(generator.tokenizer, "encode", counted)
    made = generator.generate(PROMPT, tokens=24, retrieval_step=1, neighbours=(long, "minel"))
    assert len(made.chunks) > 20
    assert sum(read) < 30_000
    width = generator.model.reading.retrieved
    expected = generator.tokenizer.decode(encode(long)[:width])
    assert made.chunks[-1]["neighbours"][0]["text"] == expected


def test_without_a_key_documents_are_not_to_be_had(generator):
    with serving(generator) as (address, _):
        for method in ("GET", "POST", "DELETE"):
            answer = httpx.request(method, f"{address}/v1/documents")
            assert answer.status_code == 403
            assert "RETRO_API_KEY" in answer.json()["error"]["message"]


def test_a_body_that_is_too_long_or_no_json_or_of_no_route(generator):
    with serving(generator, body=2000) as (address, _):
        url = f"{address}/v1/completions"
        large = json.dumps({"prompt": "a" * 3000}).encode()
        assert httpx.post(url, content=large, headers=JSON).status_code == 413
        in_parts = (large[i : i + 100] for i in range(0, len(large), 100))  # says no length
        assert httpx.post(url, content=in_parts, headers=JSON).status_code == 413
        assert httpx.post(url, content=b'{"prompt": "a"}').status_code == 415
        assert httpx.get(url).status_code == 405
        missing = httpx.get(f"{address}/v2/%ed%a0%bd%00")
        assert missing.status_code == 404
        assert missing.json()["error"]["message"].startswith("GET /v2/")


def test_who_sends_slowly_is_not_waited_for(generator):
    with serving(generator, body_seconds=0.5) as (address, _):
        for sent in (b"", b"POST /v1/comple"):
            with connect(address) as connection:
                connection.sendall(sent)
                assert rest(connection) == b""
        with connect(address) as connection:
            connection.sendall(ask(b'{"prompt"', length=100))
            assert rest(connection).startswith(b"HTTP/1.1 408")


def test_connections_are_so_many_at_most(generator):
    with serving(generator, connections=2, body_seconds=60) as (address, _):
        with connect(address), connect(address), connect(address) as third:
            assert rest(third).startswith(b"HTTP/1.1 503")
        until(lambda: post(address, prompt="a", max_tokens=1).status_code == 200)


def test_a_full_queue_is_said_to_be_so(generator):
    with serving(generator, queue=3) as (address, _):
        works = [generator.submit(Request("kara lopo ", tokens=140)) for _ in range(12)]
        answer = post(address, prompt="a", max_tokens=1)
        for work in works:
            work.cancel()
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["error"]["code"] == "queue_full"
        until(lambda: idle(generator))
        assert post(address, prompt="a", max_tokens=1).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_frees_the_rows(generator, stream):
    with serving(generator) as (address, service):
        before = generator.drawn
        with connect(address) as connection:
            connection.sendall(ask(json.dumps(LONG | {"stream": stream}).encode()))
            until(lambda: generator.drawn > before)
        until(lambda: idle(generator) and not service.running)
        assert generator.drawn - before < 32 * 140
        if not stream:
            until(lambda: measured(address).get("retro_http_requests_total status=499") == 1)


def test_who_never_reads_is_dropped_and_slows_nobody(generator):
    with serving(generator, stall_seconds=1) as (address, service):
        with connect(address, receive=4096) as connection:
            connection.sendall(ask(json.dumps(LONG | {"logprobs": 5}).encode()))
            until(lambda: service.running)
            assert post(address, prompt=PROMPT, max_tokens=5).status_code == 200
            until(lambda: not service.running)
            closed = select.poll()
            closed.register(connection, 0)
            assert closed.poll(60_000)[0][1] & select.POLLHUP  # at once, whatever it reads
            assert b"[DONE]" not in rest(connection)
        until(lambda: idle(generator))


def test_what_is_sent_to_a_slow_reader_is_all_there(generator):
    before = generator.drawn
    with (
        serving(generator, stall_seconds=600) as (address, _),
        connect(address, receive=4096) as connection,
    ):
        body = json.dumps(LONG | {"logprobs": 5}).encode()
        connection.sendall(ask(body).replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
        until(lambda: generator.drawn > before)
        until(lambda: idle(generator))
        told = rest(connection)
    assert told.count(b'"finish_reason":"') == 32
    assert b"data: [DONE]" in told


def test_who_comes_first_is_served_first(generator, monkeypatch):
    submit, came = generator.submit, []

    def submitted(*arguments, **named):
        work = submit(*arguments, **named)
        came.append(work)
        return work

    monkeypatch.setattr(generator, "submit", submitted)
    with serving(generator) as (address, _):
        ended = []

        def one(number):
            assert post(address, prompt=PROMPT, max_tokens=60, temperature=0).status_code == 200
            ended.append(number)

        threads = [threading.Thread(target=one, args=(number,)) for number in range(12)]
        for number, thread in enumerate(threads):
            thread.start()
            until(lambda number=number: len(came) > number)
        for thread in threads:
            thread.join()
    assert set(ended[:4]) <= set(range(6))
    assert set(ended[-2:]) <= set(range(8, 12))


def test_an_index_that_fails_leaves_an_answer_that_says_so(generator, monkeypatch):
    def fail(*arguments):
        raise OSError("the disk is gone")

    with serving(generator) as (address, _):
        monkeypatch.setattr(generator.retriever, "retrieve", fail)
        answer = post(address, prompt=PROMPT, max_tokens=30, temperature=0).json()["choices"][0]
        assert answer["retrieval"] == {
            "status": "failed", "chunks": [], "passage": None,
            "first": answer["retrieval"]["first"],
        }  # fmt: skip
        assert measured(address)["retro_retrieval_failed_total"] == 1
        assert measured(address)["retro_lookups_failed_total"] >= 1
        monkeypatch.undo()
        off = post(address, prompt=PROMPT, max_tokens=30, temperature=0, retrieval={"k": 0}).json()
        assert off["choices"][0]["text"] == answer["text"]
        on = post(address, prompt=PROMPT, max_tokens=30, temperature=0).json()["choices"][0]
        assert on["retrieval"]["status"] == "on"


def test_at_the_end_what_runs_ends_with_what_there_is(generator):
    before = generator.drawn
    with serving(generator, grace_seconds=0.1) as (address, _):
        connection = connect(address)
        connection.sendall(ask(json.dumps(LONG).encode()))
        until(lambda: generator.drawn > before)
    with connection:
        told = rest(connection)
    assert told.count(b'"finish_reason":"') == 32
    assert b"data: [DONE]" in told
    assert generator.drawn - before < 32 * 140


def test_a_generator_that_fails_is_told_to_those_it_served_and_to_who_watches(small, finished):
    def fail(*arguments):
        raise RuntimeError("out of memory")

    with (
        Generator.open(WorkDir(finished, small), rows=4, length=160) as own,
        serving(own) as (address, _),
    ):
        own._schedule.engine.advance = fail
        told = post(address, prompt="kara", max_tokens=9, stream=True, ignore_eos=True)
        assert told.status_code == 200  # it was sent before
        assert json.loads(told.text.split("data: ")[-1])["error"]["code"] == "generator_failed"
        answer = post(address, prompt="kara")
        assert answer.status_code == 503
        assert answer.json()["error"]["type"] == "server_error"
        health = httpx.get(f"{address}/healthz")
        assert (health.status_code, health.json()["status"]) == (503, "failed")
        assert measured(address)["retro_http_requests_total status=503"] == 1
