"""Laws of growth fitted to measured points, and what they say beyond them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["linear", "power"]
LEAST_POINTS = 3  #: two points fit any law of two numbers, and say nothing of how well
WINDOW = 10.0  #: only points whose x is at least the largest over this: smaller ones may lie in a faster cache


@dataclass(frozen=True)
class Law:
    """y = a + b * x (``"linear"``) or y = a * x ** b (``"power"``), fitted to some points.

    ``residual`` is the largest relative difference between the law and one of the points it was fitted to.
    """

    kind: Kind
    a: float
    b: float
    residual: float
    over: tuple[float, ...]  #: x of the points it was fitted to

    def at(self, x: float) -> float:
        """Return y at x."""
        return self.a + self.b * x if self.kind == "linear" else float(self.a * x**self.b)

    def formula(self, x_name: str) -> str:
        """Write the law with its numbers."""
        if self.kind == "linear":
            return f"{self.a:.3g} + {self.b:.3g} * {x_name}"
        return f"{self.a:.3g} * {x_name} ** {self.b:.2f}"


def fitted(kind: Kind, x: Sequence[float], y: Sequence[float], above: float = 0) -> Law | None:
    """Fit a law to the last decade of x, or to what of it lies above ``above``.

    Least squares of the relative differences, so that small and large points count alike; a linear law has neither a
    negative part that stays nor a negative slope.

    Returns
    -------
    Law or None
        None where fewer than three points are left.
    """
    kept = [(p, q) for p, q in zip(x, y, strict=True) if p > above and p * WINDOW >= max(x)]
    if len(kept) < LEAST_POINTS:
        return None
    xs, ys = np.array(kept, float).T
    a, b = _linear(xs, ys) if kind == "linear" else _power(xs, ys)
    law = Law(kind, a, b, 0.0, tuple(xs.tolist()))
    residual = max(abs(law.at(p) / q - 1) for p, q in kept)
    return Law(kind, a, b, residual, law.over)


def _linear(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    a, b = np.linalg.lstsq(np.stack([1 / y, x / y], axis=1), np.ones(len(x)), rcond=None)[0]
    if a < 0:  # all of it grows with x
        return 0.0, float((x / y).sum() / ((x / y) ** 2).sum())
    if b < 0:
        return float((1 / y).sum() / ((1 / y) ** 2).sum()), 0.0
    return float(a), float(b)


def _power(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    b, log_a = np.polyfit(np.log(x), np.log(y), 1)
    return float(np.exp(log_a)), float(b)
