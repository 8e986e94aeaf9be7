"""Pixels equal the PIL + torchvision path bit for bit; bad images are one ImageError."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision import transforms
from torchvision.transforms import functional as F

from dra_runtime.errors import ImageError, UsageError
from dra_runtime.preprocess import CLIP_MEAN, CLIP_STD, Preprocess, open_image


def target_pad(image: Image.Image, ratio: float) -> Image.Image:
    """Write out CLIP4Cir's TargetPad on torchvision's pad."""
    width, height = image.size
    if max(width, height) / min(width, height) < ratio:
        return image
    side = max(width, height) / ratio
    hp, vp = max(int((side - width) / 2), 0), max(int((side - height) / 2), 0)
    return F.pad(image, [hp, vp, hp, vp], 0, "constant")


def reference(image: Image.Image, size: int, ratio: float = 1.25, mean=CLIP_MEAN, std=CLIP_STD) -> np.ndarray:
    pipeline = transforms.Compose(
        [
            lambda i: target_pad(i, ratio),
            transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            lambda i: i.convert("RGB"),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    with warnings.catch_warnings():  # the reference warns about palettes with alpha, ours must not
        warnings.simplefilter("ignore")
        return pipeline(image).numpy()


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


SIDES = [1, 2, 3, 5, 7, 16, 31, 32, 33, 39, 40, 41, 50, 63, 64, 65, 96, 97, 131]


@pytest.mark.parametrize("width", SIDES)
def test_equal_to_torchvision_over_sizes(width):
    preprocess = Preprocess(32)
    for height in SIDES:
        image = Image.fromarray(noise(width, height))
        assert np.array_equal(preprocess(image), reference(image, 32)), (width, height)
        unscaled = preprocess.pixels(image)
        assert unscaled.dtype == np.uint8
        assert unscaled.flags.c_contiguous
        # ToTensor divides by 255, and a normalisation with these does nothing
        assert np.array_equal(unscaled / np.float32(255), reference(image, 32, mean=(0, 0, 0), std=(1, 1, 1)))


@pytest.mark.parametrize(
    ("size", "width", "height"),
    [
        (224, 500, 333),
        (288, 640, 427),
        (288, 101, 999),
        (225, 97, 300),
        (128, 1000, 3),
        (288, 288, 288),
        (1, 9, 4),
        (7, 1, 600),
    ],
)
def test_equal_to_torchvision_at_other_input_sizes(size, width, height):
    image = Image.fromarray(noise(width, height))
    assert np.array_equal(Preprocess(size)(image), reference(image, size))


def test_equal_to_torchvision_over_every_remainder():
    # Both parities of both sides around the crop, where a floor instead of half-to-even is off by one pixel
    for size in (32, 33):
        preprocess = Preprocess(size, 10.0)
        for longer in range(size, size + 24):
            for dimensions in ((size, longer), (longer, size)):
                image = Image.fromarray(noise(*dimensions, seed=longer))
                assert np.array_equal(preprocess(image), reference(image, size, 10.0)), dimensions


IMAGES = st.tuples(
    st.sampled_from(["L", "P", "RGBA", "LA", "CMYK", "1", "RGB", "I;16", "I", "F", "YCbCr", "PA", "RGBa"]),
    st.one_of(st.integers(1, 4), st.integers(1, 90), st.integers(1, 400)),
    st.one_of(st.integers(1, 4), st.integers(1, 90), st.integers(1, 400)),
)


def check_any(image, size, ratio, strip, threads, monkeypatch):
    monkeypatch.setattr("dra_runtime.preprocess._STRIP", strip)
    monkeypatch.setattr("dra_runtime.preprocess._SHARE", strip)
    mode, width, height = image
    picture = image_of(mode, width, height)
    assert np.array_equal(Preprocess(size, ratio)(picture, threads), reference(picture.copy(), size, ratio))


ANY = given(
    IMAGES,
    st.integers(1, 72),
    st.sampled_from([1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 10.0, 1e9]),
    st.integers(1, 2000),
    st.integers(1, 4),
)
SHARED = [HealthCheck.function_scoped_fixture]  # the strip's height is set anew in every example


@settings(max_examples=80, deadline=None, suppress_health_check=SHARED)
@example(("RGB", 3, 336), 32, 10.0, 1 << 20, 1)  # PIL 13 resizes its columns first
@example(("RGB", 1, 267), 16, 1e9, 1 << 20, 1)  # PIL 12.2 as well
@ANY
def test_equal_to_torchvision_whatever_the_image(monkeypatch, image, size, ratio, strip, threads):
    check_any(image, size, ratio, strip, threads, monkeypatch)


@pytest.mark.slow
@settings(max_examples=8_000, deadline=None, suppress_health_check=SHARED)
@ANY
def test_equal_to_torchvision_for_thousands_of_images(monkeypatch, image, size, ratio, strip, threads):
    check_any(image, size, ratio, strip, threads, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("dimensions", [(9_001, 7_003), (12_000, 90), (70, 12_001), (1_155, 866), (4_032, 3_024)])
@pytest.mark.parametrize("size", [224, 288])
def test_large_images_equal_torchvision(dimensions, size):
    image = Image.fromarray(noise(*dimensions))
    expected = reference(image, size)
    for threads in (1, 2, 5):
        assert np.array_equal(Preprocess(size)(image, threads), expected), threads


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16"])
@pytest.mark.parametrize("dimensions", [(1_000, 700), (700, 1_001), (2_400, 300), (1_023, 1_025)])
def test_threads_change_nothing(dimensions, mode):
    image = image_of(mode, *dimensions)
    expected = reference(image.copy(), 64)
    for threads in (1, 2, 3, 64):
        assert np.array_equal(Preprocess(64)(image, threads), expected), threads


@pytest.mark.parametrize("strip", [1, 500, 5_000])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "CMYK"])
def test_padding_strip_by_strip_changes_nothing(strip, mode, monkeypatch):
    monkeypatch.setattr("dra_runtime.preprocess._STRIP", strip)
    for dimensions in ((40, 131), (1, 90), (131, 40), (32, 41), (26, 32)):
        image = image_of(mode, *dimensions)
        assert np.array_equal(Preprocess(32)(image), reference(image, 32)), dimensions


def test_all_256_levels_of_every_channel():
    ramp = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2))
    assert np.array_equal(Preprocess(16)(ramp), reference(ramp, 16))
    mean, std = (0.5, 0.1, 0.9), (0.5, 0.3, 0.7)
    assert np.array_equal(Preprocess(16, 1.25, mean, std)(ramp), reference(ramp, 16, 1.25, mean, std))


MODES = ["L", "P", "RGBA", "LA", "CMYK", "1", "RGB", "I;16", "I", "F", "YCbCr", "HSV", "PA", "RGBX", "La", "RGBa"]


def image_of(mode: str, width: int, height: int) -> Image.Image:
    pixels = noise(width, height)
    if mode in ("I;16", "I", "F"):
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        return Image.fromarray(pixels[..., 0].astype(dtype) * (257 if mode == "I;16" else 1))
    if mode in ("RGBA", "LA", "CMYK", "RGBX", "PA", "RGBa", "La"):
        bands = len(Image.new(mode, (1, 1)).getbands())
        stacked = np.concatenate([pixels, noise(width, height, seed=1)], axis=2)[..., :bands]
        return Image.frombytes(mode, (width, height), np.ascontiguousarray(stacked).tobytes())
    image = Image.fromarray(pixels)
    return image.quantize(17) if mode == "P" else image.convert(mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dimensions", [(40, 32), (32, 57), (90, 41), (20, 70), (64, 64), (32, 32)])
def test_equal_to_torchvision_in_every_mode(mode, dimensions):
    image = image_of(mode, *dimensions)
    try:
        expected = reference(image.copy(), 32)
    except (ValueError, OSError):  # PIL can't do it either
        with pytest.raises(ImageError, match="mode"):
            Preprocess(32)(image)
        return
    assert np.array_equal(Preprocess(32)(image), expected)


def png_of(header: bytes, rows: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png(width: int, height: int, bits: int, colour: int, samples: np.ndarray) -> bytes:
    """Write a PNG of a kind that PIL reads but doesn't write; ``samples`` holds the bytes of each row."""
    rows = b"".join(b"\0" + row.tobytes() for row in samples.reshape(height, -1))
    return png_of(struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0), rows)


def interlaced_png(image: Image.Image) -> bytes:
    """Write two bits a pixel, in the seven passes of Adam7."""
    grey = np.asarray(image.convert("L")) >> 6
    rows = b""
    for top, left, down, right in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        part = grey[top::down, left::right]
        padded = np.pad(part, ((0, 0), (0, -part.shape[1] % 4)))
        packed = (padded.reshape(len(part), -1, 4) << np.array([6, 4, 2, 0])).sum(axis=2).astype(np.uint8)
        rows += b"".join(b"\0" + row.tobytes() for row in packed) if part.size else b""
    return png_of(struct.pack(">IIBBBBB", *image.size, 2, 0, 0, 0, 1), rows)


FILES = {
    "jpeg": lambda i: encoded(i, "JPEG", quality=90),
    "jpeg-grey": lambda i: encoded(i.convert("L"), "JPEG"),
    "jpeg-cmyk": lambda i: encoded(i.convert("CMYK"), "JPEG"),
    "jpeg-rotated": lambda i: encoded(i, "JPEG", exif=_rotated_exif()),
    "png": lambda i: encoded(i, "PNG"),
    "png-palette": lambda i: encoded(i.quantize(9), "PNG"),
    "png-palette-alpha": lambda i: encoded(i.quantize(9), "PNG", transparency=bytes([0, 90, 255])),
    "png-palette-transparent": lambda i: encoded(i.quantize(9), "PNG", transparency=3),
    "png-transparent-colour": lambda i: encoded(i, "PNG", transparency=(1, 2, 3)),
    "png-alpha": lambda i: encoded(image_of("RGBA", *i.size), "PNG"),
    "png-16-bit": lambda i: encoded(image_of("I;16", *i.size), "PNG"),
    "png-1-bit": lambda i: encoded(i.convert("1"), "PNG"),
    "webp": lambda i: encoded(i, "WEBP"),
    "webp-alpha": lambda i: encoded(image_of("RGBA", *i.size), "WEBP", lossless=True),
    "gif": lambda i: encoded(i.quantize(30), "GIF"),
    "gif-animated": lambda i: encoded(
        i, "GIF", save_all=True, append_images=[i.rotate(180), i.rotate(90)], duration=40
    ),
    "webp-animated": lambda i: encoded(i, "WEBP", save_all=True, append_images=[i.rotate(180)], lossless=True),
    "png-animated": lambda i: encoded(i, "PNG", save_all=True, append_images=[i.rotate(180)]),
    "jpeg-progressive": lambda i: encoded(i, "JPEG", progressive=True),
    "jpeg-full-colour": lambda i: encoded(i, "JPEG", subsampling=0),
    "png-interlaced-grey-2-bit": lambda i: interlaced_png(i),
    "png-grey-alpha": lambda i: encoded(image_of("LA", *i.size), "PNG"),
    "png-48-bit": lambda i: png(i.width, i.height, 16, 2, noise(2 * i.width, i.height)),
    "png-64-bit": lambda i: png(i.width, i.height, 16, 6, noise(8 * i.width, i.height)[..., 0]),
    "png-4-bit": lambda i: encoded(i.quantize(9), "PNG", bits=4),
    "gif-transparent": lambda i: encoded(i.quantize(30), "GIF", transparency=3),
    "tiff-int": lambda i: encoded(image_of("I", *i.size), "TIFF"),
    "tiff-cmyk": lambda i: encoded(i.convert("CMYK"), "TIFF", compression="tiff_lzw"),
    "tiff-lab": lambda i: encoded(Image.frombytes("LAB", i.size, i.tobytes()), "TIFF"),
    "tiff-palette": lambda i: encoded(i.quantize(9), "TIFF"),
    "tiff-two-pages": lambda i: encoded(i, "TIFF", save_all=True, append_images=[i.rotate(180)]),
    "bmp-palette": lambda i: encoded(i.quantize(9), "BMP"),
    "pgm-16-bit": lambda i: b"P5\n%d %d\n65535\n" % i.size + noise(*i.size)[..., :2].tobytes(),
    "pbm": lambda i: encoded(i.convert("1"), "PPM"),
    "avif": lambda i: encoded(i, "AVIF"),
    "jpeg-2000": lambda i: encoded(i, "JPEG2000"),
    "jpeg-2000-alpha": lambda i: encoded(image_of("RGBA", *i.size), "JPEG2000"),
    "mpo": lambda i: encoded(i, "MPO", save_all=True, append_images=[i.rotate(180)]),
    "tiff-16-bit": lambda i: encoded(image_of("I;16", *i.size), "TIFF"),
    "tiff-float": lambda i: encoded(image_of("F", *i.size), "TIFF"),
    "bmp": lambda i: encoded(i, "BMP"),
    "ppm": lambda i: encoded(i, "PPM"),
}


def _rotated_exif(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("kind", FILES)
def test_files_equal_to_torchvision(kind, tmp_path):
    data = FILES[kind](Image.fromarray(noise(71, 43)))
    expected = reference(Image.open(io.BytesIO(data)), 32)
    path = tmp_path / "image"
    path.write_bytes(data)
    for source in (data, path, str(path), Image.open(io.BytesIO(data))):
        assert np.array_equal(Preprocess(32)(open_image(source)), expected)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_ignored(format, orientation):
    image = Image.fromarray(noise(71, 43))
    options = {"lossless": True} if format == "WEBP" else {}
    plain = encoded(image, format, **options)
    rotated = encoded(image, format, exif=_rotated_exif(orientation), **options)
    assert plain != rotated
    assert Image.open(io.BytesIO(rotated)).getexif()[0x0112] == orientation
    assert np.array_equal(Preprocess(32)(open_image(plain)), Preprocess(32)(open_image(rotated)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_is_turned_upright_as_pil_turns_it(orientation):
    image = Image.fromarray(noise(71, 43))
    data = encoded(image, "TIFF", exif=_rotated_exif(orientation))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(image, "PNG", exif=_rotated_exif(orientation)))))
    assert np.array_equal(Preprocess(32)(open_image(data)), reference(upright, 32))
    assert np.array_equal(Preprocess(32)(open_image(data)), reference(Image.open(io.BytesIO(data)), 32))


def test_arrays_are_images():
    pixels = noise(50, 70)
    for array in (pixels, pixels[..., 0], np.asfortranarray(pixels), pixels[::2, ::-1]):
        assert np.array_equal(Preprocess(32)(open_image(array)), reference(Image.fromarray(np.array(array)), 32))


def test_opening_leaves_the_callers_image_alone():
    image = image_of("P", 40, 90)
    image.info["transparency"] = b"\x00\x10"
    before = image.tobytes()
    Preprocess(32)(open_image(image))
    assert image.tobytes() == before
    assert image.info["transparency"] == b"\x00\x10"


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros(7, np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(array):
    with pytest.raises(ImageError):
        open_image(array)


def huge_png(width: int, height: int) -> bytes:
    """Write a PNG whose header alone declares the size."""
    return png_of(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"\0" * 10)


@pytest.mark.parametrize(("width", "height"), [(50_000, 20_000), (10_000, 10_001), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_before_decoding_and_without_a_warning(width, height):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ImageError, match=r"pixels|damaged"):
            open_image(huge_png(width, height))
    assert caught == []


def test_limits_are_the_callers():
    image = Image.fromarray(noise(20, 20))
    for source in (image, encoded(image, "PNG"), noise(20, 20)):
        open_image(source, max_pixels=400)
        with pytest.raises(ImageError, match="20 x 20"):
            open_image(source, max_pixels=399)
    data = encoded(image, "PNG")
    with pytest.raises(ImageError, match="bytes"):
        open_image(data, max_bytes=len(data) - 1)


def test_unusable_files(tmp_path):
    jpeg = FILES["jpeg"](Image.fromarray(noise(71, 43)))
    files = {
        "empty.jpg": b"",
        "text.jpg": b"this is no image at all, but it is long enough to be one",
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "truncated.png": FILES["png"](Image.fromarray(noise(71, 43)))[:900],
        "postscript.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    }
    sources: list[object] = [tmp_path, tmp_path / "missing.jpg", "a\0b", Path("/dev/null"), b"", None, 7]
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        sources += [tmp_path / name, data]
    for source in sources:
        with pytest.raises(ImageError) as caught:
            open_image(source)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


def test_extreme_shapes_are_refused_not_allocated():
    image = Image.new("L", (1, 90_000_000))
    with pytest.raises(ImageError, match="elongated"):
        Preprocess(32)(image)
    with pytest.raises(ImageError, match="empty"):
        Preprocess(32)(Image.new("RGB", (0, 5)))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_damaged_bytes_are_an_image_or_an_image_error(kind, data):
    raw = bytearray(_FUZZED.setdefault(kind, FILES[kind](Image.fromarray(noise(23, 17)))))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged metadata may be worth a warning
        try:
            pixels = Preprocess(16)(open_image(bytes(raw), max_pixels=10**6))
        except ImageError:
            return
    assert pixels.shape == (3, 16, 16)
    assert np.isfinite(pixels).all()


_FUZZED: dict[str, bytes] = {}


def test_dict_round_trip_and_refusals():
    preprocess = Preprocess(288, 1.5, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert Preprocess.from_dict(preprocess.to_dict()) == preprocess
    assert hash(Preprocess(32)) == hash(Preprocess(32))
    assert Preprocess(32) != Preprocess(33)
    good = preprocess.to_dict()
    for change in (
        {"image_size": 0},
        {"image_size": 32.0},
        {"image_size": True},
        {"pad_ratio": 0.5},
        {"pad_ratio": float("nan")},
        {"interpolation": "bilinear"},
        {"mean": [0.1, 0.2]},
        {"std": [0.0, 1.0, 1.0]},
        {"std": "abc"},
        {"extra": 1},
    ):
        with pytest.raises(UsageError):
            Preprocess.from_dict(good | change)
    with pytest.raises(UsageError):
        Preprocess.from_dict({k: v for k, v in good.items() if k != "mean"})
