"""What the growth curves time: batches, text lengths and threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from dra_bench.contenders.backend import Backend
from dra_bench.growth import Axes, Curve, Step, timed_curves
from dra_bench.latency import Workload, text_of_tokens
from dra_bench.laws import Kind
from dra_bench.timing import Cell, Timings
from dra_runtime.encoder import Encoder

BATCHES = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (4, 8, 12, 16, 24, 32, 48, 64, 77)
THREADS_BATCH = 4  #: images or texts a call of the curve over threads


def batch_steps(contenders: Sequence[Backend], work: Workload, batches: Sequence[int] = BATCHES) -> list[Step]:
    """List images, texts, compositions and queries by their number a call."""
    steps = []
    for backend in contenders:
        image_features = backend.image(work.pixels(1, backend.image_input))
        text_features = backend.text(work.texts(1))
        tokens = backend.text_tokens(work.texts(1))
        largest = work.pixels(max(batches), backend.image_input)
        for batch in batches:
            pixels, texts = largest[:batch], work.texts(batch)
            images, described = (np.repeat(f, batch, axis=0) for f in (image_features, text_features))
            runs: dict[str, tuple[int | None, Callable[[], object]]] = {
                "image": (None, partial(backend.image, pixels)),
                "text": (tokens, partial(backend.text, texts)),
                "compose": (None, partial(backend.compose, images, described)),
                "query": (tokens, partial(backend.query, pixels, texts)),
            }
            for part, (length, run) in runs.items():
                steps.append(Step(batch, batch, Cell(backend.name, part, batch, length, run)))
    return steps


def text_steps(
    contenders: Sequence[tuple[str, Backend]], encoder: Encoder, lengths: Sequence[int] = LENGTHS
) -> list[Step]:
    """List texts by the tokens that they have; ``contenders`` come with the names that tables give them."""
    steps = []
    for length in lengths:
        text = text_of_tokens(length, lambda text: len(encoder.tokenize(text)[0]))
        for name, backend in contenders:
            tokens = backend.text_tokens([text])
            steps.append(Step(length, length, Cell(name, "text", 1, tokens, partial(backend.text, [text]))))
    return steps


def thread_counts(usable: int) -> tuple[int, ...]:
    """Return 1, 2, 4, … and all that can be used."""
    return tuple(sorted({*(2**power for power in range(usable.bit_length())), usable}))


def threads_steps(contenders: Sequence[tuple[int, Backend]], work: Workload) -> list[Step]:
    """List images and texts by threads; ``contenders`` are backends, each with the threads that it was opened with."""
    steps = []
    for threads, backend in contenders:
        pixels, texts = work.pixels(THREADS_BATCH, backend.image_input), work.texts(THREADS_BATCH)
        tokens = backend.text_tokens(texts)
        image, text = _with_threads(threads, backend.image, pixels), _with_threads(threads, backend.text, texts)
        steps.append(Step(threads, 1, Cell(backend.name, "image", THREADS_BATCH, None, image)))
        steps.append(Step(threads, 1, Cell(backend.name, "text", THREADS_BATCH, tokens, text)))
    return steps


def batch_curves(steps: Sequence[Step], timings: Timings) -> list[Curve]:
    """Make the curves over batch: milliseconds a call, extrapolated where they were too long, and an item."""
    linear: dict[str, Kind] = dict.fromkeys((step.cell.backend for step in steps), "linear")
    call = Axes("a call by batch", "batch", "ms a call")
    item = Axes("an item by batch", "batch", "ms an item")
    return [
        *timed_curves("batch", steps, timings, call, lambda _, ns: ns / 1e6, linear, BATCHES),
        *timed_curves("batch", steps, timings, item, lambda step, ns: ns / 1e6 / step.x, {}),
    ]


def text_curves(steps: Sequence[Step], timings: Timings) -> list[Curve]:
    """Make the curves over text length."""
    axes = Axes("one text by its length", "tokens of the text", "ms a text")
    return timed_curves("text", steps, timings, axes, lambda _, ns: ns / 1e6, {})


def threads_curves(steps: Sequence[Step], timings: Timings) -> list[Curve]:
    """Make the curves over threads: items a second."""
    axes = Axes(f"throughput by threads, batch {THREADS_BATCH}", "threads", "items a second")
    return timed_curves("threads", steps, timings, axes, lambda step, ns: 1e9 * step.cell.batch / ns, {})


def _with_threads(threads: int, call: Callable[..., object], argument: object) -> Callable[[], object]:
    """Give PyTorch its threads before a call; bundles were opened with theirs."""

    def run() -> object:
        torch.set_num_threads(threads)
        return call(argument)

    return run
