"""Images to network input, equal bit for bit to the PIL and torchvision path that the models were trained with.

Rules that differ between implementations, and the one kept here:

- Orientation tags (EXIF) are ignored, as CLIP's own preprocessing ignores them. PIL itself turns a TIFF upright when it
  decodes it, so those are.
- An image is padded, resized and cropped in the mode it is stored in and becomes RGB afterwards, as in CLIP and
  CLIP4Cir. So a palette image is resized without interpolation, and alpha is dropped, not blended.
- Of an animation the first frame counts.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from dra_runtime.errors import ImageError, UsageError
from dra_runtime.image_header import CountedReads, check_before_decoding, check_before_parsing
from dra_runtime.regular_file import read_regular
from dra_runtime.strict_json import short
from dra_runtime.threads import run_together

ImageSource = Path | str | bytes | Image.Image | npt.NDArray[np.uint8]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

MAX_PIXELS = 100_000_000  #: more are refused before anything is decoded (400 MB in memory)
MAX_BYTES = 256 * 2**20  #: a longer file or byte string is refused
MAX_CANVAS = 400_000_000  #: pixels of an image after resizing, or padded strip by strip; only extreme shapes reach it

_STRIP = 1 << 20  # pixels padded and resized at once
_SHARE = 1 << 18  # pixels that are worth the start of a thread
_STRIP_MODES = ("RGB", "L", "RGBA", "LA", "CMYK", "YCbCr")

# Raster formats that PIL decodes by itself. Left out on purpose: EPS starts another program, and the rest are rare
# enough that their decoders are more of a risk than a service.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")


@dataclass(frozen=True)
class Preprocess:
    """Turn an image into the image encoder's input.

    Pad to an aspect ratio of at most ``pad_ratio``, resize the shorter side to ``image_size`` (bicubic, antialiased),
    crop the centre, make it RGB, scale to [0, 1], subtract ``mean`` and divide by ``std``. Safe to share between
    threads.

    Raises
    ------
    UsageError
        A parameter is out of range.
    """

    image_size: int
    pad_ratio: float = 1.25
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    _table: npt.NDArray[np.float32] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if type(self.image_size) is not int or not 1 <= self.image_size <= 4096:
            raise UsageError(f"image_size is {short(self.image_size)}; give a whole number from 1 to 4096")
        if not (_is_number(self.pad_ratio) and self.pad_ratio >= 1):
            raise UsageError(f"pad_ratio is {short(self.pad_ratio)}; give a number of at least 1")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not (isinstance(values, tuple) and len(values) == 3 and all(_is_number(v) for v in values)):
                raise UsageError(f"{name} is {short(values)}; give three numbers, one a channel")
        if not all(abs(value) <= 1e6 for value in self.mean):
            raise UsageError(f"mean is {short(self.mean)}; give three numbers from -1e6 to 1e6")
        if not all(1e-6 <= value <= 1e6 for value in self.std):
            raise UsageError(f"std is {short(self.std)}; give three numbers above zero")
        object.__setattr__(self, "_table", _value_table(self.mean, self.std))

    def __call__(self, image: Image.Image, threads: int = 1) -> npt.NDArray[np.float32]:
        """Return the network input of one image: its `pixels`, normalised.

        Parameters
        ----------
        image
            An image of any mode that PIL converts to RGB (see `open_image`).
        threads
            How many threads resize a large image. Their number changes nothing in the result.

        Returns
        -------
        np.ndarray
            (3, image_size, image_size) float32.

        Raises
        ------
        ImageError
            The image is empty, too elongated, or of a mode that can't become RGB.
        """
        rgb = self._rgb(image, threads)
        normalised = np.empty((3, *rgb.shape[:2]), np.float32)
        for channel in range(3):
            np.take(self._table[channel], rgb[..., channel], out=normalised[channel])
        return normalised

    def pixels(self, image: Image.Image, threads: int = 1) -> npt.NDArray[np.uint8]:
        """Return one image padded, resized, cropped and made RGB, but not normalised; parameters as for the call.

        Returns
        -------
        np.ndarray
            (3, image_size, image_size) uint8.

        Raises
        ------
        ImageError
            As for the call.
        """
        return np.ascontiguousarray(self._rgb(image, threads).transpose(2, 0, 1))

    def network_input(
        self, image: Image.Image, image_input: str, threads: int = 1
    ) -> npt.NDArray[np.float32 | np.uint8]:
        """Return what an image encoder takes whose input is ``"float32"`` (the call) or ``"uint8"`` (`pixels`)."""
        return self.pixels(image, threads) if image_input == "uint8" else self(image, threads)

    def _rgb(self, image: Image.Image, threads: int) -> npt.NDArray[np.uint8]:
        size = self.image_size
        if min(image.size) < 1:
            raise ImageError(f"an image of {_pixels(image.size)} is empty; give one with at least one pixel")
        pad_x, pad_y = target_padding(image.size, self.pad_ratio)
        padded_size = (image.width + 2 * pad_x, image.height + 2 * pad_y)
        resized_size = resized_dimensions(padded_size, size)
        padded = pad_x > 0 or pad_y > 0
        in_strips = (
            (padded or math.prod(image.size) > _SHARE)
            and image.mode in _STRIP_MODES
            and _rows_first(padded_size, resized_size)
        )
        limit = MAX_PIXELS if padded and not in_strips else MAX_CANVAS
        if math.prod(padded_size) > limit or math.prod(resized_size) > MAX_CANVAS:
            raise ImageError(f"an image of {_pixels(image.size)} is too elongated to be padded and resized; crop it")
        # round() takes halves to the even neighbour, as torchvision's CenterCrop does
        left, top = (round((length - size) / 2.0) for length in resized_size)
        try:
            if in_strips:
                image = _resized_in_strips(image, (pad_x, pad_y), resized_size, (left, left + size), threads)
                left = 0
            else:
                image = _pad(image, pad_x, pad_y) if padded else image
                image = image if image.size == resized_size else image.resize(resized_size, Image.Resampling.BICUBIC)
            image = image.crop((left, top, left + size, top + size))
            image.info.pop("transparency", None)  # it can't change RGB values, but PIL would warn about it
            return np.asarray(image.convert("RGB"))  # (image_size, image_size, 3)
        except (ValueError, OSError) as error:
            raise ImageError(f"an image of mode {image.mode} can't be made RGB ({error}); convert it first") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values that a manifest or a checkpoint keeps."""
        return {
            "image_size": self.image_size,
            "pad_ratio": self.pad_ratio,
            "interpolation": "bicubic",
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """Make it from what `to_dict` returned.

        Raises
        ------
        UsageError
            A key is missing or unknown, or a value out of range.
        """
        expected = {"image_size", "pad_ratio", "interpolation", "mean", "std"}
        if set(values) != expected:
            raise UsageError(f"preprocess has the keys {short(sorted(map(str, values)))}; expected {sorted(expected)}")
        if values["interpolation"] != "bicubic":
            raise UsageError(f"interpolation is {short(values['interpolation'])}; only 'bicubic' is known")
        mean, std = (tuple(v) if isinstance(v, list | tuple) else v for v in (values["mean"], values["std"]))
        return cls(values["image_size"], values["pad_ratio"], mean, std)


def target_padding(size: tuple[int, int], ratio: float) -> tuple[int, int]:
    """Return the zero columns and rows that CLIP4Cir's TargetPad adds on each side of a (width, height) image."""
    width, height = size
    if max(size) / min(size) < ratio:
        return 0, 0
    side = max(size) / ratio
    return max(int((side - width) / 2), 0), max(int((side - height) / 2), 0)


def resized_dimensions(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Return (width, height) with the shorter side at ``shorter``; the other is rounded down, as torchvision does."""
    width, height = size
    longer = int(shorter * max(size) / min(size))
    return (shorter, longer) if width <= height else (longer, shorter)


def open_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Image.Image:
    """Open and decode one image.

    Parameters
    ----------
    source
        A file's path, an encoded image's bytes, a PIL image, or a uint8 array (H, W, 3) or (H, W).
    max_pixels, max_bytes
        More is refused; pixels are counted before anything is decoded.

    Returns
    -------
    PIL.Image.Image
        Decoded, in the mode it is stored in: `Preprocess` has to see that one to agree with the reference.
        ``.convert("RGB")`` gives plain pixels.

    Raises
    ------
    ImageError
        Not an image, a damaged one, an empty one, or one beyond the limits.
    """
    if isinstance(source, np.ndarray):
        return _image_from_array(source, max_pixels)
    if isinstance(source, Image.Image):
        name = "the image"
        _check_size(source.size, name, max_pixels)
        return _decode(source, None, name, max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        name, data = "the image's bytes", bytes(source)
    elif isinstance(source, str | Path):
        name, data = str(source), _read(Path(source), max_bytes)
    else:
        raise ImageError(
            f"{type(source).__name__} is no image source; give a path, bytes, a PIL image or a uint8 array"
        )
    if not data:
        raise ImageError(f"{name}: empty, 0 bytes; give an encoded image such as a JPEG or PNG")
    if len(data) > max_bytes:
        raise ImageError(f"{name}: {len(data)} bytes, more than the {max_bytes} allowed; shrink the image")
    file = CountedReads(data)
    image = _identify(file, data, name, max_pixels)
    _check_size(image.size, name, max_pixels)
    file.expect_pixels()
    return _decode(image, data, name, max_pixels)


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        return read_regular(path, max_bytes, links=True)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such image file") from error
    except (OSError, ValueError) as error:  # ValueError: too long, or a zero byte in the path
        raise ImageError(f"{path}: can't be read ({_reason(error)}); give one image file within the limits") from error


def _identify(file: CountedReads, data: bytes, name: str, max_pixels: int) -> Image.Image:
    """Find the format and read the header.

    `PIL.Image.open` would warn about many pixels, on stderr and before we could count them; silencing it is not safe
    between threads. So its loop over the formats is written out here, without the warning.
    """
    prefix = data[:16]
    for register in (Image.preinit, Image.init):  # the common formats first: `init` imports all the others
        register()
        for format_name in FORMATS:
            if format_name not in Image.OPEN:
                continue
            factory, accept = Image.OPEN[format_name]
            accepted = accept is not None and accept(prefix)
            if not accepted or isinstance(accepted, str):  # a string says why not
                continue
            file.seek(0)
            file.expect_header(format_name)
            try:
                check_before_parsing(format_name, data, max_pixels)
                # PIL's JPEG factory would look for further pictures behind the first, and warn about odd ones
                return JpegImageFile(file) if format_name == "JPEG" else factory(file, "")
            except Exception as error:  # decoders raise nearly any class on damaged bytes
                raise ImageError(f"{name}: a damaged {format_name} image ({_reason(error)}); save it anew") from error
    raise ImageError(f"{name}: not an image in a known format ({', '.join(FORMATS)})")


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    if min(size) < 1:
        raise ImageError(f"{name}: {_pixels(size)}, so it is empty; give an image with at least one pixel")
    if math.prod(size) > max_pixels:
        raise ImageError(f"{name}: {_pixels(size)}, more than the {max_pixels} allowed; shrink the image")


def _decode(image: Image.Image, data: bytes | None, name: str, max_pixels: int) -> Image.Image:
    try:
        check_before_decoding(image, data, max_pixels)
    except Exception as error:  # reading a damaged TIFF's tags raises nearly any class
        raise ImageError(
            f"{name}: it would cost too much to decode ({_reason(error)}); save it anew as a PNG"
        ) from error
    try:
        image.load()
    except Exception as error:  # decoders raise nearly any class on damaged bytes
        raise ImageError(f"{name}: damaged or truncated ({_reason(error)}); save it anew") from error
    return image


def _image_from_array(array: npt.NDArray[Any], max_pixels: int) -> Image.Image:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ImageError(
            f"an array {array.shape} of {array.dtype} is no image; give uint8 of shape (H, W, 3) or (H, W)"
        )
    _check_size((array.shape[1], array.shape[0]), "the array", max_pixels)
    return Image.fromarray(np.ascontiguousarray(array))


def _rows_first(size: tuple[int, int], resized: tuple[int, int]) -> bool:
    """Say whether every version of PIL resizes along the rows first and along the columns then.

    PIL 12.2 begins with the columns of images a hundred times as high as wide, PIL 13 with those whose height loses
    more than twice what the width loses. Rounding in between makes the order visible, by a level or two.
    """
    (width, height), (new_width, new_height) = size, resized
    tall = height > 100 * width or height - new_height > 2 * (width - new_width)
    return not (new_height < height and tall)


def _resized_in_strips(
    image: Image.Image, padding: tuple[int, int], size: tuple[int, int], columns: tuple[int, int], threads: int
) -> Image.Image:
    """Pad, resize and keep some columns, with the same result as one after the other but less memory and time.

    PIL resizes in two passes, rounding to bytes in between. Where the rows come first, strips of them can be resized
    by several threads, before zero rows are added above and below; the padded image, gigabytes of a long panorama, is
    never held. The second pass sees only the columns that are kept.
    """
    (x, y), mode = padding, image.mode
    premultiplied = {"RGBA": "RGBa", "LA": "La"}.get(mode)  # what PIL resizes alpha in
    if premultiplied and (image.width + 2 * x, image.height + 2 * y) != size:
        image = image.convert(premultiplied)
    workers = max(1, min(threads, math.prod(image.size) // _SHARE))
    strip = -(-image.height // workers)
    if x > 0:
        strip = min(strip, max(1, _STRIP // (image.width + 2 * x)))
    rows = Image.new(image.mode, (columns[1] - columns[0], image.height + 2 * y))

    def resize_strips(worker: int) -> None:
        for top in range(worker * strip, image.height, workers * strip):
            part = image.crop((0, top, image.width, min(top + strip, image.height)))
            part = _pad(part, x, 0) if x else part
            part = part.resize((size[0], part.height), Image.Resampling.BICUBIC)
            rows.paste(part.crop((columns[0], 0, columns[1], part.height)), (0, y + top))

    run_together(resize_strips, workers)
    resized = rows.resize((rows.width, size[1]), Image.Resampling.BICUBIC)
    return resized if resized.mode == mode else resized.convert(mode)


def _pad(image: Image.Image, x: int, y: int) -> Image.Image:
    bands = len(image.getbands())
    palette = image.getpalette() if image.mode == "P" else None
    padded = ImageOps.expand(image, (x, y, x, y), fill=0 if bands == 1 else (0,) * bands)
    if palette is not None:
        padded.putpalette(palette)
    return padded


def _value_table(mean: tuple[float, ...], std: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """Tabulate the 256 values of each channel, in float32 and in the order of ToTensor and Normalize: (3, 256)."""
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    means, stds = np.asarray(mean, np.float32)[:, None], np.asarray(std, np.float32)[:, None]
    table: npt.NDArray[np.float32] = (levels - means) / stds
    table.setflags(write=False)
    return table


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels"


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__
