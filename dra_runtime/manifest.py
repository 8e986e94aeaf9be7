"""A bundle's manifest: strict parsing into frozen dataclasses, and the bundle's identity.

`docs/bundle.md` states every rule with its reason; `docs/bundle.schema.json` holds those that JSON Schema can say.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dra_runtime.errors import BundleFormatError, UsageError
from dra_runtime.json_checks import WrongValueError, keys_of, object_of, one_of, text_of, whole_of, wrong
from dra_runtime.preprocess import Preprocess
from dra_runtime.strict_json import values_from_json
from dra_runtime.tokenizer import MAX_MERGES

Parsed = TypeVar("Parsed")

SCHEMA_VERSION = "1.0"
UINT8_VERSION = "1.1"  #: the first one in which a graph may take uint8 pixels
MAX_FILE = 2**31 - 1  #: bytes; a protocol buffer, and so an ONNX file, can't be longer
MAX_FILES = 16 * 2**30  #: bytes of all files together: what opening may have to read
MAX_IMAGE_SIZE = 1024  #: pixels a side
MAX_TOKEN_VALUES = 2**24  #: T times D: what one image's tokens may hold
IMAGE_INPUTS = ("float32", "uint8")
PRECISIONS = ("fp32", "fp16", "int8")
REQUIRED_GRAPHS = ("image_encoder", "text_encoder", "compositor")
OPTIONAL_GRAPHS = ("reranker", "query")
SELFTEST = "selftest.npz"
MANIFEST = "manifest.json"

# A plain name on every file system: none that Windows keeps for devices, and no dot at the end, which it drops
FILE_NAME = re.compile(
    r"(?!(?i:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|$))[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_VERSION = re.compile(r"(0|[1-9][0-9]{0,3})\.(0|[1-9][0-9]{0,3})")

# What each graph takes and gives: (name, type, dimensions). "batch" and "length" are free and stand as a symbol of any
# name; "S" is the image size, "D" the embedding's width, "T" the number of image tokens. The type "image" is one of
# `IMAGE_INPUTS`, the same one in all graphs.
_SIGNATURES: dict[str, tuple[tuple[tuple[str, str, str], ...], tuple[tuple[str, str, str], ...]]] = {
    "image_encoder": (
        (("image", "image", "batch 3 S S"),),
        (("image_features", "float32", "batch D"), ("image_tokens", "float32", "batch T D")),
    ),
    "text_encoder": ((("tokens", "int32", "batch length"),), (("text_features", "float32", "batch D"),)),
    "compositor": (
        (("image_features", "float32", "batch D"), ("text_features", "float32", "batch D")),
        (("query", "float32", "batch D"),),
    ),
    "reranker": (
        (("reference_tokens", "float32", "batch T D"), ("candidate_tokens", "float32", "batch T D")),
        (("relation_features", "float32", "batch D"),),
    ),
    "query": (
        (("image", "image", "batch 3 S S"), ("tokens", "int32", "batch length")),
        (("query", "float32", "batch D"),),
    ),
}


@dataclass(frozen=True)
class FileEntry:
    """A file's SHA-256 (hex) and size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class TensorSpec:
    """A graph's input or output; a free dimension is a symbol's name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX graph: its file, inputs and outputs."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class TokenizerSpec:
    """How texts become tokens."""

    merges: str
    context_length: int
    vocab_size: int
    start_token: int
    end_token: int
    type: str = "clip_bpe"


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds. ``dim`` is the width of its embedding; ``parity`` is what ``dra-export verify`` measured."""

    bundle_id: str
    precision: str
    files: Mapping[str, FileEntry]
    graphs: Mapping[str, GraphSpec]
    preprocess: Preprocess
    tokenizer: TokenizerSpec
    dim: int
    provenance: Mapping[str, Any]
    parity: Mapping[str, Any] | None = None
    schema_version: str = SCHEMA_VERSION

    @property
    def image_input(self) -> str:
        """The type of the image encoder's pixels, one of `IMAGE_INPUTS`."""
        return self.graphs["image_encoder"].inputs[0].dtype


def manifest_from_dict(values: Any) -> Manifest:
    """Check a manifest's values and return them as a dataclass.

    The bundle id's form is checked, not its value; `dra_runtime.bundle.Bundle.open` compares that too.

    Raises
    ------
    BundleFormatError
        A rule of docs/bundle.md is broken; the message names the place.
    """
    try:
        return _manifest(values)
    except WrongValueError as error:
        raise BundleFormatError(f"{MANIFEST}: {error}") from error


def schema_version_of(graphs: Mapping[str, GraphSpec]) -> str:
    """Return the version that a manifest with these graphs states: the lowest one whose readers know them."""
    uint8 = any(tensor.dtype == "uint8" for graph in graphs.values() for tensor in graph.inputs)
    return UINT8_VERSION if uint8 else SCHEMA_VERSION


def manifest_to_dict(manifest: Manifest) -> dict[str, Any]:
    """Return the plain values that go into manifest.json."""
    return {
        "schema_version": manifest.schema_version,
        "bundle_id": manifest.bundle_id,
        "precision": manifest.precision,
        "files": {name: {"sha256": f.sha256, "size": f.size} for name, f in manifest.files.items()},
        "graphs": {
            name: {
                "file": graph.file,
                "inputs": [tensor_to_dict(t) for t in graph.inputs],
                "outputs": [tensor_to_dict(t) for t in graph.outputs],
            }
            for name, graph in manifest.graphs.items()
        },
        "preprocess": manifest.preprocess.to_dict(),
        "tokenizer": {
            "type": manifest.tokenizer.type,
            "merges": manifest.tokenizer.merges,
            "context_length": manifest.tokenizer.context_length,
            "vocab_size": manifest.tokenizer.vocab_size,
            "start_token": manifest.tokenizer.start_token,
            "end_token": manifest.tokenizer.end_token,
        },
        "embedding": {"dim": manifest.dim},
        "provenance": dict(manifest.provenance),
        "parity": None if manifest.parity is None else dict(manifest.parity),
    }


def bundle_id_of(manifest: Manifest | Mapping[str, Any]) -> str:
    """Return the id that a manifest, or its plain values, must carry.

    SHA-256 (hex) of the canonical JSON (keys sorted, no spaces, ASCII) of everything but ``bundle_id`` and ``parity``:
    measuring a bundle again doesn't make it another one.
    """
    values = manifest_to_dict(manifest) if isinstance(manifest, Manifest) else manifest
    kept = {key: value for key, value in values.items() if key not in ("bundle_id", "parity")}
    canonical = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def manifest_values_from_json(text: bytes) -> Any:
    """Parse JSON that keeps to the letter, as `dra_runtime.strict_json` states it.

    Raises
    ------
    BundleFormatError
        It doesn't.
    """
    try:
        return values_from_json(text)
    except ValueError as error:
        raise BundleFormatError(f"{MANIFEST} is no JSON ({error}); export the bundle again") from error


def _manifest(values: Any) -> Manifest:
    top = keys_of(
        values,
        "the manifest",
        "schema_version bundle_id precision files graphs preprocess tokenizer embedding provenance parity",
    )
    version = text_of(top["schema_version"], "schema_version", _VERSION, "a version such as '1.0'")
    if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise wrong("schema_version", version, f"{SCHEMA_VERSION}; install the toolkit that made the bundle")
    image_inputs = IMAGE_INPUTS[: 1 if version == SCHEMA_VERSION else 2]
    files = _mapping(top["files"], "files", _file_entry, FILE_NAME)
    if MANIFEST in files:
        raise wrong("files", MANIFEST, "other files; a manifest can't hold its own hash")
    if SELFTEST not in files:
        raise wrong("files", sorted(files), f"{SELFTEST} among them")
    if (total := sum(entry.size for entry in files.values())) > MAX_FILES:
        raise wrong("files", f"{total} bytes in all", f"at most {MAX_FILES}")
    preprocess = _preprocess(top["preprocess"])
    tokenizer = _tokenizer(top["tokenizer"], files)
    dim = whole_of(keys_of(top["embedding"], "embedding", "dim")["dim"], "embedding.dim", 1, 65_536)
    return Manifest(
        schema_version=version,
        bundle_id=text_of(top["bundle_id"], "bundle_id", _SHA256, "64 hexadecimal digits"),
        precision=one_of(top["precision"], "precision", PRECISIONS),
        files=files,
        graphs=_graphs(top["graphs"], files, preprocess.image_size, dim, image_inputs),
        preprocess=preprocess,
        tokenizer=tokenizer,
        dim=dim,
        provenance=_plain_mapping(top["provenance"], "provenance"),
        parity=None if top["parity"] is None else _plain_mapping(top["parity"], "parity"),
    )


def _graphs(
    values: Any, files: Mapping[str, FileEntry], image_size: int, dim: int, image_inputs: tuple[str, ...]
) -> dict[str, GraphSpec]:
    known = (*REQUIRED_GRAPHS, *OPTIONAL_GRAPHS)
    values = object_of(values, "graphs")
    if missing := [name for name in REQUIRED_GRAPHS if name not in values]:
        raise wrong("graphs", sorted(values), f"{', '.join(missing)} as well")
    if unknown := [name for name in values if name not in known]:
        raise wrong("graphs", unknown[0], f"only {', '.join(known)}")
    sizes: dict[str, int] = {"3": 3, "S": image_size, "D": dim}  # and T, once the image encoder has told it
    graphs: dict[str, GraphSpec] = {}
    for name in known:
        if name in values:
            graphs[name] = _graph(values[name], name, files, sizes, image_inputs)
            if name == "image_encoder":  # the query takes the same pixels
                image_inputs = (graphs[name].inputs[0].dtype,)
    if "reranker" in graphs and len(graphs["image_encoder"].outputs) != 2:
        raise wrong("graphs.image_encoder.outputs", ["image_features"], "image_tokens too, since there is a reranker")
    return graphs


def _graph(
    values: Any, name: str, files: Mapping[str, FileEntry], sizes: dict[str, int], image_inputs: tuple[str, ...]
) -> GraphSpec:
    place = f"graphs.{name}"
    graph = keys_of(values, place, "file inputs outputs")
    inputs, outputs = _SIGNATURES[name]
    if name == "image_encoder" and isinstance(graph["outputs"], list) and len(graph["outputs"]) == 1:
        outputs = outputs[:1]  # a model without TAC has no image tokens
    symbols: dict[str, str] = {}
    types = {"image": image_inputs}
    return GraphSpec(
        file=_onnx_file(graph["file"], f"{place}.file", files),
        inputs=_tensors(graph["inputs"], f"{place}.inputs", inputs, types, sizes, symbols),
        outputs=_tensors(graph["outputs"], f"{place}.outputs", outputs, types, sizes, symbols),
    )


def _tensors(
    values: Any,
    place: str,
    signature: Sequence[tuple[str, str, str]],
    types: Mapping[str, tuple[str, ...]],
    sizes: dict[str, int],
    symbols: dict[str, str],
) -> tuple[TensorSpec, ...]:
    if not isinstance(values, list) or len(values) != len(signature):
        raise wrong(place, values, f"a list of {', '.join(name for name, _, _ in signature)}")
    tensors = []
    for number, (value, (name, dtype, dims)) in enumerate(zip(values, signature, strict=True)):
        here = f"{place}[{number}]"
        tensor = keys_of(value, here, "name dtype shape")
        one_of(tensor["name"], f"{here}.name", (name,))
        dtype = one_of(tensor["dtype"], f"{here}.dtype", types.get(dtype, (dtype,)))
        shape, wanted = tensor["shape"], dims.split()
        if not isinstance(shape, list) or len(shape) != len(wanted):
            raise wrong(f"{here}.shape", shape, f"{len(wanted)} dimensions: {', '.join(wanted)}")
        for size, dim in zip(shape, wanted, strict=True):
            _dimension(size, dim, f"{here}.shape", sizes, symbols)
        tensors.append(TensorSpec(name, dtype, tuple(shape)))
    return tuple(tensors)


def _dimension(size: Any, dim: str, place: str, sizes: dict[str, int], symbols: dict[str, str]) -> None:
    if dim in ("batch", "length"):
        text_of(size, place, _SYMBOL, f"a symbol's name for the free dimension {dim}, such as {dim!r}")
        if symbols.setdefault(dim, size) != size or len(set(symbols.values())) != len(symbols):
            raise wrong(place, size, f"one symbol for {dim} throughout the graph, and no other dimension's")
    elif dim == "T" and type(size) is int and size * sizes["D"] > MAX_TOKEN_VALUES:
        raise wrong(place, size, f"at most {MAX_TOKEN_VALUES // sizes['D']} image tokens of {sizes['D']} values")
    elif type(size) is not int or size < 1 or sizes.setdefault(dim, size) != size:
        raise wrong(place, size, str(sizes[dim]) if dim in sizes and sizes[dim] != size else "a number above 0")


def _preprocess(values: Any) -> Preprocess:
    values = keys_of(values, "preprocess", "image_size pad_ratio interpolation mean std")
    for name in ("mean", "std"):
        if not isinstance(values[name], list):
            raise wrong(f"preprocess.{name}", values[name], "a list of three numbers")
    whole_of(values["image_size"], "preprocess.image_size", 1, MAX_IMAGE_SIZE)
    try:
        return Preprocess.from_dict(values)
    except UsageError as error:
        raise WrongValueError(f"preprocess: {error}") from error


def _tokenizer(values: Any, files: Mapping[str, FileEntry]) -> TokenizerSpec:
    values = keys_of(values, "tokenizer", "type merges context_length vocab_size start_token end_token")
    vocab_size = whole_of(values["vocab_size"], "tokenizer.vocab_size", 514, 514 + MAX_MERGES)
    return TokenizerSpec(
        type=one_of(values["type"], "tokenizer.type", ("clip_bpe",)),
        merges=_named_file(values["merges"], "tokenizer.merges", files),
        context_length=whole_of(values["context_length"], "tokenizer.context_length", 2, 65_536),
        vocab_size=vocab_size,
        start_token=whole_of(values["start_token"], "tokenizer.start_token", 0, vocab_size - 1),
        end_token=whole_of(values["end_token"], "tokenizer.end_token", 0, vocab_size - 1),
    )


def _file_entry(values: Any, place: str) -> FileEntry:
    values = keys_of(values, place, "sha256 size")
    return FileEntry(
        sha256=text_of(values["sha256"], f"{place}.sha256", _SHA256, "64 hexadecimal digits"),
        size=whole_of(values["size"], f"{place}.size", 0, MAX_FILE),
    )


def _named_file(value: Any, place: str, files: Mapping[str, FileEntry]) -> str:
    name = text_of(value, place, FILE_NAME, "a plain file name")
    if name not in files:
        raise wrong(place, name, "a name that stands in files")
    return name


def _onnx_file(value: Any, place: str, files: Mapping[str, FileEntry]) -> str:
    name = _named_file(value, place, files)
    if not name.endswith(".onnx"):  # ONNX Runtime would read other formats by their suffix
        raise wrong(place, name, "a name that ends in .onnx")
    return name


def tensor_to_dict(tensor: TensorSpec) -> dict[str, Any]:
    """Return the plain values of a tensor, as they stand in a manifest and in an engine's sidecar."""
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}


def _mapping(
    values: Any, place: str, parse: Callable[[Any, str], Parsed], pattern: re.Pattern[str]
) -> dict[str, Parsed]:
    values = object_of(values, place)
    for name in values:
        text_of(name, place, pattern, "plain file names (letters, digits, '.', '_', '-'; no path)")
    return {name: parse(value, f"{place}.{name}") for name, value in values.items()}


def _plain_mapping(values: Any, place: str) -> dict[str, Any]:
    checked = object_of(values, place)
    try:
        plain = _is_plain(checked)
    except RecursionError:
        plain = False
    if not plain:
        raise wrong(place, checked, "plain JSON values: texts, finite numbers, true, false, null, lists, objects")
    return checked


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | int)
