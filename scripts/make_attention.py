"""Draw the examples of docs/attention/ and write docs/attention.md, with a trained checkpoint.

python scripts/make_attention.py runs/demo/ckpt.pt

The pairs are fixed; every figure on the page is computed from the checkpoint, over PAIRS queries of val_unseen.
"""

from __future__ import annotations

import io
import sys
import textwrap
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from dra_runtime.console import table, track
from dra_runtime.files import write_bytes
from dra_train.attention import Look, PairAttention, pair_attention, text_agreement
from dra_train.attention_picture import draw_attention, seen_pixels, spread
from dra_train.checkpoint import Checkpoint, load_checkpoint
from dra_train.data import Dataset, open_dataset
from dra_train.features import load_images

ROOT = Path(__file__).resolve().parent.parent
EVEN = 0.95  #: share of the patches over which an attention spreads that is called even
PAIRS = 200  #: queries of val_unseen that the table is over, evenly spread
EXAMPLES = (  # name, split, reference, target, text
    (
        "gender-and-skin",
        "val_unseen",
        "superhero-medium-light",
        "superhero-woman-dark",
        "Make them a woman and use dark skin",
    ),
    ("hair", "val", "man-beard-medium-light", "man-curly-hair-medium-light", "picture him with curly hair"),
    ("neutral", "val_unseen", "mrs-claus-dark", "mx-claus-dark", "Keep the rest and show someone gender-neutral."),
)

HOW_TO_READ = """\
TAC, the vision compositor, infers from two images what the text between them must have said (docs/method.md).
`dra-train attention` shows what it looks at while it does:

    dra-train attention ckpt.pt --reference a.webp --target b.webp --text "in red" --other "in blue" -o map.png

A row a stream. In stream 1 the reference asks and the target is asked; in stream 2 they are exchanged. With R and T the
tokens of the two images and A the matrix of attention weights of a layer, a stream computes A1 T, then A2 A1 T, and so
on. So:

- **Layer 1**: where on the other image its class token looks.
- **Later layers** look at what the layer before made of the *asking* image's positions. These maps lie over the asking
  image; each position of it stands for the mixture of the other image that layer 1 brought there. A map over the other
  image, as one would expect it, would be wrong.
- **Traced**: the product of all layers' weights leads back to the other image. TAC has no residuals, norms or
  activations between its layers, so with one head this is no approximation: the stream's output *is* that mixture of
  the other image's tokens, sent through linear maps (a test rebuilds F_v from it). With several heads the mean over
  heads is shown, and the picture says "approximately".
- **Adds to the agreement**: what each patch contributes to cos(F_v, F_c), the cosine between the relation and the text.
  Patches, class token and biases of both streams add up to it exactly, with any number of heads. This is the only
  panel that depends on the text: TAC itself never sees it.

Orange is a share of attention. An even attention looks even, because the colour is measured against an even share and
isn't stretched to fill the panel."""

CANNOT_SHOW = """\
## What the pictures can't show

- A patch is a position of the last feature map. Its receptive field covers far more than the square that is drawn, for
  a ViT the whole picture: a patch that lights up holds the information, and need not be where it comes from.
- Attention says which tokens enter the mixture, not why. Of two patches with the same weight one may decide the outcome
  and the other cancel out; that is what the last panel is for, and it holds the weights fixed: it doesn't say how they
  would change if the patch were another.
- A pair shows a pair. Three examples were picked by hand, the third because it goes wrong; the table is over {pairs}
  queries.
- TAC isn't used to answer queries. What it sees says something about training and re-ranking, nothing about the
  composed query."""


def main(arguments: list[str]) -> int:
    """Write the page and its pictures."""
    if len(arguments) != 1:
        print(__doc__)
        return 2
    checkpoint = load_checkpoint(Path(arguments[0]))
    datasets = {split: open_dataset("builtin", split)[0] for split in ("val", "val_unseen")}
    folder = ROOT / "docs" / "attention"
    folder.mkdir(exist_ok=True)
    parts = ["# Where TAC looks", HOW_TO_READ, "## Three examples"]
    for name, split, reference, target, text in EXAMPLES:
        pair, picture = example(checkpoint, datasets[split], reference, target, text)
        write_bytes(folder / f"{name}.webp", picture)
        parts += [f"![“{text}”: {reference} to {target}](attention/{name}.webp)", sentence(pair)]
    parts += [over_many(checkpoint, datasets["val_unseen"]), CANNOT_SHOW.format(pairs=PAIRS), made_by(checkpoint)]
    write_bytes(ROOT / "docs" / "attention.md", ("\n\n".join(parts) + "\n").encode())
    return 0


def example(
    checkpoint: Checkpoint, dataset: Dataset, reference: str, target: str, text: str
) -> tuple[PairAttention, bytes]:
    """Trace one pair; returns its attention and its picture as a WebP file."""
    model = checkpoint.model
    paths = [dataset.images[reference], dataset.images[target]]
    images = load_images(model, paths)
    pair = pair_attention(model, images[0], images[1], text)
    pixels = [seen_pixels(image.numpy(), model.preprocess) for image in images]
    file = io.BytesIO()
    draw_attention(pair, pixels[0], pixels[1], text, (paths[0].name, paths[1].name)).save(file, "WEBP", quality=80)
    return pair, file.getvalue()


def sentence(pair: PairAttention) -> str:
    """Say what a picture shows, in figures."""
    stream = max(pair.streams, key=lambda s: abs(float(s.agreement.patches.sum())))
    look = stream.agreement
    row, column = np.unravel_index(int(look.patches.argmax()), look.patches.shape)
    return filled(
        f"cos(F_v, F_c) = {pair.agreement:.2f}. The patches of the {look.over} add {look.patches.sum():+.2f} to it, "
        f"most of all the one in row {row + 1}, column {column + 1} ({look.patches.max():+.2f}). Traced attention "
        f"there: {100 * stream.traced.patches[row, column]:.1f} %; an even share is "
        f"{100 / (look.patches.size + 1):.1f} %."
    )


def over_many(checkpoint: Checkpoint, dataset: Dataset) -> str:
    """Return the table over many pairs: how even each map is, and what carries the agreement."""
    queries = dataset.queries[:: max(1, len(dataset.queries) // PAIRS)][:PAIRS]
    model = checkpoint.model
    pairs, others = [], []
    for i, query in enumerate(track(queries, "pairs")):
        images = load_images(model, [dataset.images[query.reference], dataset.images[query.target]])
        pairs.append(pair_attention(model, images[0], images[1], query.text))
        other = next(q.text for q in queries[i + 1 :] + queries[:i] if q.text != query.text)
        others += text_agreement(model, images[0], images[1], [other])
    rows: list[list[Any]] = []
    for s in range(2):
        streams = [pair.streams[s] for pair in pairs]
        name = f"stream {s + 1}"
        for layer in range(len(streams[0].layers)):
            looks = [stream.layers[layer] for stream in streams]
            rows.append([f"{name}, layer {layer + 1}", looks[0].over, *look_row(looks), ""])
        traced = [stream.traced for stream in streams]
        adds = mean(float(stream.agreement.patches.sum()) for stream in streams)
        rows.append([f"{name}, traced", traced[0].over, *look_row(traced), f"{adds:+.2f}"])
    own = mean(pair.agreement for pair in pairs)
    wins = mean(pair.agreement > other for pair, other in zip(pairs, others, strict=True))
    return "\n\n".join(
        [
            f"## Over {len(pairs)} pairs of val_unseen",
            table(["map", "over", "spread, patches", "strongest patch", "class token", "adds to cos"], rows),
            filled(
                f"Spread: exp of the entropy, of {pairs[0].streams[0].traced.patches.size} patches. Agreement with "
                f"the pair's own text: {own:.2f} on average, with another query's text: {mean(others):.2f}; the own "
                f"text is ahead in {100 * wins:.0f} % of the pairs (50 % would be a guess)."
            ),
            reading(pairs),
        ]
    )


def look_row(looks: list[Look]) -> list[str]:
    """Return a map's means: spread, strongest patch, class token."""
    strongest = mean(100 * float(look.patches.max()) for look in looks)
    return [
        f"{mean(map(spread, looks)):.1f}",
        f"{strongest:.1f} %",
        f"{100 * mean(k.class_token for k in looks):.1f} %",
    ]


def reading(pairs: list[PairAttention]) -> str:
    """Say which of the streams and layers is selective, from the figures."""
    patches = pairs[0].streams[0].traced.patches.size
    said, layers = [], range(len(pairs[0].streams[0].layers))
    spreads = [[mean(spread(p.streams[s].layers[i]) for p in pairs) for i in layers] for s in range(2)]
    if all(value > EVEN * patches for stream in spreads for value in stream):
        said.append(
            "The class token attends almost evenly in every layer of both streams: it takes the mean over positions."
        )
        if len(layers) > 1:
            said.append("What selects is the attention of the patches, layer 1's, which only the traced maps show.")
    adds = [mean(float(p.streams[s].agreement.patches.sum()) for p in pairs) for s in range(2)]
    strong, weak = (0, 1) if adds[0] > adds[1] else (1, 0)
    over = pairs[0].streams[strong].traced.over
    said.append(
        f"The agreement comes from the patches of the {over} ({adds[strong]:+.2f}) more than from those of the "
        f"{pairs[0].streams[weak].traced.over} ({adds[weak]:+.2f})."
    )
    return filled(" ".join(said))


def filled(text: str) -> str:
    """Break a paragraph into lines as the other documents have them."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def made_by(checkpoint: Checkpoint) -> str:
    """Say what made the page."""
    settings = checkpoint.provenance.get("settings", {})
    return filled(
        f"Made by `python scripts/make_attention.py ckpt.pt` with a checkpoint of `dra-train fit` (backbone "
        f"{checkpoint.config.backbone}, {checkpoint.config.tac_layers} TAC layers, seed "
        f"{checkpoint.provenance.get('seed')}, trained on {settings.get('dataset', 'its data')}, sha256 "
        f"`{checkpoint.sha256[:12]}…`)."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
