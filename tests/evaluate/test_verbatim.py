"""How much of a text stands word for word elsewhere."""

import numpy as np

from retro_jax.evaluate import rows, verbatim


class Table:
    """Chunks of one long text."""

    chunk = 16

    def __init__(self, tokens):
        self.tokens = tokens.reshape(-1, self.chunk)

    def __len__(self):
        return len(self.tokens)


def test_planted_runs_are_found_wherever_they_lie(monkeypatch):
    monkeypatch.setattr(verbatim, "_BLOCK", 64)  # four chunks at a time
    rng = np.random.default_rng(0)
    database = rng.integers(1, 1000, 320)
    said = rng.integers(1000, 2000, 100)
    for at, place, n in ((3, 10, 12), (40, 60, 20), (80, 310, 7)):  # the second spans two parts
        said[at : at + n] = database[place : place + n]
    expected = np.zeros(100, bool)
    expected[3:15] = expected[40:60] = True
    found = verbatim._in_any([said], [Table(database)], 8)[0]
    np.testing.assert_array_equal(found, expected)
    assert verbatim._in_any([said], [Table(database)], 13)[0].sum() == 20
    assert not verbatim._in_any([said], [Table(database)], 50)[0].any()
    shown = database[:128].reshape(2, 64)
    expected[40:44] = False  # of that run the first four tokens end the first text
    np.testing.assert_array_equal(verbatim.inside(said, shown, 10), expected)


def test_the_same_tokens_in_another_order_are_no_run():
    said = np.arange(1, 31)
    assert not verbatim.inside(said, said[None, ::-1], 3).any()
    assert not verbatim.inside(
        said, np.roll(said.reshape(15, 2), 1, axis=1).reshape(1, -1), 3
    ).any()


def test_generated_text_is_compared_with_what_was_shown(finished):
    found = rows.load(finished / "evaluate" / "heldout" / "tokens.parquet").facts["verbatim"]
    assert (found["prompts"], found["tokens"]) == (4, verbatim.TOKENS)
    for name in ("on", "off"):
        for where in ("shown", "database"):
            shares = [found[name][where][str(n)] for n in verbatim.RUNS]
            assert 1 >= shares[0] >= shares[1] >= shares[2] >= 0
        assert found[name]["database"]["8"] >= found[name]["shown"]["8"]
