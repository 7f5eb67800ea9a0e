"""The network (retro_jax/model): a decoder, and what retrieval adds to it, an encoder and how it is read.

The defaults are the paper's 172M model but for the vocabulary.
"""

from dataclasses import dataclass
from typing import ClassVar

from retro_jax.config.fields import require, require_at_least, require_one_of, setting


def require_layers(name: str, layers: tuple[int, ...], count: int):
    """Raises UserError unless a field holds increasing numbers of layers from 1 to `count`."""
    require(
        list(layers) == sorted(set(layers)) and all(1 <= p <= count for p in layers),
        name,
        layers,
        f"must be increasing numbers of layers from 1 to {count}",
    )


@dataclass(frozen=True)
class DecoderConfig:
    """The language model. What differs from the paper's is what pre-trained decoders have instead."""

    d: int = setting(896, "width")
    layers: int = setting(12, "layers")
    heads: int = setting(16, "heads of queries in a layer")
    head_size: int = setting(64, "numbers of a head")
    kv_heads: int = setting(0, "heads of keys and values; 0: as many as heads")
    ffw: int = setting(0, "inner width of the feed-forward; 0: 4 d")
    positions: str = setting("relative", "relative | rotary | learned")
    rotary_share: float = setting(1.0, "share of each head's numbers that rotary positions turn")
    rotary_base: float = setting(10_000.0, "base of the rotary angles")
    # () not at all; (factor,) every angle divided by it; (factor, low, high, length) Llama 3.1's way
    # (see model/positions.py).
    rotary_scaling: tuple[float, ...] = setting(
        (), "how a longer context was made of a shorter one"
    )
    max_length: int = setting(
        0, "tokens of a sequence at most, rows of learned positions; 0: any number"
    )
    norm: str = setting("rms", "rms | layer; the encoder's too, as the norm's other fields are")
    norm_bias: bool = setting(False, "norms have a bias")
    norm_unit_offset: bool = setting(False, "a norm multiplies by 1 + scale")
    norm_eps: float = setting(1e-6, "added to the variance")
    activation: str = setting(
        "gelu", "gelu (by tanh) | gelu_exact | silu | relu; the encoder's too"
    )
    gated: bool = setting(False, "SwiGLU with silu, GEGLU with gelu; the encoder's too")
    qk_norm: bool = setting(False, "self-attention normalises queries and keys of each head")
    qkv_bias: bool = setting(False, "queries, keys and values have biases; the encoder's too")
    out_bias: bool = setting(False, "attention's output has a bias; the encoder's too")
    ffw_bias: bool = setting(False, "the feed-forward has biases; the encoder's too")
    parallel: bool = setting(
        False, "self-attention and feed-forward of a layer read the same input"
    )
    tied: bool = setting(True, "the readout is the embedding")
    readout_bias: bool = setting(False, "one number a token is added to the logits")
    scale_embedding: bool = setting(True, "embeddings are multiplied by sqrt(d)")

    def __post_init__(self):
        of = "model.decoder."
        require_at_least(1, of, self, "d", "layers", "heads", "head_size")
        require_at_least(0, of, self, "kv_heads", "ffw", "max_length")
        require_one_of(f"{of}positions", self.positions, ("relative", "rotary", "learned"))
        require_one_of(f"{of}norm", self.norm, ("rms", "layer"))
        require_one_of(f"{of}activation", self.activation, ("gelu", "gelu_exact", "silu", "relu"))
        require(self.d % 2 == 0, f"{of}d", self.d, "must be even (sine and cosine positions)")
        require(
            self.kv_heads == 0 or self.heads % self.kv_heads == 0,
            f"{of}kv_heads",
            self.kv_heads,
            f"must divide model.decoder.heads = {self.heads}; 0 is as many",
        )
        turned = self.head_size * self.rotary_share
        require(
            self.positions != "rotary" or (0 < turned <= self.head_size and turned % 2 == 0),
            f"{of}rotary_share",
            self.rotary_share,
            f"must turn an even number of the {of}head_size = {self.head_size} numbers of a head",
        )
        require(
            len(self.rotary_scaling) in (0, 1, 4) and all(x > 0 for x in self.rotary_scaling),
            f"{of}rotary_scaling",
            self.rotary_scaling,
            "must be (), (factor,) or (factor, low, high, length), all positive",
        )


@dataclass(frozen=True)
class EncoderConfig:
    """What encodes neighbours."""

    d: int = setting(896, "width")
    layers: int = setting(2, "layers")
    heads: int = setting(16, "heads in a layer")
    head_size: int = setting(64, "numbers of a head")
    ffw: int = setting(0, "inner width of the feed-forward; 0: 4 d")
    cross_layers: tuple[int, ...] = setting(
        (1,), "layers, counted from 1, that attend the chunk that retrieved"
    )
    share_embedding: bool = setting(False, "it reads with the decoder's embedding")
    final_norm: bool = setting(True, "a norm ends it")

    def __post_init__(self):
        of = "model.encoder."
        require_at_least(1, of, self, "d", "layers", "heads", "head_size")
        require_at_least(0, of, self, "ffw")
        require(self.d % 2 == 0, f"{of}d", self.d, "must be even")
        require_layers(f"{of}cross_layers", self.cross_layers, self.layers)


@dataclass(frozen=True)
class ReadingConfig:
    """How the decoder reads what the encoder made of the neighbours: chunked cross-attention."""

    chunk: int = setting(64, "m, tokens of a chunk")
    retrieved: int = setting(128, "r, tokens of a neighbour and its continuation: 2 m")
    cca_layers: tuple[int, ...] = setting(
        (6, 9, 12), "the decoder's layers, counted from 1, that have a cross-attention"
    )
    cca_zero: bool = setting(
        False, "cross-attention starts as the identity: step 0 equals RETRO[OFF]"
    )
    null_key: bool = setting(
        False,
        "every head of a cross-attention may attend to nothing: a learned key whose value is 0",
    )
    # What InstructRetro (Wang et al. 2023, arXiv 2310.07713) has instead.
    positions: str = setting("relative", "relative | none, of the encoder and of cross-attention")
    normed_chunk: bool = setting(
        False, "the encoder reads chunks as the first cross-attention's norm gives them"
    )
    filled_chunk: bool = setting(False, "the encoder also attends zeros where a chunk has padding")
    # What the first chunk retrieves is read by all tokens after it, and nothing else is (methods/atlas.py).
    once: ClassVar[bool] = False

    def __post_init__(self):
        of = "model.reading."
        require_at_least(1, of, self, "chunk")
        require_one_of(f"{of}positions", self.positions, ("relative", "none"))
        require(
            self.retrieved == 2 * self.chunk,
            f"{of}retrieved",
            self.retrieved,
            f"must be 2 x model.reading.chunk = {2 * self.chunk}: a neighbour and its continuation",
        )
        require(len(self.cca_layers) > 0, f"{of}cca_layers", self.cca_layers, "must name a layer")


@dataclass(frozen=True)
class ReadingOnce(ReadingConfig):
    """Cross-attention of all tokens after the first chunk to what that retrieved, unchunked, without positions."""

    once: ClassVar[bool] = True


@dataclass(frozen=True)
class ModelConfig:
    """The network, and how it is computed. `encoder` and `reading` are what retrieval adds."""

    decoder: DecoderConfig = setting(DecoderConfig(), "the language model")
    encoder: EncoderConfig = setting(EncoderConfig(), "what encodes neighbours")
    reading: ReadingConfig = setting(ReadingConfig(), "how they are read")
    dtype: str = setting(
        "float32", "float32 | bfloat16, of the computation; parameters are float32"
    )
    # What the gradient computes again instead of keeping, beside norms, activations and attention
    # logits: none; dots, all but matrix products; full, all but what enters a group of equal layers
    # (those up to the next cross-attention). With both the readout goes by blocks.
    remat: str = setting("none", "none | dots | full: what the gradient computes again", free=True)
    attention_block: int = setting(
        256, "a longer self-attention of the reference goes by blocks of so many queries", free=True
    )
    attention: str = setting(
        "reference",
        "reference | flash | cudnn: how attention is computed; flash is by kernels for TPUs, cudnn for NVIDIA GPUs, "
        "which write no logits",
        free=True,
    )
    # Tables of n-grams beside the first layer that would read neighbours (methods/ngram_memory.py).
    memory: ClassVar["MemoryConfig | None"] = None

    def __post_init__(self):
        require_at_least(1, "model.", self, "attention_block")
        require_one_of("model.dtype", self.dtype, ("float32", "bfloat16"))
        require_one_of("model.attention", self.attention, ("reference", "flash", "cudnn"))
        require_one_of("model.remat", self.remat, ("none", "dots", "full"))
        require_layers("model.reading.cca_layers", self.reading.cca_layers, self.decoder.layers)
        require(
            not self.encoder.share_embedding or self.encoder.d == self.decoder.d,
            "model.encoder.share_embedding",
            self.encoder.share_embedding,
            f"needs model.encoder.d = model.decoder.d, but they are {self.encoder.d} and "
            f"{self.decoder.d}",
        )


@dataclass(frozen=True)
class MemoryConfig:
    """A memory of n-grams (model/ngrams.py)."""

    size: int = setting(4096, "rows of a table")
    width: int = setting(16, "numbers of a row")
    hashes: int = setting(4, "tables of each kind of n-gram")


@dataclass(frozen=True)
class ModelWithMemory(ModelConfig):
    """A network that has one."""

    memory: MemoryConfig = setting(MemoryConfig(), "the memory")
