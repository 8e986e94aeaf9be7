"""Write the page as HTML and as Markdown."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from dra_bench.report.page import Page
from dra_bench.report.tables import markdown_table, markdown_text


def render_html(page: Page) -> str:
    """Write the page: one file, no request to anywhere, every text escaped."""
    return _render("report.html.j2", page, autoescape=True)


def render_markdown(page: Page) -> str:
    """Write the page's words and tables in Markdown."""
    return _render("report.md.j2", page, autoescape=False)


def _render(template: str, page: Page, autoescape: bool) -> str:
    source = files("dra_bench").joinpath("templates", template).read_text(encoding="utf-8")
    environment = Environment(autoescape=autoescape, undefined=StrictUndefined, keep_trailing_newline=True)  # noqa: S701
    environment.globals["markdown_table"] = markdown_table
    environment.globals["markdown_text"] = markdown_text
    return environment.from_string(source).render(page=page)
