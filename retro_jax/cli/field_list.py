"""Every field of a config: its value, its default, and what it means."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from retro_jax.config import Experiment
from retro_jax.config.fields import leaves
from retro_jax.config.table import Table
from retro_jax.evaluate.condition import CONDITIONS
from retro_jax.methods.method import METHODS
from retro_jax.pipeline.recipe import recipe
from retro_jax.retrieval.embedder import EMBEDDERS
from retro_jax.retrieval.index import INDEXES

Row = tuple[str, object, object, str]  # name, value, default, meaning


def rows(e: Experiment) -> Iterator[Row]:
    """The rows of an experiment, settings of embedders, indexes and methods included."""
    for row in _of(e, Experiment()):
        if row[0] == "retrieval.settings":
            for table in (EMBEDDERS, INDEXES):
                yield from _settings(table, e.retrieval.settings)
        elif row[0] == "method_settings":
            yield from _settings(METHODS, e.method_settings)
        else:
            yield row


def decided(e: Experiment) -> dict[str, str]:
    """Of each field that a step of the pipeline depends on, the first such step; all other fields may
    change without a shard being made again."""
    first: dict[str, str] = {}
    for name, step in recipe(e, Path()).items():
        for field in step.settings:
            first.setdefault(field, name)
    return first


def _of(config, default, prefix: str = "") -> Iterator[Row]:
    for (name, value, field), (_, usual, _) in zip(leaves(config, prefix), leaves(default, prefix)):
        yield name, value, usual, _meaning(field, name)


def _meaning(field: dataclasses.Field, name: str) -> str:
    text = field.metadata.get("meaning", "")
    known = {table.field: table for table in (EMBEDDERS, INDEXES, METHODS, CONDITIONS)}
    return f"{text}: {', '.join(known[name])}" if name in known else text


def _settings(table: Table, given: dict) -> Iterator[Row]:
    for name in table:
        own, usual = table.settings_of(name, given), table.settings_of(name, {})
        yield from _of(own, usual, f"{table.settings}.{name}.")
