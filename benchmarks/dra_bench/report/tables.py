"""The report's tables, once, for the page and for Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dra_bench.contenders.backend import PYTORCH
from dra_bench.figures import cosine, milliseconds, percent, times
from dra_bench.latency import LABELS
from dra_bench.latency import ratios_table as latency_ratios_table
from dra_bench.latency import rows_table as latency_rows_table
from dra_bench.recall import RECALL_HEADER, recall_cells, split_title
from dra_bench.report.page import Table
from dra_runtime.console import table

MOST_CHANGED = 20  #: changed queries listed; the JSON has all
QUERY_PARTS = ("query", "query_by_id")


def printed_table(id: str, title: str, text: str, note: str = "", words: tuple[int, ...] = (0,)) -> Table:
    """Return a table as its command prints it, so that both say the same."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, _, *rows = [tuple(cell.strip() for cell in line[1:-1].split("|")) for line in lines]
    return Table(id, title, header, tuple(rows), note, words)


def printed_tables(
    ids: Sequence[str], titles: Sequence[str], text: str, words: tuple[int, ...] = (0,)
) -> tuple[Table, ...]:
    """Return several tables as their command prints them, what is said below one as its note."""
    blocks = [block for block in re.split(r"\n\n+", text) if block.startswith("|")]
    notes = [" ".join(line for line in block.splitlines() if not line.startswith("|")) for block in blocks]
    return tuple(
        printed_table(id, title, block, note, words)
        for id, title, block, note in zip(ids, titles, blocks, notes, strict=True)
    )


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


def queries_table(latency: Mapping[str, Any]) -> Table:
    """Make the table that most readers need: whole queries at batch 1, the fastest first, against PyTorch eager."""
    rows = [row for part in QUERY_PARTS for row in whole_rows(latency["rows"], part)]
    tails = tuple(key for key in ("p90_ms", "p95_ms", "p99_ms") if all(key in row for row in rows))
    cells = tuple(
        (
            LABELS[row["part"]],
            row["backend"],
            "" if row["text_tokens"] is None else str(row["text_tokens"]),
            *(milliseconds(row[key]) for key in ("p50_ms", *tails)),
            _against_pytorch(row, latency["ratios"]),
            str(row["samples"]),
        )
        for row in rows
    )
    figures = tuple(f"{key.removesuffix('_ms')} ms" for key in ("p50_ms", *tails))
    header = ("", "contender", "text tokens", *figures, "against PyTorch eager", "samples")
    return Table("queries", "Whole queries, one at a time", header, cells, words=(0, 1))


def whole_rows(rows: Sequence[Mapping[str, Any]], part: str) -> list[Mapping[str, Any]]:
    """Return the rows of a part at batch 1, the fastest first; of several texts those that whole queries have."""
    mine = sorted((r for r in rows if r["part"] == part and r["batch"] == 1), key=lambda r: float(r["p50_ms"]))
    usual = {(r["backend"], r["text_tokens"]) for r in rows if r["part"] == "query" and r["batch"] == 1}
    return [r for r in mine if (r["backend"], r["text_tokens"]) in usual or part not in ("text", "query_by_id")] or mine


def _against_pytorch(row: Mapping[str, Any], ratios: Iterable[Mapping[str, Any]]) -> str:
    """Say how many times as fast a row is as PyTorch eager's same part, where that was measured."""
    for ratio in ratios:
        reference, candidate = ratio["reference"], ratio["candidate"]
        same = all(candidate[k] == row[k] for k in ("backend", "part", "batch", "text_tokens"))
        if same and (reference["backend"], reference["part"]) == (PYTORCH, row["part"]):
            low, high = ratio["interval"]
            return f"{times(ratio['times_as_fast'])} ({times(low)} to {times(high)})"
    return ""


def ratios_table(latency: Mapping[str, Any]) -> Table:
    """List all ratios."""
    return printed_table(
        "ratios",
        "All ratios: how many times as fast",
        latency_ratios_table(latency["ratios"]),
        "Ratio of the medians. The interval is a bootstrap over rounds. PyTorch's text has 77 tokens, as open_clip "
        "pads it; the rows with fewer let PyTorch cut it as well.",
        words=(0, 1),
    )


def fastest_table(fastest: Sequence[Mapping[str, Any]]) -> Table:
    """Compare each part with the fastest contender that isn't ours."""
    text = latency_ratios_table(fastest)
    return printed_table("fastest-baselines", "Against the fastest other way", text, words=(0, 1))


def rows_table(latency: Mapping[str, Any]) -> Table:
    """List all rows of the run."""
    text = latency_rows_table(latency["rows"])
    return printed_table("latency-rows", "All parts, in milliseconds", text, words=(0, 1))


def contenders_table(contenders: Sequence[Mapping[str, Any]]) -> Table:
    """Say what each contender is."""
    rows = tuple(
        (c["backend"], c["about"], str(c["precision"]), "" if c.get("threads") is None else str(c["threads"]))
        for c in contenders
    )
    header = ("contender", "what it is", "precision", "threads")
    return Table("contenders", "What the contenders are", header, rows, words=(0, 1, 2))


def unavailable_table(id: str, unavailable: Sequence[Mapping[str, Any]]) -> Table:
    """Say what wasn't measured, and why."""
    rows = tuple((" in ".join(u[k] for k in ("bundle", "backend") if k in u), u["reason"]) for u in unavailable)
    return Table(id, "Not measured here, and why", ("contender", "reason"), rows, words=(0, 1))


def graphs_table(verified: Sequence[Mapping[str, Any]]) -> Table:
    """List how near each graph of each artifact is to PyTorch."""
    several = len(verified) > 1
    rows = tuple(
        (
            *((result.get("name", "bundle"),) if several else ()),
            name,
            cosine(g["min_cosine"]),
            f"{g['max_abs']:.2e}",
            str(g["pairs"]),
        )
        for result in verified
        for name, g in result["graphs"].items()
    )
    header = (*(("artifact",) if several else ()), "graph", "smallest cosine", "largest difference", "pairs")
    return Table("parity", "Every graph", header, rows, words=(0, 1) if several else (0,))


def parity_table(recall: Mapping[str, Any]) -> Table:
    """Put every artifact's recalls beside PyTorch's."""
    columns = tuple(dict.fromkeys(k for split in recall["splits"] for k in split["reference"]))
    rows = tuple(recall_cells(recall["splits"], columns))
    return Table("recall-parity", "Recall beside recall", (*RECALL_HEADER, *columns), rows, words=(0, 1))


def changes_table(recall: Mapping[str, Any]) -> Table:
    """Say how many answers changed, artifact by artifact."""
    rows = tuple(
        (
            split_title(split),
            split.get("artifact", "bundle"),
            str(split["changed_queries"]),
            str(sum(c["was"] == c["target"] for c in split["changed"])),
            str(sum(c["is"] == c["target"] for c in split["changed"])),
            f"{split['top10_overlap']:.2f}",
            str(split["queries"]),
        )
        for split in recall["splits"]
    )
    header = ("split", "artifact", "first answer changed", "was right", "is right", "same of 10 best, %", "queries")
    return Table("changes", "Answers that changed", header, rows, words=(0, 1))


def changed_table(recall: Mapping[str, Any]) -> Table | None:
    """List the queries whose first answer changed; None where there are none."""
    changed = [(split, c) for split in recall["splits"] for c in split["changed"]]
    if not changed:
        return None
    rows = tuple(
        (
            split["split"],
            split.get("artifact", "bundle"),
            *(str(c["id"]), c["text"], c["reference"], c["target"], c["was"], c["is"]),
        )
        for split, c in changed[:MOST_CHANGED]
    )
    header = ("split", "artifact", "query", "text", "reference", "right answer", "PyTorch's first", "the artifact's")
    note = f"{len(rows)} of {len(changed)}; recall.json lists all." if len(rows) < len(changed) else ""
    return Table("changed", "Queries whose first answer changed", header, rows, note, words=(0, 1, 3, 4, 5, 6, 7))


def environment_table(environment: Mapping[str, Any]) -> Table:
    """List what the latencies were measured on."""
    rows = tuple((key.replace("_", " "), str(value)) for key, value in environment.items() if value not in (None, ""))
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
