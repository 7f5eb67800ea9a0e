"""Experiments: each file's `get_config(argument)` gives a config. Installed as `retro_jax.experiments`."""
