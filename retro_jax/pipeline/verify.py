"""`retro verify`: every file's checksum, and a random share of every step made again and compared."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from retro_jax import progress
from retro_jax.errors import UserError
from retro_jax.pipeline.prepare import check_prepared
from retro_jax.pipeline.recipe import recipe, shard_splits
from retro_jax.store import artefact, records
from retro_jax.store.workdir import WorkDir

_SHOWN = 5  # of what differs, in a message


def verify(work: WorkDir, share: float = 0.05, seed: int = 0) -> dict[str, tuple[int, str]]:
    """Reads what is prepared, and makes a share of it again from what it was made from.

    The tokenizer and a fitted embedder are taken as they are. Neither is a ScaNN index made again (no
    two are the same): its recall is measured again, and what was found with it is compared bit for
    bit.

    Returns:
      step -> how many of its parts were compared, and what they are: {"chunks/train": (12, "documents")}.

    Raises:
      UserError: a step is missing, of another config, damaged, or differs; every part that differs is
        named.
    """
    rng = np.random.default_rng(seed)

    def some(count: int) -> set[int]:
        chosen = rng.choice(count, min(count, max(1, int(share * count))), replace=False)
        return set(chosen.tolist())

    manifests = check_prepared(work)
    wrong = []
    for name, manifest in manifests.items():
        wrong += artefact.damaged(work.prepared(name), manifest, checksums=True)
    _refuse(work, [*wrong, *_changed_info(work)])
    compared = {}
    for name, step in recipe(work.experiment, work.prepared()).items():
        if not step.unit:
            continue
        count = 0
        with progress.bar(f"verifying {name}", None) as advance:
            for part, same in step.again(some):
                count += 1
                advance(1)
                if not same:
                    wrong.append(f"{name}: {part}")
        compared[name] = count, step.unit
    _refuse(work, wrong)
    return compared


def _changed_info(work: WorkDir) -> Iterator[str]:
    """What TFDS reads beside the shards, and is of no step: written again and compared."""
    shards = work.prepared("shards")
    with tempfile.TemporaryDirectory() as made:
        records.write_tfds_info(shards, shard_splits(work.experiment), Path(made))
        for file in sorted(Path(made).iterdir()):
            there = shards / file.name
            if not there.exists() or there.read_bytes() != file.read_bytes():
                yield f"{there} is not what the shards give; delete it, and run prepare"


def _refuse(work: WorkDir, wrong: list[str]):
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UserError(
            f"{work.prepared()} is not what its config and its source give: "
            f"{'; '.join(wrong[:_SHOWN])}{more}; the source or the files were changed: delete the step "
            "and those after it, and run prepare"
        )
