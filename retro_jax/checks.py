"""What the fields of an experiment must be like (config.py), and what to do where they are not."""

import re

from retro_jax.errors import UserError


def require(condition: bool, name: str, value, remedy: str):
    """Raises UserError that names a field, its value and the remedy, unless the condition holds."""
    if not condition:
        raise UserError(f"config field {name} = {value!r}: {remedy}")


def check(e):
    """Raises UserError for the first field of an Experiment whose value cannot work."""
    c, r, m, t, v = e.corpus, e.retrieval, e.model, e.train, e.evaluate
    for name, value in {
        "corpus.vocab": c.vocab,
        "retrieval.dim": r.dim,
        "retrieval.neighbours": r.neighbours,
        "retrieval.index_shard": r.index_shard,
        "model.d": m.d,
        "model.layers": m.layers,
        "model.heads": m.heads,
        "model.head_size": m.head_size,
        "model.chunk": m.chunk,
        "model.encoder_d": m.encoder_d,
        "model.encoder_layers": m.encoder_layers,
        "model.encoder_heads": m.encoder_heads,
        "model.encoder_head_size": m.encoder_head_size,
        "model.attention_block": m.attention_block,
        "train.batch": t.batch,
        "train.accumulate": t.accumulate,
        "train.keep": t.keep,
        "train.checkpoint_every": t.checkpoint_every,
        "train.log_every": t.log_every,
        "evaluate.batch": v.batch,
        "mesh.cpu_devices": e.mesh.cpu_devices,
    }.items():
        require(value >= 1, name, value, "must be at least 1")
    for name, value, choices in (
        ("corpus.bad_documents", c.bad_documents, ("refuse", "skip")),
        ("evaluate.checkpoint", v.checkpoint, ("last", "best")),
        ("train.nonfinite", t.nonfinite, ("stop", "skip")),
        ("corpus.exact_duplicates", c.exact_duplicates, ("keep", "drop")),
        ("retrieval.index", r.index, ("auto", "exact", "scann", "bm25")),
        ("retrieval.dtype", r.dtype, ("float32", "bfloat16")),
        ("model.dtype", m.dtype, ("float32", "bfloat16")),
        ("model.remat", m.remat, ("none", "dots", "full")),
        ("model.positions", m.positions, ("relative", "rotary", "learned")),
        ("model.read_positions", m.read_positions, ("relative", "none")),
        ("model.norm", m.norm, ("rms", "layer")),
        ("model.activation", m.activation, ("gelu", "gelu_exact", "silu", "relu")),
    ):
        require(value in choices, name, value, f"must be one of {', '.join(choices)}")
    require(
        r.embedder in ("tfidf", "words") or r.embedder.startswith("bert:"),
        "retrieval.embedder",
        r.embedder,
        "must be tfidf, bert:DIRECTORY or words",
    )
    require(
        (r.embedder == "words") == (r.index == "bm25"),
        "retrieval.index",
        r.index,
        "bm25 and retrieval.embedder = 'words' go together only; with another embedder, give "
        "--config.retrieval.index=auto",
    )
    for one in c.heldout_sources:
        name, equals, source = one.partition("=")
        require(
            re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) and equals and source,
            "corpus.heldout_sources",
            one,
            "must be NAME=SOURCE, the name of small letters and digits: 'peps=jsonl:peps.jsonl#text'",
        )
    names = [one.partition("=")[0] for one in c.heldout_sources]
    require(
        len({*names, "train", "heldout", "database"}) == len(names) + 3,
        "corpus.heldout_sources",
        names,
        "names must differ from one another and from train, heldout and database",
    )
    require(c.vocab >= 300, "corpus.vocab", c.vocab, "must be at least 300 (256 bytes and more)")
    require(0 < c.heldout < 1, "corpus.heldout", c.heldout, "must lie between 0 and 1")
    require(m.d % 2 == 0, "model.d", m.d, "must be even (sine and cosine positions)")
    require(m.encoder_d % 2 == 0, "model.encoder_d", m.encoder_d, "must be even")
    require(
        m.retrieved == 2 * m.chunk,
        "model.retrieved",
        m.retrieved,
        f"must be 2 x model.chunk = {2 * m.chunk}: a neighbour and its continuation",
    )
    for name, layers, count in (
        ("model.cca_layers", m.cca_layers, m.layers),
        ("model.encoder_ca_layers", m.encoder_ca_layers, m.encoder_layers),
    ):
        ordered = list(layers) == sorted(set(layers))
        require(
            ordered and all(1 <= p <= count for p in layers),
            name,
            layers,
            f"must be increasing numbers of layers from 1 to {count}",
        )
    require(len(m.cca_layers) > 0, "model.cca_layers", m.cca_layers, "must name a layer")
    require(
        not m.share_embedding or m.encoder_d == m.d,
        "model.share_embedding",
        m.share_embedding,
        f"needs model.encoder_d = model.d, but they are {m.encoder_d} and {m.d}",
    )
    require(
        m.kv_heads >= 0 and (m.kv_heads == 0 or m.heads % m.kv_heads == 0),
        "model.kv_heads",
        m.kv_heads,
        f"must divide model.heads = {m.heads}; 0 is as many",
    )
    turned = m.head_size * m.rotary_share
    require(
        m.positions != "rotary" or (0 < turned <= m.head_size and turned % 2 == 0),
        "model.rotary_share",
        m.rotary_share,
        f"must turn an even number of the model.head_size = {m.head_size} numbers of a head",
    )
    require(
        m.max_length >= t.length or (m.max_length == 0 and m.positions != "learned"),
        "model.max_length",
        m.max_length,
        f"must be at least train.length = {t.length} (0, any, where positions are not learned)",
    )
    require(
        len(m.rotary_scaling) in (0, 1, 4) and all(x > 0 for x in m.rotary_scaling),
        "model.rotary_scaling",
        m.rotary_scaling,
        "must be (), (factor,) or (factor, low, high, length), all positive",
    )
    for name, value in (("model.ffw", m.ffw), ("model.encoder_ffw", m.encoder_ffw)):
        require(value >= 0, name, value, "must be positive, or 0 for four times the width")
    multiple = f"must be a multiple of model.chunk = {m.chunk}"
    require(t.length >= m.chunk and t.length % m.chunk == 0, "train.length", t.length, multiple)
    require(
        0 < v.stride < t.length and v.stride % m.chunk == 0,
        "evaluate.stride",
        v.stride,
        f"{multiple}, below train.length = {t.length} (a window's first token needs one before it)",
    )
    for name, value in (
        ("train.own_continuation", t.own_continuation),
        ("train.own_continuation_until", t.own_continuation_until),
        ("retrieval.min_recall", r.min_recall),
        ("evaluate.filter_overlap", v.filter_overlap),
        ("corpus.near_duplicate", c.near_duplicate),
        ("train.final", t.final),
    ):
        require(0 <= value <= 1, name, value, "must lie between 0 and 1")
    for name, value in (
        ("mesh.replica", e.mesh.replica),
        ("mesh.data", e.mesh.data),
        ("mesh.model", e.mesh.model),
    ):
        require(value >= 1 or value == -1, name, value, "must be a number of devices, or -1")
    for name, value in (
        ("train.learning_rate", t.learning_rate),
        ("train.warmup", t.warmup),
        ("train.weight_decay", t.weight_decay),
        ("train.base_rate", t.base_rate),
    ):
        require(value >= 0, name, value, "must not be negative")
    for name, value in (("train.b1", t.b1), ("train.b2", t.b2), ("train.ema", t.ema)):
        require(0 <= value < 1, name, value, "must be at least 0 and below 1")
    require(
        t.models and set(t.models) <= {"retro", "baseline"},
        "train.models",
        t.models,
        "must be ('retro',), ('baseline',) or ('retro', 'baseline')",
    )
    require(t.validate >= 0, "train.validate", t.validate, "must not be negative")
    require(
        v.checkpoint == "last" or t.validate > 0,
        "evaluate.checkpoint",
        v.checkpoint,
        "needs train.validate > 0, by which the best is found",
    )
    require(
        t.batch % t.accumulate == 0,
        "train.accumulate",
        t.accumulate,
        f"must divide train.batch = {t.batch}",
    )
    require(t.clip > 0, "train.clip", t.clip, "must be positive")
    least = 0 if t.base else 1
    require(t.steps >= least, "train.steps", t.steps, f"must be at least {least}")
    e.generate.check("config field generate.")
