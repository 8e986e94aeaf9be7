"""The report's sections about recall, latency and parity: those that every run has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from dra_bench.contenders.backend import PYTORCH
from dra_bench.figures import milliseconds, percent, recall_name
from dra_bench.latency import LABELS
from dra_bench.recall import PYTORCH_ROW
from dra_bench.report.images import both_schemes
from dra_bench.report.page import PageQuery, Plot, Section, Table
from dra_bench.report.plots.latency import latency_plot
from dra_bench.report.plots.pareto import Tradeoff, pareto_plot
from dra_bench.report.plots.recall import recall_plot
from dra_bench.report.run_folder import Run
from dra_bench.report.tables import (
    QUERY_PARTS,
    changed_table,
    changes_table,
    contenders_table,
    environment_table,
    fastest_table,
    graphs_table,
    parity_table,
    printed_table,
    queries_table,
    ratios_table,
    recall_tables,
    rows_table,
    unavailable_table,
    whole_rows,
)
from dra_bench.report.verdict import others_percent, recall_kind
from dra_bench.throughput import throughput_table

PARTS = ("image", "text", "compose")  #: drawn one by one; folded


def recall_section(run: Run) -> Section:
    """Show the recalls of the checkpoint."""
    protocols = "; ".join(sorted({str(e.get("protocol", "")) for e in run.evaluations} - {""}))
    tables = recall_tables(run.evaluations)
    return Section(
        "recall",
        f"{recall_kind(run).capitalize()}s",
        f"In percent, by the protocol “{protocols}”. Image only and text only are the same model asked with "
        "half of the query: what composing adds is the distance to them.",
        plots=tuple(_recall_plot(e) for e in run.evaluations),
        folded=tables,
    )


def latency_section(latency: Mapping[str, Any], names: tuple[str, ...]) -> Section:
    """Show how long a query takes with every contender, and what each part of it takes."""
    rows = latency["rows"]
    counts = sorted({row["samples"] for row in rows})
    samples = " to ".join(str(c) for c in dict.fromkeys((counts[0], counts[-1])))
    machine = latency["environment"]
    missing = latency.get("unavailable", [])
    left_out = ", ".join(u["backend"] for u in missing)
    note = (
        f"All rows from one run, taking turns, after warming up; {samples} samples a row, so a p99 is close to the "
        f"slowest of them. {machine.get('cpu', 'unknown CPU')}, {machine.get('threads', '?')} threads. From pixels and "
        f"strings to vectors in every row; the search in the gallery is not part of it."
        + (f" Not measured here, for reasons given below: {left_out}." if left_out else "")
        + busy_note(machine)
    )
    folded: list[Table] = [rows_table(latency), ratios_table(latency)]
    if throughput := latency.get("throughput"):
        title = "Batches, against the fastest of PyTorch's ways"
        folded.append(printed_table("throughput", title, throughput_table(throughput), words=(0, 1, 4)))
    if fastest := latency.get("fastest_baselines"):
        folded.append(fastest_table(fastest))
    if contenders := latency.get("contenders"):
        folded.append(contenders_table(contenders))
    if missing:
        folded.append(unavailable_table("unavailable", missing))
    return Section(
        "latency",
        "Latency on this machine",
        note,
        plots=tuple(_latency_plot(rows, part, names) for part in QUERY_PARTS if whole_rows(rows, part)),
        more_plots=tuple(_latency_plot(rows, part, names) for part in PARTS if whole_rows(rows, part)),
        tables=(queries,) if (queries := queries_table(latency)).rows else (),
        folded=tuple(folded),
    )


def tradeoff_section(run: Run, names: tuple[str, ...]) -> Section | None:
    """Show recall against latency; None where no artifact has both."""
    first = run.recall["splits"][0]
    title = f"{recall_name(first['dataset'])} R@1 in %\n{first['dataset']} / {first['split']}"
    found = {part: points for part in QUERY_PARTS if len(points := tradeoffs(run, part)) > 1}
    if not found:
        return None
    plots = []
    for part, points in found.items():
        counts = "/".join(str(c) for c in sorted({p.samples for p in points}))
        x = f"{LABELS[part]}: p50 in milliseconds, {counts} samples"
        draw = partial(pareto_plot, points, x, f"{title}, {first['queries']} queries")
        words = ", ".join(f"{p.name} {milliseconds(p.p50_ms)} ms and {p.recall:.2f} %" for p in points)
        plots.append(both_schemes(draw, names, f"Recall against latency of a {LABELS[part]}: {words}"))
    note = (
        "Up is better, left is faster; the dashed line joins those that none beats in both. Recalls are those of the "
        f"artifacts on disk on {first['split']}, latencies those of whole queries."
    )
    return Section("tradeoff", "Recall against latency", note, plots=tuple(plots))


def tradeoffs(run: Run, part: str) -> list[Tradeoff]:
    """Pair every artifact's R@1 on the first split with its p50 of ``part`` at batch 1; PyTorch's rows have PyTorch's.

    Of a contender with several rows, texts padded and cut, the fastest counts.
    """
    first = run.recall["splits"][0]
    splits = [s for s in run.recall["splits"] if (s["dataset"], s["split"]) == (first["dataset"], first["split"])]
    recalls = {s["artifact"]: s["candidate"].get("R@1") for s in splits if "artifact" in s}
    if not recalls and len({b["backend"] for b in run.latency.get("bundles", [])}) == 1:
        recalls = {run.latency["bundles"][0]["backend"]: first["candidate"].get("R@1")}
    recalls[PYTORCH] = next((s["reference"].get("R@1") for s in splits if s["reference"]), None)
    fastest: dict[str, Tradeoff] = {}
    for row in whole_rows(run.latency["rows"], part):
        name = row["backend"]
        recall = recalls.get(name)
        if recall is not None and name not in fastest:
            fastest[name] = Tradeoff(name, row["p50_ms"], recall, row["samples"], first["queries"])
    return list(fastest.values())


def parity_section(run: Run, changed: Sequence[PageQuery], about_changed: str) -> Section:
    """Show how near the artifacts are to PyTorch, with the pictures of queries whose first answer changed."""
    recall = run.recall
    by_artifact: dict[str, list[int]] = {}
    for split in recall["splits"]:
        count = by_artifact.setdefault(split.get("artifact", "the bundle"), [0, 0])
        count[0] += split["changed_queries"]
        count[1] += split["queries"]
    counts = "; ".join(
        f"{name}: {f'{changes} of {queries}' if changes else f'none of {queries}'}"
        for name, (changes, queries) in by_artifact.items()
    )
    note = (
        "The files on disk, answering real pairs, beside PyTorch in float32. "
        f"Queries whose first answer changed – {counts}. {about_changed}"
    )
    folded = [graphs_table(run.verified)]
    if listed := changed_table(recall):
        folded.append(listed)
    if missing := recall.get("unavailable"):
        folded.append(unavailable_table("not-compared", missing))
    return Section(
        "parity",
        f"The artifacts against {PYTORCH_ROW}",
        note.strip(),
        tables=(parity_table(recall), changes_table(recall)),
        queries=tuple(changed),
        folded=tuple(folded),
    )


def environment_section(latency: Mapping[str, Any]) -> Section:
    """Show where latencies were measured."""
    table = environment_table(latency["environment"])
    return Section("environment", "Where and how it was measured", "", tables=(table,))


def busy_note(environment: Mapping[str, Any]) -> str:
    """Warn where other programs were busy; empty where they weren't."""
    others = others_percent(environment)
    return f" Other programs used {others:.0f} % of the CPUs meanwhile: don't quote any of it." if others else ""


def _recall_plot(evaluation: dict[str, Any]) -> Plot:
    figures = ", ".join(f"{k} {percent(v)}" for k, v in evaluation["metrics"].items() if k.startswith("R@"))
    alt = f"Bars: recall on {evaluation['split']} of the composed query ({figures}), beside image only and text only"
    return both_schemes(partial(recall_plot, evaluation), (), alt)


def _latency_plot(rows: Sequence[Mapping[str, Any]], part: str, names: tuple[str, ...]) -> Plot:
    figures = ", ".join(f"{r['backend']} {milliseconds(r['p50_ms'])} ms" for r in whole_rows(rows, part))
    alt = f"Latency of {LABELS[part]} at batch 1, p50 to p99 of each contender; p50: {figures}"
    return both_schemes(partial(latency_plot, whole_rows(rows, part), LABELS[part]), names, alt)
