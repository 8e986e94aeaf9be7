"""Memory of a fresh process that answers queries: a bundle's beside PyTorch's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dra_bench.contenders.backend import PYTORCH
from dra_bench.fresh import Stage, raw, summary
from dra_runtime.console import table

MORE = 20  #: queries after the first


def memory_rows(runs: Mapping[str, Sequence[Sequence[Stage]]]) -> list[dict[str, Any]]:
    """Return each contender's memory after every stage, and at its end against PyTorch's, in plain values.

    Every value is the median of the runs, with the least and the most.
    """
    rows = []
    reference = summary(runs[PYTORCH])[-1]
    for name, found in runs.items():
        stages = summary(found)
        row: dict[str, Any] = {"backend": name, "stages": stages}
        if name != PYTORCH:
            row["share_of_pytorch"] = {
                key: round(stages[-1][key]["median"] / reference[key]["median"], 4)
                for key in ("peak_mb", "resident_mb", "anonymous_mb")
            }
        rows.append(row)
    return rows


def raw_runs(runs: Mapping[str, Sequence[Sequence[Stage]]]) -> dict[str, Any]:
    """Return every stage of every run."""
    return {name: raw(found) for name, found in runs.items()}


MEMORY_HEADER = (
    "process",
    "peak MB",
    "least to most",
    "of PyTorch's",
    "resident at the end MB",
    "of it anonymous MB",
    "after the imports MB",
    "runs",
)


def memory_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Lay out each contender's memory at the end of its run."""
    return table(MEMORY_HEADER, (_cells(row) for row in rows))


STAGES_HEADER = ("process", "after", "peak MB", "resident MB", "of it anonymous MB")


def stages_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Lay out memory stage by stage."""
    return table(
        STAGES_HEADER,
        (
            (row["backend"], stage["stage"], *(f"{stage[key]['median']:.0f}" for key in _KEYS))
            for row in rows
            for stage in row["stages"]
        ),
    )


_KEYS = ("peak_mb", "resident_mb", "anonymous_mb")


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    last = row["stages"][-1]
    imported = [stage for stage in row["stages"] if stage["stage"].startswith("import")][-1]
    peak = last["peak_mb"]
    share = row.get("share_of_pytorch")
    return (
        row["backend"],
        f"{peak['median']:.0f}",
        f"{peak['least']:.0f} to {peak['most']:.0f}",
        f"{share['peak_mb']:.0%}" if share else "",
        f"{last['resident_mb']['median']:.0f}",
        f"{last['anonymous_mb']['median']:.0f}",
        f"{imported['resident_mb']['median']:.0f}",
        str(last["runs"]),
    )
