"""The evidence in the order in which it is asked for: is it worth anything, where from, why not more."""

from retro_jax.evaluate.rows import Rows
from retro_jax.report import curves, diagnosis, documents, gains, training
from retro_jax.report.section import Section

_PARTS = (
    gains.conditions,
    gains.effects,
    gains.histogram,
    gains.copied,
    gains.filtered,
    gains.nearest,
    curves.distance,
    curves.skipping,
    curves.neighbours,
    curves.database,
    curves.place,
    curves.sources,
    documents.section,
    diagnosis.failures,
    diagnosis.layers,
    diagnosis.attention,
    diagnosis.verbatim,
    training.section,
    training.costs,
)


def sections(figures: dict, rows: Rows, hubs: dict[int, str]) -> list[Section]:
    """Every part of which the figures have something; hubs: what the chunks that are read most say."""
    made = [part(figures, rows) for part in _PARTS] + [diagnosis.retriever(figures, rows, hubs)]
    return [s for s in made if s]
