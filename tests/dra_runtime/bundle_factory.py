"""A tiny bundle made without training: a few ONNX nodes, and the same formulas written out in numpy."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dra_runtime.manifest import bundle_id_of
from dra_runtime.preprocess import Preprocess
from dra_runtime.tokenizer import Tokenizer

SIZE, DIM, TOKENS = 16, 8, 5
VOCABULARY = Path(importlib.util.find_spec("open_clip").origin).parent / "bpe_simple_vocab_16e6.txt.gz"
END = 49407


class Reference:
    """The model of the bundle in numpy, float64.

    image_features = mean over rows of the image times W; image_tokens = the first 5 rows of the red channel times V;
    text_features = sum over tokens of E[id mod 97] up to the end token; query = normalize(image + 2 * text);
    relation_features = mean over tokens of (reference - candidate).
    """

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.image_weights = rng.normal(size=(3 * SIZE, DIM)).astype(np.float32)
        self.token_weights = rng.normal(size=(SIZE, DIM)).astype(np.float32)
        self.embedding = rng.normal(size=(97, DIM)).astype(np.float32)

    def image(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pixels = pixels.astype(np.float64)
        features = pixels.mean(axis=3).reshape(len(pixels), -1) @ self.image_weights
        return features, pixels[:, 0, :TOKENS, :] @ self.token_weights

    def text(self, tokens: np.ndarray) -> np.ndarray:
        rows = []
        for row in tokens:
            end = list(row).index(END)
            rows.append(sum(self.embedding[i % 97].astype(np.float64) for i in row[: end + 1]))
        return np.stack(rows)

    def compose(self, image: np.ndarray, text: np.ndarray) -> np.ndarray:
        query = image + 2 * text
        return query / np.linalg.norm(query, axis=1, keepdims=True)

    def relate(self, reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
        return (reference - candidate).mean(axis=1)


def _value(name: str, dtype: int, shape: list[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def _constant(name: str, values: Any, dtype: Any = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def _image_nodes(model: Reference) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    nodes = [
        helper.make_node("ReduceMean", ["image", "axis3"], ["rows"], keepdims=0),
        helper.make_node("Reshape", ["rows", "flat"], ["flat_rows"]),
        helper.make_node("MatMul", ["flat_rows", "image_weights"], ["image_features"]),
    ]
    constants = [
        _constant("axis3", [3]),
        _constant("flat", [0, 3 * SIZE]),
        _constant("image_weights", model.image_weights, np.float32),
    ]
    return nodes, constants


def _text_nodes(model: Reference) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Sum the embeddings up to the end token: those with no end token before them."""
    nodes = [
        helper.make_node("Mod", ["tokens", "modulus"], ["short"]),
        helper.make_node("Gather", ["embedding", "short"], ["embedded"], axis=0),
        helper.make_node("Equal", ["tokens", "end"], ["is_end"]),
        helper.make_node("Cast", ["is_end"], ["end_flag"], to=TensorProto.FLOAT),
        helper.make_node("CumSum", ["end_flag", "one"], ["ends_before"], exclusive=1),
        helper.make_node("Equal", ["ends_before", "zero"], ["kept"]),
        helper.make_node("Cast", ["kept"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "two"], ["wide_mask"]),
        helper.make_node("Mul", ["embedded", "wide_mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "axis1"], ["text_features"], keepdims=0),
    ]
    constants = [
        _constant("modulus", 97, np.int32),
        _constant("embedding", model.embedding, np.float32),
        _constant("end", END, np.int32),
        _constant("one", 1),
        _constant("zero", 0.0, np.float32),
        _constant("two", [2]),
        _constant("axis1", [1]),
    ]
    return nodes, constants


def _compose_nodes() -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    nodes = [
        helper.make_node("Mul", ["text_features", "double"], ["doubled"]),
        helper.make_node("Add", ["image_features", "doubled"], ["sum"]),
        helper.make_node("ReduceL2", ["sum", "last"], ["norm"], keepdims=1),
        helper.make_node("Div", ["sum", "norm"], ["query"]),
    ]
    return nodes, [_constant("double", 2.0, np.float32), _constant("last", [1])]


def graphs(model: Reference) -> dict[str, tuple[list[Any], list[Any], list[Any], list[Any]]]:
    """Return nodes, inputs, outputs and constants of each graph."""
    f32, i32 = TensorProto.FLOAT, TensorProto.INT32
    image = _value("image", f32, ["batch", 3, SIZE, SIZE])
    tokens = _value("tokens", i32, ["batch", "length"])
    image_features, text_features, query = (
        _value(name, f32, ["batch", DIM]) for name in ("image_features", "text_features", "query")
    )
    image_nodes, image_constants = _image_nodes(model)
    text_nodes, text_constants = _text_nodes(model)
    compose_nodes, compose_constants = _compose_nodes()
    token_nodes = [
        helper.make_node("Slice", ["image", "from", "to", "axes"], ["patch"]),
        helper.make_node("Squeeze", ["patch", "axis1"], ["rows_of_red"]),
        helper.make_node("MatMul", ["rows_of_red", "token_weights"], ["image_tokens"]),
    ]
    token_constants = [
        _constant("from", [0, 0]),
        _constant("to", [1, TOKENS]),
        _constant("axes", [1, 2]),
        _constant("axis1", [1]),
        _constant("token_weights", model.token_weights, np.float32),
    ]
    relate_nodes = [
        helper.make_node("Sub", ["reference_tokens", "candidate_tokens"], ["difference"]),
        helper.make_node("ReduceMean", ["difference", "axis1"], ["relation_features"], keepdims=0),
    ]
    image_tokens, reference, candidate = (
        _value(name, f32, ["batch", TOKENS, DIM]) for name in ("image_tokens", "reference_tokens", "candidate_tokens")
    )
    return {
        "image_encoder": (
            image_nodes + token_nodes,
            [image],
            [image_features, image_tokens],
            image_constants + token_constants,
        ),
        "text_encoder": (text_nodes, [tokens], [text_features], text_constants),
        "compositor": (compose_nodes, [image_features, text_features], [query], compose_constants),
        "reranker": (
            relate_nodes,
            [reference, candidate],
            [_value("relation_features", f32, ["batch", DIM])],
            [_constant("axis1", [1])],
        ),
        "query": (
            image_nodes + text_nodes + compose_nodes,
            [image, tokens],
            [query],
            image_constants + text_constants + compose_constants,
        ),
    }


def onnx_bytes(parts: tuple[list[Any], list[Any], list[Any], list[Any]]) -> bytes:
    nodes, inputs, outputs, constants = parts
    graph = helper.make_graph(nodes, "graph", inputs, outputs, constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    proto.ir_version = 9
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def _spec(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    dtype = {TensorProto.FLOAT: "float32", TensorProto.INT32: "int32"}[tensor.elem_type]
    shape = [d.dim_param or d.dim_value for d in tensor.shape.dim]
    return {"name": value.name, "dtype": dtype, "shape": shape}


def write_bundle(folder: Path, seed: int = 0, reranker: bool = True) -> Path:
    """Write a bundle into a new folder and return the folder."""
    folder.mkdir(parents=True)
    model, tokenizer, preprocess = Reference(seed), Tokenizer.load(VOCABULARY), Preprocess(SIZE)
    parts = graphs(model)
    if not reranker:
        del parts["reranker"]
        nodes, inputs, outputs, constants = parts["image_encoder"]
        parts["image_encoder"] = (nodes[:3], inputs, outputs[:1], constants[:3])
    for name, part in parts.items():
        (folder / f"{name}.onnx").write_bytes(onnx_bytes(part))
    (folder / "merges.txt").write_text("\n".join(tokenizer.merges) + "\n", encoding="utf-8")
    np.savez(folder / "selftest.npz", **selftest(model, preprocess, tokenizer, reranker))
    write_manifest(folder, manifest_values(folder, parts, preprocess, seed))
    return folder


def selftest(model: Reference, preprocess: Preprocess, tokenizer: Tokenizer, reranker: bool) -> dict[str, np.ndarray]:
    from PIL import Image

    images = np.random.default_rng(7).integers(0, 256, (4, 20, 30, 3), np.uint8)
    texts = np.array(["is shorter", "in red, with long sleeves", "“ten” &amp; more", "a"])
    tokens = tokenizer(texts.tolist())
    features, image_tokens = model.image(np.stack([preprocess(Image.fromarray(image)) for image in images]))
    text_features = model.text(tokens)
    arrays = {
        "images": images,
        "texts": texts,
        "tokens": tokens,
        "image_features": features.astype(np.float32),
        "text_features": text_features.astype(np.float32),
        "queries": model.compose(features, text_features).astype(np.float32),
    }
    if reranker:
        relation = model.relate(image_tokens, np.roll(image_tokens, -1, axis=0))
        arrays["relation_features"] = relation.astype(np.float32)
    return arrays


def manifest_values(folder: Path, parts: dict[str, Any], preprocess: Preprocess, seed: int) -> dict[str, Any]:
    return {
        "schema_version": "1.0",
        "precision": "fp32",
        "files": {path.name: file_entry(path) for path in sorted(folder.iterdir())},
        "graphs": {
            name: {
                "file": f"{name}.onnx",
                "inputs": [_spec(v) for v in part[1]],
                "outputs": [_spec(v) for v in part[2]],
            }
            for name, part in parts.items()
        },
        "preprocess": preprocess.to_dict(),
        "tokenizer": {
            "type": "clip_bpe",
            "merges": "merges.txt",
            "context_length": 77,
            "vocab_size": 49408,
            "start_token": 49406,
            "end_token": 49407,
        },
        "embedding": {"dim": DIM},
        "provenance": {"made_by": "tests", "seed": seed},
        "parity": None,
    }


def file_entry(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def write_manifest(folder: Path, values: dict[str, Any]) -> None:
    """Write manifest.json with the id that its values give."""
    values = {**values, "bundle_id": bundle_id_of(values)}
    (folder / "manifest.json").write_text(json.dumps(values, indent=1), encoding="utf-8")


def reseal(folder: Path) -> None:
    """Bring hashes, sizes and the id up to date after a file was changed."""
    values = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    values["files"] = {name: file_entry(folder / name) for name in values["files"]}
    write_manifest(folder, values)
