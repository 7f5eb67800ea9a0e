"""Every field of a config: its value, its default, and what it means."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from retro_jax.config import Experiment
from retro_jax.config.fields import leaves
from retro_jax.config.table import Table
from retro_jax.evaluate.condition import every
from retro_jax.methods.method import METHODS
from retro_jax.pipeline.recipe import recipe
from retro_jax.retrieval.embedder import EMBEDDERS
from retro_jax.retrieval.index import INDEXES

Row = tuple[str, object, object, str]  # name, value, default, meaning


def rows(e: Experiment) -> Iterator[Row]:
    """The rows of an experiment, settings of embedders, indexes and methods included."""
    known = {table.field: table for table in (EMBEDDERS, INDEXES, METHODS)}
    known["evaluate.conditions"] = list(every(None, e.retrieval.neighbours))
    for name, value, usual, meaning in _of(e, Experiment()):
        if name == "retrieval.settings":
            for table in (EMBEDDERS, INDEXES):
                yield from _settings(table, e.retrieval.settings)
        elif name == "method_settings":
            yield from _settings(METHODS, e.method_settings)
        else:
            values = f": {', '.join(known[name])}" if name in known else ""
            yield name, value, usual, meaning + values


def decided(e: Experiment) -> dict[str, str]:
    """Of each field that a step of the pipeline depends on, the first such step; all other fields may
    change without a shard being made again."""
    # Two fields are of no step while they are empty, and decide one as soon as they are not.
    source = dataclasses.replace(e.retrieval, source=e.retrieval.source or "text:GLOB")
    others = dataclasses.replace(
        e.corpus, heldout_sources=e.corpus.heldout_sources or ("name=text:GLOB",)
    )
    first: dict[str, str] = {}
    for variant in (e, dataclasses.replace(e, retrieval=source, corpus=others)):
        for name, step in recipe(variant, Path()).items():
            for field in step.settings:
                first.setdefault(field, name)
    return first


def _of(config, default, prefix: str = "") -> Iterator[Row]:
    for (name, value, field), (_, usual, _) in zip(leaves(config, prefix), leaves(default, prefix)):
        yield name, value, usual, field.metadata["meaning"]


def _settings(table: Table, given: dict) -> Iterator[Row]:
    for name in table:
        own, usual = table.settings_of(name, given), table.settings_of(name, {})
        yield from _of(own, usual, f"{table.settings}.{name}.")
