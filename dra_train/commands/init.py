"""dra-train init."""

from __future__ import annotations

from pathlib import Path

import click

from dra_train.backbones import model_config, untrained_model
from dra_train.checkpoint import save_checkpoint
from dra_train.weight_files import sha256_of
from dra_train.weights import load_weights


@click.command("init")
@click.option(
    "--backbone",
    required=True,
    help="demo, RN50x4 (the paper's), ViT-B-32 or any open_clip model name, or timm/NAME for a timm image tower.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Weights of the towers: OpenAI's .pt, open_clip's .pt, .bin or .safetensors, or a checkpoint.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The checkpoint to write.")
@click.option("--seed", default=0, show_default=True)
def init_command(backbone: str, weights: Path | None, out: Path, seed: int) -> None:
    """Write an untrained checkpoint: its answers mean nothing, its size and speed are real.

    With --weights the towers are trained ones and only the Combiner and TAC are untrained; `dra-train import` makes a
    checkpoint without those two, which answers at once.
    """
    model = untrained_model(model_config(backbone), seed)
    provenance: dict[str, object] = {"made_by": "dra-train init", "backbone": backbone, "seed": seed}
    if weights:
        click.echo(load_weights(model, weights), err=True)
        provenance["weights"] = {"name": weights.name, "sha256": sha256_of(weights)}
    save_checkpoint(out, model, provenance)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    state = "" if weights else ", untrained"
    click.echo(f"{out} written: {model.config.backbone}, {millions:.1f} M parameters{state}")
