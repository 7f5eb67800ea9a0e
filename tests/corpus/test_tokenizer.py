import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro_jax.corpus import tokenizer
from retro_jax.errors import UserError

TEXT = [f"def function_{i}(x):\n    return x + {i}\n\n" * 3 for i in range(200)]


@pytest.fixture(scope="module")
def pieces():
    return tokenizer.Tokenizer(tokenizer.train(TEXT, 400))


@settings(deadline=None, max_examples=300)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_comes_back(pieces, text):
    assert pieces.decode(pieces.encode(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", " ", "  a", "a\u2581b", "\u2581", "\u2581 \u2581", "\r\n\t", "a\0b", "<s></s><unk>",
     "<0x41>", "日本語 😀 é", "\u00a0\u3000", "x" * 10_000, "\ufffd"],
)  # fmt: skip
def test_awkward_texts_come_back(pieces, text):
    ids = pieces.encode(text)
    assert pieces.decode(ids) == text
    assert not {tokenizer.PAD, tokenizer.BOS, tokenizer.EOS, tokenizer.UNK} & set(ids)


def test_byte_counts_add_up_to_the_text(pieces):
    text = "def é(x):\n  return '😀\u2581'"
    assert pieces.byte_counts[pieces.encode(text)].sum() == len(text.encode())
    assert not pieces.byte_counts[[tokenizer.PAD, tokenizer.BOS, tokenizer.EOS]].any()


def test_a_chunk_that_cuts_a_character_still_decodes(pieces):
    ids = pieces.encode("😀")
    assert len(ids) > 1
    assert "\ufffd" in pieces.decode(ids[:1])
    assert pieces.decode_bytes(ids[:1]) + pieces.decode_bytes(ids[1:]) == "😀".encode()


_DRAW = random.Random(0)
_HAN = ["".join(_DRAW.choices([chr(0x4E00 + i) for i in range(80)], k=900)) for _ in range(20)]


@pytest.mark.parametrize(
    ("texts", "vocab"),
    [
        (_HAN, 365),
        (["".join(_DRAW.choices("ACGT", k=2000)) for _ in range(20)], 300),
        (["".join(f"{_DRAW.random():.4f},\n" for _ in range(200)) for _ in range(20)], 300),
        (["alpha\tbeta\tgamma\t" * 100] * 20, 280),
        ([_HAN[0] + " " + _HAN[1], *_HAN], 365),
    ],
    ids=["Han", "DNA", "numbers", "tabs", "hardly a space"],
)
def test_text_without_spaces_teaches_a_tokenizer_that_has_one(texts, vocab):
    made = tokenizer.Tokenizer(tokenizer.train(texts, vocab))
    for text in ("a b", "two  words", " ", texts[0][:50]):
        assert made.decode(made.encode(text)) == text


def test_too_large_a_vocabulary_is_refused_by_name():
    with pytest.raises(UserError, match=r"corpus\.vocab = 5000"):
        tokenizer.train(["a b c"], 5000)
