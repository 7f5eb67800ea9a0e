"""What a part of the report says: a chart, the sentence under it, and the chart's numbers as a table."""

from dataclasses import dataclass, field


@dataclass
class Section:
    """One part.

    Attributes:
      name: in links. title. caption: how it is read, and what it says here. head, rows: the numbers, as
        text. chart: SVG that page.py need not escape, or nothing. wide: whether it takes a page's whole
      width. open: whether the table stands beside the chart, instead of behind a click.
    """

    name: str
    title: str
    caption: str
    head: list[str]
    rows: list[list[str]] = field(default_factory=list)
    chart: str = ""
    wide: bool = False
    open: bool = False

    def plain(self) -> dict:
        """All but the chart."""
        return {n: getattr(self, n) for n in ("name", "title", "caption", "head", "rows")}
