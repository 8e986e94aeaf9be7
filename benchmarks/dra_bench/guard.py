"""A short run beside the committed results: which ratio has fallen so far that somebody should look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dra_bench.comparable import environment_of, machine_differences
from dra_bench.compare import SLOWER, Change, compare_figures
from dra_bench.figures import times
from dra_bench.run_figures import run_figures

FALL = 1 / 3  #: of a ratio, beyond which it is a warning


@dataclass(frozen=True)
class Guarded:
    """What the guard found: a line for each ratio that fell, and notes on how to read them."""

    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    fallen: tuple[Change, ...]
    compared: int


def guard(committed: Mapping[str, Any], measured: Mapping[str, Any]) -> Guarded:
    """Compare the ratios of a short run with the committed ones; times take no part.

    On another machine all ratios are others: there each is judged by how it stands to the median of their changes,
    which is what the machine does to all of them alike.
    """
    found = compare_figures(run_figures("latency", committed, 0), run_figures("latency", measured, 1), 0)
    changes = [c for c in found.judged if c.relative is not None]
    elsewhere = machine_differences(environment_of(committed), environment_of(measured))
    usual = float(np.exp(np.median([np.log(_fell_to(c)) for c in changes]))) if elsewhere and changes else 1.0
    fallen = [c for c in changes if c.says == SLOWER and _fell_to(c) / usual < 1 - FALL]
    fallen.sort(key=_fell_to)
    notes = [f"{contender} wasn't measured here" for contender in _unmeasured(found.only_a, measured)]
    if elsewhere:
        notes.append(
            f"this is another machine than the committed one ({'; '.join(elsewhere)}): its ratios are {usual:.2f} "
            "times the committed ones in the median, so only a ratio that stands out from that is called out; what "
            "slowed all of them alike looks like the machine"
        )
    lines = tuple(_line(change, usual) for change in fallen)
    return Guarded(lines, tuple(notes), tuple(fallen), len(changes))


def _fell_to(change: Change) -> float:
    assert change.relative is not None
    return change.relative.value


def _line(change: Change, usual: float) -> str:
    assert change.relative is not None
    assert change.ratios is not None
    assert change.reference is not None
    blamed = "" if change.blamed == change.a.key else f" ({change.reference[1]} itself became faster)"
    part = ", ".join(filter(None, (change.a.group, change.a.detail)))
    than = "" if usual == 1.0 else f", where this machine's usual change is {usual:.2f}"
    return (
        f"{change.a.contender} is slower: {part} is {times(change.ratios[1])} as fast as {change.reference[1]} where "
        f"the committed run has {times(change.ratios[0])}, {change.relative.value:.2f} of it (95 % interval "
        f"{change.relative.low:.2f} to {change.relative.high:.2f}, {change.b.samples} samples){than}{blamed}"
    )


def _unmeasured(only_committed: tuple[tuple[str, str, str], ...], measured: Mapping[str, Any]) -> list[str]:
    here = {row["backend"] for row in measured["raw_ms"]}
    return list(dict.fromkeys(key[1] for key in only_committed if key[1] not in here))
