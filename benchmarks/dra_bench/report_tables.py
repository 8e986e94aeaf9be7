"""The report's tables, once, for the page and for Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dra_bench.figures import cosine, percent
from dra_bench.latency import ROWS_HEADER, ratio_cells, ratios_header, row_cells
from dra_bench.recall import RECALL_HEADER, recall_cells
from dra_runtime.console import table

MOST_CHANGED = 20  #: changed queries listed; the JSON has all


@dataclass(frozen=True)
class Table:
    """A table of texts; columns in ``words`` are left-aligned, the others are figures."""

    id: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    words: tuple[int, ...] = (0,)


def recall_tables(evaluations: Sequence[Mapping[str, Any]]) -> tuple[Table, ...]:
    """Make one table a split: the composed query, the two baselines, and every kind of edit."""
    return tuple(_recall_table(evaluation) for evaluation in evaluations)


def _recall_table(evaluation: Mapping[str, Any]) -> Table:
    columns = tuple(evaluation["metrics"])
    named = [("composed query", evaluation["queries"], evaluation["metrics"])]
    named += [(name.replace("_", " "), evaluation["queries"], m) for name, m in evaluation["baselines"].items()]
    named += [(f"edit: {edit}", m["queries"], m) for edit, m in evaluation.get("by_edit", {}).items()]
    rows = tuple(
        (name, str(queries), *(percent(metrics[c]) if c in metrics else "" for c in columns))
        for name, queries, metrics in named
    )
    title = f"{evaluation['dataset']} / {evaluation['split']}: {evaluation['gallery']} images in the gallery"
    return Table(f"recall-{_slug(evaluation['split'])}", title, ("", "queries", *columns), rows)


def latency_tables(latency: Mapping[str, Any]) -> tuple[Table, ...]:
    """Make the table of ratios and the table of all rows."""
    return (
        Table(
            "ratios",
            "How many times as fast the bundle is",
            ratios_header(latency["ratios"]),
            tuple(ratio_cells(latency["ratios"])),
            "Ratio of the medians, the bundle's below. The interval is a bootstrap over rounds. PyTorch's "
            "text has 77 tokens, as open_clip pads it; the rows with fewer let PyTorch cut it as well.",
            words=(0, 1),
        ),
        Table(
            "latency-rows",
            "All rows, in milliseconds",
            ROWS_HEADER,
            tuple(row_cells(latency["rows"])),
            words=(0, 1),
        ),
    )


def parity_tables(verify: Mapping[str, Any], recall: Mapping[str, Any]) -> tuple[Table, ...]:
    """Make the tables of cosines by graph, recall beside recall, and the queries whose first answer changed."""
    graphs = tuple(
        (name, cosine(g["min_cosine"]), f"{g['max_abs']:.2e}", str(g["pairs"])) for name, g in verify["graphs"].items()
    )
    columns = tuple(recall["splits"][0]["reference"])
    tables = [
        Table("parity", "Every graph", ("graph", "smallest cosine", "largest difference", "pairs"), graphs),
        Table(
            "recall-parity",
            "Recall beside recall",
            (*RECALL_HEADER, *columns),
            tuple(recall_cells(recall["splits"], columns)),
            words=(0, 1),
        ),
    ]
    changed = [(split["split"], c) for split in recall["splits"] for c in split["changed"]]
    if changed:
        rows = tuple(
            (split, str(c["id"]), c["text"], c["reference"], c["target"], c["was"], c["is"])
            for split, c in changed[:MOST_CHANGED]
        )
        header = ("split", "query", "text", "reference", "right answer", "PyTorch's first", "the bundle's first")
        note = f"{len(rows)} of {len(changed)}; recall.json lists all." if len(rows) < len(changed) else ""
        tables.append(Table("changed", "First answers that changed", header, rows, note, words=(0, 2, 3, 4, 5, 6)))
    return tuple(tables)


def environment_table(environment: Mapping[str, Any]) -> Table:
    """List what the latencies were measured on."""
    rows = tuple(
        (key.replace("_", " "), str(value)) for key, value in environment.items() if value is not None and value != ""
    )
    return Table("environment-table", "Environment", ("", ""), rows, words=(0, 1))


def markdown_table(t: Table) -> str:
    """Lay a table out in Markdown, so that no cell can break out of its place."""
    return table([markdown_text(c) for c in t.header], [[markdown_text(c) for c in row] for row in t.rows])


def markdown_text(text: str) -> str:
    """Escape what Markdown or HTML inside it would read as markup."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", plain)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text)
