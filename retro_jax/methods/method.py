"""What a method is, and which there are: how a language model uses what was retrieved.

The trainer, the evaluation, the scorer, tasks, the generator, the server and the reports take a Method and
know none by name. A method is one class in one file of this folder, and one line of METHODS.

    B sequences, L tokens, Q look-ups, K neighbours, R retrieved length, V vocabulary
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from retro_jax.config import Experiment, ModelConfig
from retro_jax.config.fields import require
from retro_jax.config.table import NoSettings, Table, check_names
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.databases.retriever import Retriever, open_retriever
from retro_jax.model.cache import Fresh
from retro_jax.model.functional import Scores
from retro_jax.retrieval.index import Found
from retro_jax.retrieval.ranking import Queries
from retro_jax.store.workdir import WorkDir

# What a method needs of the language model: to train it (or to read its states), its probabilities, or a prompt.
NEEDS = ("train", "logits", "none")

METHODS = Table(
    "methods",
    "method_settings",
    {
        "language_model": "retro_jax.methods.language_model:LanguageModel",
        "language_model_longer": "retro_jax.methods.language_model_longer:LanguageModelLonger",
        "ngram_memory": "retro_jax.methods.ngram_memory:NGramMemory",
        "retro": "retro_jax.methods.retro:Retro",
        "retro_pp": "retro_jax.methods.retro_pp:RetroPP",
        "atlas": "retro_jax.methods.atlas:Atlas",
        "cepe": "retro_jax.methods.cepe:Cepe",
        "rag": "retro_jax.methods.rag:Rag",
        "rag_once": "retro_jax.methods.rag_once:RagOnce",
        "rag_spliced": "retro_jax.methods.rag_spliced:RagSpliced",
        "rag_often": "retro_jax.methods.rag_often:RagOften",
        "rag_reranked": "retro_jax.methods.rag_reranked:RagReranked",
        "rag_tuned": "retro_jax.methods.rag_tuned:RagTuned",
        "replug": "retro_jax.methods.replug:Replug",
        "replug_lsr": "retro_jax.methods.replug_lsr:ReplugLsr",
        "replug_lsr_full": "retro_jax.methods.replug_lsr_full:ReplugLsrFull",
        "knn_lm": "retro_jax.methods.knn_lm:KnnLm",
    },
)


@dataclass(frozen=True)
class LookUps:
    """Which look-ups a text wants: at every multiple of `every` tokens, with the `width` tokens before it.

    What is found at a multiple can be read from the token before it on, which predicts the one after. With
    `every` = 0 there is one look-up, where the prompt or the context ends. times: only the first so many are read;
    0: all.
    """

    every: int
    width: int
    times: int = 0

    def count(self, length: int) -> int:
        """Q, the look-ups of a sequence of so many tokens; the last one may be incomplete."""
        return -(-length // self.every) if self.every else 1


class Retrieved(NamedTuple):
    """What look-ups found."""

    tokens: jax.Array  # [B, Q, K, R], PAD where there is none
    distances: jax.Array | None = (
        None  # [B, Q, K], as `Neighbours` has them, +inf where there is none
    )


class Method:
    """A way to predict tokens, of a network and of what was looked up.

    Args:
      model: the network. k: K, neighbours of a look-up, 0 for a method that reads nothing.
      settings: a `Settings`; by default its defaults. length: tokens of a sequence in training; 0: any number.

    Attributes:
      name: as in METHODS. meaning: what the model reads, in a few words.
      Settings: a dataclass, its own settings (method_settings.NAME).
      reads: whether it reads what is retrieved. network: whether its network has weights for that.
      retrieves: whether it finds neighbours by itself (`neighbours`). instead: what to do where it cannot.
      variant_of: the name of the method that it is a variant of: a comparison has it only where it is asked for.
      weights_of: the name of the method whose weights it uses; "" if it is trained itself.
      begins_with: the name of the method with whose trained weights its training begins; "" for fresh ones.
      freezes: whether those of the language model then stay as they are.
      needs: of the language model, one of NEEDS. follows: whether a database that changes changes what it says, without
        training and without a pass over the database.
      conditions: the names of evaluate/condition.py's table that make sense for it; None: all.
    """

    name = ""
    meaning = ""
    Settings: type = NoSettings
    reads, network, retrieves, weights_of, variant_of = False, False, False, "", ""
    begins_with, freezes = "", False
    _trainer: "Method | None" = None
    needs, follows = "train", False
    conditions: tuple[str, ...] | None = None
    instead = "leave it out"

    def __init__(self, model: ModelConfig, k: int = 0, settings=None, length: int = 0):
        self.model, self.k, self.length = model, k if self.reads else 0, length
        self.settings = self.Settings() if settings is None else settings

    @property
    def trained(self) -> bool:
        """Whether it has weights of its own."""
        return not self.weights_of

    @property
    def trained_as(self) -> str:
        """The name under which its weights were trained."""
        return self.weights_of or self.name

    @property
    def trainer(self) -> "Method":
        """The method as which its weights were trained: itself, or that of `weights_of`."""
        return self._trainer or self

    @property
    def begins(self) -> "Method | None":
        """The method with whose trained weights its training begins."""
        if not self.begins_with:
            return None
        return METHODS[self.begins_with](self.model, self.k, None, self.length)

    def check(self, e: Experiment):
        """Raises UserError for an experiment with which it cannot work; nothing is opened."""

    # What is looked up, and made in advance.

    @property
    def look_ups(self) -> LookUps | None:
        """Which look-ups a text wants; None for none."""
        return None

    def prepare(self, work: WorkDir):
        """Makes in advance what it needs of a working directory whose weights are trained: a datastore of
        hidden states, say. It is called whenever the method is opened, and returns at once if all is there."""

    @property
    def fetches(self) -> int:
        """How many neighbours a chunk has where a text is scored: those of all look-ups in it."""
        return self.k

    def neighbours(self, work: WorkDir, queries: Queries, table: ChunkTable) -> Found | None:
        """What it retrieves for the chunks of a table by itself, ids and distances [Q, `fetches`]; None: what was
        prepared. queries: of the chunks."""
        return None

    def retriever(self, work: WorkDir) -> Retriever:
        """What it looks texts up with, live."""
        return open_retriever(work)

    @property
    def random(self) -> "Method":
        """The same method, of which what it looks up by itself is drawn at random; what it is given as retrieved is
        the caller's."""
        return self

    # Weights.

    def shapes(self, vocab: int) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight."""
        raise NotImplementedError

    def init(self, vocab: int, seed: int, but: frozenset = frozenset()) -> dict[str, jax.Array]:
        """Fresh weights, on the mesh in context; but: names of those that are not wanted."""
        raise NotImplementedError

    def added(self, vocab: int) -> set[str]:
        """The names of the weights that it adds to the language model."""
        return set()

    def warning(self, steps: int) -> str:
        """What is doubtful about a training of so many steps; "" if nothing is."""
        return ""

    @property
    def notes(self) -> str:
        """What a model card has to say of how it was trained."""
        return ""

    def binding(self) -> dict[str, Any]:
        """{config field: value} of all that its weights depend on, beside how they are trained."""
        raise NotImplementedError

    # Training.

    def trained_with(self, e: Experiment) -> Experiment:
        """The experiment as it is trained with: the same, or one of other `train.*`."""
        return e

    @property
    def read_from(self) -> int:
        """Steps of training before it reads anything: until then its batches are the language model's."""
        return 0

    @property
    def reading_rate(self) -> float:
        """Of the learning rate: that of the weights that retrieval adds."""
        return 1.0

    def training_flops(self, vocab: int, length: int) -> int:
        """FLOPs of the matrix products of the forward pass of one example of training."""
        return self.flops(vocab, length)

    def example(
        self, record: Mapping[str, np.ndarray], rng: np.random.Generator, step: float
    ) -> dict:
        """What a batch has of a record of the shards, each array without its first axis.

        Args:
          record: see `sequences.record`. rng: its own random numbers, the same at every run.
          step: how many steps came before; math.inf of what is not trained on.
        """
        raise NotImplementedError

    def unused(self, batch: dict, vocab: int) -> set[str]:
        """The names of those of its weights that the loss of such a batch does not use: a step leaves them as they
        are."""
        return set()

    def loss(self, params: dict, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Negative log-probability (nats) of all tokens of a batch that count, and how many they are."""
        raise NotImplementedError

    def row_losses(self, params: dict, batch: dict[str, jax.Array]) -> jax.Array:
        """The same of each row of a batch by itself, nats [B]: which of them are not finite."""
        raise NotImplementedError

    def flops(self, vocab: int, length: int) -> int:
        """FLOPs of the matrix products of one sequence's forward pass, counted in the traced program."""
        raise NotImplementedError

    def formula(self, vocab: int, length: int) -> float:
        """The same in closed form (model/formulas.py), within a tenth."""
        raise NotImplementedError

    # Scoring. retrieved: None for nothing. Where `by_chunk`, each chunk is a pass of its own, and all three take
    # `asked` [B, L], the tokens that are wanted: chunks without any are left out.

    by_chunk = False

    def logprobs(self, params: dict, tokens: jax.Array, retrieved: Retrieved | None) -> jax.Array:
        """log p(token t | earlier tokens, what was retrieved), nats: tokens [B, L] -> [B, L] float32."""
        raise NotImplementedError

    def scores(
        self, params: dict, tokens: jax.Array, retrieved: Retrieved | None, never: tuple[int, ...]
    ) -> Scores:
        """What `logprobs` gives, and the most probable tokens.

        never: tokens that are no rival, because nobody draws them.
        """
        raise NotImplementedError

    # Tuning: settings that a comparison chooses on one half of the held-out documents, for the other.

    def choices(self) -> list:
        """Settings to choose from, its own first; [] for a method that has nothing to choose."""
        return []

    def tried(self, params: dict, tokens: jax.Array, retrieved: Retrieved | None) -> jax.Array:
        """What `logprobs` gives under each of the A `choices`: [B, L, A]."""
        raise NotImplementedError

    def jitted(self, name: str, **fixed) -> Callable:
        """What scores texts: `logprobs`, `measured`, `scores` or `tried` as a program, of (params, tokens, retrieved);
        fixed: its further arguments."""
        return jax.jit(functools.partial(getattr(self, name), **fixed))

    def measured(
        self, params: dict, tokens: jax.Array, retrieved: Retrieved
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What `logprobs` gives, and what its reading did (`cross.statistics_of`), first axis the layers that read."""
        raise NotImplementedError

    # Generation, token by token, of rows on one device: model/decode.py has the shapes.

    splices = False  # whether neighbours are a part of the text from where they were found on
    refills = False  # whether a row has room until its chunk ends, and is filled again there whatever was found

    def decoder(self, params: dict):
        """The network for decoding: a pytree. params: left empty, so that what is copied can be given up."""
        raise NotImplementedError

    def params_of(self, net) -> dict:
        """The weights by name of a network for decoding."""
        raise NotImplementedError

    def start(self, net, rows: int, length: int, k: int):
        """The state of `rows` empty sequences of at most `length` tokens that read k neighbours."""
        raise NotImplementedError

    def prefill(self, net, state, tokens, count, retrieved: Retrieved):
        """Reads prompts; returns logits [B, V] of the token after each, and the state."""
        raise NotImplementedError

    def step(self, net, state, tokens, active=None):
        """Reads one token of each row; returns logits [B, V] of the next, and the state.

        The state has `count` [B], the tokens of each row so far, 0 of a row that is free, and `begin` [B], how many of
        them are padding. active: rows [B] that go on. The others stay where they are: they will be given the same
        token again, and what `read` needs of it is kept. None: all.
        """
        raise NotImplementedError

    def read(self, net, state, fresh: Fresh):
        """The state with some rows reading new neighbours from their next token on. Before it, they stood still in a
        step with that token."""
        raise NotImplementedError

    def empty(self, state, rows):
        """The state with rows [n] that hold nothing any more."""
        raise NotImplementedError

    def place(self, state, rows, other, source):
        """The state with its rows replaced by rows `source` of another one, or of itself."""
        raise NotImplementedError


def method_of(e: Experiment, name: str) -> Method:
    """A method of an experiment, by name.

    Raises:
      UserError: there is none of this name, or its settings cannot work.
    """
    cls = METHODS[name]
    settings = METHODS.settings_of(name, e.method_settings)
    made = cls(e.model, e.retrieval.neighbours, settings, e.train.length)
    if cls.weights_of:
        made._trainer = method_of(e, cls.weights_of)
    made.check(e)
    return made


def to_train(e: Experiment, methods: Iterable[Method]) -> list[Method]:
    """The methods whose weights are needed, each after that with whose weights it begins."""
    found: dict[str, Method] = {}

    def need(method: Method):
        if method.begins:
            need(method_of(e, method.begins_with))
        found.setdefault(method.name, method)

    for method in methods:
        need(method_of(e, method.trained_as))
    return list(found.values())


def methods_of(e: Experiment) -> list[Method]:
    """The methods that an experiment trains or compares, in the order of its config."""
    return [method_of(e, name) for name in e.methods]


def check(e: Experiment):
    """Raises UserError for what a config says of methods and cannot be meant."""
    check_names(e.method_settings, METHODS)
    require(
        len(set(e.methods)) == len(e.methods) > 0,
        "methods",
        e.methods,
        f"must name methods once each, of {', '.join(METHODS)}",
    )
    for method in methods_of(e):
        for name in filter(None, (method.weights_of, method.begins_with)):
            METHODS[name]  # refuses one that there is not
