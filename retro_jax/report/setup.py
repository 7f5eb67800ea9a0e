"""What was evaluated, and with what: tables without charts."""

from retro_jax.evaluate.rows import Rows
from retro_jax.report.numbers import percent, plain
from retro_jax.report.section import Section

_NAMED = 3  # pairs of documents


def tables(f: dict, rows: Rows) -> list[Section]:
    """The facts that the rows carry."""
    facts = rows.facts
    counts = [
        ["experiment", facts["name"]],
        ["split", facts["split"]],
        *([n, plain(f[n])] for n in ("documents", "tokens", "bytes", "words")),
        ["tokens of a chunk (M)", plain(facts["chunk"])],
        ["neighbours of a chunk (k)", plain(facts["neighbours"])],
        ["little overlap: a chunk shares less than, of its tokens", plain(facts["filter_overlap"])],
        ["little overlap: share of bytes", percent(f["filtered_share_of_bytes"])],
        *([f"database, {n}", plain(x)] for n, x in facts["database"].items()),
        *([f"index, {n}", _text(x)] for n, x in facts["index"].items()),
        *([f"leaks, {n}", plain(x)] for n, x in f["violations"].items()),
        *(
            [f"chunks whose whole text is in what is read before them, {n}", in_words(x)]
            for n, x in f["whole_chunks"].items()
        ),
    ]
    means = [[n, text] for n, text in facts["conditions"].items()]
    versions = [[n, text] for n, text in facts["versions"].items()]
    return [
        Section(
            "counts", "Counts", "What was scored, and what it was looked up in.", ["", ""], counts
        ),
        Section("means", "Conditions", "What the model reads.", ["condition", "it reads"], means),
        Section("versions", "Versions", "What made the rows.", ["package", "version"], versions),
    ]


def in_words(whole: dict) -> str:
    """What `leaks.whole_chunks` found, in a few words."""
    named = [f"{of}: {n} stand in {near}" for of, near, n in whole["documents"][:_NAMED]]
    return f"{whole['chunks']:,}" + (f" ({', '.join(named)})" if named else "")


def _text(x) -> str:
    return plain(x) if isinstance(x, int | float) and not isinstance(x, bool) else str(x)
