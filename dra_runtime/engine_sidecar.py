"""What is known of an engine: the values of NAME.plan.json, parsed strictly into frozen dataclasses.

`docs/engines.md` is the format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dra_runtime.engine_host import LIBRARIES
from dra_runtime.errors import EngineFormatError
from dra_runtime.json_checks import (
    WrongValueError,
    flag_of,
    keys_of,
    list_of,
    object_of,
    one_of,
    text_of,
    whole_of,
    wrong,
)
from dra_runtime.manifest import FILE_NAME, OPTIONAL_GRAPHS, REQUIRED_GRAPHS, TensorSpec, tensor_to_dict
from dra_runtime.strict_json import values_from_json

FORMAT, VERSION = "dra-engine", 1
PRECISIONS = ("fp32", "fp16")
MAX_SIDECAR = 4 * 2**20  #: bytes

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LIBRARY_VERSION = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){1,4}[A-Za-z0-9.+-]{0,32}")
_CAPABILITY = re.compile(r"[0-9]{1,3}\.[0-9]")
_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_LINE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{1,1024}")  # these steer terminals, or end a line

Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  #: an input's smallest, usual and largest shape
Profile = Mapping[str, Range]  #: one optimization profile: a range for every input


@dataclass(frozen=True)
class Island:
    """Layers of one type that stay float32 for one reason."""

    op: str
    reason: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Inspected:
    """Layers of the built engine by the type of their results, as the engine inspector tells it on a GPU."""

    half: int
    single: int
    other: int


@dataclass(frozen=True)
class Proof:
    """What the parsed network computes in; ``inspected`` is None where no GPU was there to open the engine.

    Tensors are what layers compute: constants, casts and reshapes don't count. Products are the results of
    convolutions and matrix products, where the time goes.
    """

    half_tensors: int
    float_tensors: int
    half_products: int
    float_products: int
    islands: tuple[Island, ...] = ()
    inspected: Inspected | None = None

    @property
    def half_share(self) -> float:
        """Return the share of half tensors among the floating-point ones, 0 to 1."""
        return round(self.half_tensors / max(1, self.half_tensors + self.float_tensors), 4)


@dataclass(frozen=True)
class Target:
    """Where an engine runs.

    ``compute_capabilities`` were named when it was built; empty for a TensorRT-RTX engine that runs on all from 8.0.
    ``gpu`` is the one that it was built on, where the library builds for a GPU at hand.
    """

    platform: str
    compute_capabilities: tuple[str, ...]
    gpu: str | None
    hardware_compatible: bool = False
    version_compatible: bool = False


@dataclass(frozen=True)
class BuildOptions:
    """The options that rebuild the engine: batch sizes, workspace in bytes (None: the library's own limit)."""

    min_batch: int
    opt_batch: int
    max_batch: int
    workspace: int | None = None


@dataclass(frozen=True)
class EngineSidecar:
    """Everything that is known of a plan."""

    graph: str
    bundle_id: str
    onnx_sha256: str
    plan: str  #: file name
    plan_sha256: str
    plan_size: int  #: bytes
    library: str
    library_version: str
    target: Target
    precision: str
    proof: Proof
    profiles: tuple[Profile, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    build: BuildOptions
    versions: Mapping[str, str]  #: of the libraries that built it


def sidecar_from_json(text: bytes) -> EngineSidecar:
    """Parse a sidecar's text; it must keep every rule of docs/engines.md, or EngineFormatError names the place."""
    if len(text) > MAX_SIDECAR:
        raise EngineFormatError(f"more than {MAX_SIDECAR} bytes; a sidecar is shorter")
    try:
        values = values_from_json(text)
    except ValueError as error:
        raise EngineFormatError(f"no JSON ({error})") from error
    try:
        return _sidecar(values)
    except WrongValueError as error:
        raise EngineFormatError(str(error)) from error


def sidecar_to_dict(sidecar: EngineSidecar) -> dict[str, Any]:
    """Return the plain values that go into NAME.plan.json."""
    target, proof, build = sidecar.target, sidecar.proof, sidecar.build
    inspected = proof.inspected
    return {
        "format": FORMAT,
        "version": VERSION,
        "graph": sidecar.graph,
        "bundle_id": sidecar.bundle_id,
        "onnx_sha256": sidecar.onnx_sha256,
        "plan": {"file": sidecar.plan, "sha256": sidecar.plan_sha256, "size": sidecar.plan_size},
        "library": sidecar.library,
        "library_version": sidecar.library_version,
        "target": {
            "platform": target.platform,
            "compute_capabilities": list(target.compute_capabilities),
            "gpu": target.gpu,
            "hardware_compatible": target.hardware_compatible,
            "version_compatible": target.version_compatible,
        },
        "precision": sidecar.precision,
        "proof": {
            "half_share": proof.half_share,
            "half_tensors": proof.half_tensors,
            "float_tensors": proof.float_tensors,
            "half_products": proof.half_products,
            "float_products": proof.float_products,
            "islands": [{"op": i.op, "reason": i.reason, "layers": list(i.layers)} for i in proof.islands],
            "inspected": None
            if inspected is None
            else {"half": inspected.half, "single": inspected.single, "other": inspected.other},
        },
        "profiles": [
            {name: dict(zip(("min", "opt", "max"), map(list, shapes), strict=True)) for name, shapes in profile.items()}
            for profile in sidecar.profiles
        ],
        "inputs": [tensor_to_dict(tensor) for tensor in sidecar.inputs],
        "outputs": [tensor_to_dict(tensor) for tensor in sidecar.outputs],
        "build": {
            "min_batch": build.min_batch,
            "opt_batch": build.opt_batch,
            "max_batch": build.max_batch,
            "workspace": build.workspace,
        },
        "versions": dict(sidecar.versions),
    }


def _sidecar(values: Any) -> EngineSidecar:
    top = keys_of(
        values,
        "the sidecar",
        "format version graph bundle_id onnx_sha256 plan library library_version target precision proof profiles "
        "inputs outputs build versions",
    )
    one_of(top["format"], "format", (FORMAT,))
    if top["version"] != VERSION or type(top["version"]) is not int:
        raise wrong("version", top["version"], f"{VERSION}; install the toolkit that built the engine")
    plan = keys_of(top["plan"], "plan", "file sha256 size")
    inputs = _tensors(top["inputs"], "inputs")
    return EngineSidecar(
        graph=one_of(top["graph"], "graph", (*REQUIRED_GRAPHS, *OPTIONAL_GRAPHS)),
        bundle_id=text_of(top["bundle_id"], "bundle_id", _SHA256, "64 hexadecimal digits"),
        onnx_sha256=text_of(top["onnx_sha256"], "onnx_sha256", _SHA256, "64 hexadecimal digits"),
        plan=text_of(plan["file"], "plan.file", FILE_NAME, "a plain file name"),
        plan_sha256=text_of(plan["sha256"], "plan.sha256", _SHA256, "64 hexadecimal digits"),
        plan_size=whole_of(plan["size"], "plan.size", 1, 2**53),
        library=one_of(top["library"], "library", LIBRARIES),
        library_version=text_of(
            top["library_version"], "library_version", _LIBRARY_VERSION, "a version such as 10.13.0"
        ),
        target=_target(top["target"]),
        precision=one_of(top["precision"], "precision", PRECISIONS),
        proof=_proof(top["proof"]),
        profiles=_profiles(top["profiles"], inputs),
        inputs=inputs,
        outputs=_outputs(top["outputs"], inputs),
        build=_build(top["build"]),
        versions=_versions(top["versions"]),
    )


def _target(values: Any) -> Target:
    target = keys_of(values, "target", "platform compute_capabilities gpu hardware_compatible version_compatible")
    return Target(
        platform=text_of(target["platform"], "target.platform", _LINE, "a platform such as linux-x86_64"),
        compute_capabilities=tuple(
            text_of(value, "target.compute_capabilities", _CAPABILITY, "compute capabilities such as '8.9'")
            for value in list_of(target["compute_capabilities"], "target.compute_capabilities")
        ),
        gpu=None if target["gpu"] is None else text_of(target["gpu"], "target.gpu", _LINE, "a GPU's name or null"),
        hardware_compatible=flag_of(target["hardware_compatible"], "target.hardware_compatible"),
        version_compatible=flag_of(target["version_compatible"], "target.version_compatible"),
    )


def _proof(values: Any) -> Proof:
    counted = "half_tensors float_tensors half_products float_products"
    proof = keys_of(values, "proof", f"half_share {counted} islands inspected")
    counts = {name: whole_of(proof[name], f"proof.{name}", 0, 2**31) for name in counted.split()}
    islands = []
    for number, value in enumerate(list_of(proof["islands"], "proof.islands")):
        place = f"proof.islands[{number}]"
        island = keys_of(value, place, "op reason layers")
        layers = tuple(text_of(name, place, _LINE, "layers' names") for name in list_of(island["layers"], place))
        op = text_of(island["op"], place, _LINE, "a layer's type")
        islands.append(Island(op, text_of(island["reason"], place, _LINE, "a reason"), layers))
    inspected = None
    if proof["inspected"] is not None:
        kinds = keys_of(proof["inspected"], "proof.inspected", "half single other")
        inspected = Inspected(**{k: whole_of(v, f"proof.inspected.{k}", 0, 2**31) for k, v in kinds.items()})
    parsed = Proof(**counts, islands=tuple(islands), inspected=inspected)
    if type(proof["half_share"]) not in (int, float) or proof["half_share"] != parsed.half_share:
        raise wrong("proof.half_share", proof["half_share"], f"{parsed.half_share}, what the counts beside it give")
    return parsed


def _profiles(values: Any, inputs: tuple[TensorSpec, ...]) -> tuple[Profile, ...]:
    profiles = []
    for number, value in enumerate(list_of(values, "profiles")):
        place = f"profiles[{number}]"
        shapes = keys_of(value, place, " ".join(tensor.name for tensor in inputs))
        profiles.append(
            {tensor.name: _range(shapes[tensor.name], f"{place}.{tensor.name}", tensor) for tensor in inputs}
        )
    if not profiles:
        raise wrong("profiles", [], "at least one")
    return tuple(profiles)


def _range(values: Any, place: str, tensor: TensorSpec) -> Range:
    ends = keys_of(values, place, "min opt max")
    least, usual, most = (
        tuple(whole_of(size, f"{place}.{end}", 1, 2**31) for size in list_of(ends[end], place))
        for end in ("min", "opt", "max")
    )
    fits = len(least) == len(usual) == len(most) == len(tensor.shape) and all(
        a <= b <= c and (isinstance(size, str) or a == c == size)
        for a, b, c, size in zip(least, usual, most, tensor.shape, strict=True)
    )
    if not fits:
        raise wrong(place, values, f"rising shapes of {tensor.name}, {list(tensor.shape)}")
    return least, usual, most


def _tensors(values: Any, place: str) -> tuple[TensorSpec, ...]:
    tensors = []
    for number, value in enumerate(list_of(values, place)):
        here = f"{place}[{number}]"
        tensor = keys_of(value, here, "name dtype shape")
        shape = tuple(
            text_of(size, f"{here}.shape", _SYMBOL, "numbers and symbols")
            if isinstance(size, str)
            else whole_of(size, f"{here}.shape", 1, 2**31)
            for size in list_of(tensor["shape"], f"{here}.shape")
        )
        if not shape:
            raise wrong(f"{here}.shape", [], "at least the dimension of the batch")
        name = text_of(tensor["name"], f"{here}.name", _SYMBOL, "a name")
        tensors.append(TensorSpec(name, one_of(tensor["dtype"], f"{here}.dtype", ("float32", "int32", "uint8")), shape))
    if not tensors or len({tensor.name for tensor in tensors}) != len(tensors):
        raise wrong(place, [tensor.name for tensor in tensors], "at least one tensor, and each name once")
    return tuple(tensors)


def _outputs(values: Any, inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Parse the outputs, whose sizes the inputs must tell: buffers are made by them before anything runs."""
    outputs = _tensors(values, "outputs")
    names = {tensor.name for tensor in inputs}
    symbols = {size for tensor in inputs for size in tensor.shape if isinstance(size, str)}
    for tensor in outputs:
        if tensor.name in names:
            raise wrong("outputs", tensor.name, "names that no input has")
        if not {size for size in tensor.shape if isinstance(size, str)} <= symbols:
            raise wrong("outputs", list(tensor.shape), f"numbers and the inputs' {', '.join(sorted(symbols))}")
    return outputs


def _build(values: Any) -> BuildOptions:
    build = keys_of(values, "build", "min_batch opt_batch max_batch workspace")
    least, usual, most = (
        whole_of(build[name], f"build.{name}", 1, 2**20) for name in ("min_batch", "opt_batch", "max_batch")
    )
    if not least <= usual <= most:
        raise wrong("build", [least, usual, most], "min_batch, opt_batch and max_batch in rising order")
    space = build["workspace"]
    return BuildOptions(least, usual, most, None if space is None else whole_of(space, "build.workspace", 1, 2**53))


def _versions(values: Any) -> dict[str, str]:
    return {
        text_of(name, "versions", _LINE, "names"): text_of(value, f"versions.{name}", _LINE, "a version")
        for name, value in object_of(values, "versions").items()
    }
