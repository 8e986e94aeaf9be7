"""The command line ``dra-search``: index images, answer queries, check a bundle."""

from __future__ import annotations

import dataclasses
import json
import time
import warnings
from pathlib import Path

import click

from dra_runtime.bundle import Integrity
from dra_runtime.console import FOUND_WANTING, command_group, progress, table
from dra_runtime.encoder import Encoder
from dra_runtime.errors import BundleError, UsageError
from dra_runtime.folder import images_of_folder
from dra_runtime.gallery import Gallery
from dra_runtime.gallery_file import bundle_of, check_target, read_header
from dra_runtime.selfcheck import SelfCheckReport, selfcheck

# Paths are checked by the library, which says what to do about a wrong one; click would only say that it is wrong
_PATH = click.Path(path_type=Path)
_threads = click.option("--threads", type=int, help="Threads to use.  [default: the CPUs this process may use]")
_backend = click.option("--backend", default="auto", show_default=True, help="auto, or onnxruntime-cpu.")
_integrity = click.option(
    "--integrity",
    type=click.Choice(["hash", "size"]),
    default="hash",
    show_default=True,
    help="How to check files: by SHA-256, or by size alone (faster for a large bundle that was checked before).",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")

main = command_group(
    "dra-search",
    "Search images by a reference image and a text that says what should be different.\n\n"
    "Index a folder of images once with a bundle (made by dra-export onnx), then query the gallery.",
)


@main.command(epilog="Example: dra-search index bundle/ images/ -o shop.gallery")
@click.argument("bundle", type=_PATH)
@click.argument("images", type=_PATH)
@click.option("-o", "--out", required=True, type=_PATH, help="The gallery file to write, such as shop.gallery.")
@_backend
@_threads
@_integrity
@_json
def index(
    bundle: Path, images: Path, out: Path, backend: str, threads: int | None, integrity: str, as_json: bool
) -> None:
    """Encode all images below the folder IMAGES into a gallery.

    An image's id is its path below IMAGES without the suffix. Files that can't be read are left out and named on
    stderr. The gallery remembers where BUNDLE lies, so queries needn't name it.
    """
    _quieten_decoders()
    check_target(out)
    total = len(images_of_folder(images))
    encoder = Encoder.open(bundle, backend, threads, _integrity_of(integrity))
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
        click.echo(f"left out: {_printable(reason)}", err=True)
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


@main.command(
    epilog='\b\nExamples: dra-search query shop.gallery --image a.jpg --text "in red"\n'
    '          dra-search query shop.gallery --id A --text "in red" -k 5 --json'
)
@click.argument("gallery", type=_PATH)
@click.option("--text", required=True, help='What should be different, such as "in red, with long sleeves".')
@click.option("--image", type=_PATH, help="The reference: an image file.")
@click.option("--id", "reference", help="The reference: an image of the gallery, by its id (no image is encoded).")
@click.option("-k", default=10, show_default=True, help="How many answers.")
@click.option("--keep-reference", is_flag=True, help="Let the image given by --id be an answer too.")
@click.option("--bundle", type=_PATH, help="The bundle's folder.  [default: where it lay when the gallery was made]")
@_backend
@_threads
@_integrity
@_json
def query(
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
    _quieten_decoders()
    if (image is None) == (reference is None):
        raise UsageError("give either --image or --id as the reference, exactly one of them")
    if k < 1:
        raise UsageError(f"-k is {k}; give a number of at least 1")
    checked = _integrity_of(integrity)
    if bundle is None:
        bundle = bundle_of(gallery)
        if not bundle.is_dir():
            raise BundleError(
                f"{gallery} was made with the bundle {bundle}, which isn't there; say where: --bundle DIR"
            )
    else:
        read_header(gallery)  # the gallery's own error comes first
    encoder = Encoder.open(bundle, backend, threads, checked)
    opened = Gallery.open(gallery, encoder, checked)
    hits = opened.search(text=text, image=image, id=reference, k=k, keep_reference=keep_reference)
    if as_json:
        values = {"text": text, "image": None if image is None else str(image), "id": reference}
        click.echo(json.dumps({"query": values, "hits": [dataclasses.asdict(hit) for hit in hits]}, indent=2))
    else:
        # The id comes last and is not padded: it is what a user copies
        click.echo(f"{'rank':>4}  {'score':>7}  id")
        for hit in hits:
            click.echo(f"{hit.rank:>4}  {hit.score:>7.4f}  {_printable(hit.id)}")


@main.command("selfcheck")
@click.argument("bundle", type=_PATH)
@_backend
@_threads
@_json
def selfcheck_command(bundle: Path, backend: str, threads: int | None, as_json: bool) -> None:
    """Check that BUNDLE is whole and gives the exporter's vectors on this host.

    Exit code 0: it does. 1: it doesn't. 2: the bundle can't be used.
    """
    started = time.perf_counter()
    report = selfcheck(Encoder.open(bundle, backend, threads))
    seconds = time.perf_counter() - started
    if as_json:
        click.echo(json.dumps(_report_values(report, seconds), indent=2))
    else:
        click.echo(table(("part", "min cosine", "max abs", "pairs"), _report_rows(report)))
        click.echo(f"tokens {'equal' if report.tokens_equal else 'DIFFER'}, backend {report.backend}, {seconds:.2f} s")
        click.echo(
            "passed" if report.passed else f"FAILED: every cosine must reach {report.least_cosine}, and tokens be equal"
        )
    if not report.passed:
        raise click.exceptions.Exit(FOUND_WANTING)


def _quieten_decoders() -> None:
    """Silence PIL's warnings about odd metadata: what matters comes as an error.

    For the whole process, so it belongs here and not into the library.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _integrity_of(choice: str) -> Integrity:
    return "size" if choice == "size" else "hash"


def _report_values(report: SelfCheckReport, seconds: float) -> dict[str, object]:
    return {
        "passed": report.passed,
        "backend": report.backend,
        "tokens_equal": report.tokens_equal,
        "parts": {name: dataclasses.asdict(part) for name, part in report.parts.items()},
        "seconds": round(seconds, 3),
    }


def _report_rows(report: SelfCheckReport) -> list[tuple[object, ...]]:
    return [(name, f"{part.min_cosine:.7f}", f"{part.max_abs:.2e}", part.pairs) for name, part in report.parts.items()]


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
