"""Latency of the parts of a query, contender beside contender, and how many times as fast they are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from dra_bench.contenders.backend import PYTORCH
from dra_bench.figures import milliseconds, times
from dra_bench.timing import Cell, Timings, percentiles_ms, speedup
from dra_runtime.console import table
from dra_runtime.encoder import Pixels
from dra_runtime.errors import UsageError
from dra_runtime.preprocess import Preprocess

PARTS = ("preprocess", "tokenize", "copies", "image", "text", "compose", "search", "rerank", "query", "query_by_id")
RERANKED = 20  #: candidates that re-ranking relates with the reference
K = 10  #: answers of a search
LABELS = {
    "preprocess": "preprocess",
    "tokenize": "tokenize",
    "copies": "copies, GPU and back",
    "image": "image",
    "text": "text",
    "compose": "compose",
    "search": f"search, {K} answers",
    "rerank": f"rerank {RERANKED}",
    "query": "query, new image",
    "query_by_id": "query by id",
}
TEXT = "is shorter with long sleeves and a darker blue collar"  #: ten words
COMPARED = ("image", "text", "query")  #: parts of the contenders that aren't ours, against PyTorch eager


@dataclass(frozen=True)
class Workload:
    """What every contender gets to do: real pictures and a text, taken again and again to fill a batch.

    ``more_texts``, of other lengths, are encoded and make queries by id, one at a time.
    """

    images: tuple[Image.Image, ...]
    preprocess: Preprocess
    text: str
    more_texts: tuple[str, ...] = ()

    def pixels(self, batch: int, image_input: str = "float32") -> Pixels:
        """Return preprocessed pixels (batch, 3, S, S), normalised if they are ``"float32"`` and not if ``"uint8"``."""
        images = (self.images[i % len(self.images)] for i in range(batch))
        return np.stack([self.preprocess.network_input(image, image_input) for image in images])

    def texts(self, batch: int) -> list[str]:
        """Return ``batch`` texts."""
        return [self.text] * batch


def text_of_tokens(count: int, tokens_of: Callable[[str], int]) -> str:
    """Return a text of ``count`` tokens, its start and its end included, made of the words of `TEXT`.

    ``tokens_of`` counts the tokens of a text. UsageError where the words don't give that number.
    """
    words = TEXT.split()
    text = words[0]
    for i in range(1, count):
        if tokens_of(text) >= count:
            break
        text = f"{text} {words[i % len(words)]}"
    if tokens_of(text) != count:
        raise UsageError(f"no text of {count} tokens can be made of plain words; give one with --text")
    return text


def latency_rows(timings: Timings) -> list[dict[str, Any]]:
    """Turn timings into rows of plain values, one a cell."""
    return [
        {**_key(cell), **percentiles_ms(samples), "samples": len(samples)}
        for cell, samples in zip(timings.cells, timings.samples_ns.T, strict=True)
    ]


def latency_ratios(timings: Timings, bundles: Sequence[str], float32: str | None = None) -> list[dict[str, Any]]:
    """Say how many times as fast the contenders are as PyTorch, batch by batch, with an interval.

    ``bundles`` names the contenders that are ours. Their ratios come first: like with like part by part, text also
    against PyTorch with its text cut as well, and a query by id also against PyTorch's full query, which is what
    knowing the reference saves. ``float32`` names the bundle that all other bundles are compared with as well. Then
    come image, text and query of the other contenders. Without PyTorch the first bundle takes its place.
    """
    columns = dict(zip(timings.cells, timings.samples_ns.T, strict=True))
    base = PYTORCH if any(cell.backend == PYTORCH for cell in columns) else bundles[0]
    pairs = []
    for cell in columns:
        if cell.backend in bundles:
            pairs += [(reference, cell) for reference in _references(cell, timings.cells, base, float32)]
    for cell in columns:
        if cell.backend not in bundles and not cell.backend.startswith(PYTORCH) and cell.part in COMPARED:
            pairs += [(reference, cell) for reference in _same_part(cell, timings.cells, base)[:1]]
    return [_ratio(reference, cell, columns) for reference, cell in pairs]


def fastest_baselines(timings: Timings, bundles: Collection[str]) -> list[dict[str, Any]]:
    """Compare every part of the bundles with the fastest contender that isn't ours, by medians, with an interval.

    Where a text is encoded, contenders that pad it take part, and those that cut it to the same length.
    """
    columns = dict(zip(timings.cells, timings.samples_ns.T, strict=True))
    found = []
    for cell in columns:
        others = [
            other
            for other in columns
            if other.backend not in bundles
            and (other.part, other.batch) == (cell.part, cell.batch)
            and (other.text_tokens or 0) in (cell.text_tokens or 0, _longest(other, timings.cells))
        ]
        if cell.backend in bundles and others:
            found.append(_ratio(min(others, key=lambda other: float(np.median(columns[other]))), cell, columns))
    return found


def raw_milliseconds(timings: Timings) -> list[dict[str, Any]]:
    """Return every sample in milliseconds, cell by cell; the n-th samples of all cells are of one round."""
    return [
        {**_key(cell), "ms": [round(float(ns) / 1e6, 4) for ns in samples]}
        for cell, samples in zip(timings.cells, timings.samples_ns.T, strict=True)
    ]


ROWS_HEADER = (
    "part",
    "backend",
    "batch",
    "tokens",
    *("p50 ms", "p90 ms", "p95 ms", "p99 ms", "IQR ms"),
    "samples",
)


def rows_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Lay the rows out for people; columns that older results lack stay away."""
    cells = list(row_cells(rows))
    kept = [i for i, title in enumerate(ROWS_HEADER) if title == "tokens" or any(row[i] for row in cells)]
    return table([ROWS_HEADER[i] for i in kept], ([row[i] for i in kept] for row in cells))


def row_cells(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Write rows as text, column by column as in `ROWS_HEADER`."""
    for row in rows:
        figures = (row.get(key) for key in ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "iqr_ms"))
        yield (
            LABELS[row["part"]],
            row["backend"],
            str(row["batch"]),
            "" if row["text_tokens"] is None else str(row["text_tokens"]),
            *("" if value is None else milliseconds(value) for value in figures),
            str(row["samples"]),
        )


def ratios_table(ratios: Sequence[Mapping[str, Any]]) -> str:
    """Lay the ratios out for people."""
    return table(ratios_header(ratios), ratio_cells(ratios))


def ratios_header(ratios: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Name the columns of `ratio_cells`."""
    return ("contender (tokens)", "against", "batch", "times as fast", "95 % interval")


def ratio_cells(ratios: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Write ratios as text, column by column as in `ratios_header`; each cell says whose it is.

    The number of tokens stands where texts of several lengths were measured, or where it tells two rows apart.
    """
    lengths: dict[tuple[str, str], set[int | None]] = {}
    for ratio in ratios:
        key = ratio["candidate"]
        lengths.setdefault((key["backend"], key["part"]), set()).add(key["text_tokens"])
    for ratio in ratios:
        low, high = ratio["interval"]
        candidate, reference = ratio["candidate"], ratio["reference"]
        tokens = candidate["text_tokens"] if len(lengths[candidate["backend"], candidate["part"]]) > 1 else None
        long = reference["text_tokens"]
        part = "" if reference["part"] == candidate["part"] else f" {reference['part'].replace('_', ' ')}"
        yield (
            f"{LABELS[candidate['part']]}{'' if tokens is None else f' ({tokens})'}, {candidate['backend']}",
            f"{reference['backend']}{part}{'' if long is None else f', {long} tokens'}",
            str(candidate["batch"]),
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


def _references(candidate: Cell, cells: Sequence[Cell], base: str, float32: str | None) -> Iterator[Cell]:
    """Yield the cells that a bundle's cell is compared with.

    First the base's: the same part first, its longest text first. Then the float32 bundle's.
    """
    if candidate.backend != base:
        yield from _same_part(candidate, cells, base)
        if candidate.part == "query_by_id":
            queries = [c for c in cells if (c.backend, c.part, c.batch) == (base, "query", candidate.batch)]
            yield from sorted(queries, key=lambda c: -(c.text_tokens or 0))
    if float32 not in (candidate.backend, base):
        same = [c for c in cells if (c.backend, c.part, c.batch) == (float32, candidate.part, candidate.batch)]
        yield from (c for c in same if c.text_tokens == candidate.text_tokens)


def _same_part(candidate: Cell, cells: Sequence[Cell], base: str) -> list[Cell]:
    """Return the base's cells of the same part and batch: with its longest text first, then with one as long."""
    same = [c for c in cells if (c.backend, c.part, c.batch) == (base, candidate.part, candidate.batch)]
    longest = max((c.text_tokens or 0 for c in same), default=0)
    fitting = [c for c in same if (c.text_tokens or 0) in (longest, candidate.text_tokens or 0)]
    return sorted(fitting, key=lambda c: -(c.text_tokens or 0))


def _longest(cell: Cell, cells: Sequence[Cell]) -> int:
    """Return the length of a contender's longest text in a part."""
    return max(c.text_tokens or 0 for c in cells if (c.backend, c.part) == (cell.backend, cell.part))


def _ratio(reference: Cell, candidate: Cell, columns: Mapping[Cell, Any]) -> dict[str, Any]:
    ratio = speedup(columns[reference], columns[candidate])
    return {
        "reference": _key(reference),
        "candidate": _key(candidate),
        "times_as_fast": ratio.value,
        "interval": [ratio.low, ratio.high],
    }


def _key(cell: Cell) -> dict[str, Any]:
    return {"backend": cell.backend, "part": cell.part, "batch": cell.batch, "text_tokens": cell.text_tokens}
