"""Latency of the parts of a query, PyTorch beside one bundle or several, and how many times as fast they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from dra_bench.backends import PYTORCH, Backend, Floats
from dra_bench.figures import milliseconds, times
from dra_bench.timing import Cell, Timings, percentiles_ms, speedup
from dra_runtime.console import table
from dra_runtime.encoder import Pixels
from dra_runtime.errors import UsageError
from dra_runtime.preprocess import Preprocess

PARTS = ("preprocess", "image", "text", "compose", "query", "query_by_id")
LABELS = {
    "preprocess": "preprocess an image",
    "image": "image",
    "text": "text",
    "compose": "compose",
    "query": "query, new reference",
    "query_by_id": "query by id",
}
AGREEMENT = 0.999  #: cosine below which two contenders can't be the same model
INT8_AGREEMENT = 0.9  #: the same for INT8, which may move vectors; what that costs in recall, others measure
TEXT = "is shorter with long sleeves and a darker blue collar"  #: ten words


@dataclass(frozen=True)
class Workload:
    """What every contender gets to do: real pictures and a text, taken again and again to fill a batch."""

    images: tuple[Image.Image, ...]
    preprocess: Preprocess
    text: str

    def pixels(self, batch: int, image_input: str = "float32") -> Pixels:
        """Return preprocessed pixels (batch, 3, S, S), normalised if they are ``"float32"`` and not if ``"uint8"``."""
        images = (self.images[i % len(self.images)] for i in range(batch))
        return np.stack([self.preprocess.network_input(image, image_input) for image in images])

    def texts(self, batch: int) -> list[str]:
        """Return ``batch`` texts."""
        return [self.text] * batch


def latency_cells(
    pytorch: Backend,
    pytorch_cut: Backend,
    bundles: Sequence[Backend],
    work: Workload,
    batches: Sequence[int],
    channels_last: Backend | None = None,
) -> list[Cell]:
    """List what is timed: every part by all contenders, PyTorch's text cut to its length, and preprocessing.

    ``channels_last`` is PyTorch with images channels last and text cut: where it is given and there are several images
    a call, all of PyTorch's ways to a query take part.
    """
    cells: list[Cell] = []
    for batch in batches:
        texts = work.texts(batch)
        image_features, text_features = pytorch.image(work.pixels(batch)), pytorch.text(texts)
        for backend in (pytorch, *bundles):
            pixels = work.pixels(batch, backend.image_input)
            cells += _part_cells(backend, pixels, texts, image_features, text_features)
        if channels_last is not None and batch > 1:
            pixels = work.pixels(batch)
            cells.append(Cell(channels_last.name, "image", batch, None, partial(channels_last.image, pixels)))
            for way in (pytorch_cut, channels_last):
                tokens = way.text_tokens(texts)
                cells.append(Cell(way.name, "query", batch, tokens, partial(way.query, pixels, texts)))
            by_id = partial(pytorch_cut.query_by_id, image_features, texts)
            cells.append(Cell(pytorch_cut.name, "query_by_id", batch, pytorch_cut.text_tokens(texts), by_id))
        length = pytorch_cut.text_tokens(texts)
        cells.append(Cell(pytorch_cut.name, "text", batch, length, partial(pytorch_cut.text, texts)))
    image = work.images[0]
    cells.append(Cell("dra-runtime", "preprocess", 1, None, partial(work.preprocess, image)))
    return sorted(cells, key=lambda c: (PARTS.index(c.part), c.batch))


def check_agreement(pytorch: Backend, bundle: Backend, work: Workload, least: float = AGREEMENT) -> dict[str, float]:
    """Return the cosines between both contenders' vectors of the workload, by part; ``least`` is asked of each.

    UsageError when they can't be the same model: a comparison of their speed would say nothing.
    """
    pixels, texts = work.pixels(1), work.texts(1)
    taken = work.pixels(1, bundle.image_input)
    pairs = {
        "image": (pytorch.image(pixels), bundle.image(taken)),
        "text": (pytorch.text(texts), bundle.text(texts)),
        "query": (pytorch.query(pixels, texts), bundle.query(taken, texts)),
    }
    cosines = {part: _cosine(a, b) for part, (a, b) in pairs.items()}
    worst = min(cosines, key=lambda part: cosines[part])
    if not cosines[worst] >= least:
        raise UsageError(
            f"the bundle's {worst} vector isn't the checkpoint's ({bundle.name}: cosine {cosines[worst]:.4f}, expected "
            f"at least {least}); export the bundle from this checkpoint"
        )
    return {part: round(value, 8) for part, value in cosines.items()}


def latency_rows(timings: Timings) -> list[dict[str, Any]]:
    """Turn timings into rows of plain values, one a cell."""
    return [
        {**_key(cell), **percentiles_ms(samples), "samples": len(samples)}
        for cell, samples in zip(timings.cells, timings.samples_ns.T, strict=True)
    ]


def latency_ratios(timings: Timings, float32: str | None = None) -> list[dict[str, Any]]:
    """Say how many times as fast the bundles are as PyTorch, part by part and batch by batch, with an interval.

    Beside like with like there are two more comparisons: text against PyTorch with its text cut as well, and a
    query by id against PyTorch's full query, which is what knowing the reference saves. ``float32`` names the bundle
    that all other bundles are compared with as well, the same part with the same part.
    """
    columns = dict(zip(timings.cells, timings.samples_ns.T, strict=True))
    ratios = []
    for candidate in timings.cells:
        for reference in _references(candidate, timings.cells, float32):
            ratio = speedup(columns[reference], columns[candidate])
            ratios.append(
                {
                    "reference": _key(reference),
                    "candidate": _key(candidate),
                    "times_as_fast": ratio.value,
                    "interval": [ratio.low, ratio.high],
                }
            )
    return ratios


def raw_milliseconds(timings: Timings) -> list[dict[str, Any]]:
    """Return every sample in milliseconds, cell by cell; the n-th samples of all cells are of one round."""
    return [
        {**_key(cell), "ms": [round(float(ns) / 1e6, 4) for ns in samples]}
        for cell, samples in zip(timings.cells, timings.samples_ns.T, strict=True)
    ]


def rows_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Lay the rows out for people."""
    return table(ROWS_HEADER, row_cells(rows))


ROWS_HEADER = ("part", "backend", "batch", "text tokens", "p50 ms", "p90 ms", "p99 ms", "samples")


def row_cells(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Write rows as text, column by column as in `ROWS_HEADER`."""
    for row in rows:
        yield (
            LABELS[row["part"]],
            row["backend"],
            str(row["batch"]),
            "" if row["text_tokens"] is None else str(row["text_tokens"]),
            *(milliseconds(row[p]) for p in ("p50_ms", "p90_ms", "p99_ms")),
            str(row["samples"]),
        )


def ratios_table(ratios: Sequence[Mapping[str, Any]]) -> str:
    """Lay the ratios out for people."""
    return table(ratios_header(ratios), ratio_cells(ratios))


def ratios_header(ratios: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Name the columns of `ratio_cells`."""
    sides = ("a bundle", "against") if _several(ratios) else ("the bundle", "against PyTorch eager")
    return (*sides, "batch", "times as fast", "95 % interval")


def ratio_cells(ratios: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Write ratios as text, column by column as in `ratios_header`; of several bundles each cell says whose it is."""
    name = _full_name if _several(ratios) else _name
    for ratio in ratios:
        low, high = ratio["interval"]
        yield (
            name(ratio["candidate"]),
            name(ratio["reference"]),
            str(ratio["candidate"]["batch"]),
            times(ratio["times_as_fast"]),
            f"{times(low)} to {times(high)}",
        )


def find_ratio(
    ratios: Iterable[Mapping[str, Any]], part: str, against: str | None = None, batch: int = 1
) -> Mapping[str, Any] | None:
    """Return the first bundle's first ratio of ``part`` against a part of PyTorch's (the same where not said).

    None without one.
    """
    for ratio in ratios:
        reference, candidate = ratio["reference"], ratio["candidate"]
        if reference["backend"] != PYTORCH:
            continue
        if (candidate["part"], reference["part"], candidate["batch"]) == (part, against or part, batch):
            return ratio
    return None


def _part_cells(
    backend: Backend, pixels: Pixels, texts: Sequence[str], image_features: Floats, text_features: Floats
) -> list[Cell]:
    name, batch, tokens = backend.name, len(texts), backend.text_tokens(texts)
    return [
        Cell(name, "image", batch, None, partial(backend.image, pixels)),
        Cell(name, "text", batch, tokens, partial(backend.text, texts)),
        Cell(name, "compose", batch, None, partial(backend.compose, image_features, text_features)),
        Cell(name, "query", batch, tokens, partial(backend.query, pixels, texts)),
        Cell(name, "query_by_id", batch, tokens, partial(backend.query_by_id, image_features, texts)),
    ]


def _references(candidate: Cell, cells: Sequence[Cell], float32: str | None) -> Iterator[Cell]:
    """Yield the cells that a bundle's cell is compared with.

    First PyTorch's: the same part first, its longest text first. Then the float32 bundle's.
    """
    if candidate.backend.startswith(PYTORCH):
        return
    parts = (candidate.part, "query") if candidate.part == "query_by_id" else (candidate.part,)
    for part in parts:
        same = [c for c in cells if (c.backend, c.part, c.batch) == (PYTORCH, part, candidate.batch)]
        yield from sorted(same, key=lambda c: -(c.text_tokens or 0))
    if candidate.backend != float32:
        yield from (c for c in cells if (c.backend, c.part, c.batch) == (float32, candidate.part, candidate.batch))


def _key(cell: Cell) -> dict[str, Any]:
    return {"backend": cell.backend, "part": cell.part, "batch": cell.batch, "text_tokens": cell.text_tokens}


def _name(key: Mapping[str, Any]) -> str:
    label = LABELS[key["part"]]
    return label if key["text_tokens"] is None else f"{label} ({key['text_tokens']} text tokens)"


def _full_name(key: Mapping[str, Any]) -> str:
    return f"{_name(key)}, {key['backend']}"


def _several(ratios: Sequence[Mapping[str, Any]]) -> bool:
    return len({ratio["candidate"]["backend"] for ratio in ratios}) > 1


def _cosine(a: Floats, b: Floats) -> float:
    left, right = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))
