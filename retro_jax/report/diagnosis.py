"""Why retrieval is worth what it is: classes of chunks, the model's inside, the retriever."""

from retro_jax.evaluate.chunks import EPS
from retro_jax.evaluate.figures import ALARM
from retro_jax.report import charts
from retro_jax.report.numbers import nats, percent, plain, total
from retro_jax.report.section import Section


def failures(f: dict, rows) -> Section:
    every = f["failures"]
    names = list(every)
    most = max((n for n in names if n not in ("helped", "misled")), key=lambda n: every[n]["share"])
    caption = (
        f"What came of the retrieval of each chunk; better or worse by at least {EPS} nats per token (off - on). "
        f"{percent(every['helped']['share'])} were helped and {percent(every['misled']['share'])} misled; the most "
        f"common other fate is {most} ({percent(every[most]['share'])}): {every[most]['means']}."
    )
    shares = [every[n]["share"] for n in names]
    if not _others(f):
        caption += " Whether fewer or later neighbours would have helped was not measured."
    chart = charts.bars("failures", caption, names, {"chunks": shares}, "share of chunks", percent)
    table = [
        [n, percent(every[n]["share"]), total(every[n]["nats"]), every[n]["means"]] for n in names
    ]
    head = ["class", "share of chunks", "nats in all", "meaning"]
    return Section("failures", "What came of it, by chunk", caption, head, table, chart)


def _others(f: dict) -> bool:
    """Whether other neighbours than the nearest k were scored; without them no chunk is misranked."""
    return any(n == "next" or (n[0] == "k" and n[1:].isdecimal()) for n in f["bits_per_byte"])


def layers(f: dict, rows) -> Section | None:
    ratio = f["inside"]["ratio"]
    if not ratio:
        return None
    names = [str(i + 1) for i in range(len(ratio))]
    dead = sum(r < ALARM for r in ratio)
    caption = (
        "How long the vector that each chunked cross-attention adds is, against the one that it is added to. The "
        f"largest here is {plain(max(ratio))}; below {ALARM:g} a layer does nothing, which holds for "
        f"{dead} of {len(ratio)}."
    )
    chart = charts.bars(
        "layers", caption, [f"layer {n}" for n in names], {"ratio": ratio},
        "|added| / |what it is added to|", plain,
    )  # fmt: skip
    table = [[n, plain(r)] for n, r in zip(names, ratio)]
    head = ["cross-attention", "ratio"]
    return Section("layers", "What cross-attention adds", caption, head, table, chart)


def attention(f: dict, rows) -> Section | None:
    mass = f["inside"]["mass"]
    if not mass:
        return None
    n, c = (sum(m[i] for m in mass) for i in (0, 1))
    names = [f"neighbour {i + 1}" for i in range(len(mass))]
    caption = (
        "Attention on each neighbour (N) and its continuation (F), mean over layers and over the tokens that read "
        f"any: {percent(n)} in all goes to neighbours, {percent(c)} to continuations"
        + (f", {percent(1 - n - c)} to nothing (null keys)" if 0 < n + c < 0.999 else "")
        + ". Attention shows where a model looks, not what that is worth."
    )
    series = {"N": [m[0] for m in mass], "F": [m[1] for m in mass]}
    chart = charts.bars("attention", caption, names, series, "share of attention", percent)
    table = [[name, percent(m[0]), percent(m[1])] for name, m in zip(names, mass)]
    return Section("attention", "Where it looks", caption, ["", "N", "F"], table, chart)


def verbatim(f: dict, rows) -> Section | None:
    found = f["verbatim"]
    if not found:
        return None
    runs = list(found["on"]["shown"])
    caption = (
        f"Text generated after the beginnings of {found['prompts']} documents, {found['tokens']} tokens each, drawn "
        f"at temperature 1: the share of it inside a run of so many tokens that stands word for word elsewhere. "
        f"With retrieval {percent(found['on']['shown'][runs[0]])} stands in runs of {runs[0]} and more in what was "
        f"shown, {percent(found['on']['database'][runs[0]])} anywhere in the database; without, "
        f"{percent(found['off']['database'][runs[0]])}."
    )
    parts = [("on", "shown"), ("on", "database"), ("off", "database")]
    series = {f"{c}: {where}": [found[c][where][n] for n in runs] for c, where in parts}
    names = [f"{n} tokens" for n in runs]
    chart = charts.bars("verbatim", caption, names, series, "share of generated tokens", percent)
    table = [[name, *(percent(s[i]) for s in series.values())] for i, name in enumerate(names)]
    return Section("verbatim", "Copied in generated text", caption, ["run", *series], table, chart)


def retriever(f: dict, rows, hubs: dict[int, str]) -> Section:
    """hubs: what the chunks that are read most say, by their number."""
    r, index, few = f["retrieval"], rows.facts["index"], f["share_with_fewer_than_k"]
    recall = index.get("recall")
    most = r["hubs"][0] if r["hubs"] else None
    caption = f"{percent(r['missing'])} of the places for neighbours are empty, {percent(r['share_of_database'])} of "
    caption += f"the database was read, and {percent(r['repeated'])} of the neighbours stand twice with a chunk."
    if most:
        caption += f" The chunk that was read most, {most[0]}, was read {most[1]:,} times."
    table = [
        ["index", str(index.get("kind", "-"))],
        ["recall@k against exact search", plain(recall)],
        ["empty places for neighbours", percent(r["missing"])],
        *([f"chunks of {s} with fewer than k neighbours", percent(x)] for s, x in few.items()),
        ["chunks of the database that were read", f"{r['distinct']:,}"],
        ["share of the database", percent(r["share_of_database"])],
        ["neighbours that stand twice with a chunk", percent(r["repeated"])],
        ["skewness of how often a chunk is read", plain(r["hubness"])],
    ]
    if gap := f["gap_closed"]:
        table.append(["of the way from random neighbours to the answer itself", percent(gap)])
    exact = f["effects"].get("exact_search")
    if exact:
        table.append(["gain of exact search, bits per byte", f"{exact['value']:+.4f}"])
    table = [[*row, ""] for row in table]
    table += [[f"times chunk {i} was read", f"{n:,}", hubs[i]] for i, n in r["hubs"]]
    chart = ""
    if r["hubs"]:
        chart = charts.bars(
            "retriever", caption, [f"chunk {i}" for i, _ in r["hubs"]],
            {"times": [n for _, n in r["hubs"]]}, "times read: the ten that are read most",
            lambda n: f"{n:,.0f}",
        )  # fmt: skip
    return Section("retriever", "The retriever", caption, ["", "value", "it begins"], table, chart)


def remedy(f: dict) -> str:
    """What the most common failure asks for, in a sentence."""
    every = f["failures"]
    name = max(("misled", "misranked", "ignored", "absent"), key=lambda n: every[n]["share"])
    share = percent(every[name]["share"])
    found = (
        "nothing that was found would have helped"
        if _others(f)
        else "what was found changes little"
    )
    return {
        "absent": f"For {share} of the chunks {found}: a larger or closer database, or another way to look up, is "
        "what to try first.",
        "misranked": f"For {share} of the chunks fewer or later neighbours would have helped: better ranking is "
        "what to try first.",
        "ignored": f"For {share} of the chunks the model ignores neighbours that share a run of 8 tokens or more: "
        "train it longer before the retriever is changed.",
        "misled": f"{share} of the chunks are misled by at least {EPS} nats per token: read only near neighbours.",
    }[name] if every[name]["share"] else f"No chunk changes by {nats(-EPS)} nats per token or more."  # fmt: skip
