"""Bundles in half precision made from float32 ones, in a second: what the tests of engines start from."""

import hashlib
import json
import shutil
from pathlib import Path

import onnx

from dra_export.graphs import graphs_of
from dra_export.half.convert import first_islands, group_islands, half_from_float
from dra_export.onnx_from_model import write_query_onnx
from dra_runtime.bundle import bundle_id_of
from dra_train.checkpoint import load_checkpoint


def make_half_bundle(source: Path, checkpoint: Path, out: Path) -> None:
    """Convert a float32 bundle as `dra-export onnx --precision fp16` does, but for the measurements on real pairs."""
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("engines"))
    graphs = {graph.name: graph for graph in graphs_of(load_checkpoint(checkpoint).model)}
    paths = {name: out / f"{name}.onnx" for name in graphs}
    declared = {}
    for name in graphs:
        if name != "query":
            model = onnx.load(paths[name])
            islands = first_islands(model)
            onnx.save(half_from_float(model, islands), paths[name])
            declared[name] = {"islands": group_islands(islands)}
    write_query_onnx(paths, graphs["query"], paths["query"])
    sign(out, declared)


def sign(bundle: Path, declared: dict[str, object]) -> None:
    """Make a bundle's manifest say fp16, with these islands, and fit the files that lie there."""
    manifest = bundle / "manifest.json"
    values = json.loads(manifest.read_text(encoding="utf-8"))
    values["precision"] = "fp16"
    values["provenance"]["fp16"] = {"graphs": declared}
    for name in values["files"]:
        content = (bundle / name).read_bytes()
        values["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    values["bundle_id"] = bundle_id_of(values)
    manifest.write_text(json.dumps(values), encoding="utf-8")
