"""What OpenAI's own client asks for is what the generator gives."""

import functools
import itertools
import json

import httpx
import numpy as np
import openai
import pytest
from serving import JSON, PROMPT, post, serving

from retro_jax.generate.generator import Generator
from retro_jax.store.workdir import WorkDir


@pytest.fixture(scope="module")
def address(generator):
    with serving(generator) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_text_is_the_generators(client, generator):
    expected = generator.generate(PROMPT, tokens=40)
    answer = client.completions.create(model="small", prompt=PROMPT, max_tokens=40, temperature=0)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == (expected.text, expected.finish)
    assert choice.retrieval["chunks"] == expected.chunks
    assert choice.retrieval["status"] == "on"
    assert expected.chunks[0]["neighbours"]
    assert answer.usage.prompt_tokens == expected.first
    assert answer.usage.completion_tokens == len(expected.tokens)
    assert answer.usage.total_tokens == expected.first + len(expected.tokens)
    assert answer.model == client.models.list().data[0].id == "small"


def test_a_seed_gives_its_text_and_each_choice_has_its_own(client, generator):
    ask = {"model": "small", "prompt": PROMPT, "max_tokens": 30, "temperature": 1.5, "seed": 11}
    answer = client.completions.create(**ask, n=3)
    for i, choice in enumerate(answer.choices):
        same = generator.generate(PROMPT, tokens=30, temperature=1.5, seed=11 + i)
        assert (choice.index, choice.text) == (i, same.text)
    assert len({c.text for c in answer.choices}) == 3
    assert client.completions.create(**ask).choices[0].text == answer.choices[0].text
    assert answer.usage.prompt_tokens == same.first  # once
    without = {n: v for n, v in ask.items() if n != "seed"}
    assert len({client.completions.create(**without).choices[0].text for _ in range(3)}) > 1


def joining(parts, name: str) -> list:
    return list(itertools.chain(*(getattr(part, name) for part in parts)))


def test_a_stream_says_the_same_piece_by_piece(client, generator):
    ask = {
        "model": "small",
        "prompt": PROMPT,
        "max_tokens": 60,
        "temperature": 1,
        "seed": 3,
        "n": 2,
    }
    whole = client.completions.create(**ask, logprobs=2)
    told = list(
        client.completions.create(
            **ask, logprobs=2, stream=True, stream_options={"include_usage": True}
        )
    )
    assert told[-1].usage == whole.usage
    assert not told[-1].choices
    for i, choice in enumerate(whole.choices):
        mine = [c for t in told for c in t.choices if c.index == i]
        assert "".join(c.text for c in mine) == choice.text
        assert len(mine) > 2
        assert [c.finish_reason for c in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1].finish_reason == choice.finish_reason
        assert mine[-1].retrieval == choice.retrieval
        joined = functools.partial(joining, [c.logprobs for c in mine if c.logprobs])
        assert joined("tokens") == choice.logprobs.tokens
        assert joined("text_offset") == choice.logprobs.text_offset
        # Rows beside one another differ from time to time, and with them the order of additions.
        logprobs = joined("token_logprobs")
        np.testing.assert_allclose(logprobs, choice.logprobs.token_logprobs, atol=1e-4)
        assert list(map(len, joined("top_logprobs"))) == [2] * len(logprobs)


def test_log_probabilities_in_openais_shape(client, generator):
    expected = generator.generate(PROMPT, tokens=30, temperature=1.0, seed=5, logprobs=3)
    ask = {"model": "small", "prompt": PROMPT, "max_tokens": 30, "seed": 5}
    told = client.completions.create(**ask, logprobs=3).choices[0].logprobs
    np.testing.assert_allclose(told.token_logprobs, expected.logprobs, atol=1e-4)
    assert told.text_offset == [0, *expected.ends[:-1]]
    assert [len(top) for top in told.top_logprobs] == [3] * len(expected.tokens)
    for token, top, wanted in zip(told.tokens, told.top_logprobs, expected.top):
        np.testing.assert_allclose(sorted(top.values()), sorted(wanted.values()), atol=1e-4)
        assert token.startswith("bytes:") or token in expected.text or token == "�"
    assert client.completions.create(**ask, logprobs=0).choices[0].logprobs.top_logprobs is None
    assert client.completions.create(**ask).choices[0].logprobs is None


def test_stop_texts_end_it_and_are_no_part_of_it(client, generator):
    whole = generator.generate(PROMPT, tokens=40).text
    stop = whole[10:13]
    answer = client.completions.create(
        model="small", prompt=PROMPT, max_tokens=40, temperature=0, stop=[stop, "never met"]
    )
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_lists_of_prompts_of_texts_and_of_tokens(client, generator):
    ids = generator.tokenizer.encode(PROMPT)
    ask = {"model": "small", "max_tokens": 8, "temperature": 0}
    one = client.completions.create(**ask, prompt=PROMPT).choices[0].text
    for prompt in (ids, [ids], [PROMPT]):
        assert client.completions.create(**ask, prompt=prompt).choices[0].text == one
    other = "tenis suris "
    two = client.completions.create(**ask, prompt=[other, PROMPT], n=2, echo=True)
    texts = [c.text for c in two.choices]
    assert [t.startswith(other) for t in texts] == [True, True, False, False]
    assert texts[2] == texts[3] == PROMPT + one
    streamed = client.completions.create(**ask, prompt=PROMPT, echo=True, stream=True)
    assert "".join(t.choices[0].text for t in streamed) == PROMPT + one


def test_what_a_retro_adds(client, generator):
    retrieval = {
        "k": 2, "step": 8, "align": True, "in_prompt": True, "contributions": True,
        "databases": ["prepared=2"],
    }  # fmt: skip
    expected = generator.generate(
        PROMPT, tokens=20, top_k=5, repetition_penalty=1.2, temperature=1.0, seed=1,
        k=2, retrieval_step=8, align=True, in_prompt=True, contributions=True,
        databases=("prepared=2",),
    )  # fmt: skip
    more = {"top_k": 5, "repetition_penalty": 1.2, "min_p": 0, "retrieval": retrieval}
    choice = client.completions.create(
        model="small", prompt=PROMPT, max_tokens=20, seed=1, extra_body=more
    ).choices[0]
    assert choice.text == expected.text
    assert choice.retrieval["passage"] == expected.passage is not None
    assert choice.retrieval["first"] == expected.first
    told, wanted = choice.retrieval["chunks"], expected.chunks
    assert [c["begin"] for c in told] == [c["begin"] for c in wanted]
    gains, same = (
        [n.get("contributions", []) for c in x for n in c["neighbours"]] for x in (told, wanted)
    )
    assert list(map(len, gains)) == list(map(len, same))
    assert any(map(len, gains))
    for mine, theirs in zip(gains, same):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)

    def of(**retrieval):
        return (
            client.completions.create(
                model="small", prompt=PROMPT, temperature=0, extra_body={"retrieval": retrieval}
            )
            .choices[0]
            .retrieval
        )

    assert of(k=0)["status"] == "off"
    given = of(neighbours=["lopo kara", "minel"])["chunks"][0]["neighbours"]
    assert [(n["given"], n["text"]) for n in given] == [(0, "lopo kara"), (1, "minel")]
    assert of(where={"licence": ["MIT"]})["chunks"][0]["neighbours"] == []


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({}, 400, "prompt", "prompt is missing"),
        ({"prompt": []}, 400, "prompt", "none of them empty"),
        ({"prompt": [1, "a"]}, 400, "prompt", "must be a text, a list of texts"),
        ({"prompt": [1, 2, 3]}, 400, "prompt", "must be the ids that this model's tokenizer gives"),
        ({"prompt": [5] * 5000}, 400, "prompt", "has 5,000 tokens, more than"),
        ({"prompt": [[5], [3, 2**31 - 1]]}, 400, "prompt[1]", "tokenizer gives a text"),
        ({"prompt": [10**30]}, 400, "prompt", "must be a text"),
        ({"prompt": "a", "max_token": 3}, 400, "max_token", "did you mean max_tokens?"),
        ({"prompt": "a", "temp": 1}, 400, "temp", "did you mean temperature?"),
        ({"prompt": "a", "max_tokens": True}, 400, "max_tokens", "max_tokens = True: must be a whole number"),
        ({"prompt": "a", "max_tokens": 10**6}, 400, "max_tokens", "room for; lower it"),
        ({"prompt": "a " * 5000}, 400, "max_tokens", "shorten the prompt"),
        ({"prompt": "a", "temperature": -1}, 400, "temperature", "must lie between 0 and 100"),
        ({"prompt": "a", "temperature": 10**400}, 400, "temperature", "finite number"),
        ({"prompt": "a", "top_p": "1"}, 400, "top_p", "top_p = '1': must be a number"),
        ({"prompt": "a", "n": 9}, 400, "n", "from 1 to 8"),
        ({"prompt": ["a"] * 20, "n": 8}, 400, "prompt", "at most 128"),
        ({"prompt": "a", "stop": ["a"] * 5}, 400, "stop", "at most 4 texts"),
        ({"prompt": "a", "stop": ""}, 400, "stop", "none of them empty"),
        ({"prompt": "a", "logprobs": 6}, 400, "logprobs", "from 0 to 5"),
        ({"prompt": "a", "best_of": 4}, 400, "best_of", "leave it out"),
        ({"prompt": "a", "presence_penalty": 0.5}, 400, "presence_penalty", "repetition_penalty instead"),
        ({"prompt": "a", "logit_bias": {"5": 1}}, 400, "logit_bias", "no bias here"),
        ({"prompt": "a", "suffix": "b"}, 400, "suffix", "nothing is put into"),
        ({"prompt": "a", "stream_options": {}}, 400, "stream_options", "stream = true only"),
        ({"prompt": "a", "seed": 2**40}, 400, "seed", "whole number"),
        ({"prompt": "a", "model": "gpt"}, 404, "model", "no such model here; give 'small'"),
        ({"prompt": "a", "retrieval": {"k": 3}}, 400, "retrieval.k", "at most 2"),
        ({"prompt": "a", "retrieval": {"ks": 3}}, 400, "retrieval.ks", "did you mean retrieval.k?"),
        ({"prompt": "a", "retrieval": {"step": 17}}, 400, "retrieval.step", "at most the chunk's"),
        ({"prompt": "a", "retrieval": {"where": {"date_to": "May"}}}, 400, "retrieval.where.date_to", "ISO"),
        ({"prompt": "a", "retrieval": {"databases": ["mail"]}}, 400, None, "no database 'mail'"),
        ({"prompt": "a", "retrieval": {"databases": ["prepared=1e-320"]}}, 400, None, "must lie between"),
        ({"prompt": "a", "retrieval": {"databases": ["prepared=x"]}}, 400, None, "must lie between"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(address, body, status, param, message):
    answer = httpx.post(f"{address}/v1/completions", content=json.dumps(body), headers=JSON)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b'{"prompt": "a"', "not JSON"),
        (b'{"prompt": "a", "prompt": "b"}', "'prompt' is there twice"),
        (b'{"prompt": "a", "top_p": NaN}', "NaN"),
        (b'{"prompt": "a", "top_p": -Infinity}', "-Infinity"),
        (b'{"prompt": "a", "top_p": 1e999}', "finite number"),
        (b'{"prompt": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\ud800": 1}', "no field"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b'{"prompt": ' + b"[" * 200_000, "nests too deeply"),
        (b'{"prompt": "a", "seed": ' + b"1" * 5000 + b"}", "not JSON"),
        (b"[" * 300 + b"]" * 300, "must be an object"),
    ],
)
def test_what_is_no_json_is_refused(address, data, message):
    answer = httpx.post(f"{address}/v1/completions", content=data, headers=JSON)
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["error"]["message"]


def test_neutral_values_and_null_are_taken(address):
    neutral = {
        "presence_penalty": 0, "frequency_penalty": 0.0, "best_of": 1, "logit_bias": {}, "suffix": "",
        "user": "me", "seed": None, "stop": None, "retrieval": None,
    }  # fmt: skip
    assert post(address, prompt="a", max_tokens=2, **neutral).status_code == 200


def test_an_error_reaches_openais_client_as_its_own(client):
    with pytest.raises(openai.BadRequestError, match="must lie between"):
        client.completions.create(model="small", prompt="a", temperature=1000)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="a")


def test_a_request_names_the_method_that_answers(generator, finished, small):
    """Of those that the server was started with; the first one where it names none."""
    work = WorkDir(finished, small)
    with Generator.open(work, "language_model", rows=1, length=160) as other:
        expected = other.generate(PROMPT, tokens=20)
        with serving({"retro": generator, "language_model": other}) as (address, _):
            ask = {"prompt": PROMPT, "max_tokens": 20, "temperature": 0}
            plain, named, itself = (
                httpx.post(f"{address}/v1/completions", json=ask | more, timeout=60).json()
                for more in ({}, {"method": "language_model"}, {"method": "retro"})
            )
            assert named["choices"][0]["text"] == expected.text
            assert named["choices"][0]["retrieval"]["chunks"] == []
            assert plain["choices"][0]["text"] == itself["choices"][0]["text"]
            assert plain["choices"][0]["retrieval"]["chunks"]
            model = httpx.get(f"{address}/v1/models").json()["data"][0]
            assert model["methods"] == ["retro", "language_model"]
            wrong = httpx.post(f"{address}/v1/completions", json=ask | {"method": "rag"})
            assert wrong.status_code == 400
            assert wrong.json()["error"]["param"] == "method"
            assert "retro, language_model" in wrong.json()["error"]["message"]
