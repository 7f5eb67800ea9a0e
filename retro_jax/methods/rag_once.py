"""In-context retrieval once for a request, as question answering has it: what the first chunk finds stays before the
text."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from retro_jax.methods import rag
from retro_jax.methods.method import LookUps


@dataclass(frozen=True)
class Settings(rag.Settings):
    """The fields `method_settings.rag_once.*`."""

    of: ClassVar[str] = "method_settings.rag_once."


class RagOnce(rag.Rag):
    """`rag` with one look-up. While it continues a text it does not begin its row again, so that nothing is read twice;
    a text that outgrows the window keeps its oldest tokens then, which a scored one does not."""

    name = "rag_once"
    meaning = "the real neighbours of its first chunk, in the prompt of the language model"
    Settings = Settings
    variant_of = "rag"

    @property
    def look_ups(self) -> LookUps:
        """The first chunk, with its own tokens."""
        return dataclasses.replace(super().look_ups, times=1)
