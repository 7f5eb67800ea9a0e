"""What ordinary clients ask for beside continuations, and the names that they have for things."""

import threading

import httpx
import numpy as np
import openai
import pytest
from serving import PROMPT, post, serving, until

from retro_jax import __version__
from retro_jax.config import RetrievalConfig
from retro_jax.corpus.tokenizer import EOS
from retro_jax.evaluate.score import Pair
from retro_jax.evaluate.scorer import Scorer
from retro_jax.retrieval.encoder import Encoder
from retro_jax.serve import texts
from retro_jax.serve.reading import Refused
from retro_jax.store.workdir import WorkDir


@pytest.fixture(scope="module")
def address(generator):
    with serving(generator) as (address, _):
        yield address


PREFLIGHT = {"origin": "https://example.org", "access-control-request-method": "POST",
             "access-control-request-headers": "authorization"}  # fmt: skip
ALLOWED = "access-control-allow-origin"


def test_the_model_by_its_name(address):
    every = httpx.get(f"{address}/v1/models").json()["data"]
    assert httpx.get(f"{address}/v1/models/small").json() == every[0]
    other = httpx.get(f"{address}/v1/models/gpt/4")
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")


def test_what_watches_it(address, generator):
    assert httpx.get(f"{address}/readyz").json() == {"status": "ready"}
    with serving(generator) as (own, service):
        compiler = threading.Event()  # the thread that compiles waits for it
        generator._schedule.when_idle([compiler.wait])
        service.warming.begin()
        said = httpx.get(f"{own}/readyz", timeout=300)
        compiler.set()
        assert (said.status_code, said.json()) == (503, {"status": "compiling"})
        assert post(own, prompt="kara", max_tokens=2).status_code == 200
        until(lambda: service.warming.done)
        assert httpx.get(f"{own}/readyz", timeout=300).json() == {"status": "ready"}
    assert httpx.get(f"{address}/version").json() == {"version": __version__}


def test_pages_of_elsewhere_may_ask_where_they_have_to_know_a_key_or_are_named(generator, address):
    said = httpx.options(f"{address}/v1/completions", headers=PREFLIGHT)
    assert said.status_code == 204
    assert ALLOWED not in said.headers  # so the browser asks nothing
    origins = ["https://example.org"]
    with serving(generator, "a key", origins=origins) as (guarded, _):
        said = httpx.options(f"{guarded}/v1/completions", headers=PREFLIGHT)
        assert (said.status_code, said.headers[ALLOWED]) == (200, "https://example.org")
        other = httpx.options(f"{guarded}/v1/models", headers=PREFLIGHT | {"origin": "https://x"})
        assert ALLOWED not in other.headers
        for path in ("/v1/models", "/v1/models/small"):
            assert httpx.get(guarded + path, headers=PREFLIGHT).status_code == 401
            key = {"authorization": "bearer a key"} | PREFLIGHT
            assert httpx.get(guarded + path, headers=key).headers[ALLOWED] == origins[0]
        assert httpx.post(f"{guarded}/tokenize", json={"prompt": "a"}).status_code == 401


def test_tokens_of_a_text_and_back(address, generator):
    ids = [id - generator.tokenizer.first for id in generator.tokenizer.encode(PROMPT)]
    made = httpx.post(f"{address}/tokenize", json={"prompt": PROMPT, "add_special_tokens": False})
    assert made.json() == {"tokens": ids, "count": len(ids), "max_model_len": generator.length}
    back = httpx.post(f"{address}/detokenize", json={"tokens": ids})
    assert back.json() == {"prompt": PROMPT}
    assert httpx.get(f"{address}/tokenizer_info").json()["eos_token"] is None
    wrong = httpx.post(f"{address}/detokenize", json={"tokens": [10**6]})
    assert "the tokenizer has no such token" in wrong.json()["error"]["message"]


def test_embeddings_are_the_vectors_that_are_searched(address, generator):
    encoder = generator.retriever.databases.prepared.encoder
    given = [PROMPT, "tenis suris"]
    expected = encoder(given)["vectors"]
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        made = client.embeddings.create(model="small", input=given)  # which asks for base64
        np.testing.assert_array_equal([d.embedding for d in made.data], expected)
        assert made.usage.prompt_tokens == sum(map(len, map(generator.tokenizer.encode, given)))
        one = client.embeddings.create(model="small", input=PROMPT, encoding_format="float")
        np.testing.assert_allclose(one.data[0].embedding, expected[0])
        for fields, message in (
            ({"dimensions": 3}, f"vectors have {expected.shape[1]} here"),
            ({"model": "ada"}, "there is no such model here"),
        ):
            with pytest.raises(openai.APIStatusError, match=message):
                client.embeddings.create(**{"model": "small", "input": PROMPT} | fields)


def test_where_words_are_searched_there_are_no_embeddings(generator):
    config = RetrievalConfig(embedder="words", index="bm25")
    words = Encoder(config, None, 16)
    with pytest.raises(Refused, match="words are searched here"):
        texts.embeddings(words, generator.tokenizer, "small", 100, {"input": PROMPT})


def test_other_names_and_what_changes_nothing(address):
    more = {"max_completion_tokens": 2, "stream_options": {"include_obfuscation": False}}
    said = post(address, prompt="a", stream=True, **more)
    assert said.status_code == 200
    both = post(address, prompt="a", max_tokens=3, max_completion_tokens=2).json()["error"]
    assert (both["param"], "give one" in both["message"]) == ("max_tokens", True)
    drawn = {post(address, prompt=PROMPT, seed=-1).json()["choices"][0]["text"] for _ in range(3)}
    assert len(drawn) > 1


def test_tokens_that_end_it(address, generator):
    whole = generator.generate(PROMPT, tokens=30)
    end = whole.tokens[7]
    kept = whole.tokens[: whole.tokens.index(end)]
    ids = [end - generator.tokenizer.first]
    answer = post(address, prompt=PROMPT, max_tokens=30, temperature=0, stop_token_ids=ids).json()
    choice = answer["choices"][0]
    assert (choice["finish_reason"], choice["text"]) == ("stop", generator.tokenizer.decode(kept))
    wrong = post(address, prompt="a", stop_token_ids=["a"]).json()["error"]
    assert "a list of at most 1,024 token ids" in wrong["message"]


def test_who_ignores_the_end_of_a_document_goes_on(generator):
    for seed in range(100):
        how = {"tokens": 60, "temperature": 2.0, "seed": seed}
        ended = generator.generate(PROMPT, **how)
        if ended.finish == "stop":
            break
    on = generator.generate(PROMPT, **how, ignore_eos=True)
    n = len(ended.tokens)
    assert on.tokens[: n + 1] == [*ended.tokens, EOS]
    assert (len(on.tokens), on.finish) == (60, "length")


def test_the_tokens_of_a_prompt_are_scored(address, generator, finished, small):
    """As `Scorer` scores them, then what is generated."""
    ask = {"prompt": PROMPT * 3, "max_tokens": 3, "temperature": 0, "logprobs": 1}
    plain = post(address, **ask).json()["choices"][0]["logprobs"]
    scorer = Scorer.open(WorkDir(finished, small), rows=8, length=160, context=144)
    for k in (2, 0):
        retrieval = {"retrieval": {"k": k}}
        expected = scorer.score([Pair("", ask["prompt"])], k)[0]
        choice = post(address, **ask, **retrieval, echo=True).json()["choices"][0]
        told, count = choice["logprobs"], expected.tokens
        assert len(told["tokens"]) == count + 3
        np.testing.assert_allclose(told["token_logprobs"][:count], expected.logprobs, atol=1e-4)
        for i, top in enumerate(told["top_logprobs"][:count]):
            assert max(top.values()) == pytest.approx(expected.top[i], abs=1e-4)
            assert told["token_logprobs"][i] in top.values()
        ends = [*told["text_offset"][1:], len(choice["text"])]
        parts = [choice["text"][a:b] for a, b in zip(told["text_offset"], ends)]
        assert "".join(parts[:count]) == ask["prompt"]
        if k:
            assert told["tokens"][count:] == plain["tokens"]
    alone = post(address, **ask | {"max_tokens": 0}, echo=True, **retrieval).json()["choices"][0]
    assert alone["text"] == ask["prompt"]
    assert alone["logprobs"]["token_logprobs"] == told["token_logprobs"][:count]
    odd = post(address, **ask, echo=True, retrieval={"align": True}).json()["error"]
    assert odd["param"] == "retrieval.align"
