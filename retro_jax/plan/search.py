"""`retro plan --search`: which mesh, how many parts of a batch, what is computed again, on a machine that is not here.

Each is judged by its roofline at worst (`roofline.Times.worst`) among those that fit by count. First the mesh, with the
experiment's own remat and attention_block, then these for the best three meshes. Of each the fewest parts that fit
are taken: more parts gather the weights more often.
"""

import dataclasses
import itertools
from collections.abc import Iterator

from retro_jax import progress
from retro_jax.config import Experiment, MeshConfig
from retro_jax.errors import UserError
from retro_jax.methods.method import Method
from retro_jax.plan import topology
from retro_jax.plan.plan import estimate
from retro_jax.train import sharding

BEST, SHOWN = 3, 10
REMATS, BLOCKS = ("none", "full"), (256, 512, 1024)
WIDEST = 8  # devices along `model`: more of them send more than they save


def search(
    e: Experiment, on: topology.Topology, vocab: int, method: Method, compiled: int = BEST
) -> list[dict]:
    """Estimates (`plan.estimate`) of what is fastest by count, the best first.

    compiled: so many of the best are compiled, where there is a compiler: minutes each, and memory as it will be.

    Raises:
      UserError: no mesh of that machine divides the model, or nothing fits.
    """
    meshes = list(_meshes(e, on, vocab))
    if not meshes:
        raise UserError(f"--topology={on}: no mesh of {on.chips} chips divides model and batch")
    first = []
    for x in _told("meshes", meshes):
        found = _fewest_parts(x, on, vocab, method)
        if not found and x.model.remat != "full":
            found = _fewest_parts(_other(x, "full", x.model.attention_block), on, vocab, method)
        first.append(found)
    best = _sorted(x for x in first if x)[:BEST]
    if not best:
        raise UserError(f"--topology={on}: nothing fits; take more chips")
    others = [
        _other(x, remat, block)
        for (x, _), remat, block in itertools.product(best, REMATS, BLOCKS)
        if (remat, block) != (x.model.remat, x.model.attention_block) and block <= e.train.length
    ]
    second = [_fewest_parts(x, on, vocab, method) for x in _told("remat and blocks", others)]
    ranked = _sorted([*best, *(x for x in second if x)])
    plans = [found for _, found in ranked[:SHOWN]]
    if on.kind in topology.SLICES:  # for GPUs there is no compiler here
        best = (x for x, _ in ranked[:compiled])
        plans[:compiled] = [estimate(x, on, vocab, method, compiles=True) for x in best]
    return sorted(plans, key=lambda found: not found["fits"])


def _other(e: Experiment, remat: str, block: int) -> Experiment:
    model = dataclasses.replace(e.model, remat=remat, attention_block=block)
    return dataclasses.replace(e, model=model)


def _told(what: str, experiments: list[Experiment]) -> Iterator[Experiment]:
    with progress.bar(what, len(experiments)) as advance:
        for x in experiments:
            yield x
            advance(1)


def _meshes(e: Experiment, on: topology.Topology, vocab: int) -> Iterator[Experiment]:
    """The experiment on every mesh that divides it, with the whole batch at once where that divides."""
    for model, replica in itertools.product(_divisors(on.chips), _divisors(on.chips)):
        data = on.chips // (model * replica)
        if model > WIDEST or model * replica * data != on.chips or replica % on.slices:
            continue
        config = MeshConfig(replica, data, model)
        x = dataclasses.replace(e, mesh=config, train=dataclasses.replace(e.train, accumulate=1))
        try:
            abstract = topology.abstract_mesh(on, config)
            sharding.check_divides(abstract, e.model, vocab, train_batch=e.train.batch)
        except UserError:
            continue
        yield x


def _divisors(number: int) -> list[int]:
    return [i for i in range(1, number + 1) if number % i == 0]


def _fewest_parts(
    e: Experiment, on: topology.Topology, vocab: int, method: Method
) -> tuple[Experiment, dict] | None:
    """The experiment with the fewest parts of its batch that fit, and its estimate; None if none fits."""
    rows, batch, needed = e.mesh.replica * e.mesh.data, e.train.batch, 1.0
    for parts in _divisors(batch):
        if batch // parts % rows or parts < needed:
            continue
        x = dataclasses.replace(e, train=dataclasses.replace(e.train, accumulate=parts))
        found = estimate(x, on, vocab, method)
        if found["fits"]:
            return x, found
        # Tracing takes seconds: numbers of parts are left out with which no more than this could fit.
        memory = found["bytes_per_chip"]
        divided = memory["activations"] + memory["temporaries"]
        needed = parts * min(1 + (memory["total"] - memory["of"]) / divided, 64)
    return None


def _sorted(found) -> list[tuple[Experiment, dict]]:
    return sorted(found, key=lambda of: of[1]["seconds_per_step"][1])
