"""dra-train fit."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import torch

from dra_train.backbones import model_config
from dra_train.data import dataset_root, load_cirr
from dra_train.fit import fit
from dra_train.settings import load_settings, preset_names


@click.command("fit")
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
