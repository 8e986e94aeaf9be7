"""Compare the opsets that graphs can be exported at: latency in ONNX Runtime, and what TensorRT-RTX makes of them.

python scripts/compare_opsets.py MACHINE CHECKPOINT

exports CHECKPOINT's image and text encoder and a timm ViT's image encoder at every opset, runs all of them in turn in
one process and one thread, builds each as a strongly typed engine in float32 and half, and writes
benchmarks/results/MACHINE/opsets.json. One to three minutes on two cores.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dra_bench.environment import environment
from dra_export.engine.build import EngineOptions, engine_from_onnx, profiles_of
from dra_export.engine.tensorrt_api import Settings, load_library
from dra_export.graphs import Graph, graphs_of
from dra_export.half.convert import first_islands, half_from_float
from dra_export.onnx_from_model import OPSET, shape_of, write_onnx
from dra_export.onnx_save import save_onnx
from dra_runtime.backends.onnxruntime_cpu import open_onnxruntime_cpu
from dra_runtime.console import table, track
from dra_runtime.engine_host import TENSORRT_RTX, this_host
from dra_runtime.errors import DraError, EngineError
from dra_runtime.files import write_json
from dra_runtime.manifest import GraphSpec, TensorSpec
from dra_runtime.sessions import Session
from dra_train.backbones import model_config, untrained_model
from dra_train.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
OPSETS = (18, 19, 20, 21, 22, 23)
VIT = "timm/deit_tiny_patch16_224"
LENGTH = 12  #: tokens of a text of a few words
ROUNDS = 60
TARGET = "sm89"


def main(machine: str, checkpoint: Path) -> None:
    """Measure, print a table and write the JSON."""
    out = ROOT / "benchmarks" / "results" / machine / "opsets.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for model, graph in graphs_to_compare(checkpoint):
            paths = {opset: Path(folder) / f"{graph.name}-{opset}.onnx" for opset in OPSETS}
            for opset in track(OPSETS, f"{model} {graph.name}"):
                write_onnx(graph, paths[opset], opset=opset)
            times = interleaved(graph, paths)
            for opset, path in paths.items():
                results.append(
                    {
                        "model": model,
                        "graph": graph.name,
                        "opset": opset,
                        "nodes": len(onnx.load(str(path)).graph.node),
                        "latency_ms": quantiles(times[opset]),
                        "ratio_to_chosen": ratio(times[opset], times[OPSET]),
                        "tensorrt_rtx": {"fp32": built(path, half=False), "fp16": built(path, half=True)},
                    }
                )
    values = {
        "environment": environment(1, f"python scripts/compare_opsets.py {machine} {checkpoint.name}"),
        "chosen": OPSET,
        "batch": 1,
        "length": LENGTH,
        "rounds": ROUNDS,
        "target": TARGET,
        "results": results,
    }
    write_json(out, values)
    print(as_table(results))


def graphs_to_compare(checkpoint: Path) -> list[tuple[str, Graph]]:
    """Return the checkpoint's two encoders, and a ViT's image encoder."""
    own = load_checkpoint(checkpoint).model
    vit = untrained_model(model_config(VIT, tac_layers=0))
    compared = [(own.config.backbone, graph) for graph in graphs_of(own)[:2]]
    return [*compared, (VIT, graphs_of(vit)[0])]


def interleaved(graph: Graph, paths: dict[int, Path]) -> dict[int, list[float]]:
    """Return the seconds of each run, the opsets in turn: whatever disturbs the machine disturbs all alike."""
    sessions = {opset: opened(path) for opset, path in paths.items()}
    inputs = {name: value.numpy() for name, value in zip(graph.inputs, graph.example(1, LENGTH), strict=True)}
    seconds: dict[int, list[float]] = {opset: [] for opset in sessions}
    for turn in range(ROUNDS + 3):
        first = turn % len(OPSETS)  # whoever comes first in a round finds the caches as the last one left them
        for opset in OPSETS[first:] + OPSETS[:first]:
            start = time.perf_counter()
            sessions[opset].run(inputs)
            if turn >= 3:  # the first runs allocate
                seconds[opset].append(time.perf_counter() - start)
    return seconds


def opened(path: Path) -> Session:
    """Open a graph as the runtime does, in one thread."""
    return open_onnxruntime_cpu(path, spec_of(path), threads=1)


def spec_of(path: Path) -> GraphSpec:
    """Return a graph's inputs and outputs."""
    types = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT32: "int32"}
    graph = onnx.load(str(path)).graph
    inputs, outputs = (
        tuple(TensorSpec(v.name, types[v.type.tensor_type.elem_type], shape_of(v)) for v in values)
        for values in (graph.input, graph.output)
    )
    return GraphSpec(path.name, inputs, outputs)


def built(path: Path, half: bool) -> str:
    """Build a strongly typed engine and say what came out, or why none did."""
    try:
        library = load_library(TENSORRT_RTX, this_host())
        if half:
            model = onnx.load(str(path))
            model = half_from_float(model, first_islands(model))
            path = path.with_stem(f"{path.stem}-half")
            save_onnx(model, path)
        profiles = profiles_of(spec_of(path), EngineOptions(max_batch=8), 77)
        engine = engine_from_onnx(library, path, profiles, Settings((TARGET,)), half, None, lambda *_: None)
    except EngineError as error:
        return f"failed: {str(error).replace(str(path), path.name)[:200]}"
    except DraError as error:
        return f"not built: {str(error).replace(str(path), path.name)[:200]}"
    return f"built, {memoryview(engine.plan).nbytes / 1e6:.1f} MB"


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median and the tenth percentile in milliseconds."""
    return {name: round(1000 * float(np.percentile(seconds, q)), 4) for name, q in (("p50", 50), ("p10", 10))}


def ratio(seconds: Sequence[float], chosen: Sequence[float]) -> float:
    """Return the median ratio of two opsets' times, round by round."""
    return round(float(np.median(np.array(seconds) / np.array(chosen))), 4)


def as_table(results: Sequence[dict[str, Any]]) -> str:
    """Lay the results out, one row an opset of a graph."""
    rows = [
        [
            f"{r['model']} {r['graph']}",
            r["opset"],
            r["nodes"],
            f"{r['latency_ms']['p50']:.3f}",
            f"{r['ratio_to_chosen']:.3f}",
            *(r["tensorrt_rtx"][precision].partition(",")[0].partition(":")[0] for precision in ("fp32", "fp16")),
        ]
        for r in results
    ]
    return table(["graph", "opset", "nodes", "ms", "ratio", "RTX float32", "RTX half"], rows)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("give MACHINE and CHECKPOINT: python scripts/compare_opsets.py 2-core-amd-epyc ckpt.pt")
    main(sys.argv[1], Path(sys.argv[2]))
