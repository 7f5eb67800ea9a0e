"""A real language model, as it chats: retro_jax beside transformers and llama.cpp, prompt and decoding apart.

    pip install -e '.[gguf,chat]' torch 'transformers>=5' llama-cpp-python
    python benchmarks/real.py --workdir=runs/chat
    python benchmarks/real.py --products     # whether other types of weights would help XLA on this CPU

WORKDIR: a language model from a GGUF file and a database, as docs/chat.md makes it. Who is not installed is left out.
Each answers in a process of its own, one row, greedily, by turns. retro_jax and transformers
compute in float32, llama.cpp with the file's own quantised weights. retro_jax keeps what it compiles, as its commands
do: *first answer* is that of its second process, *and compiles* that of the first one on a machine. With 3 rounds
count on 5 minutes.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

import common

from retro_jax.cli.compiled import keep_compiled

QUESTION = "How many litres does the water tank hold, and how long does the guarantee last?"
LENGTH = 1024
OURS, OFF, ON, HF, CPP = (
    "retro_jax",
    "no passages",
    "two passages (rag)",
    "transformers",
    "llama.cpp",
)
FORMATS = {
    "ready, s": ".1f", "first answer, s": ".1f", "and compiles, s": ".1f", "prompt tokens": ",d",
    "prompt tokens/s": ",.0f", "decoded tokens/s": ",.1f", "time a token / transformers": ".2f",
    "MiB": ",.0f", "ms": ",.1f",
}  # fmt: skip


def ours(workdir: Path, tokens: int):
    """What can be asked of retro_jax."""
    keep_compiled()
    from retro_jax.config.request import Request
    from retro_jax.generate.chat import Chat, asks
    from retro_jax.generate.generator import Generator

    generator = Generator.open(workdir, "rag", rows=1, length=LENGTH)
    chat, messages = Chat(generator.tokenizer), [{"role": "user", "content": QUESTION}]

    def answer(k: int):
        request = Request("", tokens, k=k, ignore_eos=True)
        made, _ = asks(generator, chat, messages, request)
        c = generator.generate_all([made])[0]
        first = c.seconds["first"]
        return {"prompt": c.first, "first": first, "rest": c.seconds["total"] - first}

    def prompt():
        return asks(generator, chat, messages, Request("", tokens, k=0))[0].prompt

    return {OFF: lambda: answer(0), ON: lambda: answer(2), "prompt": prompt}


def transformers(base: Path, prompt: str, tokens: int):
    """What can be asked of transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(common.THREADS)
    where = (
        {"pretrained_model_name_or_path": str(base.parent), "gguf_file": base.name}
        if base.suffix == ".gguf"
        else {"pretrained_model_name_or_path": str(base)}
    )
    ids = AutoTokenizer.from_pretrained(**where)(prompt, add_special_tokens=False)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()

    @torch.inference_mode()
    def answer():
        begin = time.perf_counter()
        said = model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
        token = said.logits[:, -1:].argmax(-1)
        first = time.perf_counter() - begin
        for _ in range(tokens - 1):
            said = model(token, past_key_values=said.past_key_values, use_cache=True)
            token = said.logits[:, -1:].argmax(-1)
        return {"prompt": len(ids), "first": first, "rest": time.perf_counter() - begin - first}

    return {OFF: answer}


def llama(base: Path, prompt: str, tokens: int):
    """What can be asked of llama.cpp."""
    from llama_cpp import Llama

    threads = {"n_threads": common.THREADS, "n_threads_batch": common.THREADS}
    model = Llama(str(base), n_ctx=LENGTH, verbose=False, **threads)
    ids = model.tokenize(prompt.encode(), add_bos=False, special=True)

    def answer():
        begin = time.perf_counter()
        model.reset()
        model.eval(ids)
        token = model.sample(temp=0)
        first = time.perf_counter() - begin
        for _ in range(tokens - 1):
            model.eval([token])
            token = model.sample(temp=0)
        return {"prompt": len(ids), "first": first, "rest": time.perf_counter() - begin - first}

    return {OFF: answer}


def products(layers: int, width: int, rounds: int) -> list[dict]:
    """Milliseconds for some rows times the matrices [D, 2 D] of so many layers, by how these are kept."""
    import jax
    import jax.numpy as jnp

    def product(x, ws):
        return sum((x @ w.astype(x.dtype)).sum() for w in ws)

    def of_bfloat16(x, ws):  # as model/on_cpu.py asks for it
        x = x.astype("bfloat16")
        return sum(jnp.dot(x, w, preferred_element_type="float32").sum() for w in ws)

    def by_hand(x, ws):  # what XLA fuses
        return sum((x[0, :, None] * w.astype(x.dtype)).sum(0).sum() for w in ws)

    rows = []
    for n, kept, how, f in (
        (1, "float32", "product", product), (1, "bfloat16", "product", product), (1, "int8", "product", product),
        (1, "int8", "sum of products", by_hand), (2, "float32", "product", product), (4, "float32", "product", product),
        (1, "bfloat16", "bfloat16 x bfloat16", of_bfloat16), (2, "bfloat16", "bfloat16 x bfloat16", of_bfloat16),
        (4, "bfloat16", "bfloat16 x bfloat16", of_bfloat16), (64, "float32", "product", product),
        (64, "bfloat16", "bfloat16 x bfloat16", of_bfloat16),
    ):  # fmt: skip
        x = jnp.ones((n, width))
        ws = [jnp.full((width, 2 * width), 1 + i % 3, kept) for i in range(layers)]
        run, seconds = jax.jit(f), []
        for _ in range(rounds + 1):
            begin = time.perf_counter()
            run(x, ws).block_until_ready()
            seconds.append(time.perf_counter() - begin)
        rows.append(
            {"rows": n, "kept": kept, "as": how, "ms": 1e3 * statistics.median(seconds[1:])}
        )
    return rows


def base_of(workdir: Path) -> Path:
    """The file or directory of the language model."""
    from retro_jax.store.workdir import WorkDir

    return Path(WorkDir(workdir).experiment.train.base)


def work(args) -> dict:
    """What the worker that `args` name can be asked for."""
    if args.worker == OURS:
        return ours(args.workdir, args.tokens)
    make = {HF: transformers, CPP: llama}[args.worker]
    return make(base_of(args.workdir), args.prompt, args.tokens)


def main():
    """Measures and prints it."""
    made = common.parser(__doc__, corpus=False)
    made.add_argument("--workdir", type=Path, default=Path("runs/chat"))
    made.add_argument("--tokens", type=int, default=64, help="of an answer")
    made.add_argument("--rounds", type=int, default=3, help="the first of one more is not counted")
    made.add_argument("--products", action="store_true", help="only: matrices kept in other types")
    made.add_argument("--worker", help="for this script itself")
    made.add_argument("--prompt", help="for this script itself")
    args = common.parse(made, tokens=4)
    if args.worker:
        return common.serve(work(args) | {"ready": lambda: None})
    if args.products:
        rows = products(60, 576, max(args.rounds, 9))
        return common.show({"rows times 60 matrices": rows}, FORMATS, args.json)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache  # of the workers, where what is compiled is kept
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
        common.show({"an answer of a real language model": compared(args)}, FORMATS, args.json)


def compared(args) -> list[dict]:
    """A row for each who is installed, and what it reads."""
    flags = [f"--workdir={args.workdir}", f"--tokens={args.tokens}"]
    first, compiles = common.Worker(f"--worker={OURS}", *flags), {}
    for what in (OFF, ON):
        compiles[OURS, what] = _seconds(first.ask(what)["result"])
    first.close()
    begin, ready = time.perf_counter(), {}
    workers = {OURS: common.Worker(f"--worker={OURS}", *flags)}
    prompt = workers[OURS].ask("prompt")["result"]
    ready[OURS] = time.perf_counter() - begin
    others = {HF: ("torch", "transformers"), CPP: ("llama_cpp",)}
    gguf = base_of(args.workdir).suffix == ".gguf"
    for name, packages in others.items():
        if (name == HF or gguf) and common.installed(name, *packages):
            begin = time.perf_counter()
            workers[name] = common.Worker(f"--worker={name}", *flags, f"--prompt={prompt}")
            workers[name].ask("ready")
            ready[name] = time.perf_counter() - begin
    turns = [(OURS, OFF), (OURS, ON), *((name, OFF) for name in workers if name != OURS)]
    found, started = {turn: [] for turn in turns}, {}
    for i in range(args.rounds + 1):
        for name, what in turns:
            answer = workers[name].ask(what)
            answer = answer["result"] | {"peak": answer["peak"]}
            if i:
                found[name, what].append(answer)
            else:
                started[name, what] = _seconds(answer)
    for worker in workers.values():
        worker.close()
    theirs, rows = found.get((HF, OFF)), []
    for (name, what), rounds in found.items():
        row = _row(name, what, rounds, ready[name], args.tokens)
        row["first answer, s"] = started[name, what]
        row["and compiles, s"] = compiles.get((name, what))
        each = [a["rest"] / b["rest"] for a, b in zip(rounds, theirs or [])]
        row["time a token / transformers"] = statistics.median(each) if each else None
        rows.append(row)
    return rows


def _seconds(answer: dict) -> float:
    return answer["first"] + answer["rest"]


def _row(name: str, what: str, rounds: list[dict], ready: float, tokens: int) -> dict:
    first, rest = (statistics.median(r[n] for r in rounds) for n in ("first", "rest"))
    prompt = rounds[0]["prompt"]
    return {
        "who": name, "reads": what, "ready, s": ready, "prompt tokens": prompt, "prompt tokens/s": prompt / first,
        "decoded tokens/s": (tokens - 1) / rest, "MiB": max(r["peak"] for r in rounds) / 2**20,
    }  # fmt: skip


if __name__ == "__main__":
    main()
