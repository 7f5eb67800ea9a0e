"""Text that is told while its tokens come."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from retro_jax.generate.detokenize import Text


def test_tokens_without_text_count():
    """Such as other special tokens of a vocabulary from elsewhere."""

    class Some:
        def decode_bytes(self, tokens):
            return [b"a", b""][tokens[0]]

    out = Text(Some())
    for token in (0, 1, 1):
        out.add(token)
    out.close()
    assert (out.text, out.tokens, out.ends) == ("a", 3, [1, 1, 1])


def test_no_more_tokens_are_told_than_the_text_is_made_of_in_the_end():
    out, told = Text(Bytes(), ["é"]), []
    for token in "abé".encode():
        out.add(token)
        out.tell()
        told.append(out.told_tokens)
    out.close()
    assert (out.text, out.tokens) == ("ab", 2)
    assert max(told) <= out.tokens


class Bytes:
    """A token a byte: the hardest case, since characters then end between tokens."""

    def decode_bytes(self, tokens):
        return bytes(tokens)


def told(text: bytes, stop=()):
    """(what was told with each token, the Text at its end); as it is used: no token after a stop."""
    out, pieces = Text(Bytes(), stop), []
    for token in text:
        out.add(token)
        pieces.append(out.tell())
        if out.ended:
            break
    out.close()
    return [*pieces, out.tell()], out


def test_a_character_is_told_when_it_is_whole():
    pieces, out = told("aé€".encode())
    assert pieces == ["a", "", "é", "", "", "€", ""]
    assert (out.text, out.ends) == ("aé€", [1, 1, 2, 2, 2, 3])


def test_an_incomplete_character_at_the_end_shows():
    pieces, out = told("a€".encode()[:-1])
    assert "".join(pieces) == out.text == "a\ufffd"


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("abé", max_size=30),
    stop=st.lists(st.text("abé", min_size=1, max_size=4), max_size=3),
)
@example("aaab", ["aab"])
@example("abab", ["bab", "a"])
def test_the_text_ends_before_the_first_stop_text_and_is_told_once(text, stop):
    """Wherever tokens begin and end: as if the whole text had been searched after each character."""
    expected = text
    for end in range(len(text) + 1):
        places = [at for s in stop if (at := text[:end].find(s)) >= 0]
        if places:
            expected = text[: min(places)]
            break
    pieces, out = told(text.encode(), stop)
    assert "".join(pieces) == out.text == expected
    assert out.ended == (expected != text or any(s in text for s in stop))
    assert out.ends == sorted(out.ends)
    assert all(end <= len(expected) for end in out.ends)


def test_what_may_become_a_stop_text_is_held_back():
    pieces, _ = told(b"one STXP", ["STOP"])
    assert pieces == ["o", "n", "e", " ", "", "", "STX", "P", ""]


def test_a_token_that_is_cut_counts_and_those_after_it_do_not():
    """So that log-probabilities are those of the text."""

    class Words:
        def decode_bytes(self, tokens):
            return [b"one ", b"two ", b"three"][tokens[0]]

    out = Text(Words(), ["wo"])
    for token in (0, 1):
        out.add(token)
    out.close()
    assert (out.text, out.tokens, out.ends) == ("one t", 2, [4, 5])
    out = Text(Words(), ["one"])
    out.add(0)
    out.close()
    assert (out.text, out.tokens, out.ends) == ("", 1, [0])
