"""Any body at all is answered or refused; any sampling gives tokens."""

import json

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from retro_jax.config.request import Request
from retro_jax.corpus.tokenizer import open_tokenizer
from retro_jax.corpus.tokenizer_json import PretrainedTokenizer
from retro_jax.serve import api, openapi
from retro_jax.serve.reading import Refused, json_of

NUMBERS = st.integers() | st.floats() | st.booleans()
SCALARS = st.none() | NUMBERS | st.text(st.characters(), max_size=20) | st.just("\ud800")
ANY = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner), max_leaves=8
)  # fmt: skip
# Values that are right more often than not, so that what comes after them is reached.
LIKELY = {
    "prompt": st.text(max_size=30)
    | st.lists(st.text(max_size=9), min_size=1)
    | st.lists(st.integers(0, 400)),
    "max_tokens": st.integers(0, 9),
    "temperature": st.floats(0, 100),
    "top_p": st.floats(0.01, 1),
    "n": st.integers(0, 9),
    "stream": st.booleans(),
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=5),
    "logprobs": st.integers(-1, 6),
    "seed": st.integers(0, 2**32),
    "echo": st.booleans(),
    "retrieval": st.fixed_dictionaries(
        {},
        optional={
            "k": st.integers(-1, 3),
            "neighbours": st.lists(st.text(max_size=5)),
            "databases": st.lists(st.sampled_from(["prepared", "mail=2", ""])),
            "where": st.fixed_dictionaries({}, optional={"date_to": st.text(max_size=10) | ANY})
            | ANY,
            "align": ANY,
        },
    ),
}
FIELDS = sorted(api.FIELDS)
BODIES = st.fixed_dictionaries({}, optional={n: s | ANY for n, s in LIKELY.items()}) | ANY


@pytest.fixture(scope="module")
def tokenizer(finished):
    return open_tokenizer(finished / "prepare" / "tokenizer")


def parsed(function):
    """(what a function returns, None) or (None, why it is Refused)."""
    try:
        return function(), None
    except Refused as refused:
        return None, refused


@settings(max_examples=200, deadline=None, derandomize=True)
@given(body=BODIES, more=st.dictionaries(st.sampled_from(FIELDS), ANY, max_size=2))
def test_any_json_becomes_requests_or_is_refused(tokenizer, body, more):
    if isinstance(body, dict):
        body = body | more
    asked, refused = parsed(
        lambda: api.asked(json_of(json.dumps(body).encode()), "small", tokenizer, 64, 512)
    )
    if refused:
        json.dumps(refused.to_json(), allow_nan=False).encode()
        assert refused.status in (400, 404)
        assert len(refused.message) < 1000
        return
    assert 1 <= len(asked.requests) <= 64
    for request in asked.requests:
        request.check()
        request.prompt.encode()


def test_the_openapi_document_has_every_field():
    assert openapi.COMPLETION.keys() == api.FIELDS.keys()
    assert openapi._RETRIEVAL.keys() == api._RETRIEVAL.keys()
    assert openapi._WHERE.keys() == api._WHERE.keys()


@pytest.fixture(scope="module")
def foreign():
    """(a tokenizer of Hugging Face, the same as a base's)."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(["to be"], trainers.BpeTrainer(initial_alphabet=alphabet))
    return made, PretrainedTokenizer(made.to_str().encode(), "tokenizer.json")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_token_ids_are_the_tokenizers_own(foreign, text):
    theirs, ours = foreign
    ids = theirs.encode(text).ids
    asked = api.asked({"prompt": [ids, ids]}, "small", ours, 64, 512)
    assert [r.prompt for r in asked.requests] == [text, text]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=60) | st.text('[]{}:,"\\u0d8ae1-.NIn', max_size=40).map(str.encode))
def test_any_bytes_are_json_or_refused(data):
    value, refused = parsed(lambda: json_of(data))
    assert refused is None or (value is None and refused.status == 400)


REQUESTS = st.builds(
    Request,
    prompt=st.text(max_size=8),
    tokens=st.integers(0, 8),
    temperature=st.just(0.0) | st.floats(1e-6, 100),
    top_k=st.integers(0, 400),
    top_p=st.floats(1e-6, 1),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.01, 100),
    seed=st.integers(0, 2**32 - 1),
    logprobs=st.integers(0, 5),
    k=st.integers(-1, 2),
    retrieval_step=st.integers(0, 16),
    align=st.booleans(),
)


@settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(requests=st.lists(REQUESTS, min_size=3, max_size=6))
def test_any_sampling_gives_tokens_that_are_text(generator, requests):
    for request, made in zip(requests, generator.generate_all(requests)):
        assert len(made.tokens) <= request.tokens
        assert all(3 < token < generator.tokenizer.vocab for token in made.tokens)
        assert all(p <= 1e-5 for p in made.logprobs)
        assert made.finish == "stop" or len(made.tokens) == request.tokens
