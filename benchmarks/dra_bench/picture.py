"""Draw queries and their five best answers as one picture, for a README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from dra_bench.figures import ordinal
from dra_bench.shown import ANSWERS, ShownQuery
from dra_runtime.preprocess import open_image

WIDTH = 1200
MARGIN = 36
THUMB = 104  #: side of a picture
GAP = 14
ROW = THUMB + 34  #: height of a query's row
TEXT_X = MARGIN + THUMB + 28
ANSWERS_X = WIDTH - MARGIN - ANSWERS * THUMB - (ANSWERS - 1) * GAP
HEADER = 64
FRAME = 5  #: width of the frame around the right answer

PAPER, CARD, LINE, INK, MUTED, RIGHT = "#eef1f4", "#ffffff", "#dfe4e9", "#17212b", "#5f6c78", "#12854a"


def draw_queries(shown: Sequence[ShownQuery], caption: str) -> Image.Image:
    """Draw one row a query: reference, text, best answers, the right one framed in green.

    ``caption`` goes below. Returns an RGB image 1200 pixels wide.
    """
    small, normal, bold = _font(17), _font(22), _font(17, "bold")
    footer = _wrap(caption, small, WIDTH - 2 * MARGIN)
    height = HEADER + ROW * len(shown) + 26 * len(footer) + MARGIN + 28
    canvas = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.rounded_rectangle((10, 10, WIDTH - 10, height - 10), radius=18, fill=CARD, outline=LINE, width=2)
    for x, title in ((MARGIN, "reference"), (TEXT_X, "text"), (ANSWERS_X, f"{ANSWERS} best answers")):
        draw.text((x, MARGIN), title, font=bold, fill=MUTED)
    for i, query in enumerate(shown):
        top = HEADER + MARGIN // 2 + i * ROW
        draw.line((MARGIN, top - 8, WIDTH - MARGIN, top - 8), fill=LINE, width=1)
        _draw_row(canvas, draw, query, top + 6, normal, small)
    bottom = HEADER + MARGIN // 2 + len(shown) * ROW
    draw.line((MARGIN, bottom - 8, WIDTH - MARGIN, bottom - 8), fill=LINE, width=1)
    for i, line in enumerate(footer):
        draw.text((MARGIN, bottom + 8 + 26 * i), line, font=small, fill=MUTED)
    return canvas


def thumbnail(path: Path, side: int) -> Image.Image:
    """Return an image scaled to fit a white square of ``side`` pixels, RGB."""
    image = open_image(path).convert("RGBA")
    scale = side / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    square = Image.new("RGBA", (side, side), "white")
    scaled = image.resize(size, Image.Resampling.LANCZOS)
    square.alpha_composite(scaled, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square.convert("RGB")


def _draw_row(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    query: ShownQuery,
    top: int,
    normal: ImageFont.FreeTypeFont,
    small: ImageFont.FreeTypeFont,
) -> None:
    canvas.paste(thumbnail(query.reference.path, THUMB), (MARGIN, top))
    lines = _wrap(query.text, normal, ANSWERS_X - TEXT_X - 24)[:3]
    note = "" if query.rank <= ANSWERS else f"right one: {ordinal(query.rank)}"
    y = top + (THUMB - 30 * len(lines) - (24 if note else 0)) // 2
    for i, line in enumerate(lines):
        draw.text((TEXT_X, y + 30 * i), line, font=normal, fill=INK)
    if note:
        draw.text((TEXT_X, y + 30 * len(lines) + 2), note, font=small, fill=MUTED)
    for i, answer in enumerate(query.answers):
        x = ANSWERS_X + i * (THUMB + GAP)
        canvas.paste(thumbnail(answer.path, THUMB), (x, top))
        if answer.name == query.target.name:
            box = (x - FRAME - 1, top - FRAME - 1, x + THUMB + FRAME, top + THUMB + FRAME)
            draw.rounded_rectangle(box, radius=10, outline=RIGHT, width=FRAME)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break a text into lines of at most ``width`` pixels, a word that is too long by itself into pieces."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _font(size: int, weight: str = "normal") -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib and knows most scripts' letters."""
    return ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans", weight=weight)), size)
