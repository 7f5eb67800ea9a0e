"""The closed form of what a pass costs is the count of the traced program, part by part."""

import pytest

from retro_jax.config import DecoderConfig, EncoderConfig, ModelConfig, ReadingConfig
from retro_jax.config.model import ReadingOnce
from retro_jax.methods.ngram_memory import NGramMemory
from retro_jax.model import formulas, sizes

VOCAB = 500
DECODER = {"d": 64, "layers": 2, "heads": 4, "head_size": 32, "positions": "rotary"}
ENCODER = {"d": 48, "layers": 3, "heads": 2, "head_size": 40, "cross_layers": (1, 3)}
READING = {"cca_layers": (2,), "chunk": 16, "retrieved": 32, "positions": "none"}


def config(decoder=(), encoder=(), kind=ReadingConfig, block=1024, **reading) -> ModelConfig:
    parts = DecoderConfig(**DECODER | dict(decoder)), EncoderConfig(**ENCODER | dict(encoder))
    return ModelConfig(*parts, kind(**READING | reading), attention_block=block)


@pytest.mark.parametrize(
    ("of", "length", "k"),
    [
        (config(), 160, 1),
        (config(), 150, 3),  # an incomplete last chunk
        (config({"gated": True, "kv_heads": 2, "ffw": 80}, {"ffw": 72}), 64, 2),
        (config({"layers": 3}, cca_layers=(2, 3)), 64, 2),
        (config(kind=ReadingOnce), 160, 3),
        (config(block=32), 256, 1),
        (config(block=32), 32 * 9, 1),  # more blocks than segments
    ],
)
def test_without_a_table_of_distances_it_is_exact(of, length, k):
    off, on = (sizes.forward_flops(of, VOCAB, length, n) for n in (0, k))
    assert formulas.decoder(of, VOCAB, length) == off
    assert formulas.reading(of, length, k) == on - off


# Of the table the program has a few rows more (`positions.windows`).
@pytest.mark.parametrize("length", [64, 192])
def test_with_one_it_is_near(length):
    sizes_of = {"d": 64, "heads": 2, "head_size": 96}
    of = config({"positions": "relative"} | sizes_of, {"layers": 1, "cross_layers": (1,)} | sizes_of,
                chunk=64, retrieved=128, positions="relative")  # fmt: skip
    off, on = (sizes.forward_flops(of, VOCAB, length, n) for n in (0, 1))
    assert formulas.decoder(of, VOCAB, length) == pytest.approx(off, rel=0.02)
    assert formulas.reading(of, length, 1) == pytest.approx(on - off, rel=0.02)


def test_blocks_of_keys_and_their_table():
    of = config({"positions": "relative"}, block=32)
    for length in (33, 64, 300):
        expected = sizes.forward_flops(of, VOCAB, length, 0)
        assert formulas.decoder(of, VOCAB, length) == pytest.approx(expected, rel=0.02)


def test_a_memory_of_n_grams(tiny, mesh):
    method = NGramMemory(tiny)
    with_it = method.flops(VOCAB, 24)
    assert formulas.memory(method.model, 24) == with_it - sizes.forward_flops(tiny, VOCAB, 24, 0)
