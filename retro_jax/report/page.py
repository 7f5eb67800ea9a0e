"""The report as one HTML page that loads and runs nothing; Jinja2 escapes all that comes from data."""

import jinja2
from markupsafe import Markup

from retro_jax.report.numbers import NONE, nats, percent, plain

FULL = 2.0  # nats of a token's gain at which its tint is full


def render(whole: dict) -> str:
    """The page of title, verdict, evidence, examples and facts."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("retro_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "chart": Markup,  # charts are ours, and escape their own texts
        "nats": nats,
        "percent": percent,
        "plain": plain,
        "tint": lambda gain: f"{min(1.0, abs(gain) / FULL):.2f}" if abs(gain) >= 0.05 else "0",
    }
    style = environment.loader.get_source(environment, "style.css")[0]
    return environment.get_template("page.html").render(whole, style=Markup(style), none=NONE)
