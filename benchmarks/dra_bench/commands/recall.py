"""dra-bench recall."""

from __future__ import annotations

from pathlib import Path

import click

from dra_bench.commands.common import (
    bundle_option,
    checkpoint_option,
    deliver,
    json_option,
    model_identities,
    open_all,
    output_option,
    threads_option,
)
from dra_bench.recall import compare_split, recall_report
from dra_runtime.console import FOUND_WANTING
from dra_runtime.files import check_output
from dra_train.commands.dataset_options import DATASET_HELP
from dra_train.data import open_dataset, require_targets


@click.command("recall", short_help="Compare the answers of both.")
@bundle_option
@checkpoint_option
@click.option("--dataset", default="builtin", help=DATASET_HELP)
@click.option(
    "--split", "splits", multiple=True, default=("val",), show_default=True, help="Queries to answer; repeatable."
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 100),
    default=0.0,
    show_default=True,
    help="Percentage points that a recall may differ by; 0: equal to the last query.",
)
@threads_option
@json_option
@output_option
def recall_command(
    bundle: Path,
    checkpoint: Path,
    dataset: str,
    splits: tuple[str, ...],
    tolerance: float,
    threads: int | None,
    as_json: bool,
    output: Path | None,
) -> int:
    """Answer the same queries with PyTorch and with the bundle, and compare.

    Prints both recalls, how many of the ten best answers are the same, and every query whose first answer changed.
    Exit code 1 when a recall differs by more than the tolerance.
    """
    check_output(output)
    source, (encoder,) = open_all((bundle,), checkpoint, threads)
    parts = [part for split in splits for part in open_dataset(dataset, split)]
    for part in parts:
        require_targets(part, "the comparison")
    results = [compare_split(source.model, encoder, part, tolerance) for part in parts]
    result = {
        "passed": all(split["passed"] for split in results),
        "tolerance": tolerance,
        "splits": results,
        **model_identities(source, encoder),
    }
    verdict = "passed" if result["passed"] else "FAILED: a recall differs by more than the tolerance"
    deliver(result, output, as_json, f"{recall_report(results)}\n{verdict}")
    return 0 if result["passed"] else FOUND_WANTING
