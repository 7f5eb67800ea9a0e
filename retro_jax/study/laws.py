"""Laws of scaling: loss against size, fitted, inverted, and how far they can be trusted.

    S sizes, D draws of a bootstrap, G exponents that are tried

A law is L(x) = floor + scale * x^-exponent, with all three at least 0. For an exponent it is linear in the other two,
so that only the exponent is searched for, on a grid (variable projection; parabolas through losses at equal compute are
biased: arXiv 2603.22339).
"""

from dataclasses import dataclass

import numpy as np

EXPONENTS = np.linspace(0.02, 1.5, 149)
FEWEST = 3  # sizes through which a law can be put


@dataclass(frozen=True)
class Law:
    """Laws of D draws: arrays [D]."""

    floor: np.ndarray
    scale: np.ndarray
    exponent: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The losses [D, S] at sizes [S]."""
        return self.floor[:, None] + self.scale[:, None] * x[None] ** -self.exponent[:, None]

    def size(self, loss: np.ndarray) -> np.ndarray:
        """The size [D] at which each has a loss [D]; inf where it never does, nan where there is no loss."""
        above = loss - self.floor
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            found = (self.scale / above) ** (1 / self.exponent)
        return np.where(np.isnan(above), np.nan, np.where(above > 0, found, np.inf))

    def through(self, x: np.ndarray | float, loss: np.ndarray) -> "Law":
        """The same moved up or down, so that it has the losses [D] at sizes [D], or at one."""
        return Law(loss - self.scale * x**-self.exponent, self.scale, self.exponent)


def fit(x: np.ndarray, losses: np.ndarray, floor: float | None = None) -> Law:
    """The laws with the least squares of errors, through losses [D, S] at sizes [S]; nan where a loss is nan.

    floor: given, and not fitted: for how much it matters.
    """
    powers = x[None] ** -EXPONENTS[:, None]  # [G, S]
    if floor is None:
        floors, scales = _two(powers, losses)
    else:
        floors = np.full((len(EXPONENTS), len(losses)), floor)
        above = losses - floor
        scales = np.maximum(0, powers @ above.T / (powers**2).sum(1)[:, None])
    errors = sum(
        (floors + scales * powers[:, i : i + 1] - losses[:, i]) ** 2 for i in range(len(x))
    )
    best = errors.argmin(axis=0)
    at = best, np.arange(len(losses))
    exponents = np.where(np.isnan(losses).any(axis=1), np.nan, EXPONENTS[best])
    return Law(floors[at], scales[at], exponents)


def _two(powers: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares for floor and scale [G, D], both at least 0."""
    p = powers.mean(axis=1)
    centred = powers - p[:, None]
    mean = losses.mean(axis=1)
    scale = centred @ losses.T / (centred**2).sum(axis=1)[:, None]
    floor = mean[None] - scale * p[:, None]
    alone = powers @ losses.T / (powers**2).sum(axis=1)[:, None]  # the scale where the floor is 0
    scale, floor = np.where(floor < 0, alone, scale), np.maximum(floor, 0)
    flat = scale < 0
    return np.where(flat, mean[None], floor), np.where(flat, 0, scale)


def between(
    x: np.ndarray, losses: np.ndarray, loss: np.ndarray, exponent: np.ndarray
) -> np.ndarray:
    """The size [D] at which lines through measured losses [D, S] have a loss [D], straight in x^-exponent.

    With the exponent [D] of the law through all sizes they bend as it does. The smallest such size; nan where no two
    neighbouring sizes [S] have losses on both sides of it.
    """
    above, below = losses[:, :-1], losses[:, 1:]
    inside = (above >= loss[:, None]) & (loss[:, None] >= below)
    at = inside.argmax(axis=1)
    row = np.arange(len(losses))
    high, low = above[row, at], below[row, at]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(high > low, (high - loss) / (high - low), 0.0)
        power = (1 - share) * x[at] ** -exponent + share * x[at + 1] ** -exponent
        found = power ** (-1 / exponent)
    return np.where(inside.any(axis=1), found, np.nan)


def leave_one_out(x: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Of each size [S] what a law through the others predicts there, less the loss [S] that was measured."""
    errors = []
    for i in range(len(x)):
        keep = np.arange(len(x)) != i
        law = fit(x[keep], losses[None, keep])
        errors.append(law(x[i : i + 1])[0, 0] - losses[i])
    return np.array(errors)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of draws [D], of those that had any text."""
    low, high = np.nanquantile(values, (0.025, 0.975), method="nearest")
    return float(low), float(high)
