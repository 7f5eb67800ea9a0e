"""`python -m retro_jax.cli` is the command `retro`."""

import sys

from retro_jax.cli.main import main

sys.exit(main())
