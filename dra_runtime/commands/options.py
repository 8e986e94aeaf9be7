"""Options and output that several commands share."""

from __future__ import annotations

import warnings
from pathlib import Path

import click

from dra_runtime.bundle import Integrity
from dra_runtime.errors import BundleError
from dra_runtime.gallery_file import bundle_of, read_header

# Paths are checked by the library, which says what to do about a wrong one; click would only say that it is wrong
PATH = click.Path(path_type=Path)
threads_option = click.option("--threads", type=int, help="Threads to use.  [default: the CPUs this process may use]")
backend_option = click.option(
    "--backend",
    default="auto",
    show_default=True,
    help="auto, the fastest that works here; or tensorrt, tensorrt-rtx, onnxruntime-cuda, onnxruntime-cpu.",
)
integrity_option = click.option(
    "--integrity",
    type=click.Choice(["hash", "size"]),
    default="hash",
    show_default=True,
    help="How to check files: by SHA-256, or by size alone (faster for a large bundle that was checked before).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


def quieten_decoders() -> None:
    """Silence PIL's warnings about odd metadata: what matters comes as an error.

    For the whole process, so it belongs to the commands and not into the library.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")


def integrity_of(choice: str) -> Integrity:
    """Return the value of `integrity_option`."""
    return "size" if choice == "size" else "hash"


def bundle_for(gallery: Path, given: Path | None) -> Path:
    """Return the bundle to query a gallery with: the given one, or the one that it was made with.

    Raises
    ------
    GalleryFormatError
        ``gallery`` is none: its own error comes before the bundle's.
    BundleError
        None was given, and the gallery's isn't where it was.
    """
    if given is not None:
        read_header(gallery)
        return given
    bundle = bundle_of(gallery)
    if not bundle.is_dir():
        raise BundleError(f"{gallery} was made with the bundle {bundle}, which isn't there; say where: --bundle DIR")
    return bundle


def printable(text: str) -> str:
    """Return a text that can't move the terminal's cursor."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
