"""What the report shows, as plain values; the templates write it and compute nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table of texts; columns in ``words`` are left-aligned, the others are figures."""

    id: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    words: tuple[int, ...] = (0,)


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
    caption: str = ""


@dataclass(frozen=True)
class PageQuery:
    """One query of the page: its text, its reference, and answers in a row."""

    text: str
    note: str
    reference: PageImage
    answers: tuple[PageImage, ...]


@dataclass(frozen=True)
class Section:
    """One part of the page; ``more_plots`` and ``folded`` tables are opened by whoever wants them."""

    id: str
    title: str
    note: str
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()
    queries: tuple[PageQuery, ...] = ()
    more_plots: tuple[Plot, ...] = ()
    folded: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    verdict: str
    passed: bool
    check: str
    caveat: str
    shown_line: str
    shown_rule: str
    answers: int
    queries: tuple[PageQuery, ...]
    sections: tuple[Section, ...]
    footer: str
