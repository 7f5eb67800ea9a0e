"""What says whether generated text is right: one full pass over the finished text, with everything retrieved
again."""

import jax
import numpy as np

from retro_jax.generate.lookup import prompt_ids
from retro_jax.methods.method import method_of
from retro_jax.model import functional
from retro_jax.store.workdir import WorkDir
from retro_jax.train import restore, sharding

M = 16  # tokens of a chunk
TEXT = (
    "kara lopo minel tenis surra kais lora mipo tenra surpo kanel lois mira tenpo surnel kapo " * 4
)
_logits = jax.jit(functional.apply, static_argnums=0)


class Whole:
    """Full passes over whole texts."""

    def __init__(self, experiment, root, generator):
        self.model, self.retriever = experiment.model, generator.retriever
        self.tokenizer = generator.tokenizer
        self._mesh = sharding.one_device()
        with jax.set_mesh(self._mesh):
            self.params = restore.restore_trained(
                WorkDir(root, experiment), method_of(experiment, "retro"), self._mesh
            )

    def neighbours(self, ids, k: int = 2) -> np.ndarray:
        """[chunks, k, 2 M], of complete chunks; PAD where there is none."""
        near = np.zeros((-(-len(ids) // M), k, 2 * M), np.int32)
        if whole := len(ids) // M:
            chunks = np.asarray(ids[: whole * M]).reshape(whole, M)
            near[:whole] = self.retriever.retrieve(chunks, k).tokens
        return near

    def logprobs(self, ids, near) -> np.ndarray:
        """log p [L, V]; row t is of the token after t."""
        size = -(-len(ids) // 64) * 64  # few shapes
        tokens = np.zeros((1, size), np.int32)
        tokens[0, : len(ids)] = ids
        padded = np.zeros((1, size // M, *near.shape[1:]), np.int32)
        padded[0, : len(near)] = near
        with jax.set_mesh(self._mesh):
            out = _logits(self.model, self.params, tokens, padded)
        return np.asarray(jax.nn.log_softmax(out[0]))[: len(ids)]

    def of(self, completion, near) -> np.ndarray:
        """log p of a completion's tokens."""
        ids = self.ids(completion)
        first = completion.first
        return self.logprobs(ids, near)[np.arange(first - 1, len(ids) - 1), ids[first:]]

    def ids(self, completion) -> list[int]:
        """The token ids of a prompt and its continuation."""
        return prompt_ids(self.tokenizer, completion.prompt) + completion.tokens
