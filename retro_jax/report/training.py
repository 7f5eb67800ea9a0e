"""How the models were trained, in words and curves; and what they cost."""

from retro_jax.report import charts
from retro_jax.report.numbers import NONE, about, percent, plain
from retro_jax.report.section import Section

_FALLS = 0.002  # of the loss, from one checkpoint to the last: still falling


def in_words(trainings: dict[str, dict]) -> list[str]:
    """Sentences on how long each was trained; none where that is not known."""
    if not trainings:
        return []
    each = [
        f"{name} {plain(t['steps'])} steps, {about(t['tokens'] / 1e6)} M tokens, "
        f"{_each(t)}{about(t['epochs'])} epochs"
        f"{', from given weights' if t['base'] else ''}"
        f"{_falling(t['heldout'])}"
        for name, t in trainings.items()
    ]
    seeds = sorted({t["seed"] for t in trainings.values()})
    one = f"One training of each (train.seed {', '.join(map(str, seeds))}): another seed may differ by more than the "
    one += "intervals, which are over documents."
    return [f"Trained: {'; '.join(each)}.", one]


def _each(t: dict) -> str:
    seen = t["tokens_per_parameter"]
    return "" if seen is None else f"{about(seen)} for each {'new ' * t['base']}parameter, "


def _falling(curve: list) -> str:
    if len(curve) < 2:
        return ""
    (before, higher), (_, lower) = curve[-2:]
    fall = 1 - lower / higher
    if fall < _FALLS:
        return ""
    return (
        f", its loss on held-out text still falling (by {percent(fall)} since step {plain(before)})"
    )


def section(f: dict, rows) -> Section | None:
    """The loss on held-out text by step, and by time: a step of one may take longer than one of another."""
    trainings = {n: t for n, t in f["training"].items() if t["heldout"]}
    if not trainings:
        return None
    each = {n: t["seconds"] / t["steps"] for n, t in trainings.items() if t["seconds"]}
    caption = "Loss on held-out text at the checkpoints, nats a token; a model that reads has its neighbours there."
    if len(each) > 1:
        slow, fast = max(each, key=each.get), min(each, key=each.get)
        caption += (
            f" All that is compared here is at equal steps. A step of {slow} took {about(each[slow] / each[fast])} "
            f"times as long as one of {fast}: at equal time {fast} would have had so many times the steps."
        )
    losses = {n: dict(t["heldout"]) for n, t in trainings.items()}
    steps = sorted({step for loss in losses.values() for step in loss})
    series = {n: [loss.get(step) for step in steps] for n, loss in losses.items()}
    chart = charts.lines("training", caption, steps, series, "steps", "nats a token")
    head = ["model", "parameters", "steps", "M tokens", "tokens a parameter", "epochs", "minutes"]
    head.append("last loss")
    table = [
        [n, plain(t["parameters"]), plain(t["steps"]), plain(t["tokens"] / 1e6), plain(t["tokens_per_parameter"]),
         plain(t["epochs"]), plain(t["seconds"] / 60) if t["seconds"] else NONE, plain(t["heldout"][-1][1])]
        for n, t in trainings.items()
    ]  # fmt: skip
    return Section("training", "How they were trained", caption, head, table, chart)


def costs(f: dict, rows) -> Section | None:
    """FLOPs and time of a token, with retrieval and without."""
    ms, known = (
        f["ms_per_token"],
        {n: t for n, t in f["training"].items() if "flops_per_token" in t},
    )
    if not ms or not known:
        return None
    name, reader = next(iter(known.items()))
    found = reader["search_flops_per_token"]
    caption = (
        "Of a token of held-out text, forward: FLOPs of the network, and of the look-up that its chunk wants; and "
        "milliseconds of scoring it here, in batches, with neighbours that are found already. What it takes while a "
        "model generates: retro compare."
    )
    if base := known.get("language_model"):
        more = (reader["flops_per_token"] + (found or 0.0)) / base["flops_per_token"]
        caption += f" With retrieval it is {plain(more)} times the language model's FLOPs"
        slower = plain(ms["on"] / ms["language_model"]) if ms.get("language_model") else NONE
        caption += f" and {slower} times its time."
    table = [[f"{name}, on", _mega(reader["flops_per_token"]), _mega(found), plain(ms["on"])]]
    table.append([f"{name}, off", NONE, plain(0), plain(ms["off"])])
    table += [
        [n, _mega(t["flops_per_token"]), plain(0), plain(ms[n])]
        for n, t in known.items()
        if n in ms
    ]
    head = ["", "network, MFLOP a token", "search, MFLOP a token", "ms a token"]
    return Section("costs", "What retrieval costs", caption, head, table, open=True)


def _mega(flops: float | None) -> str:
    return NONE if flops is None else plain(flops / 1e6)
