"""What a training run tells: a line a report, metrics.jsonl, boards, a table of the parameters."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
from rich.table import Table

from retro_jax import progress
from retro_jax.config import TrainConfig
from retro_jax.model.sizes import forward_flops
from retro_jax.store import files
from retro_jax.train.boards import boards
from retro_jax.train.hardware import peak_flops
from retro_jax.train.step import TrainState
from retro_jax.train.trainable import Trainable


class Log:
    """A line every `log_every` steps, on the terminal and in metrics.jsonl.

    Metrics are fetched one step late, while the next step runs. Only process 0 writes.
    """

    def __init__(
        self, directory: Path, start: int, earlier: float, train: TrainConfig, flops: Callable[[int, int], int]
    ):  # fmt: skip
        """earlier: seconds of the runs that this one continues; flops: of the steps from one to before another
        (`run_flops`)."""
        self._path = directory / "metrics.jsonl"
        self._every, self._steps = train.log_every, train.steps
        self._tokens, self._flops = train.batch * train.length, flops
        self._peak = peak_flops(jax.devices())
        self._waiting, self.last = None, {}
        self._begin = time.perf_counter() - earlier
        self._since = self._reported = self._end = None
        self._writes = jax.process_index() == 0
        self._boards = boards(train, directory, start) if self._writes else []
        if self._writes:
            self._cut(start)

    def _cut(self, start: int):
        """Drops rows of steps that are run again, and a last row that a crash cut short."""
        kept = []
        for line in self._path.read_text().splitlines() if self._path.exists() else []:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break
            if row["step"] <= start:
                kept.append(line + "\n")
                if "loss" in row:
                    self.last = row
        files.write(self._path, "".join(kept))

    def report(self, step: int, metrics: dict) -> dict | None:
        """Takes the metrics of a step that was just started; fetches and returns those of the one before."""
        fetched = self.finish()
        self._waiting = (step, metrics)
        return fetched

    def finish(self) -> dict | None:
        """Fetches, reports and returns the metrics that are still waited for."""
        if self._waiting is None:
            return None
        step, metrics = self._waiting
        self.last = {"step": step}
        self.last |= {k: int(v) if k == "skipped" else float(v) for k, v in metrics.items()}
        self._waiting, now = None, time.perf_counter()
        if self._since is None:  # the first step compiles
            self._since = self._reported = now, step
        self._end = now, step
        if step % self._every and step != self._steps:
            return self.last
        self.last["tokens_per_second"] = round(self._rate(self._reported), 1)
        if self._peak:
            self.last["mfu"] = round(self._mfu(self._reported), 4)
        self._reported = self._end
        self._write(self.last)
        progress.say(
            f"step {step:>6}  loss {self.last['loss']:.4f}  "
            f"grad norm {self.last['grad_norm']:.3f}  lr {self.last['learning_rate']:.2e}  "
            f"{self.last['tokens_per_second']:,.0f} tokens/s"
            + (f"  MFU {self.last['mfu']:.1%}" if "mfu" in self.last else "")
            + (f"  {self.last['skipped']} skipped" if self.last["skipped"] else "")
        )
        return self.last

    def validated(self, step: int, nats: float):
        """Reports the held-out loss at a checkpoint."""
        self._write({"step": step, "heldout_loss": nats})
        progress.say(f"step {step:>6}  held-out loss {nats:.4f}")

    def _write(self, row: dict):
        if not self._writes:
            return
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for board in self._boards:
            board.add(row)

    def _rate(self, since) -> float:
        """Tokens a second since a (time, step); of a pause for a checkpoint nothing is left out."""
        (begin, first), (end, last) = since, self._end
        return (last - first) * self._tokens / (end - begin) if last > first else 0.0

    def _mfu(self, since) -> float:
        (begin, first), (end, last) = since, self._end
        return self._flops(first, last) / (end - begin) / self._peak if last > first else 0.0

    def tokens_per_second(self) -> float:
        """Training tokens a second of this process's run, without the first step (which compiles)."""
        return self._rate(self._since) if self._since else self.last.get("tokens_per_second", 0.0)

    def mfu(self) -> float | None:
        """Share of the devices' peak that the model's own FLOPs are, or None where the peak is unknown."""
        return self._mfu(self._since) if self._peak and self._since else None

    def close(self):
        """Writes what boards still hold."""
        for board in self._boards:
            board.close()

    def seconds(self) -> float:
        """Since the run began, those before an interruption included."""
        return time.perf_counter() - self._begin


def step_flops(method: Trainable, train: TrainConfig, vocab: int) -> int:
    """FLOPs of a step's matrix products: three times those of the forward pass.

    The convention behind every MFU: forward once, gradient twice; what remat computes again is not
    counted; of masked self-attention what is computed is counted, which is all of a sequence up to
    model.attention_block, and about 9/16 of a long one. A frozen language model has the gradient of its
    activations only, from its first cross-attention on.
    """
    m, length = method.model, train.length
    flops = method.training_flops(vocab, length)
    frozen = method.freezes if method.begins else train.base and train.freeze
    if not (method.network and frozen):
        return 3 * train.batch * flops
    alone = forward_flops(m, vocab, length, 0)
    layers = alone - 2 * length * m.decoder.d * vocab  # without the readout
    below = layers * (m.reading.cca_layers[0] - 1) // m.decoder.layers
    return train.batch * (3 * (flops - alone) + 2 * alone - below)


def run_flops(method: Trainable, train: TrainConfig, vocab: int, begin: int, end: int) -> int:
    """The same of the steps from `begin` to before `end`; as long as a method reads nothing, the language model's."""
    alone = max(0, min(end, method.read_from) - begin)
    flops = (end - begin - alone) * step_flops(method, train, vocab)
    if alone:
        flops += alone * 3 * train.batch * forward_flops(method.model, vocab, train.length, 0)
    return flops


def show_parameters(state: TrainState):
    """Prints a table of the parameters by part of the network: how many, and what a device holds."""
    parts: dict[str, list[int]] = {}
    for kind, weights in (("", state.params), (" (frozen)", state.frozen)):
        for name, value in weights.items():
            words = [w for w in name.split(".") if not w.isdecimal() and w != "stacks"]
            row = parts.setdefault(" ".join(words[:-1] or words) + kind, [0, 0])
            row[0] += value.size
            row[1] += value.addressable_shards[0].data.nbytes
    table = Table("part", "parameters", "MiB a device", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, (count, size) in parts.items():
        table.add_row(name, f"{count:,}", f"{size / 2**20:,.1f}")
    progress.show(table)
