"""The report of a run: the page, the picture and the tables, all from the run's JSON files and its gallery."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from dra_bench.environment import BUSY
from dra_bench.figures import DEMO_DATASET, cosine, milliseconds, ordinal, percent, recall_name, times
from dra_bench.latency import find_ratio
from dra_bench.picture import thumbnail
from dra_bench.plots import DARK, LIGHT, latency_plot, recall_plot
from dra_bench.report_tables import (
    Table,
    environment_table,
    latency_tables,
    markdown_table,
    parity_tables,
    recall_tables,
)
from dra_bench.run_folder import Run
from dra_bench.shown import ANSWERS, ShownQuery

CAVEAT = (
    "These are demo recalls on emoji pictures by a small model that trains in minutes: they show that the path works, "
    "and are neither the paper's recalls nor comparable with them."
)
OTHER_CAVEAT = (
    "These are recalls of this checkpoint on this data set; DRA here is a reconstruction of the paper's method."
)
THUMBNAIL = 144  #: pixels; the page shows them at about 90


@dataclass(frozen=True)
class Plot:
    """One plot as data URIs for both colour schemes, and in words."""

    light: str
    dark: str
    alt: str


@dataclass(frozen=True)
class PageImage:
    """One small image of the page."""

    name: str
    data: str  #: data URI
    right: bool = False


@dataclass(frozen=True)
class PageQuery:
    """One query of the page."""

    text: str
    note: str
    reference: PageImage
    answers: tuple[PageImage, ...]


@dataclass(frozen=True)
class Page:
    """Everything that the templates write; they compute nothing."""

    title: str
    verdict: str
    passed: bool
    check: str
    caveat: str
    shown_line: str
    shown_rule: str
    answers: int
    queries: tuple[PageQuery, ...]
    recall_title: str
    recall_note: str
    recall_plots: tuple[Plot, ...]
    recall_tables: tuple[Table, ...]
    latency_note: str
    latency_plot: Plot
    latency_tables: tuple[Table, ...]
    parity_note: str
    parity_tables: tuple[Table, ...]
    environment: Table
    footer: str


def page_from_run(run: Run, shown: Sequence[ShownQuery], rule: str, version: str) -> Page:
    """Put a page together: words, figures and pictures; ``rule`` says how the shown queries were chosen."""
    return Page(
        title=f"DRA toolkit: report of {run.name}",
        verdict=verdict(run),
        passed=_passed(run),
        check=_check(run),
        caveat=caveat(run),
        shown_line=shown_line(shown),
        shown_rule=rule,
        answers=ANSWERS,
        queries=tuple(_page_query(query) for query in shown),
        recall_title=f"{_kind(run).capitalize()}s",
        recall_note=_recall_note(run),
        recall_plots=tuple(_recall_plot(e) for e in run.evaluations),
        recall_tables=recall_tables(run.evaluations),
        latency_note=_latency_note(run.latency),
        latency_plot=_latency_plot(run.latency),
        latency_tables=latency_tables(run.latency),
        parity_note=_parity_note(run),
        parity_tables=parity_tables(run.verify, run.recall),
        environment=environment_table(run.latency["environment"]),
        footer=f"Written by dra-bench report, DRA toolkit {version}. Every figure is read from the run's JSON files.",
    )


def render_html(page: Page) -> str:
    """Write the page: one file, no request to anywhere, every text escaped."""
    return _render("report.html.j2", page, autoescape=True)


def render_markdown(page: Page) -> str:
    """Write the page's words and tables in Markdown."""
    return _render("report.md.j2", page, autoescape=False)


def verdict(run: Run) -> str:
    """Say in two sentences what the run found: demo recalls, faithfulness, speed."""
    finds = " and ".join(
        f"for {percent(e['metrics']['R@1'])} % of {e['queries']} queries on {e['split']}"
        f" ({', '.join(_alone(name, metrics) for name, metrics in e['baselines'].items())})"
        for e in run.evaluations
    )
    first = f"The right picture comes first {finds}: {_kind(run)} R@1."
    speed = [
        f"{times(ratio['times_as_fast'])} as fast {what}"
        for part, against, what in (("query", None, "with a new reference"), ("query_by_id", "query", "by id"))
        if (ratio := find_ratio(run.latency["ratios"], part, against))
    ]
    faithful = (
        "The exported bundle answers as PyTorch does" if _passed(run) else "The exported bundle differs from PyTorch"
    )
    if others := _others(run.latency):
        return f"{first} {faithful}; how fast can't be said, since other programs used {others:.0f} % of the CPUs."
    return f"{first} {faithful}" + (f", a query {' and '.join(speed)} as PyTorch's full query." if speed else ".")


def caveat(run: Run) -> str:
    """Say what these recalls are not."""
    return CAVEAT if _is_demo(run) else OTHER_CAVEAT


def shown_line(shown: Sequence[ShownQuery]) -> str:
    """Say how many of the shown queries have the right answer first."""
    within = sum(query.rank <= ANSWERS for query in shown)
    first = sum(query.is_first for query in shown)
    return f"{first} of {len(shown)} shown are first, {within} of {len(shown)} among the {ANSWERS} best."


def _alone(baseline: str, metrics: dict[str, float]) -> str:
    return f"{baseline.removesuffix('_only')} alone {percent(metrics['R@1'])} %"


def _is_demo(run: Run) -> bool:
    return any(e["dataset"] == DEMO_DATASET for e in run.evaluations)


def _kind(run: Run) -> str:
    return recall_name(DEMO_DATASET if _is_demo(run) else "")


def _passed(run: Run) -> bool:
    return bool(run.verify["passed"] and run.recall["passed"])


def _check(run: Run) -> str:
    smallest = min(graph["min_cosine"] for graph in run.verify["graphs"].values())
    states = {True: "passed", False: "FAILED"}
    return (
        f"dra-export verify {states[bool(run.verify['passed'])]} (smallest cosine {cosine(smallest)}), "
        f"dra-bench recall {states[bool(run.recall['passed'])]}."
    )


def _recall_note(run: Run) -> str:
    protocols = "; ".join(sorted({str(e.get("protocol", "")) for e in run.evaluations} - {""}))
    return (
        f"In percent, by the protocol “{protocols}”. Image only and text only are the same model asked with "
        "half of the query: what composing adds is the distance to them."
    )


def _latency_note(latency: dict[str, Any]) -> str:
    counts = sorted({row["samples"] for row in latency["rows"]})
    samples = " to ".join(str(c) for c in dict.fromkeys((counts[0], counts[-1])))
    machine = latency["environment"]
    others = _others(latency)
    busy = f" Other programs used {others:.0f} % of the CPUs meanwhile: don't quote any of it." if others else ""
    return (
        f"All rows from one run, taking turns, after warming up; {samples} samples a row, so a p99 is close to the "
        f"slowest of them. {machine.get('cpu', 'unknown CPU')}, {machine.get('threads', '?')} threads. From pixels and "
        f"strings to vectors in every row; the search in the gallery is not part of it.{busy}"
    )


def _others(latency: dict[str, Any]) -> float:
    """Return how many percent of the CPUs other programs used while latencies were measured; 0 where it was few.

    Threads that wait for each other at every step, as PyTorch's do, lose far more by that than ONNX Runtime's.
    """
    others = float(latency["environment"].get("used_by_others_percent") or 0)
    return others if others > BUSY else 0.0


def _parity_note(run: Run) -> str:
    changed = sum(split["changed_queries"] for split in run.recall["splits"])
    queries = sum(split["queries"] for split in run.recall["splits"])
    return (
        "The files on disk, answering real pairs, beside PyTorch in float32. "
        f"The first answer changed for {changed} of {queries} queries."
    )


def _page_query(query: ShownQuery) -> PageQuery:
    note = "" if query.rank <= ANSWERS else f"the right one came {ordinal(query.rank)}"
    image = partial(_page_image, target=query.target.name)
    return PageQuery(
        text=query.text,
        note=note,
        reference=PageImage(query.reference.name, _picture_uri(query.reference.path)),
        answers=tuple(image(picture.name, _picture_uri(picture.path)) for picture in query.answers),
    )


def _page_image(name: str, data: str, target: str) -> PageImage:
    return PageImage(name, data, right=name == target)


def _picture_uri(path: Any) -> str:
    content = io.BytesIO()
    thumbnail(path, THUMBNAIL).save(content, format="WEBP", quality=85)
    return _data_uri("image/webp", content.getvalue())


def _recall_plot(evaluation: dict[str, Any]) -> Plot:
    figures = ", ".join(f"{k} {percent(v)}" for k, v in evaluation["metrics"].items() if k.startswith("R@"))
    return Plot(
        _svg_uri(recall_plot(evaluation, LIGHT)),
        _svg_uri(recall_plot(evaluation, DARK)),
        f"Bars: recall on {evaluation['split']} of the composed query ({figures}), beside image only and text only",
    )


def _latency_plot(latency: dict[str, Any]) -> Plot:
    fastest = [r for r in latency["rows"] if r["part"] == "query_by_id" and r["batch"] == 1]
    figures = ", ".join(f"{r['backend']} {milliseconds(r['p50_ms'])} ms" for r in fastest)
    return Plot(
        _svg_uri(latency_plot(latency["rows"], LIGHT)),
        _svg_uri(latency_plot(latency["rows"], DARK)),
        f"Bars: p50 latency of each part at batch 1, the bundle beside PyTorch; query by id: {figures}",
    )


def _svg_uri(svg: str) -> str:
    return _data_uri("image/svg+xml", svg.encode())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _render(template: str, page: Page, autoescape: bool) -> str:
    source = files("dra_bench").joinpath("templates", template).read_text(encoding="utf-8")
    environment = Environment(autoescape=autoescape, undefined=StrictUndefined, keep_trailing_newline=True)  # noqa: S701
    environment.globals["markdown_table"] = markdown_table
    return environment.from_string(source).render(page=page)
