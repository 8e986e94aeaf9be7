"""Put the page together from a run's measurements and the answered queries."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from dra_bench.figures import ordinal
from dra_bench.report.changed import ChangedPictures
from dra_bench.report.images import picture_uri
from dra_bench.report.more_sections import more_sections
from dra_bench.report.page import Page, PageImage, PageQuery
from dra_bench.report.run_folder import Run
from dra_bench.report.sections import (
    environment_section,
    latency_section,
    parity_section,
    recall_section,
    tradeoff_section,
)
from dra_bench.report.verdict import caveat, check_line, has_passed, verdict
from dra_bench.shown import ANSWERS, ShownQuery


def page_from_run(
    run: Run, shown: Sequence[ShownQuery], rule: str, version: str, changed: ChangedPictures | None = None
) -> Page:
    """Put a page together: words, figures and pictures.

    ``rule`` says how the shown queries were chosen; ``changed`` has the pictures of the queries whose answer changed.
    """
    names = contender_names(run)
    pictures = changed or ChangedPictures()
    sections = [
        latency_section(run.latency, names),
        tradeoff_section(run, names),
        parity_section(run, pictures.queries, pictures.note),
        recall_section(run),
        *more_sections(run.more, names),
        environment_section(run.latency),
    ]
    return Page(
        title=f"DRA toolkit: report of {run.name}",
        verdict=verdict(run),
        passed=has_passed(run),
        check=check_line(run),
        caveat=caveat(run),
        shown_line=shown_line(shown),
        shown_rule=rule,
        answers=ANSWERS,
        queries=tuple(_page_query(query) for query in shown),
        sections=tuple(section for section in sections if section),
        footer=f"Written by dra-bench report, DRA toolkit {version}. Every figure is read from the run's JSON files.",
    )


def shown_line(shown: Sequence[ShownQuery]) -> str:
    """Say how many of the shown queries have the right answer first."""
    within = sum(query.rank <= ANSWERS for query in shown)
    first = sum(query.is_first for query in shown)
    return f"{first} of {len(shown)} shown are first, {within} of {len(shown)} among the {ANSWERS} best."


def contender_names(run: Run) -> tuple[str, ...]:
    """Name all contenders of the report: the bundles first, then those that answer whole queries."""
    bundles = [b["backend"] for b in run.latency.get("bundles", [])]
    rows = run.latency["rows"]
    timed = [row["backend"] for row in rows if row["part"] == "query"] + [row["backend"] for row in rows]
    load, growth, roofline = (run.more.get(f"{name}.json", {}) for name in ("load", "growth", "roofline"))
    others = [*load.get("server", []), *growth.get("curves", []), *roofline.get("parts", [])]
    return tuple(dict.fromkeys([*bundles, *timed, *(row["backend"] for row in others)]))


def _page_query(query: ShownQuery) -> PageQuery:
    note = "" if query.rank <= ANSWERS else f"the right one came {ordinal(query.rank)}"
    image = partial(_page_image, target=query.target.name)
    return PageQuery(
        text=query.text,
        note=note,
        reference=PageImage(query.reference.name, picture_uri(query.reference.path)),
        answers=tuple(image(picture.name, picture_uri(picture.path)) for picture in query.answers),
    )


def _page_image(name: str, data: str, target: str) -> PageImage:
    return PageImage(name, data, right=name == target)
