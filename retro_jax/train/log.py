"""What a training run tells: a line a report, metrics.jsonl, TensorBoard, a table of the parameters."""

import json
import os
import time
from pathlib import Path

import jax
from rich.table import Table

from retro_jax import progress
from retro_jax.config import Experiment
from retro_jax.errors import UserError
from retro_jax.model.sizes import forward_flops
from retro_jax.train.hardware import peak_flops
from retro_jax.train.step import TrainState


class Log:
    """A line every `log_every` steps, on the terminal and in metrics.jsonl.

    Metrics are fetched one step late, while the next step runs. Only process 0 writes.
    """

    def __init__(self, directory: Path, start: int, earlier: float, e: Experiment, flops: int):
        """earlier: seconds of the runs that this one continues; flops: of a step (`step_flops`)."""
        self._path, self._every, self._steps = (
            directory / "metrics.jsonl",
            e.train.log_every,
            e.train.steps,
        )
        self._tokens, self._flops = e.train.batch * e.train.length, flops
        self._peak = peak_flops(jax.devices())
        self._waiting, self.last = None, {}
        self._begin = time.perf_counter() - earlier
        self._after_compile, self._measured = None, 0
        self._writes = jax.process_index() == 0
        self._board = _board(directory) if e.train.tensorboard and self._writes else None
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
        aside = self._path.with_suffix(".partial")
        aside.write_text("".join(kept))
        os.replace(aside, self._path)

    def report(self, step: int, metrics: dict):
        """Takes the metrics of a step that was just started; fetches those of the one before."""
        self.finish()
        self._waiting = (step, metrics)

    def finish(self):
        """Fetches and reports the metrics that are still waited for."""
        if self._waiting is None:
            return
        step, metrics = self._waiting
        rate = self.tokens_per_second()
        self.last = {"step": step, "tokens_per_second": rate}
        self.last |= {k: int(v) if k == "skipped" else float(v) for k, v in metrics.items()}
        self._waiting, self._end = None, time.perf_counter()
        if self._after_compile is None:
            self._after_compile = self._end
        else:
            self._measured += 1
        if step % self._every and step != self._steps:
            return
        self.last["tokens_per_second"] = round(self.tokens_per_second(), 1)
        if self.mfu() is not None:
            self.last["mfu"] = round(self.mfu(), 4)
        self._write(self.last)
        progress.say(
            f"step {step:>6}  loss {self.last['loss']:.4f}  "
            f"grad norm {self.last['grad_norm']:.3f}  lr {self.last['learning_rate']:.2e}  "
            f"{self.last['tokens_per_second']:,.0f} tokens/s"
            + (f"  MFU {self.last['mfu']:.1%}" if "mfu" in self.last else "")
            + (f"  {self.last['skipped']} skipped" if self.last["skipped"] else "")
        )

    def validated(self, step: int, nats: float):
        """Reports the held-out loss at a checkpoint."""
        self._write({"step": step, "heldout_loss": nats})
        progress.say(f"step {step:>6}  held-out loss {nats:.4f}")

    def _write(self, row: dict):
        if not self._writes:
            return
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self._board:
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(name, value, row["step"])

    def tokens_per_second(self) -> float:
        """Training tokens a second, without the first step (which compiles)."""
        if not self._measured:
            return self.last.get("tokens_per_second", 0.0)
        return self._measured * self._tokens / (self._end - self._after_compile)

    def mfu(self) -> float | None:
        """Share of the devices' peak that the model's own FLOPs are, or None where the peak is unknown."""
        if not self._peak or not self._measured:
            return None
        return self.tokens_per_second() / self._tokens * self._flops / self._peak

    def seconds(self) -> float:
        """Since the run began, those before an interruption included."""
        return time.perf_counter() - self._begin


def step_flops(e: Experiment, vocab: int, retrieval: bool) -> int:
    """FLOPs of a step's matrix products: three times those of the forward pass.

    The convention behind every MFU: forward once, gradient twice; what remat computes again is not
    counted; of masked self-attention what is computed is counted, which is all of a sequence up to
    model.attention_block, and about 9/16 of a long one.
    """
    k = e.retrieval.neighbours if retrieval else 0
    return 3 * e.train.batch * forward_flops(e.model, vocab, e.train.length, k)


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


def _board(directory: Path):
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError(
            "config field train.tensorboard: pip install 'retro_jax[tensorboard]', or set it to False"
        ) from error
    return SummaryWriter(str(directory / "tensorboard"))
