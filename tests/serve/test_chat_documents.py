"""What a chat reads, from which it answers: documents that are edited, and the sources of sentences."""

import json

import browser
import httpx
import openai
import pytest
import torch
import transformers as hf
from serving import post, serving
from talking import MESSAGES

from retro_jax.cli import main as cli
from retro_jax.corpus.tokenizer_json import FIRST
from retro_jax.evaluate import sources_threshold
from retro_jax.evaluate.sources_threshold import LEAST, Threshold, threshold
from retro_jax.generate.chat import Chat
from retro_jax.generate.lookup import prompt_ids
from retro_jax.store.workdir import WorkDir

ZORBLAT = "The zorblat of mirefield is in the mill beside the river. "
needs_chromium = pytest.mark.skipif(browser.CHROMIUM is None, reason="there is no Chromium")


def content(id):
    return f"document.getElementById('{id}').textContent"


def test_the_database_is_edited_and_what_is_read_changes(told, opened, capsys):
    """By the command, without anything being trained again."""
    _, run = told
    question = ["--chat", "--prompt=where is the zorblat of mirefield"]

    def read():
        assert cli.main(["generate", str(run), *question]) == 0
        found = json.loads((run / "generate.json").read_text())
        return found["prompt"], [p["document"] for p in found["passages"]], found["logprobs"]

    before, found, answer = read()
    assert "zorblat.txt" not in found
    new = run.parent / "new"
    new.mkdir()
    (new / "zorblat.txt").write_text(
        "The zorblat of mirefield is in the mill beside the river. " * 4
    )
    assert cli.main(["database", str(run), f"--add=text:{new}/*.txt"]) == 0
    after, found, other = read()
    assert found[0] == "zorblat.txt"
    assert other != answer
    assert "is in the mill beside the river" in after
    assert "in the mill" not in before
    assert "read before the question" in capsys.readouterr().out
    assert cli.main(["database", str(run), "--delete=zorblat.txt"]) == 0
    assert read()[::2] == (before, answer)


def test_one_document_is_enough(told, tmp_path, capsys):
    """Of experiments/chat.py nothing is held out: what is given can be looked up, and nothing can be scored."""
    (tmp_path / "zorblat.txt").write_text(ZORBLAT * 4)
    config = f"--config=experiments/chat.py:{told[1].parent}/base"
    given = [config, f"--workdir={tmp_path}/run", f"--config.corpus.source=text:{tmp_path}/*.txt"]
    for words in (["prepare", *given], ["train", *given], ["verify", *given, "--share=1"]):
        assert cli.main(words) == 0
    assert "of 1 document can be looked up; nothing is held out" in capsys.readouterr().err
    run = str(tmp_path / "run")
    asked = [
        "generate",
        run,
        "--chat",
        "--prompt=where is the zorblat",
        "--config.generate.tokens=3",
    ]
    assert cli.main(asked) == 0
    answer = json.loads((tmp_path / "run" / "generate.json").read_text())
    assert {p["document"] for p in answer["passages"]} == {"zorblat.txt"}
    (tmp_path / "questions").write_text("where is the zorblat\nwhat is in the mill\n")
    for words, message in (
        (["compare", "--methods=rag"], "corpus.heldout = 0: nothing is held out"),
        (["evaluate"], "corpus.heldout = 0: nothing is held out"),
        (["sources", f"--questions={tmp_path}/questions"], "all 2 texts find the same documents"),
        (
            ["train", "--config.methods=('language_model', 'retro')"],
            "no weights by which retro reads",
        ),
        (["generate", "--chat", "--method=retro"], "retro is not trained here"),
        (["run", "--config.methods=('retro',)"], "corpus.heldout = 0: nothing is held out"),
    ):
        assert cli.main([*words[:1], run, *words[1:]]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["prepare", *given, "--config.train.steps=9"]) == 2
    assert "must be more than 0 where something is trained" in capsys.readouterr().err


def test_a_running_server_is_told_of_a_document_and_answers_by_it(opened):
    """By OpenAI's client: the answer changes, and without the document it is again what it was."""
    with serving({"rag": opened}, key="secret") as (address, _):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0)

        def answer():
            said = client.chat.completions.create(
                model="small", messages=[{"role": "user", "content": "where is the zorblat?"}],
                max_tokens=12, temperature=0, logprobs=True,
            ).choices[0]  # fmt: skip
            passages = said.model_extra["retrieval"]["passages"]
            found = [p["text"] for p in passages if p["document"] == "zorblat"]
            return found, [t.logprob for t in said.logprobs.content]

        before = answer()
        assert before[0] == []
        answers = [before]
        for where in ("the mill", "a cave"):
            text = f"The zorblat of mirefield is in {where}, beside the river. " * 4
            client.post(
                "/documents", cast_to=object, body={"documents": [{"id": "zorblat", "text": text}]}
            )
            answers.append(answer())
            assert answers[-1][0]
            assert all(f"is in {where}" in passage for passage in answers[-1][0])
        assert len({str(logprobs) for _, logprobs in answers}) == 3
        client.delete("/documents", cast_to=object, body={"ids": ["zorblat"]})
        assert answer() == before


@needs_chromium
def test_the_page_answers_by_a_document_as_soon_as_it_is_there(opened, tmp_path):
    with (
        serving({"rag": opened}, key="secret") as (address, _),
        browser.open_page(tmp_path) as page,
    ):
        headers = {"authorization": "Bearer secret"}

        def asked():
            page.value("document.body.dataset.done = ''")
            page.value("document.getElementById('prompt').value = 'where is the zorblat?'")
            page.value("document.getElementById('go').click()")
            page.wait("document.body.dataset.done")
            assert page.value(content("error")) == ""
            *said, answer = json.loads(page.value("JSON.stringify(messages)"))
            ask = {"messages": said, "max_tokens": 12, "temperature": 0.8, "seed": 5}
            same = httpx.post(
                f"{address}/v1/chat/completions", json=ask, headers=headers, timeout=300
            )
            assert same.json()["choices"][0]["message"]["content"] == answer["content"]
            return page.value(content("chunks"))

        page.tell("Page.navigate", url=address)
        page.wait(f"{content('error')}.includes('wants a key')")
        page.value("document.getElementById('key').value = 'secret'")
        page.value("document.getElementById('tokens').value = 12")
        page.value("document.getElementById('seed').value = 5")
        assert ZORBLAT not in asked()
        new = {"documents": [{"id": "zorblat", "text": ZORBLAT * 4}]}
        httpx.post(
            f"{address}/v1/documents", json=new, headers=headers, timeout=300
        ).raise_for_status()
        assert ZORBLAT in asked()
        gone = {"ids": ["zorblat"]}
        httpx.request(
            "DELETE", f"{address}/v1/documents", json=gone, headers=headers, timeout=300
        ).raise_for_status()
        assert ZORBLAT not in asked()


def test_sources_are_what_an_answer_loses_without_a_passage(told, opened):
    """As transformers says it of the prompts with all passages and without each; the same as a stream."""
    _, run = told
    theirs = hf.LlamaForCausalLM.from_pretrained(run.parent / "base").eval()
    chat, ours = Chat(opened.tokenizer), opened.tokenizer
    ask = {"messages": MESSAGES, "max_tokens": 24, "temperature": 1, "seed": 5}
    ask["retrieval"] = {"sources": True}

    def logp(passages, text):
        ids = prompt_ids(ours, chat.prompt(MESSAGES, passages), special=True)
        whole = torch.tensor([[1, *(i - FIRST for i in ids[1:] + ours.encode(text))]])
        with torch.no_grad():
            said = theirs(whole).logits[0].log_softmax(-1)
        return sum(float(said[i - 1, whole[0, i]]) for i in range(len(ids), whole.shape[1]))

    with serving({"rag": opened}, thresholds={"rag": Threshold(-1e9, 2)}) as (address, service):
        service.sources.warm_up(opened)
        choice = post(address, "/v1/chat/completions", **ask).json()["choices"][0]
        text, told_of = choice["message"]["content"], choice["retrieval"]
        passages = told_of["passages"]
        for i, p in enumerate(passages):
            named = [s for one in told_of["sentences"] for s in one["sources"]]
            nats = sum(s["nats"] for s in named if s["document"] == p["document"])
            lost = logp(passages, text) - logp([*passages[:i], *passages[i + 1 :]], text)
            assert nats == pytest.approx(lost, abs=2e-3)
        streamed = post(address, "/v1/chat/completions", **ask, stream=True).text
        last = json.loads(streamed.split("\n\n")[-3].removeprefix("data: "))
        assert last["choices"][0]["retrieval"]["sentences"] == told_of["sentences"]
        plain = post(address, prompt="kara", retrieval={"sources": True})
        assert plain.status_code == 400
        assert "rag tells sources in chats only" in plain.json()["error"]["message"]
        none = post(address, "/v1/chat/completions", **ask | {"retrieval": {}}).json()
        assert "sentences" not in none["choices"][0]["retrieval"]
    with serving({"rag": opened}) as (address, _):
        refused = post(address, "/v1/chat/completions", **ask)
        assert refused.status_code == 400
        assert "run `retro sources DIR --method=rag`" in refused.json()["error"]["message"]


def test_a_threshold_is_set_by_questions(told, tmp_path, capfd):
    _, run = told
    command = ["sources", str(run), "--method=rag"]
    assert cli.main(command) == 2
    assert "--questions: give a file of questions" in capfd.readouterr().err
    (tmp_path / "few.txt").write_text("kara lopo?\n")
    assert cli.main([*command, f"--questions={tmp_path}/few.txt"]) == 2
    assert "too few to set a threshold by" in capfd.readouterr().err
    assert cli.main([*command, f"--questions={tmp_path}/none.txt"]) == 2
    assert not (run / "sources").exists()


def test_the_server_names_what_the_threshold_says(told, opened, tmp_path, monkeypatch):
    """Of the questions that set it: as many sentences, as many of them with a source."""
    _, run = told
    monkeypatch.setattr(sources_threshold, "_TOKENS", 16)
    words = ("kara", "lopo", "minel", "tenra", "kais", "mipo", "lora")
    questions = [f"{a} {b}?" for a in words for b in words if a != b]
    (tmp_path / "questions.txt").write_text("".join(f"{q}\n" for q in questions))
    assert (
        cli.main(["sources", str(run), "--method=rag", f"--questions={tmp_path}/questions.txt"])
        == 0
    )
    found = json.loads((run / "sources" / "rag.json").read_text())
    assert found["chat"]
    assert found["sentences"] >= LEAST
    limit = threshold(WorkDir(run), "rag")
    assert limit == (found["threshold"], found["k"]) == (found["threshold"], 2)
    ask = {"max_tokens": 16, "temperature": 0, "retrieval": {"sources": True}}
    named = []
    with serving({"rag": opened}, thresholds={"rag": limit}) as (address, _):
        for q in questions:
            body = ask | {"messages": [{"role": "user", "content": q}]}
            said = post(address, "/v1/chat/completions", **body).json()["choices"][0]
            named += [bool(s["sources"]) for s in said["retrieval"]["sentences"]]
        fewer = ask | {"messages": MESSAGES, "retrieval": {"sources": True, "k": 1}}
        refused = post(address, "/v1/chat/completions", **fewer)
        assert refused.status_code == 400
        assert (
            "threshold was set for k = 2, and this request reads 1"
            in refused.json()["error"]["message"]
        )
    assert len(named) == found["sentences"]
    assert sum(named) / len(named) == pytest.approx(found["named"], abs=1e-4)


@needs_chromium
def test_a_person_talks_on_the_page(opened, tmp_path):
    def text(id):
        return f"document.getElementById('{id}').textContent"

    with (
        serving({"rag": opened}, thresholds={"rag": Threshold(-1e9, 2)}) as (address, _),
        browser.open_page(tmp_path) as page,
    ):
        page.tell("Page.navigate", url=address)
        page.wait(f"{text('model')} !== ''")
        assert page.value("document.getElementById('chat').checked")
        page.value("document.getElementById('tokens').value = 24")
        page.value("document.getElementById('seed').value = 5")  # of which the answers have letters
        for number, question in enumerate(("kara lopo?", "tenra <b>kais</b>"), 1):
            page.value(f"document.getElementById('prompt').value = {question!r}")
            page.value("document.getElementById('go').click()")
            page.wait(f"messages.length === {2 * number} && {text('status')}.includes('tokens in')")
            assert question in page.value(text("text"))
        assert page.value(text("text")).startswith("kara lopo?")  # the whole conversation
        first = opened.retriever.search(question)[0]
        assert first["document"] in page.value(text("chunks"))
        # Every sentence has its sources, which are shown where one points.
        page.value("document.querySelector('#text .token').focus()")
        assert "The sentence became more probable by" in page.value(text("source"))
        assert page.value("document.querySelector('#text sup').textContent").strip() in (
            "1, 2",
            "2, 1",
        )
        assert page.value(text("error")) == ""
        assert json.dumps(page.said) == "[]"
