"""Embedding text with a frozen BERT: ours beside onnxruntime and sentence-transformers.

    pip install -e . torch==2.13.0 onnx onnxruntime sentence-transformers
    python benchmarks/embedding.py --bert=DIRECTORY --chunks 2000
    python benchmarks/embedding.py --smoke      # does it run? few texts, a BERT with random weights

The same weights (DIRECTORY has config.json, *.safetensors, tokenizer.json), the same texts, which are
chunks of a prepared corpus spread evenly over it, in float32 (ours in bfloat16 too, which is what
`retrieval.settings.bert.dtype=bfloat16` gives), each library in a process of its own with all processors; they take
turns, round by round. Tokenizing counts. All three sort texts by length and embed 16 at a time, the
fastest of 4 to 64 for onnxruntime and for ours, up to 512 tokens of each; ours spreads a batch over two
simulated devices, as the experiments do on a CPU. onnxruntime runs the network as torch.onnx.export
writes it, the mean over tokens included, with all its graph optimisations. Prints medians, peak memory,
and how far the unit vectors are from ours at most. The model has to embed by the mean over tokens, as ours
does.
"""

import json
import os
import tempfile
from pathlib import Path

import common
import numpy as np

BATCH, LENGTH, DEVICES = 16, 512, 2
FORMATS = {
    "texts/s": ",.1f", "ours, times as fast": ".2f", "peak GiB": ".2f", "largest difference": ".1e",
}  # fmt: skip


def retro_jax(bert: Path, directory: Path, compute: str = "float32"):
    """Texts -> vectors."""
    from retro_jax.retrieval.embedders.bert import Bert
    from retro_jax.train.sharding import set_up_cpu

    set_up_cpu(DEVICES)
    return Bert(bert, compute, batch=BATCH).embed


def retro_jax_bfloat16(bert: Path, directory: Path):
    """Texts -> vectors."""
    return retro_jax(bert, directory, "bfloat16")


def onnxruntime(bert: Path, directory: Path):
    """Texts -> vectors."""
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = common.THREADS
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(
        directory / "bert.onnx", options, providers=["CPUExecutionProvider"]
    )
    tokenizer = Tokenizer.from_file(str(bert / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def embed(texts):
        encoded = [e.ids[:LENGTH] for e in tokenizer.encode_batch(texts)]
        order = np.argsort([len(ids) for ids in encoded], kind="stable")
        out = [None] * len(texts)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            ids = np.zeros((len(rows), len(encoded[rows[-1]])), np.int64)
            mask = np.zeros_like(ids)
            for i, row in enumerate(rows):
                ids[i, : len(encoded[row])] = encoded[row]
                mask[i, : len(encoded[row])] = 1
            (means,) = session.run(None, {"ids": ids, "mask": mask})
            for row, mean in zip(rows, means):
                out[row] = mean
        return np.array(out)

    return embed


def sentence_transformers(bert: Path, directory: Path):
    """Texts -> vectors."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(common.THREADS)
    model = SentenceTransformer(str(bert), device="cpu", local_files_only=True)
    model.max_seq_length = LENGTH
    return lambda texts: model.encode(texts, batch_size=BATCH, show_progress_bar=False)


def export(bert: Path, directory: Path):
    """Writes bert.onnx: ids and mask [texts, tokens] -> the mean of the last layer."""
    import torch
    from transformers import AutoModel

    class Mean(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = AutoModel.from_pretrained(bert, attn_implementation="eager").eval()

        def forward(self, ids, mask):
            last = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
            weights = mask[..., None].float()
            return (last * weights).sum(1) / weights.sum(1)

    example = torch.ones((2, 16), dtype=torch.int64)
    axes = {0: "texts", 1: "tokens"}
    torch.onnx.export(
        Mean(), (example, example), directory / "bert.onnx", dynamo=False,
        input_names=["ids", "mask"], output_names=["mean"],
        dynamic_axes={"ids": axes, "mask": axes, "mean": {0: "texts"}},
    )  # fmt: skip


LIBRARIES = {
    f.__name__: f for f in (retro_jax, retro_jax_bfloat16, onnxruntime, sentence_transformers)
}
NEEDS = {
    "retro_jax": ("retro_jax",),
    "retro_jax_bfloat16": ("retro_jax",),
    "onnxruntime": ("onnxruntime", "onnx", "torch", "transformers"),
    "sentence_transformers": ("sentence_transformers",),
}


def worker(name: str, bert: Path, directory: Path):
    """Embeds texts.json of a directory, and writes the vectors there."""
    if name == "export":
        return common.serve({"export": lambda: export(bert, directory)})
    embed = LIBRARIES[name](bert, directory)
    texts, last = json.loads((directory / "texts.json").read_text()), [None]

    def run():
        last[0] = embed(texts)

    return common.serve({"embed": run, "save": lambda: np.save(directory / name, last[0])})


def sample(prepared, count: int) -> list[str]:
    """Texts of training chunks, spread evenly."""
    table = prepared.table("train")
    rows = np.linspace(0, len(table) - 1, min(count, len(table))).astype(int)
    return table.texts_of(prepared.tokenizer, rows)


def compare(bert: Path, texts: list[str], rounds: int) -> list[dict]:
    """A row for each library."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    present = [n for n in LIBRARIES if common.installed(n, *NEEDS[n])]

    def start(name: str) -> common.Worker:
        return common.Worker(f"--bert={bert}", "--worker", name, directory)

    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "texts.json").write_text(json.dumps(texts))
        if "onnxruntime" in present:
            exporter = start("export")
            exporter.ask("export")
            exporter.close()
        workers = {name: start(name) for name in present}
        answers, vectors = common.in_turns(workers, "embed", rounds), {}
        for name, one in workers.items():
            one.ask("save")
            one.close()
            made = np.load(Path(directory, name + ".npy"))
            vectors[name] = made / np.linalg.norm(made, axis=1, keepdims=True)
    ours = answers["retro_jax"]["seconds"]
    return [
        {
            "library": name,
            "texts/s": len(texts) / answers[name]["seconds"],
            "ours, times as fast": answers[name]["seconds"] / ours,
            "peak GiB": answers[name]["peak"] / 2**30,
            "largest difference": float(abs(vectors[name] - vectors["retro_jax"]).max()),
        }
        for name in present
    ]


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--bert", type=Path, help="config.json, *.safetensors, tokenizer.json")
    parser.add_argument("--chunks", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", nargs=2, help="for itself")
    args = common.parse(parser, chunks=20)
    if args.worker:
        return worker(args.worker[0], args.bert, Path(args.worker[1]))
    if not args.bert:
        parser.error("--bert=DIRECTORY is needed")
    texts = sample(common.prepare(args), args.chunks)
    rows = compare(args.bert.resolve(), texts, args.rounds)
    title = f"embedding {len(texts):,} chunks, {common.THREADS} threads, medians of {args.rounds}"
    return common.show({title: rows}, FORMATS, args.json)


if __name__ == "__main__":
    main()
