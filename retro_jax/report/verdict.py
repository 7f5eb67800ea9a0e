"""The verdict in sentences that a practitioner can act on, each made from the figures."""

from retro_jax.evaluate.figures import ALARM, FEW, counts
from retro_jax.evaluate.signals import EFFECTS
from retro_jax.report.curves import kept
from retro_jax.report.diagnosis import remedy
from retro_jax.report.numbers import bits, interval, percent, plain
from retro_jax.report.training import in_words

_HEAD = {
    "helps": "Retrieval helps",
    "neutral": "Retrieval makes no difference that can be told from 0",
    "hurts": "Retrieval hurts",
}
_LONGER = "Train longer before anything is concluded: what a database is worth changes most in the beginning."
_EARLY = "Not trained enough to tell"
_UNREAD = "Better, but not by what it retrieves"


def verdict(f: dict, facts: dict) -> dict:
    """What stands at the top.

    Returns:
      word: helps, neutral or hurts. head, effect: one line each. alarms, sentences, advice: lists of sentences.
      tiles: [{label, value, note, state}], state being good, bad or plain.
    """
    v = f["verdict"]
    worse, better = EFFECTS[v["by"]]
    return {
        "word": v["word"],
        "head": _head(v),
        "effect": f"{bits(f['bits_per_byte'][worse])} bits per byte without retrieval, "
        f"{bits(f['bits_per_byte'][better])} with: {interval(v['effect'])}, with the 95 % interval over "
        f"{f['documents']:,} documents ({worse} reads {facts['conditions'][worse]}; {better} "
        f"reads {facts['conditions'][better]}).",
        "alarms": _alarms(f),
        "sentences": [*in_words(f["training"]), _reads(f), _system(f)],
        "advice": [_LONGER] if v["early"] else _advice(f),
        "tiles": _tiles(f, facts),
    }


def _head(v: dict) -> str:
    if v["word"] == "neutral" and v["effect"]["documents"] < FEW:
        return "Too few documents to say"
    if v["early"]:
        return _EARLY
    return _UNREAD if v["word"] == "neutral" and v["effect"]["low"] > 0 else _HEAD[v["word"]]


def _alarms(f: dict) -> list[str]:
    v, leaks, out = f["verdict"], sum(f["violations"].values()), []
    if leaks:
        out.append(
            f"{leaks:,} leaks: the model was shown what it predicts, so no number here means anything."
        )
    if v["collapsed"]:
        nothing = f["failures"]["nothing read"]["share"] == 1
        begin = (
            "Retrieval was not put to the test" if nothing else "Cross-attention may have collapsed"
        )
        out.append(f"{begin}: {v['why_collapsed']}.")
    if f["near_copies"]:
        shown = ", ".join(f["near_copies"][:3]) + (" and more" if len(f["near_copies"]) > 3 else "")
        out.append(
            f"{plain(len(f['near_copies']))} document(s) stand nearly whole in the database ({shown}): what is gained "
            "on them is copying."
        )
    if f["documents"] < FEW:
        out.append(f"Only {plain(f['documents'])} document(s): the intervals say little.")
    return out


def _reads(f: dict) -> str:
    """Whether it reads, and what that does where no neighbour is near."""
    v, gain = f["verdict"], f["effects"]["on_against_off"]
    against, far = f"off - on: {interval(gain)} bits per byte", v["against_off_far"]
    if f["failures"]["nothing read"]["share"] == 1:
        return "No chunk read anything, so nothing can be said of retrieval."
    if max(f["inside"]["ratio"], default=0.0) < ALARM:
        return "It does not read its neighbours: cross-attention adds next to nothing in any layer."
    if not v["reads"]:
        if not v["content"]:
            return f"It is no better with its neighbours than without ({against})."
        other = "better" if v["content"]["high"] < 0 else "as well"
        return (
            f"It does not show that it reads its neighbours: random text in their place does {other} (random - on: "
            f"{interval(v['content'])} bits per byte)."
        )
    told = f" (random - on: {interval(v['content'])} bits per byte)" if v["content"] else ""
    if gain["value"] <= 0:
        return f"It tells its neighbours from others{told}, but is no better with them than with none ({against})."
    what = {1: "helps too", 0: "makes no difference that can be told from 0", -1: "does harm"}
    return (
        f"It reads its neighbours{told}. In the half of the text whose nearest neighbour is farther, reading "
        f"{what[_told(far)]} (off - on: {interval(far)})."
    )


def _system(f: dict) -> str:
    """Against a plain language model."""
    v = f["verdict"]
    if not v["system"]:
        return (
            "Whether a language model without retrieval would do as well was not measured: train one too (methods) "
            "and evaluate again."
        )
    said = {1: "better than", 0: "not to be told from", -1: "worse than"}
    every, far = _told(v["system"]), _told(v["system_far"])
    if (documents := v["system"]["documents"]) < FEW:
        return (
            f"Against the plain language model: {interval(v['system'])} bits per byte on all text, "
            f"{interval(v['system_far'])} in the half whose nearest neighbour is farther; of {documents} documents "
            "that says little."
        )
    joint = "and" if far == every else "but"
    text = (
        f"It is {said[every]} the plain language model on all text ({interval(v['system'])} bits per byte), {joint} "
        f"{said[far]} it in the half whose nearest neighbour is farther ({interval(v['system_far'])})"
    )
    if v["early"]:
        return text + "; of models trained so shortly that says little."
    if far < 0:
        return text + {
            1: ": use it for text of which its database has something near, not for other text.",
            0: ": if it is of use, then for text of which its database has something near.",
            -1: ": use the plain model.",
        }[every]  # fmt: skip
    if every <= 0 and far <= 0:
        return text + ": nothing here pays for its retrieval yet."
    return text + "."


def _told(effect: dict) -> int:
    """The sign of an effect; 0 of too few documents."""
    return 0 if effect["documents"] < FEW else counts(effect)


def _advice(f: dict) -> list[str]:
    share, out = kept(f), []
    if share is None:
        out.append(
            "Reading no neighbours at all is no worse than reading these for every chunk (off against on)."
        )
    elif share < 0.9:
        out.append(
            f"Looking up costs time: the {percent(share)} of the chunks with the nearest neighbours already have nine "
            "tenths of what reading always gains over never."
        )
    return [*out, remedy(f)]


def _tiles(f: dict, facts: dict) -> list[dict]:
    v, h, far, r = f["verdict"], f["harm"], f["far"], f["retrieval"]
    state = {1: "good", 0: "plain", -1: "bad"}

    def tile(label, value, note, s="plain"):
        return {"label": label, "value": value, "note": note, "state": s}

    def value(e):
        return f"{e['value']:+.4f}" if e else "-"

    def between(e):
        return f"[{e['low']:+.4f}, {e['high']:+.4f}] bits per byte" if e else ""

    name = " - ".join(EFFECTS[v["by"]])
    leaks, recall = sum(f["violations"].values()), facts["index"].get("recall")
    shared = percent(f["filtered_share_of_bytes"])
    found = (
        "recall was not measured;"
        if recall is None
        else f"recall@{facts['index'].get('k')} of {recall:.3f};"
    )
    return [
        tile(f"{name}, all text", value(v["effect"]), between(v["effect"]), state[counts(v["effect"])]),
        tile(
            f"{name}, little overlap", value(v["filtered"]),
            f"{between(v['filtered'])}; {shared} of the bytes, in chunks that share less than "
            f"{facts['filter_overlap']:g} of a chunk",
            state[counts(v["filtered"])],
        ),
        tile(
            "content: random - on", value(v["content"]),
            f"{between(v['content'])}; little overlap {value(v['content_filtered'])}" if v["content"]
            else "random neighbours were not scored",
            state[counts(v["content"])],
        ),
        tile(
            f"{name}, far", value(far["effects"][v["by"]]),
            f"{between(far['effects'][v['by']])}; the half whose nearest neighbour is farther, "
            f"{percent(far['share_of_bytes'])} of the bytes",
            state[counts(far["effects"][v["by"]])],
        ),
        tile(
            "harm rate", percent(h["rate"]),
            f"of the tokens lose more than 0.1 nats with neighbours; {percent(h['help_rate'])} gain more",
            "bad" if h["rate"] > h["help_rate"] else "plain",
        ),
        tile("leaks", f"{leaks:,}", "violations counted in the shards; must be 0", "bad" if leaks else "good"),
        tile(
            "retriever", facts["index"].get("kind", "-"),
            f"{found} "
            f"{percent(r['missing'])} of the places for neighbours empty",
        ),
    ]  # fmt: skip
