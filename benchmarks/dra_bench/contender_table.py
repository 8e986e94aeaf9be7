"""All contenders of a latency result in one table: their medians, and how many times as fast as PyTorch eager."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dra_bench.contenders.backend import PYTORCH
from dra_bench.figures import milliseconds, times
from dra_runtime.console import table

PARTS = {"image": "image, ms", "text": "text, ms", "query": "query, new image, ms", "query_by_id": "query by id, ms"}
HEADER = ("contender", "what it is", *PARTS.values(), "query, times as fast (95 %)", "samples")


def contender_table(result: Mapping[str, Any]) -> str:
    """Lay out the contenders' medians at batch 1, each with its longest text, as ``latency.json`` has them."""
    rows: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in sorted(result["rows"], key=lambda row: row["text_tokens"] or 0):
        if row["batch"] == 1:
            rows[row["backend"], row["part"]] = row
    lines = []
    for contender in result["contenders"]:
        name = contender["backend"]
        own = [rows[name, part] for part in PARTS]
        figures = (milliseconds(row["p50_ms"]) for row in own)
        lines.append((name, contender["about"], *figures, _ratio(result, name), str(min(r["samples"] for r in own))))
    return table(HEADER, lines)


def _ratio(result: Mapping[str, Any], name: str) -> str:
    """Write how many times as fast a contender's whole query is as PyTorch eager's, whose text is padded."""
    found = [
        ratio
        for ratio in result["ratios"]
        if (ratio["candidate"]["backend"], ratio["reference"]["backend"]) == (name, PYTORCH)
        and ratio["candidate"]["part"] == ratio["reference"]["part"] == "query"
        and ratio["candidate"]["batch"] == 1
    ]
    if not found:
        return ""
    ratio = max(found, key=lambda ratio: ratio["reference"]["text_tokens"])
    low, high = ratio["interval"]
    return f"{times(ratio['times_as_fast'])} ({times(low)} to {times(high)})"
