"""dra-search query."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from contextlib import suppress
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
from dra_runtime.gallery_file import read_files


@click.command(
    "query",
    epilog='\b\nExamples: dra-search query shop.gallery --image a.jpg --text "in red"\n'
    '          dra-search query shop.gallery --id A --text "in red" -k 5 --json\n'
    '          dra-search query shop.gallery --id A --text "in red" --where category=dress --rerank 50',
)
@click.argument("gallery", type=PATH)
@click.option("--text", required=True, help='What should be different, such as "in red, with long sleeves".')
@click.option("--image", type=PATH, help="The reference: an image file.")
@click.option("--id", "reference", help="The reference: an image of the gallery, by its id (no image is encoded).")
@click.option("-k", default=10, show_default=True, help="How many answers.")
@click.option("--keep-reference", is_flag=True, help="Let the image given by --id be an answer too.")
@click.option(
    "--where",
    multiple=True,
    metavar="KEY=VALUE",
    help="Answer only with images of this metadata. Several values of one key: any of them; several keys: all of them.",
)
@click.option("--rerank", type=int, metavar="K", help="Put the first K answers into a new order with the reranker.")
@click.option("--mu", type=float, help="Weight of what --rerank adds to the score.  [default: 0.05]")
@click.option(
    "--images",
    type=PATH,
    help="The gallery's images, for --rerank where it keeps no tokens.  [default: the folder it was indexed from]",
)
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
    where: Sequence[str],
    rerank: int | None,
    mu: float | None,
    images: Path | None,
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
    wanted = _where(where)
    checked = integrity_of(integrity)
    encoder = Encoder.open(bundle_for(gallery, bundle), backend, threads, checked)
    if rerank is not None and images is None:
        files = read_files(gallery)
        images = None if files is None else files.folder
    opened = Gallery.open(gallery, encoder, checked, images)
    hits = opened.search(
        text=text, image=image, id=reference, k=k, keep_reference=keep_reference, where=wanted, rerank=rerank, mu=mu
    )
    if as_json:
        values: dict[str, object] = {"text": text, "image": None if image is None else str(image), "id": reference}
        values |= {"where": wanted, "rerank": rerank, "mu": mu}
        click.echo(json.dumps({"query": values, "hits": [dataclasses.asdict(hit) for hit in hits]}, indent=2))
    else:
        # The id is not padded: it is what a user copies
        click.echo(f"{'rank':>4}  {'score':>7}  id")
        for hit in hits:
            known = "".join(f"  {key}={value}" for key, value in hit.metadata.items())
            click.echo(printable(f"{hit.rank:>4}  {hit.score:>7.4f}  {hit.id}{known}"))


def _where(given: Sequence[str]) -> dict[str, list[str | int | float | bool]] | None:
    """Return the filter of ``KEY=VALUE`` texts: a value that looks like a number or a bool means that as well."""
    wanted: dict[str, list[str | int | float | bool]] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UsageError(f"--where is {text!r:.80}; give KEY=VALUE, such as category=dress")
        values = wanted.setdefault(key, [])
        values.append(value)
        if value in ("true", "false"):
            values.append(value == "true")
        with suppress(ValueError):
            number = float(value)
            if math.isfinite(number):
                values.append(int(value) if value.lstrip("-").isdecimal() and abs(number) < 2**62 else number)
    return wanted or None
