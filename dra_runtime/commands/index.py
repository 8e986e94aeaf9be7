"""dra-search index."""

from __future__ import annotations

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
from dra_runtime.console import progress
from dra_runtime.encoder import Encoder
from dra_runtime.folder import images_of_folder
from dra_runtime.gallery import Gallery
from dra_runtime.gallery_file import check_target


@click.command("index", epilog="Example: dra-search index bundle/ images/ -o shop.gallery")
@click.argument("bundle", type=PATH)
@click.argument("images", type=PATH)
@click.option("-o", "--out", required=True, type=PATH, help="The gallery file to write, such as shop.gallery.")
@backend_option
@threads_option
@integrity_option
@json_option
def index_command(
    bundle: Path, images: Path, out: Path, backend: str, threads: int | None, integrity: str, as_json: bool
) -> None:
    """Encode all images below the folder IMAGES into a gallery.

    An image's id is its path below IMAGES without the suffix. Files that can't be read are left out and named on
    stderr. The gallery remembers where BUNDLE lies, so queries needn't name it.
    """
    quieten_decoders()
    check_target(out)
    total = len(images_of_folder(images))
    encoder = Encoder.open(bundle, backend, threads, integrity_of(integrity))
    started = time.perf_counter()
    with progress(total, "indexing images") as advance:
        shown = 0

        def report(done: int, _: int) -> None:
            nonlocal shown
            advance(done - shown)
            shown = done

        gallery = Gallery.build(encoder, images, report)
    gallery.save(out)
    for _, reason in gallery.skipped[:20]:
        click.echo(f"left out: {printable(reason)}", err=True)
    if len(gallery.skipped) > 20:
        click.echo(f"left out: {len(gallery.skipped) - 20} more", err=True)
    if as_json:
        skipped = [{"id": name, "reason": reason} for name, reason in gallery.skipped]
        values = {"gallery": str(out), "images": len(gallery), "skipped": skipped, "bundle_id": encoder.bundle_id}
        click.echo(json.dumps({**values, "backend": encoder.backend}, indent=2))
    else:
        left_out = f", {len(gallery.skipped)} left out" if gallery.skipped else ""
        seconds = time.perf_counter() - started
        click.echo(f"{out}: {len(gallery)} images in {seconds:.1f} s{left_out}")
