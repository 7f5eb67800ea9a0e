"""The server as it is started: its databases change, and it ends in good order."""

import shutil
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from serving import process

from retro_jax.errors import UserError
from retro_jax.serve import server
from retro_jax.store.workdir import WorkDir

# A document like no other, and a prompt whose chunk it is nearest to.
TEXT = "zuzu wawa zuzu wawa qux qux zuzu wawa " * 4


def test_documents_come_and_go_while_it_serves_and_sigterm_lets_requests_end(
    small, finished, tmp_path, monkeypatch
):
    root = shutil.copytree(finished, tmp_path / "work")
    monkeypatch.setenv("RETRO_API_KEY", "secret")
    with process(small, root) as (address, running):
        client = httpx.Client(
            base_url=address, headers={"authorization": "Bearer secret"}, timeout=300
        )

        def documents(method, **body):
            return client.request(method, "/v1/documents", json=body)

        def read(database: str) -> set:
            """(document, text of its metadata) that the prompt retrieves."""
            body = {
                "prompt": TEXT,
                "max_tokens": 0,
                "retrieval": {"databases": [database, "prepared"]},
            }
            answer = client.post("/v1/completions", json=body | {"temperature": 0})
            assert answer.status_code == 200, answer.text
            near = answer.json()["choices"][0]["retrieval"]["chunks"][0]["neighbours"]
            return {(n["document"], n["metadata"].get("licence")) for n in near}

        given = {"id": "zuzu", "text": TEXT, "licence": "CC0", "date": "2024-05-31"}
        added = documents("POST", database="notes", documents=[given]).json()
        assert (added["documents"], added["replaced"]) == (1, 0)
        assert ("zuzu", "CC0") in read("notes")
        assert (
            documents("POST", database="notes", documents=[given | {"licence": "MIT"}]).json()[
                "replaced"
            ]
            == 1
        )
        assert {licence for id, licence in read("notes") if id == "zuzu"} == {"MIT"}
        told = client.get("/v1/documents").json()["data"]
        assert {d["database"]: d["documents"] for d in told}["notes"] == 1
        assert "notes" in client.get("/v1/models").json()["data"][0]["databases"]

        assert documents("DELETE", database="notes", ids=["zuzu"]).json()["documents"] == 1
        assert "zuzu" not in {id for id, _ in read("notes")}
        for method, body, message in (
            ("DELETE", {"database": "notes", "ids": ["zuzu"]}, "has no document 'zuzu'"),
            ("DELETE", {"ids": []}, "must not be empty"),
            ("POST", {"documents": [{"id": "a"}]}, "documents[0].text is missing"),
            ("POST", {"documents": [{"id": "a", "text": " "}]}, "must not be empty"),
            (
                "POST",
                {"documents": [{"id": "a", "text": "b", "day": "c"}]},
                "no field documents[0].day",
            ),
            (
                "POST",
                {"documents": [{"id": "a", "text": "b", "date": "31.12.1999"}]},
                "an ISO date",
            ),
            ("POST", {"database": "../a", "documents": [given]}, "letters, digits"),
            ("POST", {"documents": [given, given]}, "is there twice"),
        ):
            answer = documents(method, **body)
            assert answer.status_code == 400
            assert message in answer.json()["error"]["message"]

        # What runs when the signal comes is answered whole.
        body = {"prompt": "kara", "max_tokens": 400, "n": 8, "seed": 1, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            running.send_signal(signal.SIGTERM)
            told = list(lines)
        assert "data: [DONE]" in told
        assert sum('"finish_reason":"' in line for line in told) == 8
        assert not any('"finish_reason":"cancelled"' in line for line in told)
        assert running.wait(300) == 0


def test_a_port_that_is_taken_is_named(small, finished):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"--port={port}: .*choose another --port"):
            server.serve(WorkDir(finished, small), "127.0.0.1", port, 4, 512)


def test_a_key_that_is_empty_is_refused(small, finished, monkeypatch):
    monkeypatch.setenv("RETRO_API_KEY", "")
    with pytest.raises(UserError, match="RETRO_API_KEY is empty"):
        server.serve(WorkDir(finished, small), "127.0.0.1", 1, 4, 512)


def test_without_the_extra_it_says_how_to_install_it():
    script = (
        "import sys\n"
        "sys.modules['starlette.applications'] = None\n"
        "from retro_jax.errors import UserError\n"
        "try:\n    from retro_jax.serve import server\n"
        "except UserError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pip install 'retro_jax[serve]'" in done.stdout, done.stderr
