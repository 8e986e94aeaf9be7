"""One model of the repository, answered by Triton's Python backend with dra_runtime.

The parameter ``model`` in config.pbtxt says which one this is:

- ``preprocess``: encoded images to the image encoder's input
- ``tokenizer``: texts to token rows
- the name of a graph: that graph, in ONNX Runtime on the CPU

`dra-export triton` put this file here. The server's Python needs dra-toolkit[cpu], and no PyTorch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # the server brings it

from dra_runtime.encoder import TEXT_BUCKET, token_rows
from dra_runtime.errors import BackendError, BundleFormatError, BundleIntegrityError, DraError, TextError
from dra_runtime.manifest import MANIFEST, Manifest, bundle_id_of, manifest_from_dict, manifest_values_from_json
from dra_runtime.preprocess import open_image
from dra_runtime.sessions import open_onnxruntime_cpu
from dra_runtime.threads import available_threads
from dra_runtime.tokenizer import Tokenizer

Arrays = Mapping[str, np.ndarray[Any, Any]]
Answer = Arrays | DraError
Answerer = Callable[[Sequence[Arrays]], Sequence[Answer]]  #: from the inputs of many requests to as many answers

MODEL_FILE = "model.onnx"


class TritonPythonModel:
    """What the Python backend looks for in this file."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the model; an error here keeps the server from calling it ready."""
        folder = Path(args["model_repository"]) / args["model_version"]
        config = json.loads(args["model_config"])
        name = config["parameters"]["model"]["string_value"]
        instances = sum(group["count"] for group in config["instance_group"])
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._answer = answerer(name, folder, max(1, available_threads() // instances))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer all requests that the server has put together; one that fails doesn't harm the others."""
        inputs = [
            {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs}
            for request in requests
        ]
        answers = self._answer(inputs)
        return [_response(request, answer) for request, answer in zip(requests, answers, strict=True)]


def answerer(name: str, folder: Path, threads: int) -> Answerer:
    """Return what answers the requests of a model whose files lie in ``folder``."""
    manifest = _manifest(folder)
    if name == "preprocess":
        return _each(partial(_pixels, manifest), threads)
    if name == "tokenizer":
        spec = manifest.tokenizer
        tokenizer = Tokenizer.load(_checked_file(folder / spec.merges, manifest, spec.merges), spec.context_length)
        return _each(partial(_tokens, tokenizer), threads)
    graph = manifest.graphs[name]
    path = _checked_file(folder / MODEL_FILE, manifest, graph.file)
    return partial(_joined, open_onnxruntime_cpu(path, graph, threads).run)


def _pixels(manifest: Manifest, inputs: Arrays) -> Arrays:
    """image_bytes (N, 1) -> image (N, 3, S, S)."""
    return {"image": np.stack([manifest.preprocess(open_image(data)) for data in inputs["image_bytes"].ravel()])}


def _tokens(tokenizer: Tokenizer, inputs: Arrays) -> Arrays:
    """Text (N, 1) -> tokens (N, L).

    L is a multiple of 8, so that the server can put texts of about the same length together. What stands behind a
    text's end changes nothing: the text tower is causal and pooled there.
    """
    rows = token_rows(tokenizer, [_string(data) for data in inputs["text"].ravel()])
    longest = max(map(len, rows))
    tokens = np.zeros((len(rows), min(-(-longest // TEXT_BUCKET) * TEXT_BUCKET, tokenizer.context_length)), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return {"tokens": tokens}


def _joined(run: Callable[[Arrays], Arrays], requests: Sequence[Arrays]) -> Sequence[Answer]:
    """Run a graph once on the inputs of all requests, which the server only joins where their shapes fit."""
    counts = [len(next(iter(inputs.values()))) for inputs in requests]
    try:
        outputs = run({name: np.concatenate([inputs[name] for inputs in requests]) for name in requests[0]})
    except DraError as error:
        return [error] * len(requests)
    ends = np.cumsum(counts)
    return [
        {name: array[end - count : end] for name, array in outputs.items()}
        for count, end in zip(counts, ends, strict=True)
    ]


def _each(work: Callable[[Arrays], Arrays], threads: int) -> Answerer:
    """Answer requests one by one, in several threads; a failed one gets its error as answer."""
    pool = ThreadPoolExecutor(threads)

    def answer(inputs: Arrays) -> Answer:
        try:
            return work(inputs)
        except DraError as error:
            return error

    return lambda requests: list(pool.map(answer, requests))


def _response(request: Any, answer: Answer) -> Any:
    if isinstance(answer, DraError):
        code = pb_utils.TritonError.INTERNAL if isinstance(answer, BackendError) else pb_utils.TritonError.INVALID_ARG
        return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(str(answer), code))
    wanted = request.requested_output_names()
    tensors = [pb_utils.Tensor(name, np.ascontiguousarray(answer[name])) for name in answer if name in wanted]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def _string(data: Any) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"a text is no UTF-8 ({error}); encode it so") from error


def _manifest(folder: Path) -> Manifest:
    values = manifest_values_from_json((folder / MANIFEST).read_bytes())
    manifest = manifest_from_dict(values)
    if bundle_id_of(values) != manifest.bundle_id:
        raise BundleFormatError(f"{folder / MANIFEST} was changed; make the repository again with dra-export triton")
    return manifest


def _checked_file(path: Path, manifest: Manifest, name: str) -> Path:
    """Return the path of a copy of the bundle's file ``name``, having compared it with the manifest."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != manifest.files[name].sha256:
        raise BundleIntegrityError(
            f"{path}: not the bundle's {name} that the manifest names; make the repository again with dra-export triton"
        )
    return path
