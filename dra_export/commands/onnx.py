"""dra-export onnx."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from dra_export.bundle_writer import Lower, check_target, write_bundle
from dra_export.half.bundle_graphs import halve_graphs
from dra_export.int8.bundle_graphs import Int8Options, quantize_graphs
from dra_runtime.console import table
from dra_runtime.errors import DatasetError, UsageError
from dra_runtime.folder import images_of_folder
from dra_runtime.manifest import IMAGE_INPUTS, PRECISIONS
from dra_train.checkpoint import load_checkpoint
from dra_train.commands.dataset_options import DATASET_HELP
from dra_train.data import join, open_dataset, require_targets
from dra_train.model import DRA

CALIBRATION_IMAGES = 256


@click.command("onnx", short_help="Turn a checkpoint into a bundle of ONNX graphs.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The bundle's folder; default: beside CHECKPOINT.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option(
    "--image-input",
    type=click.Choice(IMAGE_INPUTS),
    default="float32",
    show_default=True,
    help="uint8: the graphs take raw pixels and normalise them, a quarter of the bytes to copy.",
)
@click.option("--dataset", default="builtin", help=f"What fp16 and int8 are measured on. {DATASET_HELP}")
@click.option("--split", default="val", show_default=True, help="The split of --dataset.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="int8: a folder of images like those that will be encoded; default: the training images of --dataset. "
    f"{CALIBRATION_IMAGES} of them are used.",
)
@click.option(
    "--max-recall-loss",
    type=click.FloatRange(0, 100, min_open=True),
    default=0.5,
    show_default=True,
    help="int8: how many points any recall of --split may move.",
)
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is already there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: sizes, time, memory, and what was measured.")
def onnx_command(
    checkpoint: Path,
    out: Path | None,
    precision: str,
    image_input: str,
    dataset: str,
    split: str,
    calibration: Path | None,
    max_recall_loss: float,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Export CHECKPOINT to a bundle: five ONNX graphs, tokenizer, manifest and selftest.

    \b
      fp32   the reference, for any machine
      fp16   for GPUs: half inside, float32 inputs and outputs; source of FP16 engines
      int8   for CPUs: the fastest set of INT8 parts that keeps the recall

    The bundle appears only if every graph is valid, keeps its batch and text length symbolic, and reproduces
    PyTorch's vectors from disk. fp16 and int8 are measured on real image-text pairs while they are made, and what
    lower precision would spoil stays float32.
    """
    start = time.perf_counter()
    out = out or checkpoint.with_name("bundle" if precision == "fp32" else f"bundle-{precision}")
    check_target(out, overwrite)
    details: dict[str, Any] = {}
    lower = _lower(precision, dataset, split, calibration, max_recall_loss, details)
    bundle = write_bundle(load_checkpoint(checkpoint), out, overwrite, precision, lower, image_input)
    sizes = {name: bundle.manifest.files[graph.file].size for name, graph in bundle.manifest.graphs.items()}
    result = {
        "bundle": out.name,
        "bundle_id": bundle.manifest.bundle_id,
        "backbone": bundle.manifest.provenance["model"]["backbone"],
        "precision": precision,
        "image_input": image_input,
        "graph_bytes": sizes,
        "seconds": round(time.perf_counter() - start, 1),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "measured": details,
    }
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    rows = [[name, f"{size / 1e6:.1f} MB"] for name, size in sizes.items()]
    click.echo(table(["graph", "size"], rows))
    click.echo("".join(f"{line}\n" for line in _notes(precision, details)), nl=False)
    click.echo(
        f"{out} written in {result['seconds']:.0f} s, {result['peak_memory_mb'] / 1024:.1f} GB of memory at the peak, "
        f"bundle {bundle.manifest.bundle_id[:12]}"
    )


def _lower(
    precision: str,
    dataset: str,
    split: str,
    calibration: Path | None,
    max_recall_loss: float,
    details: dict[str, Any],
) -> Lower | None:
    """Return what brings the float32 graphs to a precision; it leaves in ``details`` what it measured."""
    if calibration and precision != "int8":
        raise UsageError(f"--calibration is for int8, and the precision is {precision}; leave it out")
    if precision == "fp32":
        return None
    data = join(open_dataset(dataset, split))
    require_targets(data, "the comparison")
    images = calibration_images(dataset, calibration) if precision == "int8" else []

    def lower(paths: Mapping[str, Path], model: DRA) -> dict[str, Any]:
        if precision == "fp16":
            details.update(halve_graphs(paths, model, data))
        else:
            details.update(quantize_graphs(paths, model, Int8Options(images, data, max_recall_loss)))
        # Times differ from run to run, and a bundle's identity must not
        return {key: value for key, value in details.items() if key != "host"}

    return lower


def calibration_images(dataset: str, folder: Path | None) -> list[Path]:
    """Return the images that INT8 is calibrated on, spread over a folder or over a data set's training images."""
    if folder:
        found = list(images_of_folder(folder).values())
    else:
        try:
            found = list(join(open_dataset(dataset, "train")).images.values())
        except DatasetError as error:
            raise UsageError(f"no training images to calibrate int8 with ({error}); pass --calibration DIR") from error
    step = max(1, len(found) // CALIBRATION_IMAGES)
    return found[::step][:CALIBRATION_IMAGES]


def _notes(precision: str, details: Mapping[str, Any]) -> list[str]:
    """Say what stayed float32 and why."""
    lines = []
    if precision == "fp16":
        for name, graph in details["graphs"].items():
            islands = ", ".join(f"{len(island['nodes'])} ({island['reason']})" for island in graph["islands"])
            lines.append(
                f"{name}: {graph['half_share']:.0%} of the tensors are half, headroom {graph['headroom']['times']:g} "
                f"times; nodes in float32: {islands}"
            )
            lines += [f"  repaired: {repair}" for repair in graph["repairs"]]
    if precision == "int8":
        for name, why in details["parts"].items():
            speed = details["host"]["speed"].get(name)
            lines.append(f"{name}: {why}" + (f"; {speed['speedup']:.2f} times as fast as float32" if speed else ""))
    return lines
