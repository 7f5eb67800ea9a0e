"""The evidence in the order in which it is asked for: is it worth anything, where from, why not more."""

from retro_jax.evaluate.rows import Rows
from retro_jax.report import causes, curves, worth
from retro_jax.report.section import Section

_PARTS = (
    worth.conditions,
    worth.effects,
    worth.histogram,
    worth.copied,
    worth.filtered,
    curves.distance,
    curves.skipping,
    curves.neighbours,
    curves.database,
    curves.place,
    curves.sources,
    causes.failures,
    causes.layers,
    causes.attention,
    causes.verbatim,
)


def sections(figures: dict, rows: Rows, hubs: dict[int, str]) -> list[Section]:
    """Every part of which the figures have something; hubs: what the chunks that are read most say."""
    made = [part(figures, rows) for part in _PARTS] + [causes.retriever(figures, rows, hubs)]
    return [s for s in made if s]
