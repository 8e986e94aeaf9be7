"""dra-train import."""

from __future__ import annotations

from pathlib import Path

import click

from dra_train.checkpoint import save_checkpoint
from dra_train.importing import NO_PADDING, import_clip


def _pad_ratio(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    if value is None or value == "none":
        return NO_PADDING if value else None
    try:
        ratio = float(value)
    except ValueError:
        ratio = 0.0
    if not 1 <= ratio <= NO_PADDING:
        raise click.BadParameter(f"{value!r} is no ratio; give a number from 1 up, or none")
    return ratio


_HELP = """Make a checkpoint from CLIP4Cir's published files or from a plain CLIP.

\b
  dra-train import --clip RN50x4.pt --out clip.pt
  dra-train import --clip cirr_clip_RN50x4_fullft.pt --combiner cirr_comb_RN50x4_fullft.pt --out clip4cir.pt
  dra-export onnx clip4cir.pt

The result evaluates, exports and serves as a model of our own; it has no vision compositor.
"""


@click.command("import", help=_HELP)
@click.option(
    "--clip",
    required=True,
    type=click.Path(path_type=Path),
    help="CLIP's weights: OpenAI's RN50x4.pt, open_clip's .pt, .bin or .safetensors, or what CLIP4Cir fine-tuned.",
)
@click.option("--combiner", type=click.Path(path_type=Path), help="CLIP4Cir's Combiner; without: query = image + text.")
@click.option("--backbone", help="What the CLIP is, such as RN50x4; default: read off its weights.")
@click.option(
    "--pad-ratio",
    metavar="RATIO",
    callback=_pad_ratio,
    help="1.25 is CLIP4Cir's targetpad and the default for its files, 1 its squarepad, none CLIP's own and the default "
    "for a plain CLIP.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The checkpoint to write.")
def import_command(clip: Path, combiner: Path | None, backbone: str | None, pad_ratio: float | None, out: Path) -> None:
    """Make a checkpoint from others' files."""
    imported = import_clip(clip, combiner, backbone, pad_ratio)
    for note in imported.notes:
        click.echo(note, err=True)
    save_checkpoint(out, imported.model, imported.provenance)
    millions = sum(p.numel() for p in imported.model.parameters()) / 1e6
    click.echo(f"{out} written: {imported.model.config.backbone}, {millions:.1f} M parameters")
