"""The network: pure functions of arrays. Nothing here reads or writes a file."""
