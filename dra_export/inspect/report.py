"""Lay out what `dra_export.inspect.artifact` found as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dra_runtime.console import table
from dra_runtime.gallery_index import IndexReport

Values = Mapping[str, Any]


def description(values: Values) -> str:
    """Lay out a result of `describe`: what it is in a line, then fact by fact, then tables."""
    layout = {"checkpoint": _checkpoint, "bundle": _bundle, "onnx": _onnx, "plan": _plan, "gallery": _gallery}
    return layout[values["kind"]](values)


def size_of(count: float) -> str:
    """Write a number of bytes with a unit."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def _checkpoint(values: Values) -> str:
    facts = [
        ("model", _model(values["config"])),
        ("weights", f"{values['parameters'] / 1e6:.1f} M parameters, {', '.join(values['weights'])}"),
        ("made by", _made_by(values["provenance"])),
        ("sha256", values["sha256"][:12]),
        ("runs", f"in PyTorch; for ONNX: dra-export onnx {values['path']}"),
    ]
    return _facts(f"{values['path']}: a checkpoint, {size_of(values['size'])}", facts)


def _bundle(values: Values) -> str:
    provenance = values["provenance"]
    source = _mapping(provenance.get("checkpoint"))
    versions = ", ".join(f"{name} {version}" for name, version in _mapping(provenance.get("versions")).items())
    facts = [
        ("bundle_id", values["bundle_id"][:12]),
        ("model", _model(_mapping(provenance.get("model"))) + f"; vectors of {values['embedding']['dim']}"),
        (
            "made from",
            f"checkpoint {str(source.get('sha256', 'unknown'))[:12]} ({_made_by(_mapping(source.get('provenance')))})",
        ),
        ("made with", f"{versions}, opset {provenance.get('opset', 'unknown')}"),
        *_half(provenance),
        *_int8(provenance),
        ("parity", _parity(values["parity"], values["path"])),
        ("runs here", _runs(values["runs"], values["precision"])),
    ]
    parts = [_facts(f"{values['path']}: a bundle, {values['precision']}, {size_of(values['size'])}", facts)]
    rows = [
        [name, *(_tensors(graph[side]) for side in ("inputs", "outputs")), size_of(graph["size"])]
        for name, graph in values["graphs"].items()
    ]
    parts.append(table(["graph", "takes", "gives", "size"], rows))
    if values["engines"]:
        parts.append(_engines(values["engines"]))
    return "\n\n".join(parts)


def _onnx(values: Values) -> str:
    weights = ", ".join(
        f"{size_of(entry['bytes'])} {dtype} ({entry['tensors']} tensors)" for dtype, entry in values["weights"].items()
    )
    share = values["half_share"]
    precision = [f"{share:.0%} of the floating-point values are half" if share else "no half values"]
    if values["int8_products"]:
        precision.append(f"{values['int8_products']} of {values['products']} products take 8-bit numbers")
    computed = ", ".join(f"{count} {dtype}" for dtype, count in values["values"].items())
    most = list(values["operators"].items())[:8]
    more = len(values["operators"]) - len(most)
    around = values["bundle"]
    facts = [
        ("takes", _tensors(values["inputs"])),
        ("gives", _tensors(values["outputs"])),
        ("precision", "; ".join(precision)),
        ("computes", f"{computed} values in {values['nodes']} nodes"),
        (
            "operators",
            ", ".join(f"{name} {count}" for name, count in most) + (f" and {more} more kinds" if more > 0 else ""),
        ),
        ("weights", (weights or "none") + (", kept in other files" if values["weights_outside"] else "")),
        (
            "opset",
            ", ".join(f"{v}" if name == "ai.onnx" else f"{name} {v}" for name, v in values["opset"].items())
            + (f"; made by {values['producer']}" if values["producer"] else ""),
        ),
        (
            "bundle",
            f"{around['graph']} of the {around['precision']} bundle {around['bundle_id'][:12]}" if around else "",
        ),
        ("runs here", _runs(values["runs"], "fp16" if share else "")),
    ]
    return _facts(f"{values['path']}: an ONNX graph, {size_of(values['size'])}", facts)


def _plan(values: Values) -> str:
    sidecar, proof = values["sidecar"], values["sidecar"]["proof"]
    islands: dict[str, int] = {}
    for island in proof["islands"]:
        islands[island["reason"]] = islands.get(island["reason"], 0) + len(island["layers"])
    profiles = "; ".join(
        ", ".join(f"{name} {'x'.join(map(str, r['min']))} to {'x'.join(map(str, r['max']))}" for name, r in p.items())
        for p in sidecar["profiles"]
    )
    inspected = proof["inspected"]
    facts = [
        ("engine of", f"{sidecar['graph']} of bundle {sidecar['bundle_id'][:12]}"),
        ("built with", f"{sidecar['library']} {sidecar['library_version']}"),
        ("precision", f"{sidecar['precision']}: {proof['half_share']:.0%} of the floating-point tensors are half"),
        ("float32", "; ".join(f"{reason} ({count} layers)" for reason, count in islands.items())),
        (
            "inspector",
            f"{inspected['half']} half, {inspected['single']} float32, {inspected['other']} other layers"
            if inspected
            else "not asked: no GPU was there when it was built",
        ),
        ("takes", _tensors(sidecar["inputs"])),
        ("gives", _tensors(sidecar["outputs"])),
        ("profiles", profiles),
        ("runs on", values["runs_on"]),
        ("runs here", "yes" if values["runs_here"] else f"no: {values['why_not']}"),
        ("rebuild", values["rebuild"]),
    ]
    return _facts(f"{values['path']}: a TensorRT engine, {size_of(values['size'])}", facts)


def _gallery(values: Values) -> str:
    found = {
        "there": "it is there",
        "another": "another bundle lies there now",
        "missing": "it isn't there now: pass the bundle with --bundle",
    }[values["bundle_found"]]
    # repr: an id may hold anything, terminal commands too
    ids = ", ".join(f"{name!r:.40}" for name in values["ids"])
    facts = [
        ("images", f"{values['images']}, vectors of {values['dim']} in {values['storage']}"),
        ("index", str(IndexReport(**values["index"])) if values["index"] else "none: every image is compared"),
        ("tokens", "kept, for re-ranking" if values["tokens"] else None),
        ("metadata", ", ".join(f"{key!r:.40}" for key in values["metadata"])),
        ("ids", f"{ids}{', …' if values['images'] > len(values['ids']) else ''}"),
        ("made with", f"bundle {values['bundle_id'][:12]} at {values['bundle']}: {found}"),
    ]
    return _facts(f"{values['path']}: a gallery, {size_of(values['size'])}", facts)


def _facts(title: str, facts: Iterable[tuple[str, str | None]]) -> str:
    said = [(name, text) for name, text in facts if text]
    width = max(len(name) for name, _ in said)
    return "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in said)])


def _model(config: Values) -> str:
    clip = _mapping(config.get("clip"))
    vision, text = _mapping(clip.get("vision_cfg")), _mapping(clip.get("text_cfg"))
    image = vision.get("timm_model_name") or ("ViT" if isinstance(vision.get("layers"), int) else "ResNet")
    side = _mapping(config.get("preprocess")).get("image_size", "?")
    layers = config.get("tac_layers")
    return ", ".join(
        [
            f"{config.get('backbone') or 'unnamed'}: {image} at {side} px",
            f"text tower of {text.get('layers', '?')} layers",
            f"compositor {config.get('compositor', 'combiner')}",
            f"TAC of {layers} layers" if layers else "no TAC",
        ]
    )


def _made_by(provenance: Values) -> str:
    chosen = _mapping(provenance.get("chosen"))
    words = [
        str(provenance.get("made_by", "unknown")),
        " / ".join(str(provenance[key]) for key in ("dataset", "split") if provenance.get(key)),
        f"seed {provenance['seed']}" if "seed" in provenance else "",
        f"{chosen['stage']}, epoch {chosen.get('epoch')}" if chosen.get("stage") else "",
    ]
    return ", ".join(word for word in words if word)


def _half(provenance: Values) -> list[tuple[str, str]]:
    graphs = _mapping(_mapping(provenance.get("fp16")).get("graphs"))
    lines = []
    for name, graph in graphs.items():
        islands = [i for i in graph.get("islands", ()) if isinstance(i, Mapping)]
        float32 = ", ".join(f"{i.get('reason')} ({len(i.get('nodes', ()))})" for i in islands)
        headroom = _mapping(graph.get("headroom"))
        lines.append(
            (f"{name} {graph['half_share']:.0%} half" if "half_share" in graph else name)
            + (f", headroom {headroom['times']:.0f} times" if isinstance(headroom.get("times"), int | float) else "")
            + (f"; float32: {float32}" if float32 else "")
        )
    return [("precision" if i == 0 else "", line) for i, line in enumerate(lines)]


def _int8(provenance: Values) -> list[tuple[str, str]]:
    made = _mapping(provenance.get("int8"))
    if "max_recall_loss" not in made:
        return []
    kept = ", ".join(map(str, made.get("kept", ()))) or "parts"
    return [("precision", f"{kept} in INT8, made to lose at most {made['max_recall_loss']:g} points of recall")]


def _parity(parity: Values | None, path: str) -> str:
    if parity is None:
        return f"not measured: dra-export verify {path} --checkpoint CHECKPOINT"
    graphs = _mapping(parity.get("graphs"))
    smallest = min((g["min_cosine"] for g in graphs.values() if "min_cosine" in g), default=None)
    words = ["passed" if parity.get("passed") else "FOUND WANTING"]
    words.append(f"{parity.get('queries')} queries of {parity.get('dataset')} / {parity.get('split')}")
    if smallest is not None:
        words.append(f"smallest cosine {smallest:.6f}")
    if recall := _mapping(parity.get("recall")):
        first = next(iter(recall["reference"]))
        words.append(f"{first} {recall['candidate'][first]:.2f} %, PyTorch {recall['reference'][first]:.2f} %")
    missed = [line for run in (parity, *parity.get("variants", ())) for line in run.get("missed", ())]
    return ", ".join(words) + "".join(f"\n    {line}" for line in missed)


def _runs(backends: Mapping[str, str | None], precision: str) -> str:
    words = [
        f"{name} {version}" if version else f"no: {name} isn't installed; pip install 'dra-toolkit[cpu]'"
        for name, version in backends.items()
    ]
    if precision == "fp16" and any(backends.values()):
        words.append("which computes half graphs in float32: smaller, not faster; half pays in an engine")
    return ", ".join(words)


def _tensors(tensors: Sequence[Values]) -> str:
    """Write names and shapes, and types other than float32."""
    return "; ".join(
        f"{t['name']}{'' if t['dtype'] == 'float32' else ' ' + t['dtype']} ({', '.join(map(str, t['shape']))})"
        for t in tensors
    )


def _engines(engines: Sequence[Values]) -> str:
    rows, reasons = [], {}
    for engine in engines:
        rows.append([engine["name"], engine["runs_on"], "yes" if engine["runs_here"] else "no"])
        folder, _, plan = engine["name"].rpartition("/")
        # the plans of a folder mostly lack the same, and one command rebuilds them all
        if engine["why_not"]:
            reason = engine["why_not"].replace(f"--graph {plan.removesuffix('.plan')} ", "")
            reasons[f"{folder} not here: {reason}"] = True
    return "\n\n".join([table(["engine", "for", "runs here"], rows), *reasons])


def _mapping(value: Any) -> Values:
    return value if isinstance(value, Mapping) else {}
