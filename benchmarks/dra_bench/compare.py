"""What changed between two runs: the ratios inside each, with their spread, and whose fault it is.

A machine is now faster, now slower, and takes all contenders with it. So the first thing to compare is not a time but
how a contender stands to PyTorch eager in the same run: that ratio was measured in turns and survives the machine's
moods. Where a ratio has changed, one of its two sides has; it is the one whose own time strays further from the mood,
which is the median change of all figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dra_bench.figures import milliseconds, times
from dra_bench.run_figures import Figure, Key
from dra_bench.timing import Ratio
from dra_runtime.console import table

SLOWER, FASTER, SMALL, NOISE, UNJUDGED = "slower", "faster", "small", "noise", "not judged"


@dataclass(frozen=True)
class Change:
    """How one figure changed from run a to run b."""

    a: Figure
    b: Figure
    speed: Ratio  #: the speed in b over that in a: 0.5 is half as fast
    reference: Key | None  #: what both runs set it in relation to; None: nothing, and it is shown without a verdict
    ratios: tuple[float, float] | None  #: how many times as fast as the reference, in a and in b
    relative: Ratio | None  #: of the second to the first: 0.5 is half as fast against the reference
    says: str  #: slower, faster, small (beyond noise, within the limit), noise, or not judged
    blamed: Key | None  #: the side of the ratio whose own time changed, where it did beyond noise and limit


@dataclass(frozen=True)
class Comparison:
    """All changes between two runs of one command."""

    changes: tuple[Change, ...]
    only_a: tuple[Key, ...]
    only_b: tuple[Key, ...]
    mood: float  #: median over all figures of the speed in b over that in a: the machine's
    limit: float  #: as a ratio, such as 1.1

    @property
    def judged(self) -> tuple[Change, ...]:
        """Return the changes that have a verdict."""
        return tuple(c for c in self.changes if c.relative is not None)

    @property
    def largest(self) -> Change | None:
        """Return the ratio on which the two runs disagree most; None where there is none."""
        return max(self.judged, key=disagreement, default=None)

    @property
    def slower(self) -> tuple[Change, ...]:
        """Return what is wanting: a ratio that fell, or one that rose because PyTorch itself became slower."""
        return tuple(c for c in self.judged if c.says == SLOWER or (c.says == FASTER and c.blamed == c.reference))


def compare_figures(a: Mapping[Key, Figure], b: Mapping[Key, Figure], limit_percent: float) -> Comparison:
    """Compare the figures that both runs have; a change beyond ``limit_percent`` and beyond noise counts."""
    both = [key for key in a if key in b]
    mood = float(np.median([b[key].log_speed - a[key].log_speed for key in both])) if both else 0.0
    limit = 1 + limit_percent / 100
    return Comparison(
        tuple(_change(key, a, b, mood, limit) for key in both),
        tuple(key for key in a if key not in b),
        tuple(key for key in b if key not in a),
        float(np.exp(mood)),
        limit,
    )


def disagreement(change: Change) -> float:
    """Return by how much two runs disagree on a ratio, as a fraction: 0.1 for 10 %, whichever way."""
    assert change.relative is not None
    return max(change.relative.value, 1 / change.relative.value) - 1


def _change(key: Key, a: Mapping[Key, Figure], b: Mapping[Key, Figure], mood: float, limit: float) -> Change:
    before, after = a[key], b[key]
    own = after.log_speed - before.log_speed
    speed = _ratio(own, after.faster - before.faster)
    reference = before.reference
    if reference is None or reference != after.reference:
        return Change(before, after, speed, None, None, None, UNJUDGED, None)
    first, second = a[reference], b[reference]
    # Resampled by the same rounds inside a run, where both sides were measured in turns; between runs independently
    relative = _ratio(
        own - (second.log_speed - first.log_speed), (after.faster - second.faster) - (before.faster - first.faster)
    )
    ratios = tuple(float(np.exp(x.log_speed - y.log_speed)) for x, y in ((before, first), (after, second)))
    says = _says(relative, limit)
    blamed = None
    if says in (SLOWER, FASTER):
        blamed = reference if abs(second.log_speed - first.log_speed - mood) > abs(own - mood) else key
    return Change(before, after, speed, reference, (ratios[0], ratios[1]), relative, says, blamed)


def _ratio(log: float, resampled: NDArray[np.float64]) -> Ratio:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Ratio(*(round(float(np.exp(x)), 4) for x in (log, low, high)))


def _says(ratio: Ratio, limit: float) -> str:
    if ratio.low <= 1 <= ratio.high:
        return NOISE
    if max(ratio.value, 1 / ratio.value) <= limit:
        return SMALL
    return SLOWER if ratio.value < 1 else FASTER


def verdict(found: Comparison) -> list[str]:
    """Say at the top who became slower or faster, in which part and by how much; or that nobody did."""
    if not found.judged:
        return ["nothing to judge: the two runs have no ratio in common"]
    lines = list(_blames(found))
    percent = f"{100 * (found.limit - 1):g} %"
    if not lines:
        lines = [f"no difference beyond noise and {percent}"]
    largest = found.largest
    assert largest is not None
    assert largest.ratios is not None
    agree = "agree" if disagreement(largest) <= found.limit - 1 else "don't agree"
    noise = ", which is noise" if largest.says == NOISE else ""
    return [
        *lines,
        f"the runs {agree} in their {len(found.judged)} ratios within {percent}; the largest disagreement is "
        f"{100 * disagreement(largest):.1f} %{noise}: {_who(largest.a.key)} is {times(largest.ratios[0])} and "
        f"{times(largest.ratios[1])} as fast as {_against(largest)}",
    ]


def _blames(found: Comparison) -> Iterator[str]:
    """Yield a heading for each contender that became slower, then for each that became faster, and a line a part."""
    blamed = [(c.blamed, _time_taken(c), c) for c in found.judged if c.blamed is not None]
    sides = dict.fromkeys((key[1], ratio.value > 1) for key, ratio, _ in blamed)
    for contender, slower in sorted(sides, key=lambda side: not side[1]):
        mine = [b for b in blamed if (b[0][1], b[1].value > 1) == (contender, slower)]
        mine.sort(key=lambda b: b[1].value, reverse=slower)
        against = sorted({c.a.contender if key == c.reference else _against(c) for key, _, c in mine})
        yield f"{'SLOWER' if slower else 'faster'}: {contender}, against {', '.join(against)} of the same run"
        lines: dict[Key, str] = {}
        for key, ratio, _ in mine:  # a reference has several ratios a part: the largest speaks
            interval = f"{times(ratio.low)} to {times(ratio.high)}"
            lines.setdefault(
                key, f"  {', '.join(filter(None, (key[0], key[2])))}: {times(ratio.value)} the time ({interval})"
            )
        yield from lines.values()


def _time_taken(change: Change) -> Ratio:
    """Return the time of the blamed side in b over that in a, by the other side's clock."""
    relative = change.relative
    assert relative is not None
    if change.blamed == change.reference:
        return relative
    return Ratio(1 / relative.value, 1 / relative.high, 1 / relative.low)


def _who(key: Key) -> str:
    return f"{key[1]}, {key[0]}" + (f", {key[2]}" if key[2] else "")


def _against(change: Change) -> str:
    """Name what a figure is set in relation to: its contender, and its part where that is another one."""
    assert change.reference is not None
    group, contender, _ = change.reference
    return contender if group == change.a.group else f"{contender}'s {group}"


HEADER = (
    "part",
    "contender",
    "a",
    "b",
    "speed b/a",
    "against",
    "ratio a",
    "ratio b",
    "b/a",
    "95 % interval",
    "verdict",
)


def comparison_table(found: Comparison) -> str:
    """Lay all changes out: times and their change, then the ratio to the reference in both runs and its change."""
    references = {change.reference for change in found.changes}
    return table(HEADER, (_row(change, change.a.key in references) for change in found.changes))


def _row(change: Change, is_reference: bool) -> tuple[str, ...]:
    part = ", ".join(filter(None, (change.a.group, change.a.detail)))
    own = (part, change.a.contender, _value(change.a), _value(change.b), times(change.speed.value))
    if change.relative is None or change.ratios is None:
        return (*own, "", "", "", "", "", "the reference" if is_reference else change.says)
    ratios = (times(change.ratios[0]), times(change.ratios[1]), times(change.relative.value))
    interval = f"{times(change.relative.low)} to {times(change.relative.high)}"
    words = {SMALL: "within the limit"}.get(change.says, change.says)
    if change.blamed is not None and change.blamed == change.reference:
        words += f" ({change.blamed[1]} changed)"
    return (*own, _against(change), *ratios, interval, words)


def _value(figure: Figure) -> str:
    shown = milliseconds(figure.value)
    return f"{shown} ms" if figure.unit == "ms" else shown


def comparison_to_dict(found: Comparison) -> dict[str, Any]:
    """Return plain values for the JSON."""
    return {
        "passed": not found.slower,
        "verdict": verdict(found),
        "limit_percent": round(100 * (found.limit - 1), 3),
        "largest_disagreement_percent": found.largest and round(100 * disagreement(found.largest), 2),
        "machine_speed": round(found.mood, 4),
        "changes": [_change_to_dict(change) for change in found.changes],
        "only_in_a": [list(key) for key in found.only_a],
        "only_in_b": [list(key) for key in found.only_b],
    }


def _change_to_dict(change: Change) -> dict[str, Any]:
    return {
        "group": change.a.group,
        "contender": change.a.contender,
        "detail": change.a.detail,
        "unit": change.a.unit,
        "a": change.a.value,
        "b": change.b.value,
        "samples": [change.a.samples, change.b.samples],
        "speed": asdict(change.speed),
        "reference": change.reference and list(change.reference),
        "times_as_fast": change.ratios and [round(r, 4) for r in change.ratios],
        "change": change.relative and asdict(change.relative),
        "says": change.says,
        "blamed": change.blamed and list(change.blamed),
    }
