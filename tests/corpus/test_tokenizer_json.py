"""Tokenizers of the two lossless kinds, trained here and given as a file."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from retro_jax.corpus.tokenizer import EOS, UNK
from retro_jax.corpus.tokenizer_json import FIRST, PretrainedTokenizer
from retro_jax.errors import UserError

TEXT = [f"def function_{i}(x):\n    return x + {i} # naïve\n" for i in range(200)]


def byte_level():
    """As GPT-2 and Qwen: bytes as characters, a space before the text, NFC."""
    made = tokenizers.Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"]
    )
    made.train_from_iterator(TEXT, trainer)
    return made


def byte_fallback():
    """As Llama 2 and Mistral: a mark for spaces, bytes for what has no piece."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    marks = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    made.normalizer = normalizers.Sequence(marks)
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special[:3])
    made.train_from_iterator(TEXT, trainer)
    fields = json.loads(made.to_str())
    vocab = fields["model"]["vocab"]
    for piece in special[3:]:
        vocab.setdefault(piece, len(vocab))
    return tokenizers.Tokenizer.from_str(json.dumps(fields))


@pytest.fixture(scope="module", params=[byte_level, byte_fallback])
def file(request):
    return request.param()


@pytest.fixture(scope="module")
def pieces(file):
    return PretrainedTokenizer(file.to_str().encode(), "tokenizer.json")


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_comes_back_and_its_bytes_are_counted(pieces, text):
    ids = pieces.encode(text)
    assert pieces.decode_bytes(ids) == text.encode()
    assert pieces.byte_counts[ids].sum() == len(text.encode())
    assert all(UNK < i < pieces.vocab for i in ids)


def test_ids_are_the_files_own_moved_past_ours(file, pieces):
    text = TEXT[3].rstrip()
    own = file.encode(text, add_special_tokens=False).ids  # these files put a space before it
    np.testing.assert_array_equal(np.array(pieces.encode(" " + text)) - FIRST, own)


def test_special_tokens_found_in_a_text_are_text(pieces):
    for text in ("<|endoftext|>", "<s>", "</s> and <unk>"):
        assert pieces.decode(pieces.encode(text)) == text
    assert pieces.vocab % 64 == 0
    assert not pieces.byte_counts[: EOS + 1].any()


def test_a_tokenizer_that_loses_text_is_refused():
    lossy = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "two": 1, "words": 2}))
    lossy.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    lossy.decoder = decoders.WordPiece()
    with pytest.raises(UserError, match=r"has no piece for 256 of the 256 bytes"):
        PretrainedTokenizer(lossy.to_str().encode(), "tokenizer.json")
    with pytest.raises(UserError, match=r"t\.json: no Hugging Face tokenizer"):
        PretrainedTokenizer(b"{}", "t.json")


def fields_of(made, **changed):
    """A file's fields, some of them others."""
    return json.loads(made.to_str()) | changed


def opened(fields):
    """The tokenizer of a file of these fields."""
    return PretrainedTokenizer(json.dumps(fields).encode(), "t.json")


# "Zürich" has letters that are bytes in a byte-level vocabulary; "Ġa" is a piece of bytes, " a".
@pytest.mark.parametrize(
    "words", [["Zürich", "đường", "čaj", "São"], ["  ", "\n\n"], ["Ġa", "a b"], ["<|x|>", "x"]]
)
@pytest.mark.parametrize("strips", [False, True])
def test_added_words_come_back_with_what_stands_beside_them(file, words, strips):
    made = tokenizers.Tokenizer.from_str(file.to_str())
    made.add_tokens([tokenizers.AddedToken(w, lstrip=strips, rstrip=strips) for w in words])
    pieces = opened(fields_of(made))
    for word in words:
        for text in (word, f"in {word}  and\n{word}", f"x{word}x", word * 3, "Ġa \u2581a"):
            ids = pieces.encode(text)
            assert pieces.decode_bytes(ids) == text.encode()
            assert pieces.byte_counts[ids].sum() == len(text.encode())


def test_a_tokenizer_by_chance_is_one_of_rules(file):
    fields = fields_of(file)
    fields["model"]["dropout"] = 0.5
    pieces = opened(fields)
    assert len({tuple(pieces.encode(TEXT[0])) for _ in range(9)}) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["model"]["vocab"].update(far=60_000_000), "has token 60,000,000 in a voc"),
        (
            lambda f: f.update(pre_tokenizer={"type": "CharDelimiterSplit", "delimiter": "\u2603"}),
            "drops the text that it splits at",
        ),
        (lambda f: f.update(pre_tokenizer=_split("\u2603")), "pre_tokenizer Split drops the text"),
        (lambda f: f.update(added_tokens=[{"id": "one"}]), "no Hugging Face tokenizer"),
        (lambda f: f.update(model={"type": "BPE"}), "no Hugging Face tokenizer"),
        (lambda f: f.update(model=None), "no Hugging Face tokenizer"),
        (lambda f: f.update(decoder=7), "no Hugging Face tokenizer"),
        (
            lambda f: f["model"]["vocab"].pop("\u0143"),
            "has no piece for 1 of the 256 bytes, 0xAD for",
        ),
        (
            lambda f: f["model"].update(continuing_subword_prefix="##"),
            "no Hugging Face tokenizer|does not give",
        ),
        (lambda f: f["model"].update(end_of_word_suffix="</w>"), "does not give .* back"),
    ],
)
def test_hostile_files_are_refused_in_one_line(change, message):
    fields = fields_of(byte_level())
    change(fields)
    with pytest.raises(UserError, match=message) as error:
        opened(fields)
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


def _split(at):
    """Byte level behind a split that drops what it splits at."""
    split = {"type": "Split", "pattern": {"String": at}, "behavior": "Removed", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {"type": "Sequence", "pretokenizers": [split, level]}


def test_an_added_token_has_the_number_that_the_library_gives_it():
    """Not the one that the file has for it, which another has too."""
    flags = dict.fromkeys(("special", "lstrip", "rstrip", "single_word", "normalized"), False)
    fields = fields_of(byte_level())
    fields["added_tokens"] += [{"id": 0, "content": c, **flags} for c in ("\x80", "0")]
    pieces = opened(fields)
    for text in ("\x80", "0", "a\x800", "<|endoftext|>"):
        assert pieces.decode_bytes(pieces.encode(text)) == text.encode()


def test_a_piece_that_looks_like_a_byte_is_text():
    fields = fields_of(byte_fallback())
    fields["model"]["vocab"]["<0xZZ>"] = len(fields["model"]["vocab"])
    pieces = opened(fields)
    assert pieces.decode(pieces.encode("<0xZZ> <0x41>")) == "<0xZZ> <0x41>"
