"""What the graphs get to compute on real image-text pairs, to measure them with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from dra_export.half.headroom import Inputs
from dra_export.onnx_session import open_model
from dra_runtime.preprocess import open_image
from dra_train.data import Dataset
from dra_train.model import DRA
from dra_train.vocabulary import clip_tokenizer

PAIRS, BATCH = 32, 4


def real_inputs(paths: Mapping[str, Path], model: DRA, dataset: Dataset, pairs: int = PAIRS) -> dict[str, list[Inputs]]:
    """Return batches of inputs for every float32 graph in ``paths`` but the joined query.

    Queries are taken evenly from ``dataset``: reference image and text; the target image, for the reranker, besides.
    """
    picked = [dataset.queries[i] for i in np.linspace(0, len(dataset.queries) - 1, pairs).astype(int)]
    tokenizer = clip_tokenizer(model.text.context_length)
    sessions = {n: open_model(onnx.load(str(paths[n]))) for n in ("image_encoder", "text_encoder")}
    inputs: dict[str, list[Inputs]] = {name: [] for name in paths if name != "query"}
    for start in range(0, len(picked), BATCH):
        queries = picked[start : start + BATCH]
        references, targets = (
            np.stack([model.preprocess(open_image(dataset.images[name])) for name in names])
            for names in ([q.reference for q in queries], [q.target for q in queries])
        )
        tokens = tokenizer([q.text for q in queries])
        tokens = tokens[:, : int((tokens != 0).sum(axis=1).max())]
        image_features, *image_tokens = sessions["image_encoder"].run(None, {"image": references})
        (text_features,) = sessions["text_encoder"].run(None, {"tokens": tokens})
        inputs["image_encoder"].append({"image": references})
        inputs["text_encoder"].append({"tokens": tokens})
        inputs["compositor"].append({"image_features": image_features, "text_features": text_features})
        if "reranker" in inputs:
            candidate_tokens = sessions["image_encoder"].run(["image_tokens"], {"image": targets})[0]
            pair = {"reference_tokens": image_tokens[0], "candidate_tokens": candidate_tokens}
            inputs["reranker"].append(pair)
    return inputs
