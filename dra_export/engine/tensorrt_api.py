"""Everything in which building differs between tensorrt 10.13, tensorrt 11 and tensorrt_rtx.

Importing them, and opening plans, is `dra_runtime.backends.tensorrt_library`; nothing else of ours builds with them.

The three share one Python interface but for this:

- Strong typing: 10 asks for it with a flag, 11 and TensorRT-RTX always do it and ignore the flag. A flag for half
  precision is never set, and is gone in 11: the types stand in the graph.
- tensorrt times kernels on the GPU at hand and so needs one; its timing cache keeps what it measured. TensorRT-RTX
  compiles for named compute capabilities, or for all from 8.0, without a GPU. Its timing cache does nothing, and
  touching it makes the build ask for a GPU.
- tensorrt's plans can be made to open in newer versions and on other GPUs; those of TensorRT-RTX never open in another
  version. Setting the options for it there would be ignored, so they are refused (see `require_supported`).
- The engine inspector's text: 10 writes a tensor's type and layout as "Format/Datatype", 11 apart as "DataType" and
  "Format".
"""

from __future__ import annotations

import json
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dra_runtime.backends.tensorrt_library import (
    Library,
    engine_from_plan,
    first_error,
    import_library,
    quiet_logger,
)
from dra_runtime.engine_file import Inspected, Profile
from dra_runtime.engine_host import TENSORRT, TENSORRT_RTX, Host
from dra_runtime.errors import BackendError, EngineError, UsageError

_SLOW_PHASE = "Computing profile costs"  # where a build spends its time; the same name in all versions seen

Fraction = Callable[[float, str], None]  #: told how much of a build is done (0 to 1), and what it is doing


@dataclass(frozen=True)
class Layer:
    """A layer of a parsed network: its type, the ONNX node that it comes from, its results' types (lower case)."""

    name: str
    op: str
    node: str
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    """How to build: see `dra_export.engine.build.EngineOptions`.

    ``timing_cache`` holds what earlier builds measured.
    """

    targets: tuple[str, ...] = ()
    workspace: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: bytes = b""


@dataclass
class Network:
    """A parsed ONNX file. What the library needs to stay alive is kept beside the network."""

    library: Library
    network: Any
    builder: Any
    logger: Any
    keep: tuple[Any, ...] = field(default=(), repr=False)


def load_library(name: str | None, host: Host) -> Library:
    """Import a library by its backend's name; without a name the one that is installed and can build here.

    Raises
    ------
    BackendError
        It isn't installed, is too old, or needs a GPU that isn't here.
    """
    if name is None:
        # tensorrt's engines are measured on the GPU at hand; without one only TensorRT-RTX can build
        order = (TENSORRT, TENSORRT_RTX) if host.gpu else (TENSORRT_RTX, TENSORRT)
        name = next((candidate for candidate in order if candidate in host.libraries), None)
        if name is None:
            raise BackendError(
                f"neither {TENSORRT_RTX} nor {TENSORRT} is installed; engines need one: "
                f"pip install 'dra-toolkit[{TENSORRT_RTX}]' (builds without a GPU too) or 'dra-toolkit[{TENSORRT}]'"
            )
    library = import_library(name)
    if name == TENSORRT and host.gpu is None:
        raise BackendError(
            f"{TENSORRT} builds for the GPU at hand, and no CUDA GPU is here; use --backend {TENSORRT_RTX}, or run "
            "this on the machine that will serve"
        )
    return library


def require_supported(library: Library, settings: Settings) -> None:
    """Raise UsageError for options that a library doesn't have; ignoring them would promise what isn't so."""
    if library.name == TENSORRT_RTX:
        for given, option, instead in (
            (settings.version_compatible, "--version-compatible", "rebuild the engine for each version"),
            (settings.hardware_compatible, "--hardware-compatible", "leave --target out instead"),
        ):
            if given:
                raise UsageError(f"{TENSORRT_RTX} has no {option}; {instead}, or use --backend {TENSORRT}")
        known = compute_capabilities(library)
        for target in settings.targets:
            if target not in known:
                raise UsageError(f"--target has {target!r}; {TENSORRT_RTX} {library.version} knows {', '.join(known)}")
    elif settings.targets:
        raise UsageError(
            f"--target is for {TENSORRT_RTX}; {TENSORRT} builds for the GPU at hand, or with --hardware-compatible for "
            "all from compute capability 8.0"
        )


def compute_capabilities(library: Library) -> list[str]:
    """Return the targets that TensorRT-RTX can be given, such as sm89."""
    names = vars(library.module.ComputeCapability)
    return sorted((name.lower() for name in names if re.fullmatch(r"SM[0-9]+", name)), key=lambda name: int(name[2:]))


def network_from_onnx(library: Library, path: Path) -> Network:
    """Parse an ONNX file into a strongly typed network.

    Raises
    ------
    EngineError
        The parser refuses it.
    """
    trt = library.module
    logger = quiet_logger(trt)
    builder = trt.Builder(logger)
    if builder is None:
        raise EngineError(f"{library.name} can't make a builder ({first_error(logger)}); check the GPU's driver")
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strong is None else 1 << int(strong))
    parser = trt.OnnxParser(network, logger)
    if not _interruptible(lambda: parser.parse_from_file(str(path))):
        found = "; ".join(_line(parser.get_error(i).desc()) for i in range(min(2, parser.num_errors)))
        raise EngineError(f"{path}: {library.name} {library.version} can't read it ({found}); export the bundle again")
    return Network(library, network, builder, logger, (parser,))


def layers_of(network: Network) -> Iterator[Layer]:
    """List a network's layers."""
    definition = network.network
    for i in range(definition.num_layers):
        layer = definition.get_layer(i)
        found = re.search(r"\[ONNX Layer: (.*?)\]", layer.metadata or "")
        dtypes = tuple(layer.get_output(j).dtype.name.lower() for j in range(layer.num_outputs))
        yield Layer(layer.name, layer.type.name, found[1] if found else "", dtypes)


def inputs_of(network: Network) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return a network's inputs: type (``float`` or ``int32``) and shape, -1 where it is free."""
    definition = network.network
    tensors = (definition.get_input(i) for i in range(definition.num_inputs))
    return {tensor.name: (tensor.dtype.name.lower(), tuple(tensor.shape)) for tensor in tensors}


def plan_from_network(
    network: Network, profiles: tuple[Profile, ...], settings: Settings, told: Fraction
) -> tuple[Any, bytes]:
    """Build a plan; return it as a buffer, and the timing cache afterwards (empty where there is none).

    Ctrl-C ends the build at its next step, and is raised then.

    Raises
    ------
    EngineError
        The library couldn't build it.
    """
    trt, builder = network.library.module, network.builder
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector tells types only then
    config.clear_flag(trt.BuilderFlag.TF32)  # 10 bits of mantissa: float32 islands, and float32 bundles, mean float32
    if settings.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace)
    for profile in profiles:
        config.add_optimization_profile(_profile(builder, profile))
    if network.library.name == TENSORRT_RTX:
        _set_targets(trt, config, settings.targets)
    else:
        if settings.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if settings.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        cache = config.create_timing_cache(settings.timing_cache)
        if not config.set_timing_cache(cache, False):  # of another version or GPU: start anew
            config.set_timing_cache(config.create_timing_cache(b""), False)
    monitor = _monitor(trt, told)
    config.progress_monitor = monitor
    plan = _interruptible(lambda: builder.build_serialized_network(network.network, config), monitor.cancel)
    if plan is None:
        raise EngineError(
            f"{network.library.name} {network.library.version} couldn't build the engine: "
            f"{first_error(network.logger)}; try a smaller --max, or another version of the library"
        )
    timing = b"" if network.library.name == TENSORRT_RTX else bytes(config.get_timing_cache().serialize())
    return plan, timing


def opened_engine(library: Library, plan: Any, holds_code: bool) -> tuple[Any, Any]:
    """Open a plan as `engine_from_plan` does; Ctrl-C waits until it is open."""
    opened: tuple[Any, Any] = _interruptible(lambda: engine_from_plan(library, plan, holds_code))
    return opened


def inspect_engine(library: Library, engine: Any) -> Inspected | None:
    """Count an opened engine's layers by type; None where the inspector doesn't tell."""
    inspector = engine.create_engine_inspector()
    return inspected_from_json(inspector.get_engine_information(library.module.LayerInformationFormat.JSON))


def inspected_from_json(text: str) -> Inspected | None:
    """Count the layers of an engine inspector's report by the type of their first result.

    None where the report says nothing of types, as those of engines without detailed verbosity.
    """
    found: Counter[str] = Counter()
    for layer in json.loads(text).get("Layers", []):
        outputs = layer.get("Outputs", []) if isinstance(layer, dict) else []
        if outputs:
            found[_inspected_type(outputs[0])] += 1
    if not found["half"] + found["single"]:
        return None
    return Inspected(found["half"], found["single"], found["other"])


def _inspected_type(tensor: dict[str, Any]) -> str:
    words = " ".join(str(tensor.get(key, "")) for key in ("DataType", "Format/Datatype", "Format/DataType"))
    words = words.strip() or str(tensor.get("Format", ""))
    if re.search(r"half|fp16|float16", words, re.IGNORECASE):
        return "half"
    return "single" if re.search(r"\bfloat\b|fp32|float32", words, re.IGNORECASE) else "other"


def _profile(builder: Any, shapes: Profile) -> Any:
    profile = builder.create_optimization_profile()
    for name, (least, usual, most) in shapes.items():
        profile.set_shape(name, least, usual, most)
    return profile


def _set_targets(trt: Any, config: Any, targets: tuple[str, ...]) -> None:
    if not targets:
        return
    config.num_compute_capabilities = len(targets)
    for i, target in enumerate(targets):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), i):
            raise EngineError(f"tensorrt-rtx doesn't take {target} as a target; leave it out of --target")


def _interruptible(call: Callable[[], Any], cancel: Callable[[], None] = lambda: None) -> Any:
    """Call into the library in a thread of its own, and hold Ctrl-C back until it has returned.

    Otherwise it would be raised inside the logger or the monitor, below C++, and be lost; or files would be cleared
    away while the library still runs. ``cancel`` is called at once.
    """
    results: list[Any] = []
    failures: list[BaseException] = []
    presses: list[int] = []

    def work() -> None:
        try:
            results.append(call())
        # brought over to the thread that waits
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    def pressed(number: int, frame: object) -> None:
        presses.append(number)
        cancel()

    thread = threading.Thread(target=work, name="tensorrt")
    in_main = threading.current_thread() is threading.main_thread()  # the only one that signals reach
    before = signal.signal(signal.SIGINT, pressed) if in_main else None
    try:
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
    finally:
        if in_main:
            signal.signal(signal.SIGINT, before or signal.SIG_DFL)
    if presses:
        raise KeyboardInterrupt
    if failures:
        raise failures[0]
    return results[0]


def _monitor(trt: Any, told: Fraction) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Tells how much of the slow phase is done; called from the library's threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False
            self.lock = threading.Lock()
            self.steps: dict[str, tuple[str | None, int, int]] = {}  # phase: parent, steps, done

        def cancel(self) -> None:
            self.cancelled = True

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            with self.lock:
                self.steps[phase] = (parent, steps, 0)

        def step_complete(self, phase: str, step: int) -> bool:
            with self.lock:
                if phase in self.steps:
                    parent, steps, _ = self.steps[phase]
                    self.steps[phase] = (parent, steps, step + 1)
                if _SLOW_PHASE in self.steps:
                    told(self.done(_SLOW_PHASE), phase)
            return not self.cancelled

        def phase_finish(self, phase: str) -> None:
            with self.lock:
                self.steps.pop(phase, None)

        def done(self, phase: str) -> float:
            _, steps, done = self.steps[phase]
            inner = [self.done(name) for name, (parent, _, _) in self.steps.items() if parent == phase]
            return min(1.0, (done + max(inner, default=0.0)) / max(1, steps))

    return Monitor()


def _line(text: str) -> str:
    return " ".join(str(text).split())[:300]
