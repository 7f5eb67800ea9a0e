"""What to deploy: rules over what a comparison measured and what the user states.

A method is left out if it needs more than the user may do, takes longer than there is time, or cannot follow the
database. Of the others those count that are better than the language model, and better with real neighbours than with
random ones, at 95 % over documents. The best of them is chosen; of several between which the documents cannot decide,
the one that takes the least time.
"""

from dataclasses import dataclass, field

from retro_jax import progress
from retro_jax.errors import UserError
from retro_jax.evaluate.figures import FEW, sign
from retro_jax.methods.method import METHODS, NEEDS
from retro_jax.report.numbers import change, interval

BASE = "language_model"
CHANGES = ("never", "daily")


@dataclass(frozen=True)
class Stated:
    """What the user says.

    may: what can be done with the language model: `train` it; use its `logits`; `none`, give it a prompt.
    latency_ms: most milliseconds a token of one row; 0: any. database_changes: never, or daily: without training.
    """

    may: str = "train"
    latency_ms: float = 0.0
    database_changes: str = "never"

    def __post_init__(self):
        for flag, value, known in (
            ("--may", self.may, NEEDS), ("--database-changes", self.database_changes, CHANGES),
        ):  # fmt: skip
            if value not in known:
                raise UserError(f"{flag}={value}: must be one of {', '.join(known)}")
        if not self.latency_ms >= 0:
            raise UserError(f"--latency-ms={self.latency_ms}: must be 0 (any) or more")


@dataclass
class Decision:
    """What follows.

    word: deploy | language_model | cannot_tell. method: which. head: in a sentence. why: sentences. out: of each method
    that was left out the reason. changes: what would change the answer.
    """

    word: str
    method: str
    head: str
    why: list[str] = field(default_factory=list)
    out: dict[str, str] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)


def warn(documents: dict[str, int]):
    """Says before anything slow begins of which splits the documents will be too few; documents: of each split."""
    for split, count in documents.items():
        if count < FEW:
            progress.say(
                f"WARNING: {split} has {count} documents, and with fewer than {FEW} nothing will be decided; raise "
                "config field corpus.heldout, or give more documents"
            )


def decide(summary: dict, stated: Stated) -> Decision:
    """The decision of a comparison's summary (`evaluate.beside.summary`)."""
    methods, documents = summary["methods"], summary["documents"]
    out = {n: why for n in methods if n != BASE and (why := _barred(n, methods[n], stated))}
    rest = [n for n in methods if n not in out and n != BASE]
    better = [n for n in rest if _helps(methods[n])]
    unclear = [n for n in rest if n not in better and methods[n]["all"]["gain"]["high"] > 0]
    changes = _changes(methods, out, better, summary)
    if documents < FEW:
        head = f"Cannot tell: {documents} held-out documents are too few"
        more = f"{FEW} held-out documents or more (config field corpus.heldout)."
        return Decision("cannot_tell", BASE, head, [], out, [*changes, more])
    if not better and unclear:
        head = f"Cannot tell whether reading makes {_listed(unclear)} better than the language model alone"
        more = "More held-out documents: an interval that holds 0 may then be on one side of it."
        why = [_unclear(n, methods[n]["all"]) for n in unclear]
        return Decision("cannot_tell", BASE, head, why, out, [*changes, more])
    if not better and stated.latency_ms and _ms(methods[BASE]) > stated.latency_ms:
        least = min(methods, key=lambda n: _ms(methods[n]))
        head = (
            f"Nothing here takes {stated.latency_ms:g} ms a token: {least} takes the least, "
            f"{_ms(methods[least]):.1f}"
        )
        return Decision("cannot_tell", BASE, head, [], out, changes)
    if not better:
        head = "Deploy the language model alone: of what is allowed nothing is better"
        return Decision("language_model", BASE, head, [], out, changes)
    best = max(better, key=lambda n: methods[n]["all"]["gain"]["value"])
    equal = [n for n in better if n == best or sign(summary["pairs"][n][best]) == 0]
    chosen = min(equal, key=lambda n: _ms(methods[n]))
    of = methods[chosen]
    why = [
        f"{chosen} gains {interval(of['all']['gain'])} bits per byte over the language model, at {_ms(of):.1f} ms a "
        f"token (the language model: {_ms(methods[BASE]):.1f})."
    ]
    if len(equal) > 1:
        others = [n for n in equal if n != chosen]
        why.append(f"The documents cannot tell it from {_listed(others)}; it takes the least time.")
    why.append(_copies(chosen, of))
    return Decision("deploy", chosen, f"Deploy {chosen}", why, out, changes)


def _barred(name: str, of: dict, stated: Stated) -> str:
    cls, why = METHODS[name], []
    if NEEDS.index(cls.needs) < NEEDS.index(stated.may):
        why.append(f"needs --may={cls.needs}")
    if stated.latency_ms and _ms(of) > stated.latency_ms:
        why.append(f"takes {_ms(of):.1f} ms a token")
    if stated.database_changes != "never" and not cls.follows:
        why.append("knows of a change of the database only by training or by a pass over all of it")
    return ", and ".join(why)


def _helps(of: dict) -> bool:
    content = of["all"].get("content")
    return sign(of["all"]["gain"]) > 0 and (content is None or sign(content) > 0)


def _unclear(name: str, of: dict) -> str:
    gain, content = interval(of["gain"]), of.get("content")
    if sign(of["gain"]) == 0:
        return f"{name}: gain {gain} bits per byte."
    kind = "worse" if sign(content) < 0 else "no better, as far as can be told,"
    return (
        f"{name} gains {gain} bits per byte, but real neighbours are {kind} than random ones ({interval(content)}): "
        "what it gains may be its training."
    )


def _copies(name: str, of: dict) -> str:
    few = of["filtered"] and of["filtered"]["gain"]
    if few is None:
        return "No text shares little with what was read: whether it does more than copy cannot be told."
    content = of["filtered"].get("content")
    if sign(few) > 0 and content and sign(content) <= 0:
        return (
            f"On text that shares little with what was read it gains {interval(few)}, but random neighbours would do "
            f"as well there ({interval(content)})."
        )
    if sign(few) > 0:
        return f"On text that shares little with what was read it gains {interval(few)} too."
    if sign(few) < 0:
        return (
            f"On text that shares little with what was read it loses ({interval(few)}): it is worth it only where "
            "copying is the purpose."
        )
    return (
        f"On text that shares little with what was read its gain cannot be told from 0 ({interval(few)}): it is worth "
        "it where copying is the purpose."
    )


def _changes(methods: dict, out: dict[str, str], better: list[str], summary: dict) -> list[str]:
    """The methods that were left out, and are better than all that were not."""
    said = []
    for name, why in out.items():
        of = methods[name]
        ahead = all(sign(summary["pairs"][other][name]) > 0 for other in better)
        if _helps(of) and ahead:
            gain = change(of["all"]["gain"]["value"])
            said.append(
                f"{name} would gain more ({gain} bits per byte at {_ms(of):.1f} ms), but {why}."
            )
    return said


def _ms(of: dict) -> float:
    return of["ms_per_token"]["1"]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
