"""A continuation in the terminal, coloured by the neighbours that it came from."""

from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from retro_jax import progress
from retro_jax.terminal import Terminal, visible

out = Terminal()

NOTABLE = 0.1  # nats: a token that a neighbour made so much more probable is coloured
_SHOWN = 300  # characters of a passage
_COLOURS = ("green", "blue", "magenta", "cyan", "yellow", "red")


def colour_of(neighbour: int) -> str:
    """The colour of a chunk's neighbour, by its number."""
    return _COLOURS[neighbour % len(_COLOURS)]


def helpers(sample: dict) -> list[int | None]:
    """For each token of a `Completion` which neighbour of its chunk helped it most, if one did: the one
    without which it would have been least probable, by NOTABLE nats at least."""
    found = [None] * len(sample["tokens"])
    for chunk in sample["chunks"]:
        begin = max(chunk["begin"], sample["first"]) - sample["first"]
        gains = [n.get("contributions", []) for n in chunk["neighbours"]]
        for i, gain in enumerate(zip(*gains)):
            best = max(range(len(gain)), key=gain.__getitem__)
            if gain[best] >= NOTABLE:
                found[begin + i] = best
    return found


def continuation(sample: dict) -> Text:
    """The continuation, each token in the colour of the neighbour that helped it most."""
    text, begin = Text(), 0
    for end, neighbour in zip(sample["ends"], helpers(sample)):
        style = "" if neighbour is None else f"{colour_of(neighbour)} underline"
        text.append(visible(sample["text"][begin:end]), style)
        begin = end
    return text


def plain(prompt: str, text: str) -> Text:
    """A prompt and what there is of its continuation."""
    return Text(visible(prompt), "bold") + Text(visible(text))


def print_sample(sample: dict):
    """The prompt and its continuation, and what each chunk retrieved."""
    title = "prompt (bold), continuation"
    if any("contribution" in n for c in sample["chunks"] for n in c["neighbours"]):
        title += f"; coloured: {NOTABLE} nats or more of a neighbour"
    if "question" in sample:
        title = title.replace("prompt", "question").replace("continuation", "answer")
    asked = sample.get("question", sample["prompt"]) + "\n" * ("question" in sample)
    whole = Text(visible(asked), "bold") + continuation(sample)
    out.print(Panel(whole, title=title, title_align="left"))
    if sample.get("finish") == "length":
        tokens = progress.counted(len(sample["tokens"]), "token")
        out.print(f"cut after {tokens}; --config.generate.tokens=N asks for more", markup=False)
    if sample.get("passages"):
        print_neighbours("read before the question", sample["passages"])
        return
    if "passages" in sample and sample["retrieval"] == "off":
        out.print("no passage was read before the question")
        return
    if sample["passage"]:
        out.print(f"before the prompt: {escape(name_of(sample['passage']))}")
    if sample["retrieval"] != "on":
        out.print(f"retrieval: {sample['retrieval']}", markup=False)
    elif not sample["chunks"]:
        out.print(
            "nothing was looked up: that is done where a chunk ends, and none has ended. --config.generate.align=True "
            "looks up where the prompt ends, --chat looks up a question",
            markup=False,
        )
    for number, chunk in enumerate(sample["chunks"]):
        print_neighbours(f"read after chunk {number}", chunk["neighbours"])


def print_neighbours(title: str, neighbours: list[dict]):
    """A table of what a chunk read."""
    if not neighbours:
        out.print(f"{title}: nothing was found")
        return
    worth = any("contribution" in n for n in neighbours)
    table = Table(title=title, title_justify="left", show_lines=True)
    table.add_column("document")
    table.add_column("distance (least: nearest)", justify="right", max_width=11)
    if worth:
        table.add_column("nats", justify="right")
    table.add_column("neighbour and continuation")
    for number, n in enumerate(neighbours):
        distance = f"{n['distance']:.3f}" if "distance" in n else "-"
        row = [Text(name_of(n), colour_of(number) if worth else ""), distance]
        row += [f"{n.get('contribution', 0):+.2f}"] if worth else []
        table.add_row(*row, escape(visible(_shorten(n["text"]))))
    out.print(table)


def _shorten(text: str) -> str:
    """The beginning of a text, whole words of it; an ellipsis says that there is more."""
    if len(text) <= _SHOWN:
        return text
    return text[:_SHOWN].rsplit(None, 1)[0] + "…"


def name_of(neighbour: dict) -> str:
    """Where a neighbour is from, in a few words."""
    if "given" in neighbour:
        return f"given text {neighbour['given'] + 1}"
    known = [str(v) for k, v in neighbour["metadata"].items() if k in ("date", "licence")]
    where = "" if neighbour["database"] == "prepared" else f"{neighbour['database']}: "
    return ", ".join([f"{where}{neighbour['document']} chunk {neighbour['chunk']}", *known])
