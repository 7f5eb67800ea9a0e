import dataclasses

import numpy as np
import pytest

from retro_jax.config import ModelConfig, TrainConfig
from retro_jax.errors import UserError
from retro_jax.methods.language_model import LanguageModel
from retro_jax.methods.retro import Retro, Settings, add_own_continuations
from retro_jax.store import records
from retro_jax.train import data

C, M, K = 4, 8, 2
CONFIG = TrainConfig(length=C * M, batch=3, steps=40, seed=1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    made = [
        {
            "tokens": rng.integers(4, 500, C * M).astype(np.uint16),
            "documents": np.array([i, i, i, i + 100], np.int32),
            "neighbours": rng.integers(4, 500, (C, K, 2 * M)).astype(np.uint16),
        }
        for i in range(20)
    ]
    records.write(directory, made)
    return records.Records(directory)


def retro(own_continuation=0.0):
    return Retro(ModelConfig(), K, Settings(own_continuation))


def take(shards, config, start, count, method=None):
    stream = data.batches(shards, config, method or retro(), start)
    return [next(stream) for _ in range(count)]


def test_the_order_is_a_function_of_seed_and_step(shards):
    whole = take(shards, CONFIG, 0, 20, retro(0.5))
    resumed = take(shards, CONFIG, 13, 7, retro(0.5))
    for a, b in zip(whole[13:], resumed):
        for name in ("tokens", "neighbours"):
            np.testing.assert_array_equal(a[name], b[name])
    other = take(shards, dataclasses.replace(CONFIG, seed=2), 0, 1)[0]
    assert (other["tokens"] != whole[0]["tokens"]).any()


def test_an_epoch_shows_every_sequence_once_and_the_next_in_another_order(shards):
    seen = np.concatenate([b["tokens"][:, :2] for b in take(shards, CONFIG, 0, 14)])
    first, second = seen[:20], seen[20:40]
    assert len({tuple(x) for x in first}) == 20
    assert {tuple(x) for x in first} == {tuple(x) for x in second[:20]}
    assert (first != second).any()


@pytest.mark.parametrize("shares", [[[0, 1, 2], [3, 4, 5]], [[0, 5], [1, 4], [2, 3]]])
def test_any_number_of_processes_reads_the_same_batches_each_its_rows(shards, shares):
    config = dataclasses.replace(CONFIG, batch=6)
    whole = take(shards, config, 2, 9, retro(0.5))
    for rows in shares:
        stream = data.batches(shards, config, retro(0.5), 2, rows)
        for batch in whole:
            own = next(stream)
            for name in ("tokens", "neighbours", "records"):
                np.testing.assert_array_equal(own[name], batch[name][rows])


def test_a_batch_says_which_records_it_has(shards):
    (batch,) = take(shards, CONFIG, 5, 1)
    for tokens, record in zip(batch["tokens"], batch["records"]):
        np.testing.assert_array_equal(tokens, shards[int(record)]["tokens"])


def test_the_language_model_and_retro_see_the_same_text(shards):
    alone = take(shards, CONFIG, 0, 5, LanguageModel(ModelConfig()))
    for a, b in zip(take(shards, CONFIG, 0, 5), alone):
        np.testing.assert_array_equal(a["tokens"], b["tokens"])
        assert "neighbours" not in b


def test_without_the_setting_neighbours_are_those_of_the_shard(shards):
    stored = {tuple(r["tokens"]): r["neighbours"] for r in map(shards.__getitem__, range(20))}
    for batch in take(shards, CONFIG, 0, 7):
        for tokens, neighbours in zip(batch["tokens"], batch["neighbours"]):
            np.testing.assert_array_equal(neighbours, stored[tuple(tokens)])


def test_own_continuations_stay_in_the_document_and_fall_to_none(shards):
    tokens = np.arange(4, 4 + C * M)
    documents = np.array([0, 0, 0, 1])
    neighbours = np.full((C, K, 2 * M), 999)
    add_own_continuations(neighbours, tokens, documents, 1.0, np.random.default_rng(0))
    replaced = (neighbours != 999).all(-1)
    assert replaced.all()
    for c, i in np.ndindex(C, K):
        value = neighbours[c, i]
        kept = value[value > 0]
        own = (kept - 4) // M  # the chunk that each token is from
        # all but the noise, which is from anywhere in the sequence, is of the chunk's document
        assert (documents[own] == documents[c]).mean() > 0.6
    half = np.full((1000, K, 2 * M), -1)
    add_own_continuations(
        half, np.arange(4, 4 + 1000 * M), np.zeros(1000), 0.5, np.random.default_rng(0)
    )
    count = (half != -1).all(-1).sum(1)  # of each chunk: 0, 1 or 2 of 2, each by itself
    assert np.all(np.abs(np.bincount(count, minlength=3) / 1000 - [0.25, 0.5, 0.25]) < 0.05)
    until_20 = Settings(own_continuation=1.0, own_continuation_steps=20)
    assert until_20.share(0) == until_20.share(10) == 1.0
    assert until_20.share(15) == 0.5
    assert until_20.share(20) == until_20.share(1000) == 0
    kept = Settings(1.0, 20, own_continuation_kept=0.1, own_continuation_kept_steps=100)
    shares = {0: 1, 15: 0.5, 20: 0.08, 50: 0.05, 100: 0, 1000: 0}
    assert {step: round(kept.share(step), 3) for step in shares} == shares
    with pytest.raises(UserError, match=r"kept_steps = 20:.*above own_continuation_steps \(20\)"):
        Settings(1.0, 20, own_continuation_kept=0.1, own_continuation_kept_steps=20)
    late = take(shards, CONFIG, 20, 3, Retro(ModelConfig(), K, until_20))
    stored = {tuple(r["tokens"]): r["neighbours"] for r in map(shards.__getitem__, range(20))}
    for batch in late:
        for tokens, neighbours in zip(batch["tokens"], batch["neighbours"]):
            np.testing.assert_array_equal(neighbours, stored[tuple(tokens)])


def test_a_run_that_hardly_meets_real_neighbours_is_warned_of():
    def warned(steps, **fields):
        return Retro(ModelConfig(), K, Settings(**fields)).warning(steps)

    assert not warned(100)
    assert not warned(100, own_continuation=1.0, own_continuation_steps=50)
    assert not warned(100, own_continuation=0.3, own_continuation_steps=400)
    assert "100% of the neighbours" in warned(100, own_continuation=1.0, own_continuation_steps=100)
    assert "100% of" in warned(200, own_continuation=1.0, own_continuation_steps=100, read_from=100)


def test_before_read_from_batches_have_no_neighbours_and_own_continuations_begin_there(shards):
    settings = Settings(own_continuation=1.0, own_continuation_steps=4, read_from=10)
    batches = take(shards, CONFIG, 8, 8, Retro(ModelConfig(), K, settings))
    assert ["neighbours" in b for b in batches] == [False] * 2 + [True] * 6
    stored = {tuple(r["tokens"]): r["neighbours"] for r in map(shards.__getitem__, range(20))}
    real = [
        np.mean([(n == stored[tuple(t)]).all() for t, n in zip(b["tokens"], b["neighbours"])])
        for b in batches[2:]
    ]
    assert real[:2] == [0, 0]
    assert real[4:] == [1, 1]
    with pytest.raises(UserError, match=r"method_settings\.retro\.read_from = -1"):
        Settings(read_from=-1)
