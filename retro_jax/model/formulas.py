"""FLOPs of matrix products in closed form: what a network costs at any size, before anything is traced.

    L tokens of a sequence, C chunks of M tokens, K neighbours of R tokens, D and E widths of decoder and encoder,
    H numbers of all heads of a layer together, V vocabulary

Of one sequence's forward pass, a multiplication and an addition being 2. `sizes.forward_flops` counts the same in the
traced program. Relative positions are the paper's (model/attend.py): for every attention a product of the queries with
a table of distances, 2 H for a query and distance, and the table itself, 2 D H for a distance, once.
"""

from retro_jax.config import ModelConfig
from retro_jax.model.attend import segments


def decoder(config: ModelConfig, vocab: int, length: int) -> float:
    """The language model: 2 N L for N weights of its layers, attention, and the readout 2 D V L."""
    c = config.decoder
    inner, kv = c.heads * c.head_size, (c.kv_heads or c.heads) * c.head_size
    weights = c.d * (2 * inner + 2 * kv) + (3 if c.gated else 2) * c.d * (c.ffw or 4 * c.d)
    keys, padded = _causal_keys(length, config.attention_block)
    products = 3 if c.positions == "relative" else 2
    table = 2 * padded * c.d * inner if c.positions == "relative" else 0
    layer = 2 * weights * length + products * 2 * inner * keys + table
    return c.layers * layer + 2 * c.d * vocab * length


def encoder(config: ModelConfig, chunks: int, k: int) -> float:
    """Of K neighbours of every chunk: self-attention, feed-forward, and cross-attention to the chunk."""
    c, reading, d = config.encoder, config.reading, config.decoder.d
    inner, r, m, n = c.heads * c.head_size, reading.retrieved, reading.chunk, chunks * k
    relative = reading.positions == "relative"
    f = c.ffw or 4 * c.d
    own = 4 * c.d * inner + (3 if config.decoder.gated else 2) * c.d * f
    layer = n * r * (2 * own + (6 if relative else 4) * inner * r)
    layer += 4 * r * c.d * inner * relative
    cross = n * r * (4 * c.d * inner + (6 if relative else 4) * inner * m)
    cross += chunks * m * 4 * d * inner + 2 * (r + m) * c.d * inner * relative
    return c.layers * layer + len(c.cross_layers) * cross


def reading(config: ModelConfig, length: int, k: int) -> float:
    """What RETRO adds to the language model: the encoder, and of every CCA layer queries and output of all tokens, keys
    and values of all neighbours, and attention to the K R of a chunk. Of a reader that looks up once, those of the
    first chunk."""
    c, of, e = config.decoder, config.reading, config.encoder.d
    inner, m, r = c.heads * c.head_size, of.chunk, of.retrieved
    chunks = 1 if of.once else -(-length // m)
    tokens = max(0, length - m + 1) if of.once else chunks * m
    relative = of.positions == "relative" and not of.once
    layer = tokens * (4 * c.d * inner + 4 * inner * k * r + 2 * inner * r * relative)
    layer += chunks * k * r * 4 * e * inner + 2 * (m + r) * c.d * inner * relative
    return encoder(config, chunks, k) + len(of.cca_layers) * layer


def memory(config: ModelConfig, length: int) -> float:
    """What a memory of n-grams adds: its keys and values."""
    m = config.memory
    return 4 * 2 * m.hashes * m.width * config.decoder.d * length


def _causal_keys(length: int, block: int) -> tuple[float, int]:
    """Pairs of a query and a key that are computed, and distances of the table; see `attend.attend_causal`."""
    if length <= block:
        return length * length, length
    blocks = -(-length // block)
    pairs = sum(count * block * (first + count) * block for first, count in segments(blocks))
    return pairs, blocks * block
