"""The four shapes as tables, and a line that names who holds most and least."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dra_bench.figures import milliseconds, times
from dra_bench.load.queries import LABELS, REFERENCES
from dra_runtime.console import table

Row = Mapping[str, Any]

SHORT = {"id": "by id", "new": "new"}


def load_text(result: Mapping[str, Any]) -> str:
    """Lay all out for people: a title, a table, and what to know about it."""
    offline = result["offline"]
    return "\n\n".join(
        [
            "Single stream: one query after the other, ms",
            _single_stream(result["single_stream"]),
            "Offline: all queries at hand, queries a second with batches of each size; low and high: quartiles",
            _offline(offline),
            "Server: the highest rate of queries at random times (Poisson) of which 99 % are answered within the limit",
            _server(result["server"]),
            "\n".join(verdicts(result["server"])),
            "Threads: queries a second; low and high: quartiles",
            _threads(result["threads"]),
        ]
    )


def verdicts(server: Sequence[Row]) -> list[str]:
    """Name, for each kind of reference, who holds the highest rate and who the lowest."""
    lines = []
    for reference in REFERENCES:
        rows = sorted((row for row in server if row["reference"] == reference), key=lambda r: -r["queries_per_second"])
        if not rows:
            continue
        holding = [row for row in rows if row["queries_per_second"]]
        limit = f"{LABELS[reference]}, p99 within {milliseconds(rows[0]['limit_ms'])} ms:"
        if not holding:
            lines.append(f"{limit} nobody holds that at any rate")
            continue
        best, least = holding[0], holding[-1]
        lines += [limit, f"  most: {_holds(best)}"]
        if least is not best:
            ratio = times(best["queries_per_second"] / least["queries_per_second"])
            lines.append(f"  least: {_holds(least)}, {ratio} fewer")
        lines += [f"  at no rate: {row['backend']}" for row in rows if not row["queries_per_second"]]
    return lines


def rate(value: float) -> str:
    """Write queries a second with about three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _holds(row: Row) -> str:
    return f"{row['backend']} with {rate(row['queries_per_second'])} a second"


def _rate_or_none(row: Row) -> str:
    return rate(row["queries_per_second"]) if row["queries_per_second"] else "none"


def _single_stream(rows: Iterable[Row]) -> str:
    header = ("reference", "contender", "p50", "p90", "p95", "p99", "iqr", "samples")
    keys = ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "iqr_ms")
    return table(header, ((*_who(row), *(milliseconds(row[k]) for k in keys), row["samples"]) for row in _sorted(rows)))


def _offline(rows: Sequence[Row]) -> str:
    batches = sorted({row["batch"] for row in rows})
    header = ("reference", "contender", *(f"batch {b}" for b in batches), "best", "low to high", "samples")
    return table(header, (_offline_line(same) for same in _grouped(rows)))


def _offline_line(same: Sequence[Row]) -> tuple[object, ...]:
    best = max(same, key=lambda row: row["queries_per_second"])
    spread = f"{rate(best['low'])} to {rate(best['high'])}"
    each = (rate(row["queries_per_second"]) for row in sorted(same, key=lambda row: row["batch"]))
    return (*_who(best), *each, best["batch"], spread, best["samples"])


def _server(rows: Iterable[Row]) -> str:
    header = ("reference", "contender", "rate held", "failed at", "p50 ms", "p99 ms", "queries", "tries")
    return table(header, (_server_line(row) for row in _sorted(rows)))


def _server_line(row: Row) -> tuple[object, ...]:
    at = next((a for a in row["attempts"] if a["held"] and a["queries_per_second"] == row["queries_per_second"]), None)
    found = ("", "", "") if at is None else (milliseconds(at["p50_ms"]), milliseconds(at["p99_ms"]), at["queries"])
    failed = "" if row["failed_at"] is None else rate(row["failed_at"])
    return (*_who(row), _rate_or_none(row), failed, *found, len(row["attempts"]))


def _threads(rows: Iterable[Row]) -> str:
    header = ("reference", "contender", "threads", "queries a second", "low to high", "samples")
    return table(
        header,
        (
            (
                *_who(row),
                row["threads"],
                rate(row["queries_per_second"]),
                f"{rate(row['low'])} to {rate(row['high'])}",
                row["samples"],
            )
            for row in _sorted(rows)
        ),
    )


def _who(row: Row) -> tuple[str, str]:
    return SHORT[row["reference"]], row["backend"]


def _sorted(rows: Iterable[Row]) -> list[Row]:
    """Put rows of one kind of reference together; contenders stay in their order."""
    return sorted(rows, key=lambda row: REFERENCES.index(row["reference"]))


def _grouped(rows: Sequence[Row]) -> list[list[Row]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in _sorted(rows):
        found.setdefault(_who(row), []).append(row)
    return list(found.values())
