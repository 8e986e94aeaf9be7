"""dra-train check-data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from dra_runtime.console import FOUND_WANTING
from dra_train.commands.dataset_options import format_option, gallery_option, image_root_option
from dra_train.data import read_dataset, splits_of
from dra_train.data.check import check, open_images, shared_queries


@click.command("check-data", short_help="Look through a data set before hours are spent on it.")
@click.argument("dataset", metavar="DATASET")
@format_option
@click.option("--split", "splits", multiple=True, help="Repeatable; default: all that the files name, or else val.")
@gallery_option
@image_root_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check_data_command(
    dataset: str, format: str, splits: tuple[str, ...], gallery: str, image_root: Path | None, as_json: bool
) -> int:
    """Look through DATASET before hours are spent on it: every file is read and every image opened.

    DATASET is a folder of CIRR, FashionIQ or CIRCO, your own folder or .jsonl file (docs/data.md has the formats), or
    the word builtin. Exit code 0: fine, notes are possible; 1: something should be repaired; 2: it can't
    be read at all.

    \b
      dra-train check-data my-shop/
      dra-train check-data pairs.jsonl --image-root photos/
    """
    names = splits or tuple(splits_of(dataset, format)) or ("val",)
    parts = [
        part
        for split in names
        for part in read_dataset(dataset, split, format=format, gallery=gallery, image_root=image_root)
    ]
    opened = open_images(parts)
    results = [check(part, opened) for part in parts]
    shared = shared_queries(parts)
    passed = not any(finding["is_problem"] for result in results for finding in result["findings"])
    if as_json:
        click.echo(json.dumps({"passed": passed, "splits": results, "shared": shared}, indent=2, ensure_ascii=False))
    else:
        click.echo("\n\n".join(check_report(result) for result in results))
        for line in shared:
            click.echo(f"note: {line}")
        click.echo("\n" + ("fine" if passed else "FOUND WANTING: repair what is marked with !"))
    return 0 if passed else FOUND_WANTING


def check_report(result: Mapping[str, Any]) -> str:
    """Lay out one split's check for people: counts, what would happen, and the findings."""
    title = " / ".join(part for part in (result["dataset"], result.get("category"), result["split"]) if part)
    gallery = f", {result['gallery_name']} gallery" if "gallery_name" in result else ""
    lines = [f"{title} ({result['format']}{gallery}): {result['queries']} queries, {result['images']} images"]
    if pixels := result["pixels"]:
        low, middle, high = (" x ".join(map(str, pixels[key])) for key in ("smallest", "median", "largest"))
        lines.append(f"  {result['opened']} images open, from {low} to {high} pixels, the median is {middle}")
    lines += [f"  {sentence}" for sentence in result["outlook"]]
    for finding in result["findings"]:
        mark = "!" if finding["is_problem"] else "-"
        lines.append(f"{mark} {finding['count']} {finding['kind']}: they {finding['text']}")
        more = [f"and {finding['count'] - len(finding['first'])} more"] * (finding["count"] > len(finding["first"]))
        lines += [f"    {name}" for name in (*map(_printable, finding["first"]), *more)]
    return "\n".join(lines)


def _printable(text: str) -> str:
    """Names come from files that anybody may have written: no control characters reach the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
