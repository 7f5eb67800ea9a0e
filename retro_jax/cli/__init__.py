"""The `retro` command: one file for each group of commands."""
