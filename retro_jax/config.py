"""The fields of an experiment: typed inside, a ConfigDict outside.

An experiment file builds an `Experiment` and returns `to_config_dict(experiment)`, so that every
field can be overridden on the command line (`--config.train.steps=100`). `from_config_dict` turns
what comes back into frozen dataclasses again and checks it.
"""

import dataclasses
import difflib
import importlib.util
import typing
from dataclasses import dataclass, field
from pathlib import Path

import ml_collections

from retro_jax.checks import check, require
from retro_jax.errors import UserError
from retro_jax.generate.request import Request


@dataclass(frozen=True)
class CorpusConfig:
    """Where text comes from and how it is split (retro_jax/corpus)."""

    source: str = (
        "python:"  # see corpus/sources.py: python:, text:, jsonl:, parquet:, tfds:, mixtures
    )
    bad_documents: str = "refuse"  # refuse | skip: empty, binary, not UTF-8, shorter than a chunk
    heldout: float = 0.05  # share of the documents that is held out, by a hash of their id
    heldout_sources: tuple[str, ...] = ()  # more held-out text, each "NAME=SOURCE"
    near_duplicate: float = 0.8  # held-out documents this similar (13-gram Jaccard) are dropped
    exact_duplicates: str = "keep"  # keep | drop: training documents whose text is an earlier one's
    tokenizer: str = "train"  # train, a SentencePiece .model or a Hugging Face tokenizer.json
    vocab: int = (
        4096  # of a trained one: SentencePiece pieces, the 256 bytes and 4 special tokens included
    )


@dataclass(frozen=True)
class RetrievalConfig:
    """Embedder, index and neighbours (retro_jax/retrieval)."""

    source: str = ""  # what is retrieved, as corpus.source; empty: the training documents
    # tfidf | bert:DIRECTORY (a sentence encoder of BERT's family: docs/pipeline.md) | words, for BM25
    embedder: str = "tfidf"
    dim: int = 128  # width of the tfidf embedder; a BERT brings its own
    dtype: str = "float32"  # float32 | bfloat16, of a BERT's computation
    index: str = "auto"  # auto | exact | scann | bm25; auto: exact below 20,000 chunks
    min_recall: float = 0.9  # recall@k against exact search on a sample; below it, prepare fails
    neighbours: int = 2  # k
    index_shard: int = (
        2_000_000  # vectors that are in memory at a time; more are searched in shards
    )


@dataclass(frozen=True)
class ModelConfig:
    """The network (retro_jax/model). Defaults are the paper's 172M model but for the vocabulary."""

    d: int = 896
    layers: int = 12
    heads: int = 16
    head_size: int = 64
    cca_layers: tuple[int, ...] = (6, 9, 12)  # counted from 1
    chunk: int = 64  # m
    retrieved: int = 128  # r: a neighbour and its continuation, 2 m
    encoder_d: int = 896
    encoder_layers: int = 2
    encoder_heads: int = 16
    encoder_head_size: int = 64
    encoder_ca_layers: tuple[int, ...] = (1,)  # counted from 1
    share_embedding: bool = False  # the encoder reads with the decoder's embedding
    cca_zero: bool = False  # cross-attention starts as the identity: step 0 equals RETRO[OFF]
    dtype: str = "float32"  # float32 | bfloat16, of the computation; parameters are float32
    # What the gradient computes again instead of keeping, beside norms, activations and attention
    # logits: none; dots, all but matrix products; full, all but what enters a group of equal layers
    # (those up to the next cross-attention). With both the readout goes by blocks.
    remat: str = "none"
    attention_block: int = 256  # a longer self-attention goes by blocks of so many queries
    # What pre-trained decoders have instead of the paper's choices, which are the defaults. The
    # encoder's blocks follow, but for positions, kv_heads and parallel, which are the decoder's alone.
    positions: str = "relative"  # relative | rotary | learned, of the decoder's self-attention
    rotary_share: float = 1.0  # of each head's numbers that turn
    rotary_base: float = 10_000.0
    # How a longer context was made of a shorter one: () not at all; (factor,) every angle divided by it;
    # (factor, low, high, length) Llama 3.1's way (see model/positions.py).
    rotary_scaling: tuple[float, ...] = ()
    max_length: int = 0  # tokens of a sequence at most, rows of learned positions; 0: any
    kv_heads: int = 0  # heads of keys and values; 0: as many as heads
    norm: str = "rms"  # rms | layer
    norm_bias: bool = False
    norm_unit_offset: bool = False  # a norm multiplies by 1 + scale
    norm_eps: float = 1e-6
    activation: str = "gelu"  # gelu (by tanh) | gelu_exact | silu | relu
    gated: bool = False  # SwiGLU with silu, GEGLU with gelu
    ffw: int = 0  # inner width of the feed-forward; 0: 4 d
    encoder_ffw: int = 0  # 0: 4 encoder_d
    qk_norm: bool = False  # the decoder's self-attention normalises queries and keys of each head
    qkv_bias: bool = False
    out_bias: bool = False
    ffw_bias: bool = False
    parallel: bool = False  # self-attention and feed-forward of a layer read the same input
    tied: bool = True  # the readout is the embedding
    readout_bias: bool = False  # one number a token is added to the logits
    scale_embedding: bool = True  # multiply embeddings by sqrt(d)
    # What InstructRetro (Wang et al. 2023, arXiv 2310.07713) has instead, where it reads.
    read_positions: str = "relative"  # relative | none, of the encoder and of cross-attention
    encoder_norm: bool = True  # a norm ends the encoder
    normed_chunk: bool = (
        False  # the encoder reads chunks as the first cross-attention's norm gives them
    )
    filled_chunk: bool = False  # the encoder also attends zeros where a chunk has padding


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation (retro_jax/train)."""

    length: int = 2048  # tokens of a sequence, a multiple of model.chunk
    batch: int = 256  # sequences of a step
    accumulate: int = 1  # parts that a batch is computed in, one after the other, to save memory
    steps: int = 1000
    learning_rate: float = 2e-4
    warmup: int = 750  # steps, from 1e-7
    final: float = 0.1  # of the learning rate, at the end of the cosine
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.1  # on matrices only
    clip: float = 1.0  # of the gradient's global norm
    ema: float = (
        0.0  # decay of an average of the parameters, which is then what is evaluated; 0: none
    )
    nonfinite: str = "stop"  # stop | skip: a step whose loss or gradient is not finite
    # Share of the training chunks one of whose neighbours is replaced by the chunk's own
    # continuation: `own_continuation` at first; from half of `own_continuation_until`, a fraction of
    # the run, it falls linearly, to be 0 there. An augmentation of this project, not of the paper.
    own_continuation: float = 0.0
    own_continuation_until: float = 0.5
    # A directory with weights to begin with (retro_jax/interop): a decoder, to which retrieval is added
    # (RETROfit), or a whole RETRO. With steps = 0 it is evaluated, and generates, as it is.
    base: str = ""
    freeze: bool = (
        True  # the language model of a base stays as it is, bit for bit; else it is trained
    )
    base_rate: float = (
        0.1  # of the learning rate: what a language model that is not frozen learns with
    )
    # retro, and baseline: the same decoder without retrieval, for comparison
    models: tuple[str, ...] = ("retro",)
    seed: int = 0
    checkpoint_every: int = 200  # steps
    keep: int = 2  # the newest checkpoints that stay, beside the best
    validate: int = 2  # batches of held-out sequences that are scored at every checkpoint
    log_every: int = 20  # steps
    tensorboard: bool = False  # also write events for it (pip install 'retro_jax[tensorboard]')


@dataclass(frozen=True)
class EvaluateConfig:
    """Held-out evaluation (retro_jax/evaluate)."""

    stride: int = 1024  # tokens between windows of train.length; a multiple of model.chunk
    batch: int = 16  # windows of a batch
    checkpoint: str = "last"  # last | best (by train.validate): what is evaluated, and generates
    # What is compared: see evaluate/conditions.py; () is everything that there is.
    conditions: tuple[str, ...] = ()
    generated: int = 32  # documents whose beginning is continued, to see how much is copied
    filter_overlap: float = 0.125  # also report the loss on chunks that share less than this


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 is what is left."""

    replica: int = 1  # copies of the model, each on data x model devices; TPU slices, or hosts
    data: int = -1
    model: int = 1
    # Devices that a host without an accelerator pretends to have. XLA runs many operations of a
    # device on one core, so a device a core is faster, as long as the batch divides by it.
    cpu_devices: int = 1


@dataclass(frozen=True)
class Experiment:
    """One experiment: one config file, one working directory."""

    name: str = "experiment"
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    generate: Request = field(default_factory=Request)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self):
        check(self)

    @property
    def chunks(self) -> int:
        """Chunks of a training sequence."""
        return self.train.length // self.model.chunk


def experiment_beside(file: str, name: str):
    """The module of the experiment NAME.py in the folder of another one's `file`."""
    spec = importlib.util.spec_from_file_location(name, Path(file).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def to_config_dict(experiment: Experiment) -> ml_collections.ConfigDict:
    """The experiment with every field, for ml_collections flags."""
    return ml_collections.ConfigDict(dataclasses.asdict(experiment))


def from_config_dict(config: ml_collections.ConfigDict | typing.Mapping) -> Experiment:
    """Frozen dataclasses from a ConfigDict or nested dict.

    Raises:
      UserError: an unknown field (with the nearest known one) or a value that cannot work.
    """
    plain = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    return _build(Experiment, dict(plain), "")


def _build(cls, values: dict, prefix: str):
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else "known: " + ", ".join(fields)
            raise UserError(f"config has no field {prefix}{name}: {hint}")
    kwargs = {}
    for name, value in values.items():
        kwargs[name] = _typed(fields[name].type, value, prefix + name)
    return cls(**kwargs)


def _typed(kind, value, name: str):
    """The value as the field's type: an int for a float and a list for a tuple will do."""
    if dataclasses.is_dataclass(kind) and isinstance(value, typing.Mapping):
        return _build(kind, dict(value), f"{name}.")
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_typed(typing.get_args(kind)[0], v, name) for v in value)
    if kind is float and type(value) is int:
        return float(value)
    require(type(value) is kind, name, value, f"must be of type {getattr(kind, '__name__', kind)}")
    return value
