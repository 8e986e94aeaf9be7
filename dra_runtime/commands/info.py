"""dra-search info."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from dra_runtime.commands.options import PATH, json_option, printable
from dra_runtime.gallery_file import bundle_of, read_files, read_header


@click.command("info", epilog="Example: dra-search info shop.gallery")
@click.argument("gallery", type=PATH)
@json_option
def info_command(gallery: Path, as_json: bool) -> None:
    """Say what the file GALLERY holds, from its header: nothing is searched, and its SHA-256 is not compared."""
    header = read_header(gallery)
    bundle, files = bundle_of(gallery), read_files(gallery)
    size = gallery.stat().st_size
    if as_json:
        values = {
            "gallery": str(gallery),
            "images": header.count,
            "dim": header.dim,
            "bytes": size,
            "storage": header.storage,
            "bundle_id": header.bundle_id,
            "bundle": str(bundle),
            "folder": None if files is None else str(files.folder),
            "metadata": list(header.keys),
            "tokens": header.tokens,
            "index": None if header.index is None else dataclasses.asdict(header.index),
        }
        click.echo(json.dumps(values, indent=2))
        return
    there = "" if bundle.is_dir() else " (not there)"
    lines = [
        ("images", f"{header.count:,}"),
        ("vectors", f"{header.dim} x {header.storage}"),
        ("size", f"{size:,} bytes"),
        ("bundle", f"{header.bundle_id[:16]}, {printable(str(bundle))}{there}"),
        ("folder", "unknown" if files is None else printable(str(files.folder))),
        ("metadata", printable(", ".join(header.keys)) or "none"),
        ("tokens", "kept" if header.tokens else "none"),
        ("index", str(header.index or "none: every image is compared")),
    ]
    for name, value in lines:
        click.echo(f"{name:<10}{value}")
