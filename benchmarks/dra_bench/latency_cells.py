"""What `dra-bench latency` times: every part by every contender, and the steps around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from open_clip.tokenizer import SimpleTokenizer

from dra_bench.contenders.backend import LEAST_COSINE, Backend, Floats, Unavailable
from dra_bench.contenders.bundles import BundleEncoder
from dra_bench.contenders.copies import gpu_copies
from dra_bench.contenders.pytorch import PyTorchTowers
from dra_bench.latency import PARTS, RERANKED, K, Workload
from dra_bench.timing import Cell
from dra_runtime.encoder import Encoder
from dra_runtime.errors import UsageError
from dra_runtime.gallery import Gallery

RUNTIME, OPEN_CLIP = "dra-runtime", "open_clip"  #: whose steps around the graphs are timed


def latency_cells(
    contenders: Sequence[Backend],
    work: Workload,
    batches: Sequence[int],
    pytorch_cut: Backend | None = None,
    channels_last: Backend | None = None,
) -> list[Cell]:
    """List the parts of all contenders, the first of whom makes the features that are composed.

    Every part has every batch, with the workload's first text; its other texts are encoded and make queries by id one
    at a time. ``pytorch_cut`` is PyTorch with its text cut to its length. ``channels_last`` is PyTorch with images
    channels last and text cut: where it is given and there are several images a call, all of PyTorch's ways to a query
    take part.
    """
    cells: list[Cell] = []
    first = contenders[0]
    for batch in batches:
        texts, taken = work.texts(batch), {backend.image_input for backend in contenders}
        shared = {kind: work.pixels(batch, kind) for kind in sorted(taken)}
        image_features, text_features = first.image(shared[first.image_input]), first.text(texts)
        for backend in contenders:
            pixels, name, tokens = shared[backend.image_input], backend.name, backend.text_tokens(texts)
            cells += [
                Cell(name, "image", batch, None, partial(backend.image, pixels)),
                Cell(name, "text", batch, tokens, partial(backend.text, texts)),
                Cell(name, "compose", batch, None, partial(backend.compose, image_features, text_features)),
                Cell(name, "query", batch, tokens, partial(backend.query, pixels, texts)),
                Cell(name, "query_by_id", batch, tokens, partial(backend.query_by_id, image_features, texts)),
            ]
        if pytorch_cut is not None:
            tokens = pytorch_cut.text_tokens(texts)
            cells.append(Cell(pytorch_cut.name, "text", batch, tokens, partial(pytorch_cut.text, texts)))
            if channels_last is not None and batch > 1:
                pixels = shared[channels_last.image_input]
                cells.append(Cell(channels_last.name, "image", batch, None, partial(channels_last.image, pixels)))
                for way in (pytorch_cut, channels_last):
                    cells.append(Cell(way.name, "query", batch, tokens, partial(way.query, pixels, texts)))
                by_id = partial(pytorch_cut.query_by_id, image_features, texts)
                cells.append(Cell(pytorch_cut.name, "query_by_id", batch, tokens, by_id))
    image_features = first.image(work.pixels(1, first.image_input))
    for text in work.more_texts:
        for backend in (*contenders, *([] if pytorch_cut is None else [pytorch_cut])):
            name, tokens = backend.name, backend.text_tokens([text])
            encode, by_id = partial(backend.text, [text]), partial(backend.query_by_id, image_features, [text])
            cells += [Cell(name, "text", 1, tokens, encode), Cell(name, "query_by_id", 1, tokens, by_id)]
    return in_order(_each_once(cells))


def step_cells(encoder: Encoder, work: Workload, tokenizer: SimpleTokenizer | None = None) -> list[Cell]:
    """List preprocessing and tokenizing, which all contenders do alike; open_clip's ``tokenizer`` beside ours."""
    image, threads = work.images[0], encoder.threads
    cells = [Cell(RUNTIME, "preprocess", 1, None, partial(work.preprocess, image, threads))]
    for text in (work.text, *work.more_texts):
        tokens = len(encoder.tokenize([text])[0])
        cells.append(Cell(RUNTIME, "tokenize", 1, tokens, partial(encoder.tokenize, [text])))
        if tokenizer is not None:
            cells.append(Cell(OPEN_CLIP, "tokenize", 1, tokenizer.context_length, partial(tokenizer, [text])))
    return _each_once(cells)


def search_cells(gallery: Gallery, name: str, queries: Callable[[int], Floats], batches: Sequence[int]) -> list[Cell]:
    """List the search of a gallery for ``queries`` of each batch, under the name of the bundle that made it."""
    return [Cell(name, "search", batch, None, partial(gallery.search_vectors, queries(batch), K)) for batch in batches]


def copy_cells(work: Workload, batches: Sequence[int], text_tokens: int, dim: int) -> list[Cell]:
    """List what a query copies to the GPU and back, which the rows of contenders on a GPU contain; none without one."""
    copies = {batch: gpu_copies(work.pixels(batch), text_tokens, dim) for batch in batches}
    return [Cell("pytorch", "copies", batch, None, copy) for batch, copy in copies.items() if copy is not None]


def rerank_cells(pytorch: PyTorchTowers | None, bundles: Sequence[BundleEncoder], work: Workload) -> list[Cell]:
    """List re-ranking of 20 candidates in every contender that has a vision compositor: one relation each."""
    cells = []
    for bundle in bundles:
        if "reranker" not in bundle.encoder.bundle.manifest.graphs:
            continue
        tokens = bundle.encoder.encode_pixels(work.pixels(1, bundle.image_input))["image_tokens"]
        candidates = np.repeat(tokens, RERANKED, axis=0)
        cells.append(Cell(bundle.name, "rerank", 1, None, partial(bundle.encoder.relations, tokens, candidates)))
        if pytorch is not None and pytorch.model.has_tac:
            related = partial(pytorch.relations, tokens, candidates)
            cells.append(Cell(pytorch.name, "rerank", 1, None, related))
    return _each_once(cells)


def in_order(cells: Sequence[Cell]) -> list[Cell]:
    """Sort cells as tables show them."""
    return sorted(cells, key=lambda c: (PARTS.index(c.part), c.batch))


def check_agreement(pytorch: Backend, other: Backend, work: Workload, least: float | None = None) -> dict[str, float]:
    """Return the cosines between both contenders' vectors of the workload, by part.

    ``least`` is asked of each; default: by the precision. UsageError when they can't be the same model: a comparison of
    their speed would say nothing.
    """
    least = LEAST_COSINE[other.precision] if least is None else least
    pixels, taken, texts = work.pixels(1, pytorch.image_input), work.pixels(1, other.image_input), work.texts(1)
    pairs = {
        "image": (pytorch.image(pixels), other.image(taken)),
        "text": (pytorch.text(texts), other.text(texts)),
        "query": (pytorch.query(pixels, texts), other.query(taken, texts)),
    }
    cosines = {part: _cosine(a, b) for part, (a, b) in pairs.items()}
    worst = min(cosines, key=lambda part: (not np.isnan(cosines[part]), cosines[part]))
    if not cosines[worst] >= least:
        raise UsageError(
            f"the bundle's {worst} vector isn't the checkpoint's ({other.name}: cosine {cosines[worst]:.4f}, expected "
            f"at least {least}); export the bundle from this checkpoint"
        )
    return {part: round(value, 8) for part, value in cosines.items()}


def agreeing(
    contenders: Sequence[Backend], work: Workload
) -> tuple[list[Backend], dict[str, dict[str, float]], list[Unavailable]]:
    """Compare everybody's vectors with the first contender's.

    Returns
    -------
    list, dict, list
        Who takes part, their cosines by name, and who doesn't because of them. UsageError where that is a bundle.
    """
    first, *others = contenders
    kept, cosines, refused = [first], {}, []
    for other in others:
        try:
            cosines[other.name] = check_agreement(first, other, work)
        except UsageError as error:
            if isinstance(other, BundleEncoder):
                raise
            reason = str(error).replace("the bundle's", "its").partition(";")[0]
            refused.append(Unavailable(other.name, reason))
        else:
            kept.append(other)
    return kept, cosines, refused


def _each_once(cells: Sequence[Cell]) -> list[Cell]:
    """Drop cells that would do the same again: texts of one length, or padded to one."""
    kept: dict[Cell, Cell] = {}  # cells are equal where only what they run differs
    for cell in cells:
        kept.setdefault(cell, cell)
    return list(kept)


def _cosine(a: Floats, b: Floats) -> float:
    left, right = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))
