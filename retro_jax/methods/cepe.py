"""CEPE-style reading (Yen et al. 2024, arXiv 2402.16617): an encoder and cross-attention beside a language model that
stays as it is. The reader is that of atlas.py."""

from dataclasses import dataclass
from typing import Any, ClassVar

from retro_jax.methods import retro
from retro_jax.methods.atlas import Reader


@dataclass(frozen=True)
class Settings(retro.Settings):
    """The fields `method_settings.cepe.*`."""

    of: ClassVar[str] = "method_settings.cepe."


class Cepe(Reader):
    """Atlas's reader around the trained language model, which is frozen; its cross-attention begins as the identity.
    (CEPE itself has one in every layer, and trains in two stages.)"""

    name = "cepe"
    meaning = (
        "the real neighbours of the first chunk, beside a language model that stayed as it was"
    )
    Settings = Settings
    begins_with, freezes = "language_model", True

    def reading(self) -> dict[str, Any]:
        """Cross-attention starts as the identity."""
        return {"cca_zero": True}
