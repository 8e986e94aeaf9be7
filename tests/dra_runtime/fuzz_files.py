"""Good files of every format that the runtime reads, and the parts from which odd ones are made."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
from PIL import Image, features


def good_images() -> dict[str, bytes]:
    """Return small real files of every format, in as many of its forms as PIL writes, and some that it doesn't."""
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(30), np.arange(40)) * 3
    rgb = Image.fromarray(
        (np.stack([ramp, ramp.max() - ramp, ramp // 2], 2) + rng.integers(0, 9, (30, 40, 3))).astype("u1")
    )
    alpha = rgb.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(rgb.size))
    palette, grey = rgb.quantize(16), rgb.convert("L")
    wide = Image.fromarray((ramp * 300).astype("u2"))
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    exif = Image.Exif()
    exif[274], exif[271] = 6, "maker"
    made = {
        "JPEG plain": (rgb, {"exif": exif, "comment": b"c", "dpi": (72, 72)}),
        "JPEG progressive": (rgb, {"progressive": True, "icc_profile": b"i" * 300}),
        "JPEG cmyk": (rgb.convert("CMYK"), {}),
        "JPEG grey": (grey, {"restart_marker_blocks": 1}),
        "PNG rgb": (rgb, {"exif": exif, "icc_profile": b"i" * 99}),
        "PNG rgba": (alpha, {}),
        "PNG palette": (palette, {"transparency": 3}),
        "PNG wide": (wide, {}),
        "PNG bits": (rgb.convert("1"), {}),
        "PNG animated": (rgb, frames),
        "WEBP lossy": (rgb, {"exif": exif}),
        "WEBP lossless": (alpha, {"lossless": True}),
        "WEBP animated": (rgb, frames),
        "GIF plain": (palette, {"comment": b"c" * 300, "transparency": 1}),
        "GIF animated": (palette, frames),
        "BMP rgb": (rgb, {}),
        "BMP palette": (palette, {}),
        "BMP bits": (rgb.convert("1"), {}),
        "TIFF raw": (rgb, {"exif": exif}),
        "TIFF lzw": (rgb, {"compression": "tiff_lzw"}),
        "TIFF deflate": (alpha, {"compression": "tiff_adobe_deflate"}),
        "TIFF jpeg": (rgb, {"compression": "jpeg"}),
        "TIFF fax": (rgb.convert("1"), {"compression": "group4"}),
        "TIFF packbits": (palette, {"compression": "packbits"}),
        "TIFF float": (grey.convert("F"), {}),
        "TIFF pages": (rgb, {**frames, "big_tiff": True}),
        "PPM rgb": (rgb, {}),
        "PPM bits": (rgb.convert("1"), {}),
        "PPM wide": (wide, {}),
        "JPEG2000 box": (rgb, {}),
        "JPEG2000 raw": (alpha, {"no_jp2": True, "tile_size": (16, 16)}),
    }
    if features.check("avif"):
        made |= {"AVIF plain": (rgb, {"exif": exif, "speed": 10}), "AVIF animated": (rgb, {**frames, "speed": 10})}
    files = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (image, options) in made.items():
            buffer = io.BytesIO()
            image.save(buffer, name.split()[0], **options)
            files[name] = buffer.getvalue()
    files["BMP runs"] = bmp(9, 4, 1, bytes([9, 1, 0, 0] * 3 + [0, 3, 1, 2, 3, 0, 6, 2, 0, 1]))
    tile = zlib.compress(bytes(256))
    tiles = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 16, 323: 16, 324: 134, 325: len(tile)}
    files["TIFF tiles"] = tiff(tiles, tile)
    files["PPM odd"] = b"P6 # c\n4 3 99\n" + bytes(36)
    return files


def bmp(width: int, height: int, compression: int, data: bytes, bits: int = 8) -> bytes:
    """Return a BMP with a palette of zeros."""
    start = 54 + 1024
    head = struct.pack("<IHHI", start + len(data), 0, 0, start)
    head += struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, 256, 0)
    return b"BM" + head + bytes(1024) + data


def tiff(tags: dict[int, int | tuple[int, ...]], data: bytes) -> bytes:
    """Return a TIFF of one directory, whose data follows it.

    A tag is a number; or a count and a place, of long numbers or of the type that stands before them.
    """
    entries = []
    for tag, value in sorted(tags.items()):
        kind, count, place = (4, 1, value) if isinstance(value, int) else (4, *value)[-3:]
        entries.append(struct.pack("<HHII", tag, kind, count, place))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4) + data


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a PNG's chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, before: bytes = b"", after: bytes = b"", data: bytes | None = None) -> bytes:
    """Return a grey PNG, with chunks before and after its pixels."""
    pixels = zlib.compress(bytes((width + 1) * height)) if data is None else data
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + before + chunk(b"IDAT", pixels) + after + chunk(b"IEND", b"")


def with_right_checksums(data: bytes) -> bytes:
    """Return a PNG whose chunks' checksums are right again: behind a wrong one no decoder looks."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        if at + 12 + size > len(data):
            break
        out += chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + size])
        at += 12 + size
    return out + data[at:]


def sidecar_values() -> dict[str, Any]:
    """Return an engine's sidecar as the format's page shows it."""
    spec = {"name": "tokens", "dtype": "int32", "shape": ["batch", "length"]}
    return {
        "format": "dra-engine",
        "version": 1,
        "graph": "text_encoder",
        "bundle_id": "ab" * 32,
        "onnx_sha256": "cd" * 32,
        "plan": {"file": "text_encoder.plan", "sha256": "ef" * 32, "size": 256},
        "library": "tensorrt",
        "library_version": "10.13.0.35",
        "target": {
            "platform": "linux-x86_64",
            "compute_capabilities": ["8.9", "9.0"],
            "gpu": "NVIDIA L4",
            "hardware_compatible": False,
            "version_compatible": True,
        },
        "precision": "fp16",
        "proof": {
            "half_share": 0.75,
            "half_tensors": 3,
            "float_tensors": 1,
            "half_products": 2,
            "float_products": 0,
            "islands": [{"op": "SOFTMAX", "reason": "softmax", "layers": ["node_softmax"]}],
            "inspected": None,
        },
        "profiles": [{"tokens": {"min": [1, 2], "opt": [8, 16], "max": [64, 77]}}],
        "inputs": [spec],
        "outputs": [{"name": "text_features", "dtype": "float32", "shape": ["batch", 640]}],
        "build": {"min_batch": 1, "opt_batch": 8, "max_batch": 64, "workspace": 2**30},
        "versions": {"dra-toolkit": "0.1.0"},
    }
