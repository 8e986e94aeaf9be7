"""From a JPEG file and a text to ten answers out of a large gallery: the whole, and what each step takes of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dra_bench.figures import milliseconds, percent
from dra_bench.timing import Cell, Timings, percentiles_ms
from dra_runtime.console import table
from dra_runtime.gallery import Gallery
from dra_runtime.preprocess import open_image

K = 10  #: answers
STEPS = ("read and decode", "resize and normalise", "tokenize", "image encoder", "text encoder", "compose", "search")
PREPROCESSING = STEPS[:2]
WHOLE = "whole"


@dataclass
class Journey:
    """One query of one gallery, both in a single call and step by step; the steps' times are kept.

    ``nanoseconds`` has a row of times a call of `steps`, in the order of `STEPS`.
    """

    name: str
    gallery: Gallery
    picture: Path
    text: str
    nanoseconds: list[list[int]] = field(default_factory=list)

    def whole(self) -> list[str]:
        """Answer the query as a service does."""
        return [hit.id for hit in self.gallery.search(text=self.text, image=self.picture, k=K)]

    def steps(self) -> list[str]:
        """Answer the query step by step, with the runtime's own functions."""
        encoder = self.gallery.encoder
        clock = [time.perf_counter_ns()]
        image = open_image(self.picture)
        clock.append(time.perf_counter_ns())
        pixels = encoder.preprocess.network_input(image, encoder.image_input, encoder.threads)[None]
        clock.append(time.perf_counter_ns())
        tokens = encoder.tokenize([self.text])
        clock.append(time.perf_counter_ns())
        image_features = encoder.encode_pixels(pixels)["image_features"]
        clock.append(time.perf_counter_ns())
        text_features = encoder.encode_tokens(tokens)
        clock.append(time.perf_counter_ns())
        query = encoder.compose(image_features, text_features)
        clock.append(time.perf_counter_ns())
        hits = self.gallery.search_vectors(query, K)[0]
        clock.append(time.perf_counter_ns())
        self.nanoseconds.append(np.diff(clock).tolist())
        return [hit.id for hit in hits]


def journey_cells(journeys: Sequence[Journey]) -> list[Cell]:
    """List what is timed: both ways of each query, in turns."""
    return [
        Cell(journey.name, part, 1, None, run)
        for journey in journeys
        for part, run in ((WHOLE, journey.whole), ("steps", journey.steps))
    ]


def endtoend_rows(timings: Timings, journeys: Sequence[Journey]) -> list[dict[str, Any]]:
    """Return each query's whole time, its steps' times and shares, in plain values.

    A step's share is its median over the sum of all steps' medians.
    """
    samples = {(cell.backend, cell.part): ns for cell, ns in zip(timings.cells, timings.samples_ns.T, strict=True)}
    rows = []
    for journey in journeys:
        measured = _measured(journey, timings)
        medians = np.median(measured, axis=0)
        shares = dict(zip(STEPS, (medians / medians.sum()).tolist(), strict=True))
        steps = [
            {"step": step, **percentiles_ms(column), "share": round(shares[step], 4)}
            for step, column in zip(STEPS, measured.T, strict=True)
        ]
        rows.append(
            {
                "backend": journey.name,
                **percentiles_ms(samples[journey.name, WHOLE]),
                "samples": len(measured),
                "steps": steps,
                "preprocessing_share": round(sum(shares[step] for step in PREPROCESSING), 4),
            }
        )
    return rows


def raw_steps(timings: Timings, journeys: Sequence[Journey]) -> dict[str, Any]:
    """Return every sample in milliseconds: of the whole, and of the steps in the order of `STEPS`."""
    samples = {(cell.backend, cell.part): ns for cell, ns in zip(timings.cells, timings.samples_ns.T, strict=True)}
    return {
        journey.name: {
            WHOLE: (samples[journey.name, WHOLE] / 1e6).round(4).tolist(),
            "steps": (_measured(journey, timings) / 1e6).round(4).tolist(),
        }
        for journey in journeys
    }


def _measured(journey: Journey, timings: Timings) -> npt.NDArray[np.int64]:
    """Return the steps' times of the timed calls alone, (rounds, steps)."""
    first = timings.calls * timings.warmup_rounds + timings.calls - 1
    return np.array(journey.nanoseconds[first :: timings.calls])


def endtoend_header(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Name the columns: a pair for each bundle."""
    return ("step", *(title for row in rows for title in (f"{row['backend']}, p50 ms", "share %")))


def endtoend_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay the steps out for people, one column a bundle."""
    return table(endtoend_header(rows), _lines(rows))


def _lines(rows: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, ...]]:
    for i, step in enumerate(STEPS):
        steps = [row["steps"][i] for row in rows]
        yield (step, *(cell for s in steps for cell in (milliseconds(s["p50_ms"]), percent(100 * s["share"]))))
    yield ("reading and preprocessing", *(c for r in rows for c in ("", percent(100 * r["preprocessing_share"]))))
    yield ("the whole, in one call", *(cell for row in rows for cell in (milliseconds(row["p50_ms"]), "")))
    yield ("p90 of the whole", *(cell for row in rows for cell in (milliseconds(row["p90_ms"]), "")))
