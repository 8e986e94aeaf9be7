"""One model of the repository, answered by Triton's Python backend with dra_runtime.

The parameter ``model`` in config.pbtxt says which one this is:

- ``composed_query``: image bytes and text -> query, by asking the models of the parts
- the name of a graph: that graph, in ONNX Runtime on the CPU

`dra-export triton` put this file here. The server's Python needs dra-toolkit, with its extra `cpu` where graphs run
here, and no PyTorch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # the server brings it

from dra_runtime.backends.onnxruntime_cpu import open_onnxruntime_cpu
from dra_runtime.encoder import TEXT_BUCKET, token_rows
from dra_runtime.errors import BackendError, BundleFormatError, BundleIntegrityError, DraError, TextError
from dra_runtime.manifest import MANIFEST, Manifest, bundle_id_of, manifest_from_dict, manifest_values_from_json
from dra_runtime.preprocess import open_image
from dra_runtime.threads import available_threads
from dra_runtime.tokenizer import Tokenizer

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
Answer = Arrays | DraError
Ask = Callable[[str, Arrays, str], Array]  #: (model, its inputs, the wanted output) -> that output

COMPOSED_QUERY = "composed_query"
MODEL_FILE = "model.onnx"


class TritonPythonModel:
    """What the Python backend looks for in this file."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the model; an error here keeps the server from calling it ready."""
        folder = Path(args["model_repository"]) / args["model_version"]
        config = json.loads(args["model_config"])
        name = config["parameters"]["model"]["string_value"]
        threads = max(1, available_threads() // sum(group["count"] for group in config["instance_group"]))
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._answer = composed_query(folder, threads, ask) if name == COMPOSED_QUERY else part(name, folder, threads)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer all requests that the server has put together."""
        inputs = [
            {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs}
            for request in requests
        ]
        return [_response(request, answer) for request, answer in zip(requests, self._answer(inputs), strict=True)]


def composed_query(folder: Path, threads: int, ask: Ask) -> Callable[[Sequence[Arrays]], list[Answer]]:
    """Return what answers requests of image (N, 1) bytes and text (N, 1) bytes with query (N, D).

    An input that can't be used is its request's error and nobody else's. An ensemble would do the same in
    configuration alone, but a server whose ensemble fails in one of two parallel steps can crash (Triton 2.51).
    """
    manifest = _manifest(folder)
    spec = manifest.tokenizer
    tokenizer = Tokenizer.load(_checked_file(folder / spec.merges, manifest, spec.merges), spec.context_length)
    pool = ThreadPoolExecutor(threads)

    def prepared(inputs: Arrays) -> tuple[Array, list[list[int]]] | DraError:
        try:
            rows = token_rows(tokenizer, [_string(data) for data in inputs["text"].ravel()])
            images = (open_image(bytes(data)) for data in inputs["image"].ravel())
            return np.stack([manifest.preprocess.network_input(i, manifest.image_input) for i in images]), rows
        except DraError as error:
            return error

    def answers(requests: Sequence[Arrays]) -> list[Answer]:
        inputs = list(pool.map(prepared, requests))
        usable = [item for item in inputs if not isinstance(item, DraError)]
        if not usable:
            return [item for item in inputs if isinstance(item, DraError)]
        pixels, rows = np.concatenate([item[0] for item in usable]), [row for item in usable for row in item[1]]
        try:
            image_features = ask("image_encoder", {"image": pixels}, "image_features")
            text_features = ask("text_encoder", {"tokens": _padded(rows, spec.context_length)}, "text_features")
            features = {"image_features": image_features, "text_features": text_features}
            queries = ask("compositor", features, "query")
        except BackendError as error:
            return [item if isinstance(item, DraError) else error for item in inputs]
        parts = iter(_split(queries, [len(item[1]) for item in usable]))
        return [item if isinstance(item, DraError) else {"query": next(parts)} for item in inputs]

    return answers


def part(graph: str, folder: Path, threads: int) -> Callable[[Sequence[Arrays]], list[Answer]]:
    """Return what answers requests of a graph's inputs with its outputs; the graph runs once for all of them."""
    manifest = _manifest(folder)
    spec = manifest.graphs[graph]
    path, half = _checked_file(folder / MODEL_FILE, manifest, spec.file), manifest.precision == "fp16"
    session = open_onnxruntime_cpu(path, spec, threads, half)
    names = [tensor.name for tensor in spec.inputs]

    def answers(requests: Sequence[Arrays]) -> list[Answer]:
        counts = [len(inputs[names[0]]) for inputs in requests]
        try:  # the server puts together only what has the same shape
            outputs = session.run({name: np.concatenate([inputs[name] for inputs in requests]) for name in names})
        except BackendError as error:
            return [error] * len(requests)
        parts = {name: _split(array, counts) for name, array in outputs.items()}
        return [{name: arrays[i] for name, arrays in parts.items()} for i in range(len(requests))]

    return answers


def ask(model: str, inputs: Arrays, output: str) -> Array:
    """Ask another model of this server for one output, in host memory.

    Raises
    ------
    BackendError
        It failed.
    """
    request = pb_utils.InferenceRequest(
        model_name=model,
        inputs=[pb_utils.Tensor(name, array) for name, array in inputs.items()],
        requested_output_names=[output],
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
    )
    response = request.exec()
    if response.has_error():
        raise BackendError(f"the model {model} failed: {response.error().message()}")
    return np.array(pb_utils.get_output_tensor_by_name(response, output).as_numpy())


def _padded(rows: Sequence[Sequence[int]], context_length: int) -> Array:
    """Return token rows as one array (N, L) int32, L a multiple of 8 where the context allows it.

    So the server can put texts of about the same length together. What stands behind a text's end changes nothing: the
    text tower is causal and pooled there.
    """
    longest = max(map(len, rows))
    tokens = np.zeros((len(rows), min(-(-longest // TEXT_BUCKET) * TEXT_BUCKET, context_length)), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return tokens


def _split(array: Array, counts: Sequence[int]) -> list[Array]:
    return np.split(array, np.cumsum(counts)[:-1])


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
