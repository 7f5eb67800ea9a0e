"""Numbers in words: as many digits as say something, and a sign where it matters."""

import math

NONE = "-"


def _known(x) -> bool:
    return x is not None and math.isfinite(x)


def _signed(number: str) -> str:
    """A number with its sign, but for what rounds to 0: -0.0000 would tell of a loss."""
    return number if number.strip("+-0.,") else number[1:]


def bits(x: float | None) -> str:
    """Bits per byte: 1.7581."""
    return f"{x:.4f}" if _known(x) else NONE


def change(x: float | None) -> str:
    """A difference in bits per byte: +0.0472."""
    return _signed(f"{x:+.4f}") if _known(x) else NONE


def interval(effect: dict | None) -> str:
    """An effect: +0.0472 [+0.0341, +0.0758]."""
    if not effect:
        return NONE
    return f"{change(effect['value'])} [{change(effect['low'])}, {change(effect['high'])}]"


def nats(x: float | None) -> str:
    """A gain in nats per token: +0.316."""
    return _signed(f"{x:+.3f}") if _known(x) else NONE


def total(x: float | None) -> str:
    """Nats in all: +5,363."""
    return _signed(f"{x:+,.0f}") if _known(x) else NONE


def percent(x: float | None) -> str:
    """A share: 46.5 %."""
    return f"{100 * x:.1f} %" if _known(x) else NONE


def plain(x: float | None) -> str:
    """Any other number, four digits: 6.456, 12,345."""
    if not _known(x):
        return NONE
    return f"{x:,}" if isinstance(x, int) else f"{x:.4g}"


def about(x: float | None) -> str:
    """The same where two digits are enough: 0.43, 1,200."""
    return f"{float(f'{x:.2g}'):,g}" if _known(x) else NONE
