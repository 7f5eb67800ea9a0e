"""The command `python -m retro_jax.beam`; see its --help."""

import sys

from retro_jax.beam.run import main

sys.exit(main(sys.argv[1:]))
