"""dra-export onnx."""

from __future__ import annotations

import time
from pathlib import Path

import click

from dra_export.bundle_writer import write_bundle
from dra_runtime.console import table
from dra_train.checkpoint import load_checkpoint


@click.command("onnx", short_help="Turn a checkpoint into a bundle of ONNX graphs.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The bundle's folder; default: beside CHECKPOINT.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is already there.")
def onnx_command(checkpoint: Path, out: Path | None, overwrite: bool) -> None:
    """Export CHECKPOINT to a float32 bundle: five ONNX graphs, tokenizer, manifest and selftest.

    The bundle appears only if every graph is valid, keeps its batch and text length symbolic, and reproduces
    PyTorch's vectors from disk.
    """
    start = time.perf_counter()
    out = out or checkpoint.with_name("bundle")
    bundle = write_bundle(load_checkpoint(checkpoint), out, overwrite)
    rows = [[name, _size(bundle.manifest.files[graph.file].size)] for name, graph in bundle.manifest.graphs.items()]
    click.echo(table(["graph", "size"], rows))
    click.echo(f"{out} written in {time.perf_counter() - start:.0f} s, bundle {bundle.manifest.bundle_id[:12]}")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
