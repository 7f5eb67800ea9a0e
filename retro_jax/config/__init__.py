"""What an experiment is: one dataclass for each part of its config, and what a request for text is."""

from retro_jax.config.corpus import CorpusConfig
from retro_jax.config.evaluate import EvaluateConfig
from retro_jax.config.experiment import (
    Experiment,
    experiment_beside,
    from_config_dict,
    to_config_dict,
)
from retro_jax.config.filters import Where
from retro_jax.config.mesh import MeshConfig
from retro_jax.config.model import DecoderConfig, EncoderConfig, ModelConfig, ReadingConfig
from retro_jax.config.request import Request
from retro_jax.config.retrieval import RetrievalConfig
from retro_jax.config.study import Study
from retro_jax.config.train import TrainConfig

__all__ = [
    "CorpusConfig",
    "DecoderConfig",
    "EncoderConfig",
    "EvaluateConfig",
    "Experiment",
    "MeshConfig",
    "ModelConfig",
    "ReadingConfig",
    "Request",
    "RetrievalConfig",
    "Study",
    "TrainConfig",
    "Where",
    "experiment_beside",
    "from_config_dict",
    "to_config_dict",
]
