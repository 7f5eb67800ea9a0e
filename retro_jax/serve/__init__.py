"""Continuations over HTTP, as OpenAI's clients ask for them, and a page for a person."""
