"""dra-bench growth."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import torch
from PIL import Image

from dra_bench.commands.common import (
    bundles_option,
    deliver,
    identities,
    json_option,
    output_option,
    require_made_from,
    samples_option,
    shown_command,
    threads_option,
)
from dra_bench.commands.growth_run import Found, GalleryPlan, Span, run_galleries, run_timed
from dra_bench.contenders.backend import PYTORCH, Backend
from dra_bench.contenders.bundles import bundle_encoders
from dra_bench.contenders.pytorch import pytorch_towers
from dra_bench.environment import environment
from dra_bench.growth import CURVES, SPREAD, Name, curve_json
from dra_bench.growth_galleries import SIZES
from dra_bench.growth_steps import (
    batch_curves,
    batch_steps,
    text_curves,
    text_steps,
    thread_counts,
    threads_curves,
    threads_steps,
)
from dra_bench.growth_table import growth_tables
from dra_bench.latency import TEXT, Workload
from dra_runtime.encoder import Encoder
from dra_runtime.files import check_output
from dra_runtime.sessions import checked_threads
from dra_runtime.threads import available_threads
from dra_train.checkpoint import Checkpoint, load_checkpoint

SHARES: dict[Name, int] = {"batch": 4, "text": 1, "threads": 1, "search": 1}  #: of --seconds; memory takes its own time


@click.command("growth", short_help="Draw how cost grows: with batch, text length, gallery, threads.")
@bundles_option
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Their checkpoint: PyTorch eager beside them.")
@click.option(
    "--curve", "names", multiple=True, type=click.Choice(CURVES), help="Curve to measure; repeatable; default: all."
)
@click.option(
    "--items",
    "sizes",
    multiple=True,
    type=click.IntRange(100, 100_000_000),
    default=SIZES,
    show_default=True,
    help="Galleries to make and measure; repeatable. Larger ones that --cache has are measured too.",
)
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    help="Trained bundle whose features fill the galleries; default: the first --bundle.",
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that keeps the galleries, as for dra-bench gallery; default: none are kept.",
)
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="Fresh processes a gallery.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@samples_option
@click.option(
    "--seconds", type=click.FloatRange(1), default=150.0, show_default=True, help="Time for all timed curves together."
)
@threads_option
@json_option
@output_option
def growth_command(
    bundles: tuple[Path, ...],
    checkpoint: Path | None,
    names: tuple[Name, ...],
    sizes: tuple[int, ...],
    features: Path | None,
    cache: Path | None,
    runs: int,
    seed: int,
    samples: int | None,
    seconds: float,
    threads: int | None,
    as_json: bool,
    output: Path | None,
) -> None:
    """Measure curves: latency by batch and by text length, search and memory by gallery size, throughput by threads.

    \b
      dra-bench growth --bundle bundle/ --checkpoint ckpt.pt -o growth.json
      dra-bench growth --bundle bundle/ --curve search --items 10000 --items 100000 --cache galleries/

    All points and contenders of a curve take turns in one run. What --seconds or the memory don't allow is extrapolated
    by a law that is fitted to the last decade of what was measured, and marked with ~: lines for calls by batch, for
    exact search and for memory, powers for the other indexes. The table says how far each law is off where it was
    fitted; nothing is extrapolated from fewer than three points.

    --seconds is for all curves but memory, whose fresh processes take as long as they take. Galleries are made first.
    """
    check_output(output)
    threads = checked_threads(threads)
    chosen = [name for name in CURVES if not names or name in names]
    encoders = tuple(Encoder.open(bundle, threads=threads) for bundle in bundles)
    source = None if checkpoint is None else load_checkpoint(checkpoint)
    if source is not None and checkpoint is not None:
        for bundle, encoder in zip(bundles, encoders, strict=True):
            require_made_from(encoder, bundle, source.sha256, checkpoint)
    torch.set_num_threads(threads)
    surroundings = environment(threads, shown_command())
    unavailable = []
    if source is None and {"batch", "text", "threads"} & set(chosen):
        unavailable.append({"backend": PYTORCH, "reason": "no --checkpoint was given"})
    images = tuple(Image.fromarray(array) for array in encoders[0].bundle.selftest()["images"])
    work = Workload(images, encoders[0].preprocess, TEXT)
    total = sum(share for name, share in SHARES.items() if name in chosen)
    spans = {name: Span(samples, seconds * share / total) for name, share in SHARES.items() if name in chosen}
    contenders = _contenders(source, encoders)
    found = Found()
    if "batch" in chosen:
        run_timed(found, "batch", batch_steps(contenders, work), spans["batch"], batch_curves)
    if "text" in chosen:
        run_timed(found, "text", text_steps(_by_text(source, contenders), encoders[0]), spans["text"], text_curves)
    if "threads" in chosen:
        run_timed(found, "threads", threads_steps(_by_threads(source, bundles), work), spans["threads"], threads_curves)
        torch.set_num_threads(threads)
    if "search" in chosen or "memory" in chosen:
        with tempfile.TemporaryDirectory() as folder:
            place = cache or Path(folder)
            place.mkdir(parents=True, exist_ok=True)
            plan = GalleryPlan(bundles[0], features, place, sizes, runs, seed)
            missing = run_galleries(found, encoders[0], plan, chosen, spans.get("search"))
            unavailable += [missing] if missing else []
    curves = [curve_json(curve) for curve in found.curves]
    result = {
        "curves": curves,
        "unavailable": unavailable,
        "left_out": [gap.plain() for gap in found.gaps],
        "spread": SPREAD,
        "text": TEXT,
        "environment": {
            **surroundings,
            "used_by_others_percent": max(found.others, default=None),
            **identities(*encoders),
        },
        "warmup": found.warmup,
        "raw": {"samples": found.samples, **found.runs},
    }
    missing_lines = [f"not measured: {gap['backend']}: {gap['reason']}" for gap in unavailable]
    missing_lines += [f"not measured: {gap.words()}" for gap in found.gaps]
    deliver(result, output, as_json, "\n\n".join(filter(None, [growth_tables(curves), "\n".join(missing_lines)])))


def _contenders(source: Checkpoint | None, encoders: Sequence[Encoder]) -> list[Backend]:
    padded = [] if source is None else [pytorch_towers(source.model)]
    return [*padded, *bundle_encoders(encoders)]


def _by_text(source: Checkpoint | None, contenders: Sequence[Backend]) -> list[tuple[str, Backend]]:
    """Name the contenders; PyTorch, which pads every text, may cut it as well."""
    cut = [] if source is None else [(f"{PYTORCH}, text cut", pytorch_towers(source.model, cut=True))]
    return [*((c.name, c) for c in contenders), *cut]


def _by_threads(source: Checkpoint | None, bundles: Sequence[Path]) -> list[tuple[int, Backend]]:
    """Open every contender once for each number of threads."""
    opened: list[tuple[int, Backend]] = []
    for count in thread_counts(available_threads()):
        encoders = tuple(Encoder.open(bundle, threads=count, integrity="size") for bundle in bundles)
        opened += [(count, contender) for contender in _contenders(source, encoders)]
    return opened
