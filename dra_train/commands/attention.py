"""dra-train attention."""

from __future__ import annotations

import io
import json
from pathlib import Path

import click

from dra_runtime.console import table
from dra_runtime.errors import UsageError
from dra_runtime.files import check_output, write_bytes
from dra_train.attention import PairAttention, pair_attention, text_agreement
from dra_train.attention_picture import draw_attention, seen_pixels
from dra_train.checkpoint import load_checkpoint
from dra_train.features import load_images

EXAMPLE = 'dra-train attention ckpt.pt --reference a.webp --target b.webp --text "in red" -o map.png'
FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}


@click.command("attention", epilog=EXAMPLE)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--reference", required=True, type=click.Path(path_type=Path), help="The image that the text changes.")
@click.option("--target", required=True, type=click.Path(path_type=Path), help="The image that the text asks for.")
@click.option("--text", required=True, help="The complementary text.")
@click.option("--other", "others", multiple=True, metavar="TEXT", help="A text to compare with; repeatable.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The picture: .png, .webp or .jpg.")
@click.option("--json", "as_json", is_flag=True, help="Print every map's numbers as JSON.")
def attention_command(
    checkpoint: Path,
    reference: Path,
    target: Path,
    text: str,
    others: tuple[str, ...],
    output: Path | None,
    as_json: bool,
) -> None:
    """Show where the vision compositor of CHECKPOINT looks in a pair of images.

    The compositor (TAC) infers from two images what the text between them must have said. The picture has a row for
    each of its two streams: where its class token looks in each layer, where that leads in the other image, and which
    patches make the outcome agree with the text. docs/attention.md reads some examples.
    """
    if output is None and not as_json:
        raise UsageError("nothing to do: give -o map.png for the picture, --json for the numbers, or both")
    if output and output.suffix.lower() not in FORMATS:
        raise UsageError(f"{output} can't be written as a picture; use a name that ends in {', '.join(FORMATS)}")
    check_output(output)
    model = load_checkpoint(checkpoint).model
    images = load_images(model, [reference, target])
    pair = pair_attention(model, images[0], images[1], text)
    cosines = text_agreement(model, images[0], images[1], list(others)) if others else []
    if output:
        seen = [seen_pixels(image.numpy(), model.preprocess) for image in images]
        file = io.BytesIO()
        picture = draw_attention(pair, seen[0], seen[1], text, (reference.name, target.name))
        picture.save(file, FORMATS[output.suffix.lower()], quality=90)
        write_bytes(output, file.getvalue())
    if as_json:
        compared = [{"text": other, "agreement": cosine} for other, cosine in zip(others, cosines, strict=True)]
        query = {"reference": str(reference), "target": str(target), "text": text}
        click.echo(json.dumps({**query, **pair.to_dict(), "other_texts": compared}, indent=2))
        return
    click.echo(f"agreement with the text: cos(F_v, F_c) = {pair.agreement:.3f}")
    click.echo(share_table(pair))
    if others:
        rows = sorted([(text, pair.agreement), *zip(others, cosines, strict=True)], key=lambda row: -row[1])
        click.echo("\n" + table(["text", "cos(F_v, F_c)"], [[t, f"{c:.3f}"] for t, c in rows]))
    click.echo(f"{output} written")


def share_table(pair: PairAttention) -> str:
    """Lay out what each stream adds to the agreement, and where from."""
    rows = []
    for number, stream in enumerate(pair.streams):
        patches = float(stream.agreement.patches.sum())
        rest = stream.agreement.class_token + stream.constant
        name = f"stream {number + 1}: the {stream.asks} asks the {stream.traced.over}"
        rows.append([name, f"{patches:+.3f}", f"{rest:+.3f}"])
    return table(["adds to the agreement", "patches", "class token and biases"], rows)
