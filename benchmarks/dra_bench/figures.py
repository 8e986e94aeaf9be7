"""Write figures as people read them."""

from __future__ import annotations

import math

DEMO_DATASET = "emoji_cir"


def percent(value: float) -> str:
    """Write a percentage with one decimal and no sign."""
    return f"{value:.1f}"


def milliseconds(value: float) -> str:
    """Write milliseconds with about three significant digits."""
    for least, decimals in ((100, 0), (10, 1), (1, 2)):
        if value >= least:
            return f"{value:.{decimals}f}"
    return f"{value:.3f}"


def times(value: float) -> str:
    """Write a ratio, such as ``1.53×``."""
    return f"{value:.1f}×" if value >= 10 else f"{value:.2f}×"


def cosine(value: float) -> str:
    """Write a cosine with seven decimals, rounded down: what isn't equal never reads as 1."""
    return f"{math.floor(value * 1e7) / 1e7:.7f}"


def ordinal(number: int) -> str:
    """Write a rank, such as ``3rd``."""
    last = number % 100
    suffix = "th" if 11 <= last <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def recall_name(dataset: str) -> str:
    """Say what a recall on a data set is: on the built-in one it is a demo recall, and every place says so."""
    return "demo recall" if dataset == DEMO_DATASET else "recall"
