"""The report's sections about what a run may have measured too: load, growth, roofline, memory, starting, galleries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from dra_bench.coldstart import coldstart_table
from dra_bench.endtoend import endtoend_table
from dra_bench.figures import milliseconds
from dra_bench.gallery_search import cost_table, search_table
from dra_bench.growth_table import growth_tables
from dra_bench.latency import LABELS as PARTS
from dra_bench.load.queries import LABELS
from dra_bench.load.tables import load_text, rate
from dra_bench.memory import memory_table, stages_table
from dra_bench.report.images import both_schemes
from dra_bench.report.page import Plot, Section, Table
from dra_bench.report.plots.growth import growth_plot
from dra_bench.report.plots.load import load_plot
from dra_bench.report.plots.roofline import roofline_plot
from dra_bench.report.sections import busy_note
from dra_bench.report.tables import printed_table, printed_tables
from dra_bench.roofline import machine_table, parts_table

Names = tuple[str, ...]
WHOLE = ("query", "query_by_id")  #: curves of these are shown, those of their parts folded


def more_sections(more: Mapping[str, dict[str, Any]], names: Names) -> list[Section]:
    """Make a section of every file that is there, in the order in which they are read."""
    return [make(more[file], names) for file, make in SECTIONS.items() if file in more]


def load_section(load: Mapping[str, Any], names: Names) -> Section:
    """Show the load shapes: one stream, offline, arrivals at random with a limit on p99, and threads."""
    plots, said = [], []
    for reference in dict.fromkeys(row["reference"] for row in load["server"]):
        rows = [row for row in load["server"] if row["reference"] == reference and row["attempts"]]
        if not rows:
            continue
        best = ", ".join(f"{row['backend']} {rate(row['queries_per_second'])}" for row in rows)
        alt = f"p99 against queries a second, {LABELS[reference]}; the highest rate that holds the limit: {best}"
        limit = milliseconds(rows[0]["limit_ms"])
        most = max(rows, key=lambda row: float(row["queries_per_second"]))
        holds = f"{most['backend']} holds most, {rate(most['queries_per_second'])} a second"
        said.append(f"{LABELS[reference].capitalize()}, p99 within {limit} ms: {holds}.")
        plots.append(both_schemes(partial(load_plot, rows, LABELS[reference]), names, alt))
    titles = ("One query after the other, ms", "Offline, queries a second", "Server", "Threads")
    ids = ("load-single-stream", "load-offline", "load-server", "load-threads")
    tables = dict(zip(ids, printed_tables(ids, titles, load_text(load), words=(0, 1)), strict=True))
    return Section(
        "load",
        "Under load",
        f"Whole queries in the shapes of MLPerf Inference. Server: queries arrive at random, and the highest rate of "
        f"which 99 % are answered within the limit counts. {' '.join(said)}{busy_note(load['environment'])}",
        plots=tuple(plots),
        tables=(tables.pop("load-server"),),
        folded=tuple(tables.values()),
    )


def growth_section(growth: Mapping[str, Any], names: Names) -> Section:
    """Show how costs grow."""
    curves = growth["curves"]
    plots: list[Plot] = []
    more: list[Plot] = []
    whole = {c["curve"] for c in curves if c["part"] in WHOLE}
    for together in _together(curves, ("curve", "title", "x", "y", "part")):
        first, names_of = together[0], ", ".join(curve["backend"] for curve in together)
        several = len({c["part"] for c in curves if c["title"] == first["title"]}) > 1
        title = f"{first['title']}: {PARTS.get(first['part'], first['part'])}" if several else str(first["title"])
        alt = f"{title}: {first['y']} against {first['x']} of {names_of}"
        plot = both_schemes(partial(growth_plot, together, title), names, alt)
        (more if first["curve"] in whole and first["part"] not in WHOLE else plots).append(plot)
    titles = [f"By {group[0]['x']}: {group[0]['y']}" for group in _together(curves, ("curve", "x", "y"))]
    ids = [f"growth-{i}" for i in range(1, 1 + len(titles))]
    extrapolated = any(p["extrapolated"] for c in curves for p in c["points"])
    beyond = " Hollow points were not measured but extrapolated from the others." if extrapolated else ""
    return Section(
        "growth",
        "How cost grows",
        f"Each point is a median, its bar the spread of the samples.{beyond}{busy_note(growth['environment'])}",
        plots=tuple(plots),
        more_plots=tuple(more),
        folded=tuple(printed_tables(ids, titles, growth_tables(growth["curves"]))),
    )


def roofline_section(roofline: Mapping[str, Any], names: Names) -> Section:
    """Show how far each part is from what the machine can do."""
    machine, parts = roofline["machine"], roofline["parts"]
    alt = (
        f"Roofline: operations a second of each part against operations a byte, under {machine['gflops']:.0f} GFLOP/s "
        f"and {machine['gbytes_per_second']:.1f} GB/s"
    )
    return Section(
        "roofline",
        "How far from the machine's limit",
        f"A plain matrix product reaches {machine['gflops']:.0f} GFLOP/s here, and memory "
        f"{machine['gbytes_per_second']:.1f} GB/s: the lines. A part beyond them keeps its weights in the caches, or "
        "has products that suit the processor "
        f"better than the plain one.{busy_note(roofline['environment'])}",
        plots=(both_schemes(partial(roofline_plot, machine, parts), names, alt),),
        folded=(
            printed_table("roofline-parts", "Every part beside its limit", parts_table(parts), words=(0, 1, 7)),
            printed_table("roofline-machine", "What this machine can do", machine_table(machine), words=(0, 2)),
        ),
    )


def endtoend_section(endtoend: Mapping[str, Any], _names: Names) -> Section:
    """Show a query from a file to ten answers."""
    counts = ", ".join(f"{row['backend']} {row['samples']}" for row in endtoend["rows"])
    items = ", ".join(dict.fromkeys(f"{g['items']:,}" for g in endtoend.get("galleries", [])))
    return Section(
        "endtoend",
        "From a picture file to ten answers",
        f"A gallery of {items or 'unknown'} items, searched exactly. Samples: {counts}."
        f"{busy_note(endtoend['environment'])}",
        tables=(printed_table("endtoend-steps", "Step by step", endtoend_table(endtoend["rows"])),),
    )


def memory_section(memory: Mapping[str, Any], _names: Names) -> Section:
    """Show the memory of fresh processes."""
    return Section(
        "memory",
        "Memory",
        f"Fresh processes that answer {memory['queries']} queries each; medians with the least and the most.",
        tables=(printed_table("memory-table", "At the end", memory_table(memory["rows"])),),
        folded=(printed_table("memory-stages", "Memory stage by stage", stages_table(memory["rows"]), words=(0, 1)),),
    )


def coldstart_section(coldstart: Mapping[str, Any], _names: Names) -> Section:
    """Show how long the first answer of a fresh process takes."""
    last = [(row["start"], row["stages"][-1]) for row in coldstart["rows"]]
    rows = tuple(
        (
            start,
            milliseconds(stage["ms"]["median"]),
            f"{milliseconds(stage['ms']['least'])} to {milliseconds(stage['ms']['most'])}",
            str(stage["runs"]),
        )
        for start, stage in last
    )
    header = ("start", "first answer after ms", "least to most", "runs")
    return Section(
        "coldstart",
        "Starting",
        f"From starting the interpreter to the first answer out of {coldstart['gallery']} pictures, file cache "
        f"{coldstart.get('file_cache', 'unknown')}.{busy_note(coldstart['environment'])}",
        tables=(Table("coldstart-first", "To the first answer", header, rows),),
        folded=(printed_table("coldstart-stages", "Stage by stage", coldstart_table(coldstart["rows"]), words=(0, 1)),),
    )


def gallery_section(gallery: Mapping[str, Any], _names: Names) -> Section:
    """Show the search in large galleries."""
    sizes = gallery["sizes"]
    busy = busy_note(max(sizes, key=lambda s: float(s.get("used_by_others_percent") or 0)))
    return Section(
        "gallery",
        "Search in large galleries",
        f"One query at a time; recall against the exact answer of {sizes[0]['queries']} queries that are no items."
        f"{busy}",
        tables=(printed_table("gallery-search", "Search", search_table(sizes), words=(0, 1)),),
        folded=(printed_table("gallery-cost", "What a gallery costs", cost_table(sizes), words=(0, 1)),),
    )


SECTIONS: dict[str, Callable[[Mapping[str, Any], Names], Section]] = {
    "load.json": load_section,
    "growth.json": growth_section,
    "roofline.json": roofline_section,
    "endtoend.json": endtoend_section,
    "memory.json": memory_section,
    "coldstart.json": coldstart_section,
    "gallery.json": gallery_section,
}


def _together(curves: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[list[Mapping[str, Any]]]:
    """Group curves by what ``keys`` say of them."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for curve in curves:
        groups.setdefault(tuple(curve[k] for k in keys), []).append(curve)
    return list(groups.values())
