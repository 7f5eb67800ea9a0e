"""What was compiled is kept in the user's cache, where that can be had."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os
from retro_jax.cli.compiled import keep_compiled
keep_compiled()
import jax, jax.numpy as jnp
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(jax.jit(lambda x: jnp.sort(x) + 1)(jnp.arange(3.0)))
print(os.environ.get("JAX_COMPILATION_CACHE_DIR"))
"""


@pytest.mark.parametrize("home", ["writable", "a file"])
def test_programs_are_kept_in_the_cache_directory_if_there_is_one(tmp_path, home):
    cache = tmp_path / "cache"
    if home == "a file":
        cache.write_text("")
    names = ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")
    kept = {n: v for n, v in os.environ.items() if n not in names}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=kept | {"XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "[1. 2. 3.]" in done.stdout
    found = list(cache.glob("retro_jax/compiled-*/*"))
    assert bool(found) == (home == "writable")
    assert ("None" in done.stdout) == (home == "a file")
