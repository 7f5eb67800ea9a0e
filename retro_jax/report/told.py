"""What a run gave, in a few sentences: what a newcomer reads before any table."""

import importlib.util
import shlex

from retro_jax.config import Experiment
from retro_jax.evaluate.beside import BASE
from retro_jax.evaluate.figures import FEW, counts
from retro_jax.methods.method import methods_of
from retro_jax.pipeline.recipe import database_split
from retro_jax.store.workdir import WorkDir

OURS = "python:"  # the corpus source of the quickstart


def told(work: WorkDir, s: dict) -> list[str]:
    """The sentences of a summary (summary.py): what was built and scored, what retrieval gave, what to do next."""
    e = work.experiment
    return [_built(e, s), _scored(e, s), *_gave(s), *_next(work)]


def _built(e: Experiment, s: dict) -> str:
    corpus, documents = s["prepare"]["corpus"], s["prepare"]["chunks/train"]["documents"]
    chunks = s["prepare"][f"chunks/{database_split(e)}"]["chunks"]
    sizes = {n: f"{n} ({m['parameters'] / 1e6:.3g} M parameters)" for n, m in s["methods"].items()}
    trained = [sizes[n] for n, m in s["methods"].items() if m["steps"]]
    given = [sizes[n] for n, m in s["methods"].items() if not m["steps"]]
    size = f"{documents:,} documents, {corpus['train_bytes'] / 1e6:.3g} MB"
    said = []
    if trained:
        verb = "were" if len(trained) > 1 else "was"
        said.append(f"{' and '.join(trained)} {verb} trained on {size}.")
    if given:
        verb = "are" if len(given) > 1 else "is"
        said.append(
            f"{' and '.join(given)} {verb} not trained here: the weights are those of train.base."
        )
    if reader := next((m.name for m in methods_of(e) if m.reads and m.trained), None):
        said.append(
            f"At the end of each chunk of {e.model.reading.chunk} tokens {reader} looks up "
            f"{e.retrieval.neighbours} similar ones in a database of {chunks:,} chunks, and reads them while it "
            "predicts the next chunk."
        )
        if s["methods"].get(BASE, {}).get("steps"):
            said.append(f"{BASE} is the same model without that.")
    return " ".join(said)


def _scored(e: Experiment, s: dict) -> str:
    unseen = (
        "were not trained on here (what train.base has seen is not known)"
        if e.train.base
        else "neither has seen"
    )
    return (
        f"{s['heldout']['documents']:,} documents that {unseen}, and that are in no database, were scored: bits for "
        "each byte of their text, lower is better."
    )


def _gave(s: dict) -> list[str]:
    bits, effects, v = s["bits_per_byte"], s["effects"], s["verdict"]
    by = v["effect"]
    without = BASE if BASE in bits else "off"
    share = by["value"] / bits[without]
    change = "fewer" if share >= 0 else "more"
    low, high = (by[n] / bits[without] for n in ("low", "high"))
    if share < 0:
        low, high = -high, -low
    said = [
        f"Without retrieval {bits[without]:.3f}, with it {bits['on']:.3f}: {abs(share):.1%} {change} bits (95 % "
        f"interval over documents: {low:+.1%} to {high:+.1%})."
    ]
    if (content := effects.get("content")) and "random" in bits:
        then = "so it does not show that it reads them"
        if counts(content) > 0:
            then = "so it reads what they say"
            if "off" in bits and bits["off"] <= bits["on"]:
                then = (
                    f"so it tells them from others, but with none it is as good ({bits['off']:.3f})"
                )
        said.append(f"With random chunks in place of similar ones {bits['random']:.3f}, {then}.")
    return [*said, _verdict(v, s)]


def _verdict(v: dict, s: dict) -> str:
    seeds = "one training, whose seed matters too"
    if v["effect"]["documents"] < FEW:
        return f"Of so few documents, and {seeds}, nothing can be concluded."
    if v["early"]:
        seen = [t["tokens_per_parameter"] for t in s["training"].values()]
        least = min(n for n in seen if n is not None)
        new = "new " * any(t["base"] for t in s["training"].values())
        return (
            "This shows that everything works, not what retrieval is worth: "
            f"{least:.2g} tokens for each {new}parameter are too short a training to tell, and it is {seeds}."
        )
    return {
        "helps": f"Retrieval helps here, by {seeds}.",
        "hurts": f"Retrieval hurts here, by {seeds}.",
        "neutral": f"Whether retrieval helps here cannot be told, by {seeds}.",
    }[v["word"]]


def _extra(name: str, needs: str) -> str:
    """The command that installs an extra, if what it has is not there."""
    there = importlib.util.find_spec(needs)
    return "" if there else f"pip install 'retro_jax[{name}]' && "


def _next(work: WorkDir) -> list[str]:
    root, source = work.root, work.experiment.corpus.source
    own = [
        "  your own text       retro run --config=quickstart --workdir=runs/mine \\",
        "                          --config.corpus.source='text:FOLDER/**/*.txt' --config.generate.prompt='It was'",
    ]
    longer = "retro run --config=small"
    if source != OURS:
        own, longer = (
            [],
            f"{longer} --workdir={root}-longer --config.corpus.source={shlex.quote(source)}",
        )
    return [
        "Next:",
        *own,
        f"  a longer training   {longer}",
        f"  a report of charts  {_extra('report', 'matplotlib')}retro report {root}",
        f"  a page to try it    {_extra('serve', 'starlette')}retro serve {root}",
    ]
