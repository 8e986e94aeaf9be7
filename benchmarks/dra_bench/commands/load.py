"""dra-bench load."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import torch

from dra_bench.commands.common import (
    bundles_option,
    deliver,
    identities,
    json_option,
    note_others,
    output_option,
    progress_of,
    require_made_from,
    shown_command,
    threads_option,
)
from dra_bench.contenders.bundles import bundle_encoders
from dra_bench.contenders.pytorch import pytorch_towers
from dra_bench.environment import cpu_clock, environment, used_by_others
from dra_bench.load.contender import Contender
from dra_bench.load.pytorch import PyTorchSearch, pytorch_contenders, pytorch_search
from dra_bench.load.queries import (
    ABOUT_ITEMS,
    ABOUT_QUERIES,
    LABELS,
    REFERENCES,
    builtin_material,
    load_queries,
    made_gallery,
)
from dra_bench.load.rates import LEAST_LIMITS, LEAST_QUERIES, RESOLUTION
from dra_bench.load.run import SHARES, default_limits, first_rates, serve, server_rows, timed
from dra_bench.load.runtime import batched, direct
from dra_bench.load.tables import load_text
from dra_bench.load.threads import bundle_turns, pytorch_turns
from dra_bench.load.turns import Queries, latency_rows, offline_turns, rate_rows, raw_rows, single_stream_turns
from dra_runtime.encoder import Encoder
from dra_runtime.errors import UsageError
from dra_runtime.files import check_output
from dra_runtime.gallery import Gallery
from dra_runtime.sessions import checked_threads
from dra_train.checkpoint import load_checkpoint


@click.command("load", short_help="Answer queries in a stream, in batches and as a server; by threads.")
@bundles_option
@click.option("--checkpoint", type=click.Path(path_type=Path), help="The bundles' checkpoint: PyTorch takes part.")
@click.option(
    "--gallery",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Gallery to search, one for each bundle in their order; default: made.",
)
@click.option("--items", type=click.IntRange(20), default=1000, show_default=True, help="Items of a made gallery.")
@click.option(
    "--reference",
    type=click.Choice([*REFERENCES, "both"]),
    default="both",
    show_default=True,
    help="References by id, or as new images.",
)
@click.option(
    "--limit-ms",
    type=click.FloatRange(0, min_open=True),
    help="Latency limit of the server; default: three times the slowest contender's p50 alone.",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1, 1024),
    default=(1, 4, 8),
    show_default=True,
    help="Batch sizes offline; repeatable.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(1),
    default=120.0,
    show_default=True,
    help="Time for the whole measurement, about.",
)
@threads_option
@json_option
@output_option
def load_command(
    bundles: tuple[Path, ...],
    checkpoint: Path | None,
    files: tuple[Path, ...],
    items: int,
    reference: str,
    limit_ms: float | None,
    batches: tuple[int, ...],
    seconds: float,
    threads: int | None,
    as_json: bool,
    output: Path | None,
) -> None:
    """Answer whole queries in the shapes of MLPerf Inference: one stream, offline, and a server with a latency limit.

    \b
      dra-bench load --bundle bundle/
      dra-bench load --bundle bundle/ --bundle bundle-int8/ --checkpoint ckpt.pt --limit-ms 50 -o load.json

    A query is a text and a reference, by id or as an image file in memory; its answer is the ten nearest of a gallery.
    Each bundle takes part twice: Gallery.search called by a pool of threads, and the runtime's Batcher. PyTorch takes
    part where its checkpoint is given. In every shape the contenders take turns.

    The server gets queries at random times, and its highest rate that answers 99 % of them within the limit is searched
    by doubling and bisection. A latency counts from the query's arrival, whoever was busy then.
    """
    check_output(output)
    threads = checked_threads(threads)
    if files and len(files) != len(bundles):
        raise UsageError(f"{len(files)} --gallery for {len(bundles)} --bundle; give one for each bundle, or none")
    encoders = [Encoder.open(bundle, threads=threads) for bundle in bundles]
    material = builtin_material()
    if files:
        galleries = [Gallery.open(file, encoder) for file, encoder in zip(files, encoders, strict=True)]
    else:
        galleries = [made_gallery(encoder, material.pictures, items) for encoder in encoders]
    contenders: list[Contender] = []
    named = [(made.name, made.precision, g) for made, g in zip(bundle_encoders(encoders), galleries, strict=True)]
    for name, precision, gallery in named:
        contenders += [direct(name, precision, gallery), batched(name, precision, gallery)]
    pytorch = None
    if checkpoint is not None:
        pytorch = _pytorch(checkpoint, bundles, galleries, threads)
        contenders += pytorch_contenders(pytorch)
    wanted = REFERENCES if reference == "both" else (reference,)
    queries: Queries = {kind: load_queries(material, kind, galleries[0].ids) for kind in wanted}
    result = _measured(contenders, named, pytorch, queries, limit_ms, sorted(set(batches)), seconds, threads)
    result["environment"].update(identities(*encoders))
    result["queries"] = ABOUT_QUERIES
    result["gallery"] = {"items": [len(gallery) for gallery in galleries], "about": None if files else ABOUT_ITEMS}
    deliver(result, output, as_json, load_text(result))


def _pytorch(checkpoint: Path, bundles: tuple[Path, ...], galleries: list[Gallery], threads: int) -> PyTorchSearch:
    """Load the checkpoint and put it before the first bundle's gallery."""
    torch.set_num_threads(threads)
    source = load_checkpoint(checkpoint)
    for bundle, gallery in zip(bundles, galleries, strict=True):
        require_made_from(gallery.encoder, bundle, source.sha256, checkpoint)
    return pytorch_search(pytorch_towers(source.model), galleries[0])


def _measured(
    contenders: list[Contender],
    named: list[tuple[str, str, Gallery]],
    pytorch: PyTorchSearch | None,
    queries: Queries,
    limit_ms: float | None,
    batches: list[int],
    seconds: float,
    threads: int,
) -> dict[str, Any]:
    """Measure the four shapes one after the other."""
    surroundings = environment(threads, shown_command())
    budget = {shape: share * seconds for shape, share in SHARES.items()}
    before = cpu_clock()
    with ExitStack() as stack:
        streams = single_stream_turns(contenders, queries, stack)
        with progress_of("1 of 4, single stream") as advance:
            stream_timings = timed(streams, budget["single_stream"], advance, None)
    single_stream = latency_rows(streams, stream_timings)
    alone_ns = {(row["backend"], row["reference"]): 1e6 * row["p50_ms"] for row in single_stream}
    with ExitStack() as stack:
        offline = offline_turns(contenders, queries, batches, stack)
        with progress_of("2 of 4, offline") as advance:
            offline_timings = timed(offline, budget["offline"], advance, alone_ns)
    offline_rows = rate_rows(offline, offline_timings)
    limits = dict.fromkeys(queries, limit_ms) if limit_ms is not None else default_limits(single_stream)
    for kind, limit in limits.items():
        click.echo(f"latency limit of the server, {LABELS[kind]}: {limit:g} ms", err=True)
    first = first_rates(contenders, tuple(queries), offline_rows)
    with progress_of("3 of 4, server") as advance:
        found = serve(contenders, queries, first, limits, budget["server"], advance)
    with ExitStack() as stack:
        threaded = [one for name, _, gallery in named for one in bundle_turns(name, gallery, queries, stack)]
        threaded += [] if pytorch is None else pytorch_turns(pytorch, queries)
        with progress_of("4 of 4, threads") as advance:
            thread_timings = timed(threaded, budget["threads"], advance, None)
    torch.set_num_threads(threads)
    others = used_by_others(before, cpu_clock())
    note_others(others)
    same = set(limits.values())
    return {
        "limit_ms": same.pop() if len(same) == 1 else None,
        "limits_ms": limits,
        "single_stream": single_stream,
        "offline": offline_rows,
        "server": server_rows(found, limits),
        "threads": rate_rows(threaded, thread_timings),
        "contenders": [
            {"backend": c.backend, "about": c.about, "precision": c.precision, "threads": threads} for c in contenders
        ],
        "server_search": {
            "percentile": 99,
            "resolution": RESOLUTION,
            "least_queries": LEAST_QUERIES,
            "least_limits": LEAST_LIMITS,
        },
        "environment": {**surroundings, "used_by_others_percent": others},
        "raw": {
            "single_stream_ms": raw_rows(streams, stream_timings),
            "offline_ms": raw_rows(offline, offline_timings),
            "threads_ms": raw_rows(threaded, thread_timings),
            "server_ms": [
                {
                    "backend": key[0],
                    "reference": key[1],
                    "attempts": [(1e3 * a.latencies).round(3).tolist() for a in tries],
                }
                for key, tries in found.items()
            ],
        },
    }
