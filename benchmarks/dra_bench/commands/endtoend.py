"""dra-bench endtoend."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from dra_bench.commands.common import (
    bundles_option,
    deliver,
    identities,
    json_option,
    output_option,
    progress_of,
    samples_option,
    seconds_option,
    shown_command,
    threads_option,
    timed_in_turns,
)
from dra_bench.contenders.bundles import bundle_encoders
from dra_bench.endtoend import Journey, endtoend_rows, endtoend_table, journey_cells, raw_steps
from dra_bench.environment import environment
from dra_bench.gallery_cache import Collection, cached_gallery
from dra_bench.latency import TEXT
from dra_bench.mixed_vectors import lifted, real_vectors
from dra_bench.photograph import ABOUT, photograph
from dra_runtime.encoder import Encoder
from dra_runtime.errors import UsageError
from dra_runtime.files import check_output
from dra_runtime.gallery import Gallery


@click.command("endtoend", short_help="Time a query from a JPEG file to ten answers, and each step of it.")
@bundles_option
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    help="Trained bundle whose features fill the gallery; default: each bundle's own.",
)
@click.option(
    "--gallery-size", "items", type=click.IntRange(100, 100_000_000), default=100_000, show_default=True, help="Items."
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that keeps the galleries; default: made anew.",
)
@click.option("--text", default=TEXT, show_default=True, help="The text of every query.")
@samples_option
@seconds_option
@threads_option
@json_option
@output_option
def endtoend_command(
    bundles: tuple[Path, ...],
    features: Path | None,
    items: int,
    cache: Path | None,
    text: str,
    samples: int | None,
    seconds: float,
    threads: int | None,
    as_json: bool,
    output: Path | None,
) -> None:
    """Time a query from a JPEG file of one megapixel and a text to ten answers from a large gallery.

    \b
      dra-bench endtoend --bundle bundle/ --bundle bundle-int8/

    The whole is one call of Gallery.search; the steps are the runtime's own functions, called one after the other. Both
    take turns, bundle by bundle. The gallery is that of `dra-bench gallery`, searched exactly in float32.
    """
    check_output(output)
    encoders = [Encoder.open(bundle, threads=threads) for bundle in bundles]
    source = None if features is None else Encoder.open(features, threads=threads, integrity="size")
    if source is not None and source.dim > min(encoder.dim for encoder in encoders):
        raise UsageError(f"--features has {source.dim} columns, more than a bundle has; give features no wider")
    surroundings = environment(encoders[0].threads, shown_command())
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.jpg"
        picture.write_bytes(photograph())
        kept = Path(folder) if cache is None else cache
        kept.mkdir(parents=True, exist_ok=True)
        journeys, described = [], []
        for contender in bundle_encoders(encoders):
            collection = _collection(contender.encoder, source, items, kept)
            described.append({"backend": contender.name, **collection.describe()})
            with progress_of(f"{items:,}, {contender.name}") as advance:
                path = cached_gallery(collection, "float32", advance)
            journeys.append(Journey(contender.name, Gallery.open(path, contender.encoder, "size"), picture, text))
        timings, others = timed_in_turns(journey_cells(journeys), samples, seconds, "end to end")
        picture_bytes = picture.stat().st_size
    rows = endtoend_rows(timings, journeys)
    result = {
        "rows": rows,
        "picture": f"{ABOUT}, {picture_bytes} bytes",
        "text": text,
        "galleries": described,
        "environment": {**surroundings, "used_by_others_percent": others, **identities(*encoders)},
        "warmup": {"rounds": timings.warmup_rounds, "steady": timings.steady},
        "raw_ms": raw_steps(timings, journeys),
    }
    deliver(result, output, as_json, endtoend_table(rows))


def _collection(encoder: Encoder, source: Encoder | None, items: int, cache: Path) -> Collection:
    """Describe the gallery of one bundle."""
    maker = source or encoder
    real = lifted(real_vectors(maker, cache), encoder.dim, seed=0)
    return Collection(encoder, real, maker.dim, maker.bundle_id, items, 0, cache)
