"""dra-bench gallery."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from dra_bench.commands.common import (
    bundle_option,
    deliver,
    identities,
    json_option,
    output_option,
    progress_of,
    run_in_turns,
    samples_option,
    seconds_option,
    shown_command,
    threads_option,
    timed_in_turns,
)
from dra_bench.environment import environment
from dra_bench.fresh import Probe, raw
from dra_bench.gallery_cache import (
    EXACT,
    INDEX_STORAGE,
    KINDS,
    Collection,
    cached_gallery,
    held_out_queries,
    read_built,
)
from dra_bench.gallery_search import (
    NAMES,
    answers,
    cost_table,
    raw_samples,
    recall_against,
    search_cells,
    search_rows,
    search_table,
)
from dra_bench.mixed_vectors import lifted, real_vectors
from dra_runtime.console import progress
from dra_runtime.encoder import Encoder
from dra_runtime.errors import UsageError
from dra_runtime.files import check_output
from dra_runtime.gallery import Gallery

PROBE_QUERIES = 20


@click.command("gallery", short_help="Time the search in large galleries, exact and with an index.")
@bundle_option
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    help="Trained bundle whose features are mixed; default: --bundle. Narrower ones are turned into its width.",
)
@click.option(
    "--items",
    "sizes",
    multiple=True,
    type=click.IntRange(100, 100_000_000),
    default=(100_000,),
    show_default=True,
    help="Items in the gallery; repeatable.",
)
@click.option(
    "--index",
    "kinds",
    multiple=True,
    type=click.Choice(KINDS),
    help="Index to measure beside exact search; repeatable.",
)
@click.option(
    "--cache",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that keeps the galleries, so that they are made once.",
)
@click.option("--build-only", is_flag=True, help="Make the galleries and measure nothing.")
@click.option(
    "--queries", "count", type=click.IntRange(1), default=500, show_default=True, help="Queries that recall is over."
)
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="Fresh processes a gallery.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@samples_option
@seconds_option
@threads_option
@json_option
@output_option
def gallery_command(
    bundle: Path,
    features: Path | None,
    sizes: tuple[int, ...],
    kinds: tuple[str, ...],
    cache: Path,
    build_only: bool,
    count: int,
    runs: int,
    seed: int,
    samples: int | None,
    seconds: float,
    threads: int | None,
    as_json: bool,
    output: Path | None,
) -> None:
    """Time one query at a time in large galleries: exact in float32 and half precision, and through an index.

    \b
      dra-bench gallery --bundle bundle/ --items 100000 --index hnsw --cache galleries/

    The vectors are real features of the built-in pictures, mixed until there are enough; the JSON says exactly how.
    The queries are real ones and none of them is an item. All galleries of a size take turns in one process; memory
    and the time to open are those of fresh processes, with the files in the system's cache. Making a million items and
    their index takes minutes to an hour, once.
    """
    check_output(output)
    encoder = Encoder.open(bundle, threads=threads, integrity="size")
    source = encoder if features is None else Encoder.open(features, threads=threads, integrity="size")
    if source.dim > encoder.dim:
        raise UsageError(
            f"--features has {source.dim} columns, more than the bundle's {encoder.dim}; give a narrower one"
        )
    cache.mkdir(parents=True, exist_ok=True)
    real = real_vectors(source, cache)
    wide = lifted(real, encoder.dim, seed)
    collections = [
        Collection(encoder, wide, source.dim, source.bundle_id, items, seed, cache) for items in sorted(set(sizes))
    ]
    made = [_make(collection, kinds) for collection in collections]
    if build_only:
        for paths in made:
            for path in paths.values():
                click.echo(f"{path} ready")
        return
    surroundings = environment(encoder.threads, shown_command())
    results = [
        _measured(collection, paths, bundle, count, runs, samples, seconds / len(made))
        for collection, paths in zip(collections, made, strict=True)
    ]
    result = {
        "sizes": results,
        "environment": {**surroundings, **identities(encoder)},
        "file_cache": "warm: every file was read before it was measured",
    }
    deliver(result, output, as_json, f"{search_table(results)}\n\n{cost_table(results)}")


def _make(collection: Collection, kinds: Sequence[str]) -> dict[str, Path]:
    """Make all galleries of one size; returns their files by variant."""
    return {variant: _make_one(collection, variant) for variant in (*EXACT, *(kind for kind in KINDS if kind in kinds))}


def _make_one(collection: Collection, variant: str) -> Path:
    with progress_of(f"{collection.items:,}, {NAMES[variant]}") as advance:
        return cached_gallery(collection, variant, advance)


def _measured(
    collection: Collection,
    paths: dict[str, Path],
    bundle: Path,
    count: int,
    runs: int,
    samples: int | None,
    seconds: float,
) -> dict[str, Any]:
    """Measure all galleries of one size."""
    queries = held_out_queries(collection, count)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "queries.npy"
        np.save(file, queries[: PROBE_QUERIES + 1])
        probes = [
            Probe(name, "gallery", (bundle, path, file, collection.encoder.threads)) for name, path in paths.items()
        ]
        memories, _ = run_in_turns(probes, runs, f"{collection.items:,}, fresh processes")
    galleries = {name: Gallery.open(path, collection.encoder, "size") for name, path in paths.items()}
    with progress(len(galleries) * len(queries), f"{collection.items:,}, recall") as bar:
        found = {name: answers(gallery, queries, bar) for name, gallery in galleries.items()}
    recalls = {name: recall_against(found["float32"], ids) for name, ids in found.items()}
    timings, others = timed_in_turns(
        search_cells(galleries, queries), samples, seconds, f"{collection.items:,}, search"
    )
    built = {name: read_built(path) for name, path in paths.items()}
    return {
        **collection.describe(),
        "queries": len(queries),
        "index_storage": INDEX_STORAGE,
        "rows": search_rows(timings, recalls, memories, paths, built),
        "used_by_others_percent": others,
        "warmup": {"rounds": timings.warmup_rounds, "steady": timings.steady},
        "raw_ms": raw_samples(timings),
        "raw_processes": {name: raw(found) for name, found in memories.items()},
    }
