"""dra-train evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from dra_runtime.console import table
from dra_runtime.files import check_output, write_json
from dra_train.checkpoint import load_checkpoint
from dra_train.data import BUILTIN, dataset_root, load_cirr
from dra_train.evaluate import evaluate


@click.command("evaluate")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--dataset", default="builtin", help="Data set in CIRR's format; default: the one in the repository.")
@click.option("--split", "splits", multiple=True, default=("val",), show_default=True, help="Repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; a list when there are several splits.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the JSON to this file as well.")
def evaluate_command(
    checkpoint: Path, dataset: str, splits: tuple[str, ...], as_json: bool, output: Path | None
) -> None:
    """Measure the recall of CHECKPOINT, beside what the image alone and the text alone reach."""
    check_output(output)
    model = load_checkpoint(checkpoint).model
    results = [evaluate(model, load_cirr(dataset_root(dataset), split)) for split in splits]
    content = results[0] if len(results) == 1 else results
    if output:
        write_json(output, content)
    if as_json:
        click.echo(json.dumps(content, indent=2))
        return
    for result in results:
        click.echo(recall_table(result))


def recall_table(result: dict[str, Any]) -> str:
    """Lay out one evaluation as a table, baselines and kinds of edit below the composed query."""
    columns = list(result["metrics"])
    rows = [["composed query", result["queries"], *_figures(result["metrics"], columns)]]
    rows += [
        [name.replace("_", " "), result["queries"], *_figures(metrics, columns)]
        for name, metrics in result["baselines"].items()
    ]
    rows += [[f"  edit: {e}", m["queries"], *_figures(m, columns)] for e, m in result["by_edit"].items()]
    title = f"{result['dataset']} / {result['split']}: recall in % over a gallery of {result['gallery']} images"
    if result["dataset"] == BUILTIN:
        title += " (demo recalls: they compare runs of this toolkit, not with published figures)"
    return title + "\n" + table(["", "queries", *columns], rows) + "\n"


def _figures(metrics: dict[str, float], columns: list[str]) -> list[str]:
    return [f"{metrics[c]:.1f}" if c in metrics else "" for c in columns]
