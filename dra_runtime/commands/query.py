"""dra-search query."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from dra_runtime.commands.options import (
    PATH,
    backend_option,
    bundle_for,
    integrity_of,
    integrity_option,
    json_option,
    printable,
    quieten_decoders,
    threads_option,
)
from dra_runtime.encoder import Encoder
from dra_runtime.errors import UsageError
from dra_runtime.gallery import Gallery


@click.command(
    "query",
    epilog='\b\nExamples: dra-search query shop.gallery --image a.jpg --text "in red"\n'
    '          dra-search query shop.gallery --id A --text "in red" -k 5 --json',
)
@click.argument("gallery", type=PATH)
@click.option("--text", required=True, help='What should be different, such as "in red, with long sleeves".')
@click.option("--image", type=PATH, help="The reference: an image file.")
@click.option("--id", "reference", help="The reference: an image of the gallery, by its id (no image is encoded).")
@click.option("-k", default=10, show_default=True, help="How many answers.")
@click.option("--keep-reference", is_flag=True, help="Let the image given by --id be an answer too.")
@click.option("--bundle", type=PATH, help="The bundle's folder.  [default: where it lay when the gallery was made]")
@backend_option
@threads_option
@integrity_option
@json_option
def query_command(
    gallery: Path,
    text: str,
    image: Path | None,
    reference: str | None,
    k: int,
    keep_reference: bool,
    bundle: Path | None,
    backend: str,
    threads: int | None,
    integrity: str,
    as_json: bool,
) -> None:
    """Print the images of GALLERY that look like the reference, changed as the text says."""
    quieten_decoders()
    if (image is None) == (reference is None):
        raise UsageError("give either --image or --id as the reference, exactly one of them")
    if k < 1:
        raise UsageError(f"-k is {k}; give a number of at least 1")
    checked = integrity_of(integrity)
    encoder = Encoder.open(bundle_for(gallery, bundle), backend, threads, checked)
    opened = Gallery.open(gallery, encoder, checked)
    hits = opened.search(text=text, image=image, id=reference, k=k, keep_reference=keep_reference)
    if as_json:
        values = {"text": text, "image": None if image is None else str(image), "id": reference}
        click.echo(json.dumps({"query": values, "hits": [dataclasses.asdict(hit) for hit in hits]}, indent=2))
    else:
        # The id comes last and is not padded: it is what a user copies
        click.echo(f"{'rank':>4}  {'score':>7}  id")
        for hit in hits:
            click.echo(f"{hit.rank:>4}  {hit.score:>7.4f}  {printable(hit.id)}")
