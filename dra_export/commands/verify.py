"""dra-export verify."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from dra_export.bundle_writer import record_parity
from dra_export.parity import verify
from dra_runtime.console import FOUND_WANTING, table
from dra_runtime.encoder import Encoder
from dra_runtime.errors import UsageError
from dra_runtime.files import check_output, write_json
from dra_train.checkpoint import load_checkpoint
from dra_train.commands.dataset_options import DATASET_HELP
from dra_train.data import join, open_dataset, require_targets


@click.command("verify", short_help="Compare a bundle on disk with PyTorch.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="What the bundle was made from.")
@click.option("--dataset", default="builtin", help=DATASET_HELP)
@click.option("--split", default="val", show_default=True)
@click.option("--pairs", type=click.IntRange(1), help="Compare this many queries only, and no recall.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the bundle's backend; default: all that are free.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the JSON to this file as well.")
def verify_command(
    bundle: Path,
    checkpoint: Path,
    dataset: str,
    split: str,
    pairs: int | None,
    threads: int | None,
    as_json: bool,
    output: Path | None,
) -> None:
    """Compare BUNDLE on disk with PyTorch float32, on real image-text pairs.

    Every graph at several batch sizes and text lengths, the runtime's whole query, and the recall of the whole split.
    The result goes into the bundle's manifest. Exit code 1 when the bundle is found wanting.
    """
    check_output(output)
    encoder = Encoder.open(bundle, threads=threads)
    source = load_checkpoint(checkpoint)
    made_from = encoder.bundle.manifest.provenance.get("checkpoint", {}).get("sha256")
    if made_from != source.sha256:
        raise UsageError(f"{bundle} was made from another checkpoint than {checkpoint}; pass the one it was made from")
    data = join(open_dataset(dataset, split))
    require_targets(data, "the comparison")
    result = verify(source.model, encoder, data, pairs)
    recorded = {**result, "recall": _without_changed(result["recall"])}
    record_parity(encoder.bundle, recorded)
    if output:
        write_json(output, result)
    click.echo(json.dumps(result, indent=2) if as_json else parity_table(result))
    if not result["passed"]:
        sys.exit(FOUND_WANTING)


def parity_table(result: dict[str, Any]) -> str:
    """Lay out a result of `verify` as text."""
    rows = [[name, f"{g['min_cosine']:.8f}", f"{g['max_abs']:.1e}", g["pairs"]] for name, g in result["graphs"].items()]
    parts = [table(["graph", "smallest cosine", "largest difference", "pairs"], rows)]
    if recall := result["recall"]:
        columns = list(recall["reference"])
        sides = [
            [name, *(f"{recall[side][c]:.2f}" for c in columns)]
            for name, side in (("PyTorch", "reference"), ("bundle", "candidate"))
        ]
        parts.append(table(["recall in %", *columns], sides))
        parts.append(
            f"first answers changed: {recall['changed_queries']} of {recall['queries']} queries; "
            f"first ten in common: {recall['top10_overlap']:.2f} %"
        )
    verdict = "passed" if result["passed"] else "FOUND WANTING"
    limit = f"smallest cosine at least {result['threshold']['min_cosine']}" + (", recall equal" if recall else "")
    parts.append(f"{verdict}: {limit}, {result['dataset']} / {result['split']}, {result['queries']} queries")
    return "\n\n".join(parts)


def _without_changed(recall: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if recall is None else {key: value for key, value in recall.items() if key != "changed"}
