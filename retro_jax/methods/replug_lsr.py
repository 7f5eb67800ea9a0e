"""REPLUG-LSR (Shi et al. 2023, arXiv 2301.12652, section 4): REPLUG with a retriever that learned from the language
model which documents make what follows probable. Query side only (trained_queries.py); replug_lsr_full.py has the
rest."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from retro_jax.config import ModelConfig
from retro_jax.config.fields import require, setting
from retro_jax.methods import query_map, replug
from retro_jax.methods.retriever_losses import lsr
from retro_jax.methods.trained_queries import TrainedQueries, Training
from retro_jax.model import functional


@dataclass(frozen=True)
class Settings(Training, replug.Settings):
    """The fields `method_settings.replug_lsr.*`."""

    of: ClassVar[str] = "method_settings.replug_lsr."
    beta: float = setting(1.0, "temperature of the language model's log p of a whole chunk")

    def __post_init__(self):
        Training.__post_init__(self)
        replug.Settings.__post_init__(self)
        require(self.beta > 0, f"{self.of}beta", self.beta, "must be above 0")


class ReplugLsr(TrainedQueries, replug.Replug):
    """REPLUG whose queries are mapped before they are searched."""

    name = "replug_lsr"
    meaning = "each of the neighbours of a trained retriever, in a prompt of its own"
    Settings = Settings

    def loss_of_scores(self, given: query_map.Examples, params: dict, mesh, batch: int) -> Callable:
        """KL(P_R || Q)."""

        logp = said(self.model, given, params, mesh, batch)
        return lambda scores, rows: lsr(scores, logp[rows], self.settings.beta)


def said(model: ModelConfig, given: query_map.Examples, params: dict, mesh, batch: int):
    """log p of what follows, of the language model that is given each candidate [n, K]."""

    def logprobs(params, tokens):
        return functional.token_logprobs(model, params, tokens)

    return query_map.logp_of_following(given, params, logprobs, mesh, batch)
