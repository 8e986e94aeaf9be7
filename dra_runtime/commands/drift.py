"""dra-search drift."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

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
from dra_runtime.console import FOUND_WANTING, progress
from dra_runtime.encoder import Encoder
from dra_runtime.gallery_drift import SAMPLE, DriftReport, adopt_bundle, drift
from dra_runtime.gallery_file import read_header

_WORDS = {"same": "keep: the same vectors", "close": "keep: close enough", "reindex": "index again"}


@click.command("drift", epilog="Example: dra-search drift shop.gallery new-bundle/")
@click.argument("gallery", type=PATH)
@click.argument("bundle", type=PATH)
@click.option("--images", type=PATH, help="The gallery's images.  [default: the folder it was indexed from]")
@click.option("--sample", type=click.IntRange(2), default=SAMPLE, show_default=True, help="How many images to encode.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Chooses the images.")
@click.option("--adopt", is_flag=True, help="If the vectors may be kept, let GALLERY be BUNDLE's from now on.")
@backend_option
@threads_option
@integrity_option
@json_option
def drift_command(
    gallery: Path,
    bundle: Path,
    images: Path | None,
    sample: int,
    seed: int,
    adopt: bool,
    backend: str,
    threads: int | None,
    integrity: str,
    as_json: bool,
) -> None:
    """Say whether GALLERY's vectors still do with BUNDLE, another one than it was made with.

    Encodes a sample of the images again and compares: cosines, and the answers to queries. Exit code 0: the vectors may
    be kept. 1: index again. 2: unusable input.

    A gallery answers only with the bundle that it names. --adopt writes BUNDLE into it, vectors unchanged.
    """
    quieten_decoders()
    started = time.perf_counter()
    read_header(gallery)  # the gallery's own error comes first
    encoder = Encoder.open(bundle, backend, threads, integrity_of(integrity))
    with progress(sample, "encoding the sample") as advance:
        shown = 0

        def report(done: int, _: int) -> None:
            nonlocal shown
            advance(done - shown)
            shown = done

        found = drift(gallery, encoder, images, sample, seed, report)
    adopted = adopt and found.keep
    if adopted:
        adopt_bundle(gallery, encoder)
    seconds = time.perf_counter() - started
    if as_json:
        values = {"keep": found.keep, "adopted": adopted, **dataclasses.asdict(found), "seconds": round(seconds, 3)}
        click.echo(json.dumps(values, indent=2))
    else:
        click.echo("\n".join(_lines(gallery, bundle, found)))
        if adopted:
            click.echo(f"{gallery} is now {bundle}'s")
    if not found.keep:
        raise click.exceptions.Exit(FOUND_WANTING)


def _lines(gallery: Path, bundle: Path, found: DriftReport) -> list[str]:
    same = "the same bundle" if found.gallery_bundle_id == found.bundle_id else "another bundle"
    lines = [f"{gallery} was made with {found.gallery_bundle_id[:16]}; {bundle} is {found.bundle_id[:16]}: {same}"]
    if found.cosine is not None:
        c = found.cosine
        gone = f", {found.missing} not found" if found.missing else ""
        gone += f", {found.unreadable} unreadable" if found.unreadable else ""
        lines += [
            f"images    {found.compared} of {found.sampled} sampled compared{gone}",
            f"cosine    min {c['min']:.6f}   1 % {c['p1']:.6f}   5 % {c['p5']:.6f}   median {c['p50']:.6f}   "
            f"mean {c['mean']:.6f}",
            f"length    changed by at most {found.norm_change:.2%}",
            *([] if found.token_cosine is None else [f"tokens    smallest cosine {found.token_cosine:.6f}"]),
            f"answers   first the same {found.top1_same:.1f} %   first ten in common {found.top10_overlap:.1f} %",
            "furthest  " + ", ".join(f"{printable(name)} ({value:.6f})" for name, value in found.worst),
        ]
    return [*lines, f"{_WORDS[found.verdict]} ({found.reason})"]
