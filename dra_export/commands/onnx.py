"""dra-export onnx."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import click

from dra_export.bundle_writer import Lower, check_target, write_bundle
from dra_export.half_graphs import halve_graphs
from dra_runtime.console import table
from dra_runtime.manifest import PRECISIONS
from dra_train.checkpoint import load_checkpoint
from dra_train.commands.dataset_options import DATASET_HELP
from dra_train.data import join, open_dataset, require_targets


@click.command("onnx", short_help="Turn a checkpoint into a bundle of ONNX graphs.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The bundle's folder; default: beside CHECKPOINT.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option("--dataset", default="builtin", help=f"What fp16 and int8 are checked on. {DATASET_HELP}")
@click.option("--split", default="val", show_default=True, help="The split of --dataset.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is already there.")
def onnx_command(checkpoint: Path, out: Path | None, precision: str, dataset: str, split: str, overwrite: bool) -> None:
    """Export CHECKPOINT to a bundle: five ONNX graphs, tokenizer, manifest and selftest.

    \b
      fp32   the reference, for any machine
      fp16   for GPUs: half inside, float32 inputs and outputs; source of FP16 engines
      int8   for CPUs: the fastest parts that keep the recall

    The bundle appears only if every graph is valid, keeps its batch and text length symbolic, and reproduces
    PyTorch's vectors from disk. fp16 and int8 are measured on real image-text pairs while they are made, and what
    lower precision would spoil stays float32.
    """
    start = time.perf_counter()
    out = out or checkpoint.with_name("bundle" if precision == "fp32" else f"bundle-{precision}")
    check_target(out, overwrite)
    lower: Lower | None = None
    if precision != "fp32":
        data = join(open_dataset(dataset, split))
        require_targets(data, "the comparison")
        lower = partial(halve_graphs, dataset=data)
    bundle = write_bundle(load_checkpoint(checkpoint), out, overwrite, precision, lower)
    rows = [[name, _size(bundle.manifest.files[graph.file].size)] for name, graph in bundle.manifest.graphs.items()]
    click.echo(table(["graph", "size"], rows))
    click.echo(f"{out} written in {time.perf_counter() - start:.0f} s, bundle {bundle.manifest.bundle_id[:12]}")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
