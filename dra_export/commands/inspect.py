"""dra-export inspect."""

from __future__ import annotations

import json
from pathlib import Path

import click

from dra_export.inspect.artifact import describe
from dra_export.inspect.report import description


@click.command("inspect", short_help="Say what a file or folder is, and where it runs.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with more detail.")
def inspect_command(path: Path, as_json: bool) -> None:
    """Say what PATH is: a checkpoint, a bundle, an ONNX file, a TensorRT engine (.plan) or a gallery.

    Shapes, precision, sizes, where it comes from, what was proved of it, and where it runs; for an engine whether it
    runs on this machine and, if not, the command that rebuilds it. Needs no GPU and no TensorRT.
    """
    values = describe(path)
    click.echo(json.dumps(values, indent=2) if as_json else description(values))
