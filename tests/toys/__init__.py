"""One of each kind of thing that can be added, as docs/extending.md shows it."""
