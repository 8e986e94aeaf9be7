"""dra-bench recall."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch

from dra_bench.commands.common import (
    bundles_option,
    checkpoint_option,
    deliver,
    json_option,
    model_identities,
    output_option,
    require_made_from,
    shown_command,
    threads_option,
)
from dra_bench.environment import environment
from dra_bench.recall import (
    artifact_verdicts,
    compare_split,
    contenders_of,
    datasets_and_splits,
    open_artifacts,
    recall_report,
    source_of,
    verdict_lines,
)
from dra_export.parity.reference import reference_from_model
from dra_runtime.console import FOUND_WANTING
from dra_runtime.files import check_output
from dra_runtime.sessions import AUTO, BACKENDS, checked_threads
from dra_train.checkpoint import load_checkpoint
from dra_train.data import open_dataset, require_targets


@click.command("recall", short_help="Compare the answers of PyTorch and of every artifact.")
@bundles_option
@checkpoint_option
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    default=("builtin",),
    show_default=True,
    help="Data set's folder or .jsonl file, with splits of its own as PATH=SPLIT,SPLIT; repeatable (docs/data.md).",
)
@click.option(
    "--split",
    "splits",
    multiple=True,
    default=("val",),
    show_default=True,
    help="Queries to answer, of data sets without splits of their own; repeatable.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice((AUTO, *BACKENDS)),
    default=(AUTO,),
    show_default=True,
    help="What runs the bundles; repeatable.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 100),
    help="Judge by this alone: percentage points that a recall may differ by; default: verify's limits.",
)
@threads_option
@json_option
@output_option
def recall_command(
    bundles: tuple[Path, ...],
    checkpoint: Path,
    datasets: tuple[str, ...],
    splits: tuple[str, ...],
    backends: tuple[str, ...],
    tolerance: float | None,
    threads: int | None,
    as_json: bool,
    output: Path | None,
) -> int:
    """Answer the same queries with PyTorch and with every artifact, and compare.

    \b
      dra-bench recall --bundle fp32/ --bundle fp16/ --bundle int8/ --checkpoint ckpt.pt
      dra-bench recall --bundle int8/ --checkpoint ckpt.pt --dataset builtin=val,val_unseen --dataset CIRR

    Prints recall at each K, how many of the ten best answers are the same, and the queries whose first answer changed
    (the JSON has all). PyTorch answers once a split; an FP16 bundle on the CPU takes part a second time with its half
    arithmetic emulated. Exit code 1 when an artifact misses a limit of its precision (docs/verify.md); the last lines
    name it.
    """
    check_output(output)
    threads = checked_threads(threads)
    torch.set_num_threads(threads)
    parts = [
        (source_of(given), part)
        for given, own in datasets_and_splits(datasets, splits)
        for split in own
        for part in open_dataset(given, split)
    ]
    for _, part in parts:
        require_targets(part, "the comparison")
    encoders, unavailable = open_artifacts(bundles, tuple(dict.fromkeys(backends)), threads)
    source = load_checkpoint(checkpoint)
    for encoder in encoders:
        require_made_from(encoder, encoder.bundle.path, source.sha256, checkpoint)
    contenders = contenders_of(encoders)
    compared: list[dict[str, Any]] = []
    for given, part in parts:
        reference = reference_from_model(source.model, part)
        compared += [compare_split(reference, contender, given, tolerance) for contender in contenders]
    verdicts = artifact_verdicts(compared)
    passed = all(verdict["passed"] for verdict in verdicts)
    surroundings = {**environment(threads, shown_command()), **model_identities(source, *encoders)}
    result = {
        "passed": passed,
        "tolerance": tolerance,
        "artifacts": verdicts,
        "unavailable": unavailable,
        "splits": compared,
        "environment": surroundings,
        **model_identities(source, *encoders),
    }
    lines = [recall_report(compared), ""]
    lines += [f"not compared: {u['bundle']} in {u['backend']}: {u['reason']}" for u in unavailable]
    lines += verdict_lines(verdicts, tolerance)
    deliver(result, output, as_json, "\n".join(lines))
    return 0 if passed else FOUND_WANTING
