"""dra-bench roofline."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
import numpy as np
from PIL import Image

from dra_bench.commands.common import (
    bundles_option,
    deliver,
    identities,
    json_option,
    output_option,
    require_made_from,
    samples_option,
    seconds_option,
    shown_command,
    threads_option,
    timed_in_turns,
)
from dra_bench.contenders.backend import PYTORCH, Backend
from dra_bench.contenders.bundles import BundleEncoder, bundle_encoders
from dra_bench.contenders.pytorch import pytorch_towers
from dra_bench.environment import environment
from dra_bench.graph_cost import Cost
from dra_bench.latency import TEXT, Workload, raw_milliseconds
from dra_bench.peaks import FLOATS, SIDE, peaks
from dra_bench.roofline import (
    GRAPHS,
    RULES,
    in_words,
    machine_table,
    part_cost,
    parts_table,
    roofline,
    search_cost,
)
from dra_bench.timing import Cell
from dra_runtime.encoder import Encoder
from dra_runtime.files import check_output
from dra_runtime.gallery import Gallery
from dra_runtime.sessions import ONNXRUNTIME_CPU, checked_threads
from dra_train.checkpoint import load_checkpoint

optional_checkpoint_option = click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="Their checkpoint: measures PyTorch eager beside them."
)


@click.command("roofline", short_help="Compare every part with what this machine can do.")
@bundles_option
@optional_checkpoint_option
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1),
    default=(1,),
    show_default=True,
    help="Images and texts a call; repeatable.",
)
@click.option("--text", default=TEXT, show_default=True, help="The text of every query.")
@click.option(
    "--items", type=click.IntRange(100), default=100_000, show_default=True, help="Items of the gallery searched."
)
@samples_option
@seconds_option
@threads_option
@json_option
@output_option
def roofline_command(
    bundles: tuple[Path, ...],
    checkpoint: Path | None,
    batches: tuple[int, ...],
    text: str,
    items: int,
    samples: int | None,
    seconds: float,
    threads: int | None,
    as_json: bool,
    output: Path | None,
) -> None:
    """Say how far each part of a query is from the limits of this machine.

    \b
      dra-bench roofline --bundle bundle/ --bundle bundle-int8/ --checkpoint ckpt.pt

    Operations and bytes are counted on the bundle's graphs. What the machine can do is measured in the same rounds and
    with as many threads: plain matrix products, and reading and copying a block of memory far larger than the caches. A
    part can't be faster than the longer of the two: its operations at that rate, or its bytes at that bandwidth.
    Above 100 % means that the weights stay in the caches between calls, or that a part's products suit the processor
    better than the plain one.

    Search is exact, in float32, over random vectors. PyTorch's parts are counted on the float32 bundle's graphs, its
    text at the 77 tokens that it pads to: what the export saves, PyTorch does on top. CPU only.
    """
    check_output(output)
    threads = checked_threads(threads)
    encoders = tuple(Encoder.open(bundle, ONNXRUNTIME_CPU, threads) for bundle in bundles)
    contenders = bundle_encoders(encoders)
    precisions = [encoder.bundle.manifest.precision for encoder in encoders]
    counted: list[tuple[Backend, BundleEncoder]] = [(contender, contender) for contender in contenders]
    unavailable = []
    float32 = next((c for c, p in zip(contenders, precisions, strict=True) if p == "fp32"), None)
    if checkpoint is None:
        unavailable.append({"backend": PYTORCH, "reason": "no --checkpoint was given"})
    elif float32 is None:
        reason = "its operations are counted on a float32 bundle's graphs, and no such --bundle was given"
        unavailable.append({"backend": PYTORCH, "reason": reason})
    else:
        source = load_checkpoint(checkpoint)
        for bundle, encoder in zip(bundles, encoders, strict=True):
            require_made_from(encoder, bundle, source.sha256, checkpoint)
        counted.append((pytorch_towers(source.model), float32))
    surroundings = environment(threads, shown_command())
    images = tuple(Image.fromarray(array) for array in encoders[0].bundle.selftest()["images"])
    work = Workload(images, encoders[0].preprocess, text)
    costs: dict[Cell, Cost] = {}
    for batch in sorted(set(batches)):
        for backend, counted_on in counted:
            costs |= _parts(backend, counted_on, work, batch)
    costs |= _search(encoders[0], items)
    costs = dict(sorted(costs.items(), key=lambda item: ([*GRAPHS, "search"].index(item[0].part), item[0].batch)))
    found = peaks(threads, "int8" in precisions)
    cells = [*costs, *(peak.cell for peak in found)]
    timings, others = timed_in_turns(cells, samples, seconds, "roofline")
    machine, rows = roofline(timings, costs, found)
    result = {
        "machine": machine,
        "parts": rows,
        "unavailable": unavailable,
        "rules": RULES,
        "peak_sizes": {"matrix_side": SIDE, "block_mb": round(4 * FLOATS / 1e6, 1)},
        "text": text,
        "gallery_items": items,
        "environment": {**surroundings, "used_by_others_percent": others, **identities(*encoders)},
        "warmup": {"rounds": timings.warmup_rounds, "steady": timings.steady},
        "raw": {"ms": raw_milliseconds(timings)},
    }
    missing = [f"not measured: {gap['backend']}: {gap['reason']}" for gap in unavailable]
    said = "\n".join([*(in_words(row) for row in rows), *missing])
    deliver(result, output, as_json, f"{machine_table(machine)}\n\n{parts_table(rows)}\n\n{said}")


def _parts(backend: Backend, counted_on: BundleEncoder, work: Workload, batch: int) -> dict[Cell, Cost]:
    """List the parts of one contender, with what each has to do."""
    texts = work.texts(batch)
    pixels, tokens = work.pixels(batch, backend.image_input), backend.text_tokens(texts)
    image_features, text_features = backend.image(pixels), backend.text(texts)
    runs = {
        "image": (None, partial(backend.image, pixels)),
        "text": (tokens, partial(backend.text, texts)),
        "compose": (None, partial(backend.compose, image_features, text_features)),
        "query": (tokens, partial(backend.query, pixels, texts)),
        "query_by_id": (tokens, partial(backend.query_by_id, image_features, texts)),
    }
    return {
        Cell(backend.name, part, batch, length, run): part_cost(counted_on, part, batch, length)
        for part, (length, run) in runs.items()
    }


def _search(encoder: Encoder, items: int) -> dict[Cell, Cost]:
    """Search a gallery of random vectors: exact search takes as long whatever they are."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((items, encoder.dim), np.float32)
    gallery = Gallery.from_features(encoder, [f"item-{i:09d}" for i in range(items)], vectors)
    query = rng.standard_normal((1, encoder.dim), np.float32)
    run = partial(gallery.search_vectors, query, 10)
    return {Cell("exact, float32", "search", 1, None, run): search_cost(items, encoder.dim)}
