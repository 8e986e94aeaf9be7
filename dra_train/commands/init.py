"""dra-train init."""

from __future__ import annotations

from pathlib import Path

import click

from dra_train.backbones import model_config, untrained_model
from dra_train.checkpoint import save_checkpoint


@click.command("init")
@click.option("--backbone", required=True, help="demo, RN50x4 (the paper's), ViT-B-32 or any open_clip model name.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The checkpoint to write.")
@click.option("--seed", default=0, show_default=True)
def init_command(backbone: str, out: Path, seed: int) -> None:
    """Write an untrained checkpoint: its answers mean nothing, its size and speed are real."""
    model = untrained_model(model_config(backbone), seed)
    save_checkpoint(out, model, {"made_by": "dra-train init", "backbone": backbone, "seed": seed})
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    click.echo(f"{out} written: {backbone}, {millions:.1f} M parameters, untrained")
