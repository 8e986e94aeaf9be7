"""The growth curves as tables for people: one row a curve, one column an x."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dra_bench.figures import milliseconds
from dra_runtime.console import table

Curves = Sequence[Mapping[str, Any]]


def growth_tables(curves: Curves) -> str:
    """Lay out all curves, those of the same axes in one table, and say below by which law they were extrapolated."""
    return "\n\n".join(_tables(curves))


def _tables(curves: Curves) -> Iterator[str]:
    keys = list(dict.fromkeys((c["curve"], c["x"], c["y"]) for c in curves))
    for key in keys:
        mine = [c for c in curves if (c["curve"], c["x"], c["y"]) == key]
        xs = sorted({p["x"] for c in mine for p in c["points"]})
        header = (f"{key[2]}, by {key[1]}", *(_short(x) for x in xs), "spread", "n")
        lines = [table(header, (_row(c, xs) for c in mine))]
        lines += [_law(c) for c in mine if c["law"]]
        yield "\n".join(lines)


def _row(curve: Mapping[str, Any], xs: Sequence[float]) -> tuple[str, ...]:
    at = {p["x"]: p for p in curve["points"]}
    measured = [p for p in curve["points"] if not p["extrapolated"]]
    name = _name(curve)
    return (
        name,
        *(_figure(at[x]) if x in at else "" for x in xs),
        f"{50 * max((p['high'] - p['low']) / p['y'] for p in measured):.0f} %" if measured else "",
        str(min(p["samples"] for p in measured)) if measured else "",
    )


def _figure(point: Mapping[str, Any]) -> str:
    text = milliseconds(point["y"]) if point["y"] < 10_000 else f"{point['y']:,.0f}"
    return f"~{text}" if point["extrapolated"] else text


def _law(curve: Mapping[str, Any]) -> str:
    law = curve["law"]
    name = _name(curve)
    if law["kind"] == "formula":
        return f"~ {name}: {law['formula']}, x items."
    low, high = (_short(x) for x in (law["fitted_over"][0], law["fitted_over"][-1]))
    off = f"{law['largest_residual_percent']:g} %"
    return f"~ {name}: extrapolated by {law['formula']}, fitted over {low} to {high}, off there by at most {off}."


def _name(curve: Mapping[str, Any]) -> str:
    return str(curve["backend"]) if curve["curve"] in ("search", "memory") else f"{curve['part']}, {curve['backend']}"


def _short(x: float) -> str:
    for unit, name in ((1_000_000, "M"), (1000, "k")):
        if x >= unit and x % unit == 0:
            return f"{x / unit:g}{name}"
    return f"{x:g}"
