"""The command dra-train."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
import torch

from dra_runtime.console import command_group, table
from dra_runtime.files import check_output, write_json
from dra_train.backbones import model_config, untrained_model
from dra_train.checkpoint import load_checkpoint, save_checkpoint
from dra_train.data import BUILTIN, dataset_root, load_cirr
from dra_train.evaluate import evaluate
from dra_train.fit import fit
from dra_train.settings import load_settings, preset_names

main = command_group(
    "dra-train",
    """Train DRA models for composed image retrieval, and measure what they find.

    \b
    A first run, on the pictures inside the repository:
      dra-train fit --preset demo --out runs/demo
      dra-train evaluate runs/demo/ckpt.pt --split val_unseen
    """,
)


@main.command("fit")
@click.option("--preset", required=True, help=f"Settings: {', '.join(preset_names())}, or a TOML file of your own.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for ckpt.pt and log.jsonl.")
@click.option("--dataset", type=click.Path(path_type=Path), help="Data set in CIRR's format; default: the preset's.")
@click.option("--backbone", help="Image and text towers; default: the preset's.")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same weights.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a setting; repeatable.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; default: PyTorch's.")
def fit_command(
    preset: str,
    out: Path,
    dataset: Path | None,
    backbone: str | None,
    seed: int,
    overrides: tuple[str, ...],
    threads: int | None,
) -> None:
    """Train a model in DRA's two stages and write OUT/ckpt.pt."""
    if threads:
        torch.set_num_threads(threads)
    if backbone:
        overrides = (*overrides, f"model.backbone={json.dumps(backbone)}")
    settings = load_settings(preset, overrides)
    model_config(**settings.model)  # a wrong name fails before the data are read
    start = time.perf_counter()
    data = load_cirr(dataset_root(dataset or settings.dataset), settings.train_split)
    click.echo(f"training on {len(data.queries)} triplets over {len(data.images)} images", err=True)
    fit(settings, data, out, seed)
    click.echo(f"{out / 'ckpt.pt'} written after {time.perf_counter() - start:.0f} s")


@main.command("init")
@click.option("--backbone", required=True, help="demo, RN50x4 (the paper's), ViT-B-32 or any open_clip model name.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The checkpoint to write.")
@click.option("--seed", default=0, show_default=True)
def init_command(backbone: str, out: Path, seed: int) -> None:
    """Write an untrained checkpoint: its answers mean nothing, its size and speed are real."""
    model = untrained_model(model_config(backbone), seed)
    save_checkpoint(out, model, {"made_by": "dra-train init", "backbone": backbone, "seed": seed})
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    click.echo(f"{out} written: {backbone}, {millions:.1f} M parameters, untrained")


@main.command("evaluate")
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
