"""Whether two results can be compared at all: what differs between their machines, programs and models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dra_bench.environment import BUSY
from dra_runtime.errors import UsageError

MACHINE = ("cpu", "cpu_capability", "cores", "usable_cores", "threads", "gpu", "os")
PROGRAMS = ("python", "torch", "onnxruntime", "open_clip", "numpy", "openvino", "tensorrt", "tensorrt_rtx", "cuda")
PROGRAMS_OF_OURS = ("dra_toolkit",)


def machine_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Say in which of `MACHINE` two environments differ."""
    return _differences(a, b, MACHINE)


def warnings(kind: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Return a line for everything that makes a comparison of two results doubtful, by name.

    UsageError when they are about different models: of recalls, another checkpoint is one; speeds don't depend on
    weights, so there another backbone is.
    """
    first, second = environment_of(a), environment_of(b)
    key = "checkpoint_sha256" if kind == "recall" else "backbone"
    if first.get(key) != second.get(key):
        shown = [str(e.get(key) or "none")[:12] for e in (first, second)]
        raise UsageError(
            f"the results are about different models ({key} {shown[0]} and {shown[1]}); compare two results of one"
        )
    return [*_warnings(a, b, first, second)]


def environment_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result's environment with the model's identities, wherever the command wrote them."""
    ids = {key: result[key] for key in ("backbone", "checkpoint_sha256", "bundle_id") if key in result}
    return {**ids, **result.get("environment", {})}


def _warnings(
    a: Mapping[str, Any], b: Mapping[str, Any], first: Mapping[str, Any], second: Mapping[str, Any]
) -> Iterator[str]:
    if machine := machine_differences(first, second):
        yield f"another machine or setting: {'; '.join(machine)}: neither times nor ratios carry over"
    if programs := _differences(first, second, (*PROGRAMS, *PROGRAMS_OF_OURS)):
        yield f"other versions: {'; '.join(programs)}"
    if first.get("checkpoint_sha256") != second.get("checkpoint_sha256"):
        yield "another checkpoint, with other weights of the same backbone"
    else:
        yield from (f"{name} is another bundle than before" for name in _other_bundles(a, b))
    if a.get("text") != b.get("text"):
        yield f"another text: {a.get('text')!r} and {b.get('text')!r}"
    for name, result in (("first", a), ("second", b)):
        others = environment_of(result).get("used_by_others_percent") or 0
        if others > BUSY:
            yield f"other programs used {others:.0f} % of the CPUs during the {name} run: don't quote it"
        if result.get("warmup", {}).get("steady") is False:
            yield f"the {name} run hadn't settled after its warm-up"


def _differences(a: Mapping[str, Any], b: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    return [f"{key} {a.get(key)!r} and {b.get(key)!r}" for key in keys if a.get(key) != b.get(key)]


def _other_bundles(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    before, after = (_bundles(result) for result in (a, b))
    return [name for name in before if name in after and before[name] != after[name]]


def _bundles(result: Mapping[str, Any]) -> dict[str, str]:
    entries = [*result.get("bundles", ()), *result.get("artifacts", ())]
    return {e.get("artifact") or e["backend"]: e["bundle_id"] for e in entries if "bundle_id" in e}
