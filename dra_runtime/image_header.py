"""Refuse images that would cost far more than their pixels, before PIL's parsers and decoders meet them.

A few hundred kilobytes can ask for hours or for gigabytes without breaking any format: canvases that are allocated
before anybody could count their pixels, lists of a million strips, scans over the whole picture that change nothing.
What is refused here no camera and no editor writes. Measured costs and the limits' reasons: docs/security.md.
"""

from __future__ import annotations

import io
import math
import struct
from typing import Any

MAX_SCANNED = 3_000_000_000  #: pixels of a JPEG times its scans; a usual progressive one has ten
MAX_TAG_VALUES = 200_000  #: numbers in one tag of a TIFF, such as its strips' places
MAX_TAG_BYTES = 64 * 2**20  #: beside the file's own size: tags that share their bytes
HEADER_READS = 5_000  #: calls for more bytes while a header is read
JPEG_HEADER_BYTES = 32 * 2**20
MAX_EXIF = 100  #: blocks in a JPEG, previews' among them; PIL copies all it has at each of them

# Decoders that PIL has written in Python take seconds a megapixel: pixels that each may decode.
_PIXELS_IN_PYTHON = {"bmp_rle": 10_000_000, "ppm": 2_000_000, "ppm_plain": 0}


class CountedReads(io.BytesIO):
    """An image's bytes, with a bound on how many calls a parser may make to get them.

    Parsers take a call or three for each chunk, and some copy all that they have seen at each.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._size = len(data)
        self.expect_header("")

    def expect_header(self, format_name: str) -> None:
        """Allow the calls that a header needs."""
        self._calls = HEADER_READS
        self._bytes = JPEG_HEADER_BYTES if format_name == "JPEG" else 2 * self._size + 2**20

    def expect_pixels(self) -> None:
        """Allow the calls that pixels need: in pieces of at least some forty bytes, where there are many."""
        self._calls = 100_000 + self._size // 40
        self._bytes = self._calls * 2**20  # a decoder may be given the rest of the file for each strip

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, or raise ValueError if that was one call too many."""
        data = super().read(size)
        self._calls -= 1
        self._bytes -= len(data)
        if self._calls < 0 or self._bytes < 0:
            raise ValueError("cut into more pieces, or behind a longer header, than an image needs")
        return data


def check_before_parsing(format_name: str, data: bytes, max_pixels: int) -> None:
    """Raise ValueError for a header that PIL would pay for before it tells the image's size."""
    if format_name == "WEBP" and math.prod(size := _webp_size(data)) > max_pixels:
        raise ValueError(f"{size[0]} x {size[1]} pixels, more than the {max_pixels} allowed")
    if format_name == "JPEG" and (blocks := data.count(b"Exif\0\0")) > MAX_EXIF:
        raise ValueError(f"{blocks} blocks of EXIF")
    if format_name == "TIFF":
        _check_tiff(data)


def check_before_decoding(image: Any, data: bytes | None, max_pixels: int) -> None:
    """Raise ValueError for an image that was parsed, but whose decoder would take too long or too much memory."""
    pixels = math.prod(image.size)
    for tile in getattr(image, "tile", ()):
        allowed = _PIXELS_IN_PYTHON.get(tile[0], pixels)
        if pixels > allowed:
            raise ValueError(f"{pixels} pixels, and PIL decodes {tile[0]} slowly: at most {allowed}")
    if image.format == "JPEG" and data is not None:
        scans = data.count(b"\xff\xda")  # within coded data this pair can't stand
        if scans * pixels > MAX_SCANNED:
            raise ValueError(f"{scans} scans over {pixels} pixels")
    if image.format == "TIFF":
        tags = image.tag_v2
        tile_size = [value for tag in (322, 323) if isinstance(value := tags.get(tag), int)]
        if math.prod(tile_size) > max_pixels:
            raise ValueError(f"tiles of {tile_size} pixels, more than the {max_pixels} allowed")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return the size that a WebP's first chunk states, from which its decoder allocates the canvas."""
    head = data[:30].ljust(30, b"\0")
    kind = head[12:16]
    if kind == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", head[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _check_tiff(data: bytes) -> None:
    """Look at the first directory's tags: PIL makes a Python object of each number, and a copy of each tag's bytes."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:3] == b"\x2b"
    offset_format, count_format, tag_format = ("Q", "Q", "HHQ") if big else ("I", "H", "HHI")
    entry = 20 if big else 12
    try:
        (start,) = struct.unpack_from(order + offset_format, data, 8 if big else 4)
        (count,) = struct.unpack_from(order + count_format, data, start)
    except (struct.error, OverflowError):
        return  # PIL says what is wrong with it
    first = start + struct.calcsize(order + count_format)
    widths = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
    total = 0
    for number in range(min(count, max(0, len(data) - first) // entry)):
        tag, kind, values = struct.unpack_from(order + tag_format, data, first + number * entry)
        size = values * widths.get(kind, 0)
        if kind not in (1, 2, 7) and values > MAX_TAG_VALUES and size <= len(data):
            raise ValueError(f"the tag {tag} has {values} values")
        total += size if size <= len(data) else 0
    if total > len(data) + MAX_TAG_BYTES:
        raise ValueError(f"its tags ask for {total} bytes of {len(data)}")
