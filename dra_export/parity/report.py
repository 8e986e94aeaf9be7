"""Lay out what `dra_export.parity.verify` found as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dra_runtime.console import table

MOST_CHANGED = 5  #: queries with another first answer that are listed; the JSON has all

Run = tuple[str, Mapping[str, Any]]  #: a name, and what was found under it


def parity_report(results: Sequence[Mapping[str, Any]]) -> str:
    """Lay out results of `verify_bundle` for the same data: tables, notes, and a verdict for each that was compared."""
    runs = list(_runs(results))
    parts = [_graphs(name, run) for name, run in runs]
    if ranked := [(name, run) for name, run in runs if run["recall"]]:
        parts += [_recalls(ranked), _ranks(ranked), *(_changed(name, run) for name, run in ranked)]
    notes = dict.fromkeys(note for result in results for note in result["notes"])
    parts.append("\n".join(f"note: {note}" for note in notes))
    first = results[0]
    parts.append(f"{first['dataset']} / {first['split']}, {first['queries']} queries")
    parts.append("\n".join(line for name, run in runs for line in _verdict(name, run)))
    return "\n\n".join(part for part in parts if part)


def _runs(results: Sequence[Mapping[str, Any]]) -> Iterator[Run]:
    names = [result["name"] for result in results]
    for result in results:
        # bundles of one name lie in different folders: their identity tells them apart
        name = result["name"] + (f" {result['bundle_id'][:8]}" if names.count(result["name"]) > 1 else "")
        yield name, result
        for variant in result["variants"]:
            joint = "/" if variant["name"].startswith("engines/") else ", "
            yield f"{name}{joint}{variant['name']}", variant


def _graphs(name: str, run: Mapping[str, Any]) -> str:
    rows = [
        [graph, _cosine(g, "min_cosine"), _cosine(g, "p01_cosine"), f"{g['max_abs']:.1e}", g["pairs"]]
        for graph, g in run["graphs"].items()
    ]
    title = f"{name} ({run['precision']}, {run['backend']})"
    return table([title, "smallest cosine", "1st percentile", "largest difference", "pairs"], rows)


def _cosine(graph: Mapping[str, Any], key: str) -> str:
    if graph[key] == -1 and ("failed" in graph or "not_finite" in graph):
        return "failed" if "failed" in graph else "NaN or infinity"
    return f"{graph[key]:.8f}"


def _recalls(runs: Sequence[Run]) -> str:
    reference = runs[0][1]["recall"]["reference"]
    sides = [("PyTorch float32", reference), *((name, run["recall"]["candidate"]) for name, run in runs)]
    return table(["recall in %", *reference], [[name, *(f"{side[c]:.2f}" for c in reference)] for name, side in sides])


def _ranks(runs: Sequence[Run]) -> str:
    rows = []
    for name, run in runs:
        recall, ranks = run["recall"], run["recall"]["ranks"]
        moved = f"{ranks['changed']} ({ranks['better']} better, {ranks['worse']} worse)"
        by = f"{ranks['median']:g} / {ranks['largest']}" if ranks["changed"] else "-"
        rows.append([name, recall["changed_queries"], f"{recall['top10_overlap']:.2f} %", moved, by])
    queries = runs[0][1]["recall"]["queries"]
    return table(
        [
            f"beside PyTorch, {queries} queries",
            "first answers changed",
            "first ten in common",
            "targets' ranks changed",
            "by (median / largest)",
        ],
        rows,
    )


def _changed(name: str, run: Mapping[str, Any]) -> str:
    changed = run["recall"]["changed"]
    if not changed:
        return ""
    # repr: a text or a name from a data set may hold anything, terminal commands too
    lines = [
        f"  query {c['id']}: {c['reference']!r} + {c['text']!r}: {c['was']!r} -> {c['is']!r} (right: {c['target']!r})"
        for c in changed[:MOST_CHANGED]
    ]
    more = f" ({MOST_CHANGED} of {len(changed)}; --json lists all)" if len(changed) > MOST_CHANGED else ""
    return "\n".join([f"{name}: first answers that changed{more}", *lines])


def _verdict(name: str, run: Mapping[str, Any]) -> list[str]:
    if run["missed"]:
        return [f"{name}: FOUND WANTING", *(f"  {line}" for line in run["missed"])]
    return [f"{name}: passed: {run['judged']}" if run["judged"] else f"{name}: NOT JUDGED"]
