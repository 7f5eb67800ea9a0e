"""Which documents gain, and how much of all gain is theirs."""

import numpy as np

from retro_jax.evaluate.signals import EFFECTS
from retro_jax.report import charts
from retro_jax.report.numbers import change, percent, plain, total
from retro_jax.report.section import Section

_SHOWN = 8  # of the documents that gain most, and as many that gain least
_NAME = 48  # characters of a document's id in a chart, the last ones


def section(f: dict, rows) -> Section | None:
    """Documents by their gain in nats, the most and the least."""
    worse, better = EFFECTS[f["verdict"]["by"]]
    ids = [d["id"] for d in rows.facts["documents"]]
    if len(ids) < 2:
        return None
    number, count = rows["document"], len(ids)
    gains = np.bincount(number, rows.nats[worse] - rows.nats[better], count)
    size = np.bincount(number, rows["bytes"], count)
    order = np.argsort(-gains, kind="stable")
    up = np.maximum(gains[order], 0)
    half = int(np.searchsorted(np.cumsum(up), up.sum() / 2)) + 1
    lose = int((gains < 0).sum())
    caption = (
        f"What each document gains ({worse} - {better}), in nats of all its tokens. {plain(lose)} of {plain(count)} "
        f"lose ({percent(lose / count)})"
    )
    if up.sum() > 0:
        caption += (
            f"; half of all that is gained is gained by {plain(half)} ({percent(half / count)})."
        )
    shown = order if count <= 2 * _SHOWN else np.concatenate([order[:_SHOWN], order[-_SHOWN:]])
    names = [ids[i] if len(ids[i]) <= _NAME else "…" + ids[i][1 - _NAME :] for i in shown]
    chart = charts.bars("documents", caption, names, {"gain": gains[shown]}, "nats in all", total)
    table = [
        [
            ids[i],
            total(gains[i]),
            change(gains[i] / max(1, size[i]) / np.log(2)),
            plain(int(size[i])),
        ]
        for i in shown
    ]
    head = ["document", "nats in all", "bits per byte", "bytes"]
    return Section("documents", "Which documents gain", caption, head, table, chart)
