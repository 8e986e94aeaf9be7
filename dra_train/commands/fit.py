"""dra-train fit."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import click
import torch

from dra_runtime.errors import UsageError
from dra_train.backbones import model_config, untrained_model
from dra_train.commands.dataset_options import DATASET_HELP, reading_options
from dra_train.data import Dataset, join, open_dataset, require_targets
from dra_train.fit import CHECKPOINT, STATE, fit
from dra_train.settings import load_settings, preset_names
from dra_train.train_state import load_state
from dra_train.weights import load_weights


@click.command("fit")
@click.option("--preset", required=True, help=f"Settings: {', '.join(preset_names())}, or a TOML file of your own.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for ckpt.pt and log.jsonl.")
@click.option("--dataset", help=f"{DATASET_HELP} Default: the preset's.")
@reading_options
@click.option("--backbone", help="Image and text towers; default: the preset's.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Start from the towers of this file: OpenAI's, open_clip's or timm's, or a checkpoint of ours.",
)
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same weights.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a setting; repeatable.")
@click.option("--resume", is_flag=True, help="Go on where a killed run in OUT stood; start where there is none.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier run in OUT.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Folder of cached image features; default: $DRA_CACHE, else ~/.cache/dra-toolkit.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads; default: PyTorch's.")
def fit_command(
    preset: str,
    out: Path,
    dataset: str | None,
    format: str,
    gallery: str,
    image_root: Path | None,
    allow_missing: bool,
    backbone: str | None,
    weights: Path | None,
    seed: int,
    overrides: tuple[str, ...],
    resume: bool,
    overwrite: bool,
    cache: Path | None,
    threads: int | None,
) -> None:
    """Train a model, stage by stage, and write OUT/ckpt.pt.

    \b
      dra-train fit --preset demo --out runs/demo
      dra-train fit --preset cirr --dataset cirr/ --backbone RN50x4 --weights RN50x4.pt --out runs/cirr
      torchrun --nproc-per-node 4 -m dra_train fit --preset cirr --dataset cirr/ --out runs/cirr --resume

    A run that was killed goes on with --resume, with the same results as if it had never stopped.
    """
    if resume and overwrite:
        raise UsageError("--resume goes on with a run and --overwrite replaces it; give one of them")
    if threads:
        torch.set_num_threads(threads)
    if backbone:
        overrides = (*overrides, f"model.backbone={json.dumps(backbone)}")
    settings = load_settings(preset, overrides)
    config = model_config(**settings.model)  # a wrong name fails before the data are read
    source = dataset or settings.dataset
    if not source:
        raise UsageError(f"preset {preset} brings no data; name them with --dataset DIR")
    start = time.perf_counter()

    def read(split: str) -> tuple[Dataset, ...]:
        return open_dataset(
            source, split, format=format, gallery=gallery, image_root=image_root, allow_missing=allow_missing
        )

    data = join(read(settings.train_split))
    require_targets(data, "training")
    validation = read(settings.validation.split) if settings.validation.split else ()
    for part in validation:
        require_targets(part, "validation")
    model, origin = None, ""
    if weights:
        model = untrained_model(config, seed)
        loaded = load_weights(model, weights)
        with weights.open("rb") as file:
            origin = hashlib.file_digest(file, "sha256").hexdigest()
    speaks = os.environ.get("RANK", "0") == "0"
    if speaks:
        if weights:
            click.echo(loaded, err=True)
        click.echo(f"training on {len(data.queries)} triplets over {len(data.images)} images", err=True)
    done = resume and (out / STATE).exists() and load_state(out / STATE).finished
    fit(
        settings,
        data,
        out,
        seed,
        start=model,
        origin=origin,
        validation=validation,
        cache=cache,
        resume=resume,
        overwrite=overwrite,
    )
    if speaks:
        seconds = time.perf_counter() - start
        click.echo(f"{out / CHECKPOINT} " + ("was finished already" if done else f"written after {seconds:.0f} s"))
