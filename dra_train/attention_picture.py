"""Draw where TAC looks as one picture: both images as the model sees them, and a map for each layer of each stream."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dra_runtime.preprocess import Preprocess
from dra_train.attention import Look, PairAttention, StreamAttention

Pixels = NDArray[np.float32]  #: (h, w, 3), 0 to 255

CELL, GAP, MARGIN = 216, 14, 20  #: a panel's side, and the space around it, in pixels
LINE, LARGE, SMALL = 20, 19, 14  #: height of a line of text; font sizes
MOST_TEXT = 2000  #: letters of a text that are looked at
INK, PALE = (28, 28, 32), (96, 96, 104)
LOOKS, ADDS, TAKES = (219, 68, 0), (0, 122, 62), (190, 24, 140)
FULL = 4.0  #: shares this many times an even one get the full colour, so that even attention looks even
LEGEND = (
    "Orange: share of the attention, a patch; full colour is {full:.1f} % or the panel's largest, an even share is "
    "{even:.1f} %. Layer 1 looks at the other image; later layers at what layer 1 brought to the asking image's "
    'patches; "traced" follows all layers back to the other image{exact}. "44 of 49 patches": '
    "over how many it spreads (exp of its entropy). Green adds to the agreement with the text, pink takes from it; "
    "the rest: class token and biases."
)


def draw_attention(
    pair: PairAttention, reference: Pixels, target: Pixels, text: str, names: tuple[str, str] = ("", "")
) -> Image.Image:
    """Draw a pair's attention.

    ``reference`` and ``target`` are pixels as the model sees them (see `seen_pixels`), ``names`` the images' names. A
    long text is cut.
    """
    images = {"reference": reference, "target": target}
    columns = 3 + len(pair.streams[0].layers)
    width = 2 * MARGIN + columns * CELL + (columns - 1) * GAP
    title = _wrapped(f"“{' '.join(text.split())}”", width - 2 * MARGIN, LARGE, lines=2)
    title.append(f"agreement with the text: cos(F_v, F_c) = {pair.agreement:.2f}")
    patches = pair.streams[0].traced.patches.size
    even = 100 / (patches + 1)
    exact = "" if pair.exact else " (approximately: mean of the heads)"
    legend = _wrapped(LEGEND.format(full=FULL * even, even=even, exact=exact), width - 2 * MARGIN, SMALL, lines=4)
    row = 2 * LINE + CELL + 2 * LINE + GAP
    top = MARGIN + len(title) * (LINE + 6) + GAP
    height = top + len(pair.streams) * row + len(legend) * LINE + MARGIN
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    for i, line in enumerate(title):
        draw.text((MARGIN, MARGIN + i * (LINE + 6)), line, INK, _font(LARGE))
    strongest = max(float(np.abs(stream.agreement.patches).max()) for stream in pair.streams)
    for number, stream in enumerate(pair.streams):
        y = top + number * row
        other = stream.traced.over
        draw.text((MARGIN, y), f"Stream {number + 1}: the {stream.asks} asks the {other}", INK, _font(LARGE))
        name = names[0] if stream.asks == "reference" else names[1]
        panels = [(images[stream.asks], (f"{stream.asks}, as the model sees it", name)), *_maps(stream, images)]
        panels.append(_agreement(stream, images, strongest))
        for column, (pixels, caption) in enumerate(panels):
            x = MARGIN + column * (CELL + GAP)
            canvas.paste(_resized(pixels), (x, y + LINE + 10))
            for i, line in enumerate(caption):
                cut = _wrapped(line, CELL, SMALL, lines=1)
                draw.text((x, y + LINE + 10 + CELL + 4 + i * (LINE - 2)), cut[0], PALE if i else INK, _font(SMALL))
    for i, line in enumerate(legend):
        draw.text((MARGIN, top + len(pair.streams) * row + i * LINE), line, PALE, _font(SMALL))
    return canvas


def seen_pixels(image: NDArray[np.float32], preprocess: Preprocess) -> Pixels:
    """Turn a preprocessed image (3, S, S) back into pixels (S, S, 3): padded, resized and cropped, colours undone."""
    mean, std = (np.array(values, dtype=np.float32) for values in (preprocess.mean, preprocess.std))
    pixels: Pixels = np.clip((image.transpose(1, 2, 0) * std + mean) * 255, 0, 255).astype(np.float32)
    return pixels


def spread(look: Look) -> float:
    """Return over how many patches the attention spreads: exp of its entropy."""
    share = look.patches.astype(np.float64) / max(float(look.patches.sum()), 1e-12)
    entropy = -float((share * np.log(np.maximum(share, 1e-12))).sum())
    return float(np.exp(entropy))


def _maps(stream: StreamAttention, images: Mapping[str, Pixels]) -> list[tuple[Pixels, tuple[str, str]]]:
    """Return a panel for each layer and one for all layers together, with its two lines of caption."""
    looks = [(f"layer {i + 1}, over the {look.over}", look) for i, look in enumerate(stream.layers)]
    return [
        (
            _heat(images[look.over], look),
            (title, f"{spread(look):.0f} of {look.patches.size} patches, class token {100 * look.class_token:.0f} %"),
        )
        for title, look in [*looks, (f"traced to the {stream.traced.over}", stream.traced)]
    ]


def _agreement(
    stream: StreamAttention, images: Mapping[str, Pixels], strongest: float
) -> tuple[Pixels, tuple[str, str]]:
    """Return the panel of what each patch adds to the agreement; ``strongest`` gets the full colour."""
    look = stream.agreement
    share = look.patches / max(strongest, 1e-12)
    pixels = _tinted(images[look.over], np.maximum(share, 0), ADDS)
    pixels = _tinted(pixels, np.maximum(-share, 0), TAKES, pale=False)
    rest = look.class_token + stream.constant
    return pixels, (
        f"adds {look.patches.sum():+.2f} to the agreement",
        f"full colour {strongest:.2f}, rest {rest:+.2f}",
    )


def _heat(pixels: Pixels, look: Look) -> Pixels:
    full = max(FULL / (look.patches.size + 1), float(look.patches.max()))
    return _tinted(pixels, look.patches / full, LOOKS)


def _tinted(pixels: Pixels, strength: NDArray[np.float32], colour: tuple[int, int, int], pale: bool = True) -> Pixels:
    """Colour each cell of a grid over an image by its strength (h, w), 0 to 1, on a pale grey copy of the image."""
    if pale:
        grey = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        pixels = np.repeat((0.5 * grey + 120)[..., None], 3, axis=2)
    rows = np.arange(pixels.shape[0]) * strength.shape[0] // pixels.shape[0]
    columns = np.arange(pixels.shape[1]) * strength.shape[1] // pixels.shape[1]
    alpha = 0.85 * np.clip(strength, 0, 1)[rows][:, columns, None]
    tinted: Pixels = (pixels * (1 - alpha) + np.array(colour, dtype=np.float32) * alpha).astype(np.float32)
    return tinted


def _resized(pixels: Pixels) -> Image.Image:
    """Return a panel as an image of the panels' size; small images keep sharp cells."""
    image = Image.fromarray(np.round(pixels).astype(np.uint8))
    method = Image.Resampling.BICUBIC if image.width >= CELL else Image.Resampling.NEAREST
    return image.resize((CELL, CELL), method)


def _wrapped(text: str, width: int, size: int, lines: int) -> list[str]:
    """Break a text into lines of at most ``width`` pixels; what doesn't fit into ``lines`` of them is cut."""
    font = _font(size)
    result = [""]
    for word in text[:MOST_TEXT].split():
        longer = f"{result[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            result[-1] = longer
        elif len(result) < lines and result[-1]:
            result.append(word)
        else:
            result[-1] = longer
            break
    while (length := font.getlength(result[-1])) > width:  # a word too long for its line, or the last line of many
        kept = min(len(result[-1]) - 2, int(len(result[-1]) * width / length))  # nearly enough at once
        result[-1] = result[-1][:kept].rstrip() + "…"
    return result


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
