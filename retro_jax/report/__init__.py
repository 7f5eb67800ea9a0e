"""Rows of an evaluation to a report that needs nothing else: page, JSON and Markdown."""

from retro_jax.report.write import find, report, reports

__all__ = ["find", "report", "reports"]
