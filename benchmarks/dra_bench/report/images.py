"""Pictures and plots as data URIs, so that the page asks for nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from dra_bench.picture import thumbnail
from dra_bench.report.page import Plot
from dra_bench.report.plots.style import DARK, LIGHT, Look, svg

THUMBNAIL = 144  #: pixels; the page shows them at about 90


def picture_uri(path: Path) -> str:
    """Return an image file as a small WebP."""
    content = io.BytesIO()
    thumbnail(path, THUMBNAIL).save(content, format="WEBP", quality=85)
    return _data_uri("image/webp", content.getvalue())


def both_schemes(draw: Callable[[Look], Figure], names: tuple[str, ...], alt: str) -> Plot:
    """Draw a plot in both palettes; ``names`` are all contenders of the report."""
    light, dark = (_data_uri("image/svg+xml", svg(draw(Look(p, names))).encode()) for p in (LIGHT, DARK))
    return Plot(light, dark, alt)


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
