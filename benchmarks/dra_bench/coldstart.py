"""From starting the interpreter to the first answer, stage by stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dra_bench.figures import milliseconds
from dra_bench.fresh import Stage, summary
from dra_runtime.console import table


def coldstart_rows(runs: Mapping[str, Sequence[Sequence[Stage]]]) -> list[dict[str, Any]]:
    """Return each contender's stages, with the time each took itself and when it was over, in plain values."""
    return [{"start": name, "stages": summary(found)} for name, found in runs.items()]


COLDSTART_HEADER = ("start", "stage", "ms", "least to most", "since the start ms", "runs")


def coldstart_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Lay all stages out for people; the last of each start is the first answer."""
    return table(
        COLDSTART_HEADER,
        (
            (
                row["start"],
                stage["stage"],
                milliseconds(stage["own_ms"]["median"]),
                f"{milliseconds(stage['own_ms']['least'])} to {milliseconds(stage['own_ms']['most'])}",
                milliseconds(stage["ms"]["median"]),
                str(stage["runs"]),
            )
            for row in rows
            for stage in row["stages"]
        ),
    )
