"""What is shown to a person in a terminal: text from outside cannot steer it."""

import re
from collections.abc import Iterable, Iterator

from rich.console import Console, ConsoleRenderable, RenderHook
from rich.segment import Segment

# All controls but tab and line feed, and what turns the direction of writing round.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Text whose control characters are spelt out, as in Python: ESC is \\x1b."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


class Terminal(Console):
    """A console of rich that spells control characters out, whatever is printed."""

    def __init__(self, **given):
        super().__init__(highlight=False, **given)
        self.push_render_hook(_Hook())


class _Hook(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Each with its controls spelt out."""
        return [_Visible(one) for one in renderables]


class _Visible:
    def __init__(self, of: ConsoleRenderable):
        self._of = of

    def __rich_console__(self, console: Console, options) -> Iterator[Segment]:
        rendered: Iterable[Segment] = console.render(self._of, options)
        for one in rendered:
            yield one if one.control else one._replace(text=visible(one.text))
