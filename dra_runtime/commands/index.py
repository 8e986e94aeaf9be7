"""dra-search index."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Literal

import click

from dra_runtime.commands.options import (
    PATH,
    backend_option,
    integrity_of,
    integrity_option,
    json_option,
    printable,
    quieten_decoders,
    threads_option,
)
from dra_runtime.console import progress
from dra_runtime.encoder import Encoder
from dra_runtime.gallery_file import check_target
from dra_runtime.indexing import IndexingReport, index_folder
from dra_runtime.metadata_file import read_metadata

_SHOWN = 20  # files left out that are named


@click.command("index", epilog="Example: dra-search index bundle/ images/ -o shop.gallery")
@click.argument("bundle", type=PATH)
@click.argument("images", type=PATH)
@click.option("-o", "--out", required=True, type=PATH, help="The gallery file to write, such as shop.gallery.")
@click.option(
    "--storage",
    type=click.Choice(["float32", "float16"]),
    help="How vectors are kept; float16 takes half the room.  [default: float32]",
)
@click.option(
    "--index",
    "kind",
    type=click.Choice(["flat", "hnsw", "ivf"]),
    help="Build a faiss index, for large galleries.  [default: none, every image is compared]",
)
@click.option("--tokens", is_flag=True, help="Keep the images' tokens too, so that query --rerank encodes no images.")
@click.option(
    "--metadata",
    type=PATH,
    help="A .csv or .jsonl file with a column id, and values that query --where filters by.",
)
@click.option("--update", is_flag=True, help="Encode only what is new or changed since the gallery OUT was made.")
@click.option("--restart", is_flag=True, help="Begin anew where an interrupted run would go on.")
@backend_option
@threads_option
@integrity_option
@json_option
def index_command(
    bundle: Path,
    images: Path,
    out: Path,
    storage: Literal["float32", "float16"] | None,
    kind: str | None,
    tokens: bool,
    metadata: Path | None,
    update: bool,
    restart: bool,
    backend: str,
    threads: int | None,
    integrity: str,
    as_json: bool,
) -> None:
    """Encode all images below the folder IMAGES into a gallery.

    An image's id is its path below IMAGES without the suffix. Files that can't be read are left out and named on
    stderr. The gallery remembers where BUNDLE lies, so queries needn't name it.

    However a run ends, the same command goes on where it stopped. With --update, an existing gallery's own storage,
    index, tokens and metadata are the defaults.
    """
    quieten_decoders()
    check_target(out)
    items = None if metadata is None else read_metadata(metadata)
    encoder = Encoder.open(bundle, backend, threads, integrity_of(integrity))
    started = time.perf_counter()
    with _saying_how_to_go_on() as at, ExitStack() as bar:

        def note(line: str) -> None:
            bar.close()  # ends the bar's line, where there is one
            click.echo(printable(line), err=True)

        done = index_folder(
            encoder,
            images,
            out,
            metadata=items,
            storage=storage,
            index=kind,
            tokens=tokens or None,
            update=update,
            restart=restart,
            progress=_bar(bar, "indexing images", at, "images"),
            index_progress=_bar(bar, "building the index", []),
            note=note,
        )
    for _, reason in done.left_out[:_SHOWN]:
        click.echo(f"left out: {printable(reason)}", err=True)
    if len(done.left_out) > _SHOWN:
        click.echo(f"left out: {len(done.left_out) - _SHOWN} more (--json lists all)", err=True)
    seconds = time.perf_counter() - started
    if as_json:
        click.echo(json.dumps(_values(done, out, encoder, seconds), indent=2))
    else:
        left_out = f", {len(done.left_out)} left out" if done.left_out else ""
        click.echo(f"{out}: {done.images} images in {seconds:.1f} s{left_out}")


def _values(done: IndexingReport, out: Path, encoder: Encoder, seconds: float) -> dict[str, object]:
    return {
        "gallery": str(out),
        "images": done.images,
        "resumed": done.resumed,
        "kept": done.kept,
        "index": None if done.index is None else dataclasses.asdict(done.index),
        "skipped": [{"id": name, "reason": reason} for name, reason in done.left_out],
        "bundle_id": encoder.bundle_id,
        "backend": encoder.backend,
        "seconds": round(seconds, 3),
    }


def _bar(stack: ExitStack, label: str, at: list[int], unit: str = "") -> Callable[[int, int], None]:
    """Return a progress function that shows a bar with the time left and the units a second, closed by ``stack``.

    The bar counts what this run has to do: what an earlier one did would spoil its estimate. ``at`` becomes the number
    done and of all.
    """
    advance: Callable[..., None] | None = None
    first, began = 0, 0.0

    def report(done: int, total: int) -> None:
        nonlocal advance, first, began
        if advance is None:
            first, began = done, time.perf_counter()
            advance = stack.enter_context(progress(total - done, label))
        else:
            rate = (done - first) / max(time.perf_counter() - began, 1e-6)
            advance(done - at[0], f"{rate:,.0f} {unit}/s" if unit else None)
        at[:] = [done, total]

    return report


@contextmanager
def _saying_how_to_go_on() -> Iterator[list[int]]:
    """Let SIGTERM end the work as Ctrl-C does, and say then how to go on. Yields what `_bar` fills."""
    at: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield at
    except (KeyboardInterrupt, SystemExit) as ended:
        done, total = at or (0, 0)
        kept = f"{done:,} of {total:,} images are done; the same command goes on from there"
        click.echo(f"interrupted: {kept if done else 'nothing was done yet'}", err=True)
        sys.exit(ended.code if isinstance(ended, SystemExit) else 130)
    finally:
        signal.signal(signal.SIGTERM, before)
