"""A step that memory cannot hold is refused before it is taken."""

import jax
import jax.numpy as jnp
import pytest

from retro_jax.config import TrainConfig
from retro_jax.errors import UserError
from retro_jax.train import memory


def _step(x):
    return jnp.sort(x[:, None] * x[None, :], axis=0).sum(axis=0)


@pytest.mark.parametrize("size", [2**3, 2**23])  # 64 numbers, and 2^46 of them
def test_what_does_not_fit_is_refused_by_the_fields_that_decide_it(size):
    train, x = TrainConfig(batch=7, length=192), jax.ShapeDtypeStruct((size,), jnp.float32)
    if size < 100:
        memory.check_fits(jax.jit(_step), train, x)
        return
    with pytest.raises(UserError, match=r"train\.batch = 7, train\.length = 192.*GiB.*accumulate"):
        memory.check_fits(jax.jit(_step), train, x)


def test_what_is_free_is_a_part_of_what_there_is():
    there, of = memory.free()
    assert of in ("this machine", "a device")
    assert there > 0
