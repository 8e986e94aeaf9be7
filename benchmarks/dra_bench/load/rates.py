"""The highest rate that a contender holds, by doubling and bisection, contenders in turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from dra_bench.load.attempt import Attempt

Key = TypeVar("Key", bound=Hashable)

RESOLUTION = 1.1  #: the search ends when the lowest rate that failed is within this of the highest that held
LEAST_SHARE = 1 / 32  #: of the first rate: where that fails too, the limit can't be held at any rate worth naming
MOST_ATTEMPTS = 10
USUAL_ATTEMPTS = 6  #: what a search takes as a rule, for the time left
LEAST_QUERIES = 100  #: an attempt; below that the slowest of them alone would decide
LEAST_LIMITS = 10  #: an attempt lasts so many times the limit: a rate 10 % above the capacity, `RESOLUTION`, passes it
ENOUGH_ATTEMPTS = 3  #: where time is over and every rate held


def next_rate(attempts: Sequence[tuple[float, bool]], first: float) -> float | None:
    """Return the rate to try next, None when the search is over.

    Doubled while every rate holds, halved while none does, then the geometric mean of the highest that held and the
    lowest that failed.

    Parameters
    ----------
    attempts
        Rate and whether it held, in any order.
    first
        The rate to begin with, in queries a second.
    """
    if not attempts:
        return first
    if len(attempts) >= MOST_ATTEMPTS:
        return None
    held, failed = bracket(attempts)
    if failed is None:
        return 2 * held
    if held == 0.0:
        return failed / 2 if failed / 2 >= first * LEAST_SHARE else None
    return math.sqrt(held * failed) if failed / held > RESOLUTION else None


def bracket(attempts: Sequence[tuple[float, bool]]) -> tuple[float, float | None]:
    """Return the highest rate that held, 0.0 for none, and the lowest that failed, None for none."""
    held = max((rate for rate, held in attempts if held), default=0.0)
    return held, min((rate for rate, held in attempts if not held), default=None)


def attempt_queries(rate: float, seconds: float, limit: float) -> int:
    """Return how many queries an attempt of about ``seconds`` has: 100 or more, for 10 times the ``limit`` or longer.

    A shorter burst would be answered within the limit at any rate: the queue it leaves is worked off after its end.
    """
    return max(round(rate * max(seconds, LEAST_LIMITS * limit)), LEAST_QUERIES)


def search_rates(
    first: Mapping[Key, float],
    try_rate: Callable[[Key, float], Attempt],
    advance: Callable[[int, int], None] = lambda done, planned: None,
    time_is_over: Callable[[], bool] = lambda: False,
) -> dict[Key, list[Attempt]]:
    """Search the highest rate of all contenders, one attempt of each in turn.

    Parameters
    ----------
    first
        The rate that each begins with, by contender.
    try_rate
        Makes one attempt.
    advance
        Called with the attempts made and expected, for a progress bar.
    time_is_over
        Whether to make do with what is known: searches then end before their resolution.

    Returns
    -------
    dict
        All attempts of each, in the order in which they were made.
    """
    found: dict[Key, list[Attempt]] = {key: [] for key in first}
    over: set[Key] = set()
    while len(over) < len(first):
        for key, start in first.items():
            if key in over:
                continue
            tries = [(one.rate, one.held) for one in found[key]]
            rate = next_rate(tries, start)
            if rate is None or (time_is_over() and _enough(tries)):
                over.add(key)
                continue
            found[key].append(try_rate(key, rate))
            done = sum(map(len, found.values()))
            left = sum(max(USUAL_ATTEMPTS - len(found[key]), 1) for key in first if key not in over)
            advance(done, done + left)
    return found


def _enough(attempts: Sequence[tuple[float, bool]]) -> bool:
    """Whether a search may end early: never before a rate held, which would say that none does."""
    held, failed = bracket(attempts)
    return held > 0 and (failed is not None or len(attempts) >= ENOUGH_ATTEMPTS)
