"""dra-export verify."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from dra_export.bundle_writer import record_parity
from dra_export.parity.reference import reference_from_model
from dra_export.parity.report import parity_report
from dra_export.parity.verify import verify_bundle
from dra_runtime.bundle import Bundle
from dra_runtime.console import FOUND_WANTING
from dra_runtime.encoder import Encoder
from dra_runtime.errors import UsageError
from dra_runtime.files import check_output, write_json
from dra_runtime.sessions import ONNXRUNTIME_CPU
from dra_train.checkpoint import load_checkpoint
from dra_train.commands.dataset_options import DATASET_HELP
from dra_train.data import join, open_dataset, require_targets


@click.command("verify", short_help="Compare bundles on disk with PyTorch.")
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="What the bundles were made from.")
@click.option("--dataset", default="builtin", help=DATASET_HELP)
@click.option("--split", default="val", show_default=True)
@click.option("--pairs", type=click.IntRange(1), help="Compare this many queries only, and no ranks or recall.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the bundles' backend; default: all that are free.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: an object, or a list of them for several bundles.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the JSON to this file as well.")
def verify_command(
    bundles: Sequence[Path],
    checkpoint: Path,
    dataset: str,
    split: str,
    pairs: int | None,
    threads: int | None,
    as_json: bool,
    output: Path | None,
) -> None:
    """Compare each BUNDLE on disk with PyTorch float32, on real image-text pairs.

    \b
      dra-export verify bundle/ --checkpoint ckpt.pt
      dra-export verify fp32/ fp16/ int8/ --checkpoint ckpt.pt --pairs 64

    Every graph at several batch sizes and text lengths, the runtime's whole query, and the ranks and recalls of the
    whole split; engines that lie in a bundle as well, where they can run. PyTorch computes once for all bundles. How
    close they must be depends on their precision: docs/verify.md. The result goes into each bundle's manifest. Exit
    code 1 when a threshold is missed.
    """
    check_output(output)
    found = [Bundle.open(path) for path in bundles]
    source = load_checkpoint(checkpoint)
    for path, bundle in zip(bundles, found, strict=True):
        made_from = bundle.manifest.provenance.get("checkpoint")
        if not isinstance(made_from, Mapping) or made_from.get("sha256") != source.sha256:
            raise UsageError(
                f"{path} was made from another checkpoint than {checkpoint}; pass the one it was made from"
            )
    data = join(open_dataset(dataset, split))
    require_targets(data, "the comparison")
    reference, preprocess = reference_from_model(source.model, data, pairs), source.model.preprocess
    del source  # PyTorch's work is done, and a large model's weights are a gigabyte
    results = []
    for path in bundles:
        encoder = Encoder.open(path, ONNXRUNTIME_CPU, threads, integrity="size")  # hashes were compared above
        results.append(verify_bundle(reference, encoder, preprocess))
    values = results[0] if len(results) == 1 else results
    if output:
        write_json(output, values)
    click.echo(json.dumps(values, indent=2) if as_json else parity_report(results))
    for bundle, result in zip(found, results, strict=True):
        record_parity(bundle, _for_the_manifest(result))
    if not all(result["passed"] for result in results):
        sys.exit(FOUND_WANTING)


def _for_the_manifest(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result without what would make a manifest long: the queries whose first answer changed."""
    recall = result["recall"]
    short = {**result, "recall": recall and {key: value for key, value in recall.items() if key != "changed"}}
    return short | ({"variants": list(map(_for_the_manifest, result["variants"]))} if "variants" in result else {})
