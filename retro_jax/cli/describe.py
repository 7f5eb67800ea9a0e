"""What lies at a path: a working directory's manifests, what its records or rows hold, or a model's directory."""

from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table

from retro_jax.config import ModelConfig
from retro_jax.corpus import gguf
from retro_jax.corpus.chunks import ChunkTable
from retro_jax.corpus.tokenizer import open_tokenizer
from retro_jax.errors import UserError
from retro_jax.model import functional
from retro_jax.store import artefact
from retro_jax.store.records import Records
from retro_jax.terminal import Terminal
from retro_jax.weights import directory, megatron, pretrained

out = Terminal()


def describe(path: Path, count: int = 1):
    """Prints what is at `path`: shards with `count` decoded records, a pre-trained model, or manifests.

    Raises:
      UserError: nothing of retro_jax is there.
    """
    path = Path(path)
    if (path / "layout.json").exists():
        return _shards(path, count)
    found = sorted(p.parent for p in path.rglob(artefact.MANIFEST))
    is_model = gguf.is_one(path) or (path / "config.json").exists() or megatron.is_one(path)
    if is_model and not found:
        return _model(path)
    if not found:
        if held := sorted(p.name for p in path.glob("*.gguf")):
            raise UserError(f"{path}: a folder; describe the model in it: {path / held[0]}")
        if not path.exists():
            raise UserError(f"{path}: no such file or directory")
        if any(path.glob("*.safetensors")) or (path / "tokenizer.json").exists():
            raise UserError(
                f"{path}: lacks config.json; a model's directory has one beside its weights"
            )
        raise UserError(
            f"{path}: neither shards, nor a working directory, nor a model's; give for example "
            "runs/quickstart/prepare/shards/train or runs/quickstart"
        )
    manifests = {found_in: artefact.read(found_in) for found_in in found}
    for found_in, manifest in sorted(manifests.items(), key=lambda item: item[1]["made"]):
        below = found_in if found_in == path else found_in.relative_to(path)
        table = Table(title=escape(str(below)), show_header=False, title_justify="left")
        for _ in range(3):
            table.add_column(overflow="fold")
        for part in ("settings", "counts"):
            for name, value in manifest[part].items():
                shown = f"{value:.4g}" if isinstance(value, float) else str(value)
                table.add_row(part, escape(name), escape(shown))
        seconds = manifest["seconds"]
        table.add_row("", "seconds", "" if seconds is None else f"{seconds:,.1f}")
        table.add_row("", "made", manifest["made"][:19])
        out.print(table)
    return None


def _model(path: Path):
    """What a base would be (train.base): the network, where it is not the default."""
    given = directory.open_directory(path)
    shapes = pretrained.shapes(given.model, given.vocab, given.retrieval)
    kind = "a whole RETRO" if given.retrieval else "a decoder"
    out.print(f"{escape(str(path))}: {kind}, {given.kind}", soft_wrap=True)
    table = Table(show_header=False)
    table.add_row("parameters", f"{functional.count(shapes):,}")
    table.add_row("read as", str(given.dtype))
    table.add_row("tokens", f"{given.vocab:,}")
    usual = pretrained.decided(ModelConfig(), given.retrieval)
    for name, value in pretrained.decided(given.model, given.retrieval).items():
        if value != usual[name]:
            table.add_row(name, str(value))
    out.print(table)
    if directory.tokenizer_of(path) is None:
        out.print(
            f"It lacks a tokenizer ({' or '.join(directory.TOKENIZERS)}), without which no text can be prepared."
        )


def _shards(path: Path, count: int):
    records = Records(path)
    size = sum(p.stat().st_size for p in path.glob("*.tfrecord"))
    table = Table(
        title=f"{escape(str(path))}: {len(records):,} records, {size / 1e6:,.1f} MB",
        title_justify="left",
    )
    for column in ("feature", "dtype", "shape", "in record 0"):
        table.add_column(column)
    first = records[0] if len(records) else {}
    for name, value in first.items():
        flat = value.reshape(-1)
        shown = ", ".join(f"{v:.4g}" if value.dtype.kind == "f" else str(v) for v in flat[:6])
        table.add_row(
            name, str(value.dtype), str(list(value.shape)), shown + (", ..." * (len(flat) > 6))
        )
    out.print(table)
    base = path.parent.parent
    if not (base / "tokenizer").exists():
        return  # shards alone: nothing to decode them with
    pieces, own = open_tokenizer(base / "tokenizer"), ChunkTable(base / "chunks" / path.name)
    separate = base / "chunks" / "database"
    database = ChunkTable(separate if separate.exists() else base / "chunks" / "train")
    for number in range(min(count, len(records))):
        _record(number, records[number], pieces, database, own)


def _record(number: int, record: dict, pieces, database: ChunkTable, own: ChunkTable):
    chunks = len(record["documents"])
    tokens = record["tokens"].reshape(chunks, -1)
    table = Table(title=f"record {number}", title_justify="left", show_lines=True)
    for column in ("chunk", "text", "neighbours: document, distance, text [N | F]"):
        table.add_column(column, overflow="fold")
    for c in range(chunks):
        if record["documents"][c] < 0:
            continue
        near = []
        for id, distance, text in zip(
            record["neighbour_ids"][c], record["distances"][c], record["neighbours"][c]
        ):
            if id < 0:
                near.append("[dim]missing[/]")
                continue
            document = database.documents[int(database.document[id])]
            n, f = (pieces.decode(half.tolist()) for half in np.split(text, 2))
            head = f"{document['id']} chunk {int(id) - document['first']}  {distance:.3f}"
            near.append(f"[bold]{escape(head)}[/]\n{escape(n)}[dim] | [/]{escape(f)}")
        source = own.documents[int(record["documents"][c])]["id"]
        table.add_row(
            f"{c}\n{escape(source)}", escape(pieces.decode(tokens[c].tolist())), "\n\n".join(near)
        )
    out.print(table)
