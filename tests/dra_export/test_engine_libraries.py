"""What differs between the libraries, with stand-ins where a GPU would be needed; the inspector's two forms."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dra_export.engine.build import EngineOptions, build_engines
from dra_export.engine.proof import UNDECLARED, declared_islands, proof_of, require_half, require_half_layers
from dra_export.engine.tensorrt_api import Layer, inspected_from_json, load_library
from dra_runtime.bundle import Bundle
from dra_runtime.engine_file import Inspected, check_plan
from dra_runtime.engine_host import Gpu, Host
from dra_runtime.errors import BackendError, PrecisionError, UsageError

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0")


class Enum(SimpleNamespace):
    """A value with a name, as pybind11's enumerations have."""


def values(*names: str) -> Any:
    return SimpleNamespace(**{name: Enum(name=name) for name in names})


class FakeTensorRT(ModuleType):
    """As much of tensorrt's Python interface as the builder uses, without what TensorRT-RTX added.

    Every call that configures a build is written down in `told`. The plan is a few bytes; the network is the inputs of
    the file that was parsed, and one half layer.
    """

    def __init__(self, version: str) -> None:
        super().__init__("tensorrt")
        fake = self
        self.__version__ = version
        self.told: list[Any] = []
        self.ILogger = self.IProgressMonitor = type("Base", (), {"__init__": lambda self: None})
        self.BuilderFlag = values("TF32", "VERSION_COMPATIBLE")
        self.MemoryPoolType, self.ProfilingVerbosity = values("WORKSPACE"), values("DETAILED")
        self.HardwareCompatibilityLevel, self.LayerInformationFormat = values("AMPERE_PLUS"), values("JSON")
        # 11 keeps the flag's name and ignores it; a later version may drop it
        flags = {} if version.startswith("12") else {"STRONGLY_TYPED": 1}
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**flags)

        class Network:
            num_layers, inputs = 1, []

            @property
            def num_inputs(self):
                return len(self.inputs)

            def get_input(self, i):
                return self.inputs[i]

            def get_layer(self, i):
                output, op = SimpleNamespace(dtype=Enum(name="HALF")), Enum(name="MATRIX_MULTIPLY")
                return SimpleNamespace(name="node", metadata="", type=op, num_outputs=1, get_output=lambda j: output)

        class Config:
            def __init__(self):
                self.cache = b""

            def clear_flag(self, flag):
                fake.told.append(("clear", flag.name))

            def set_flag(self, flag):
                fake.told.append(("set", flag.name))

            def set_memory_pool_limit(self, pool, size):
                fake.told.append((pool.name, size))

            def add_optimization_profile(self, profile):
                fake.told.append(("profile", profile.shapes))

            def create_timing_cache(self, content):
                return bytes(content)

            def set_timing_cache(self, cache, ignore_mismatch):
                assert ignore_mismatch is False
                if cache.startswith(b"of another GPU"):
                    return False
                fake.told.append(("timing cache", cache))
                self.cache = cache
                return True

            def get_timing_cache(self):
                return SimpleNamespace(serialize=lambda: self.cache + b" measured")

            def __setattr__(self, name, value):
                if name == "hardware_compatibility_level":
                    fake.told.append((name, value.name))
                object.__setattr__(self, name, value)

        class Profile:
            def __init__(self):
                self.shapes = {}

            def set_shape(self, name, *shapes):
                self.shapes[name] = shapes

        class Builder:
            def __init__(self, logger):
                pass

            def create_network(self, flags):
                fake.told.append(("network", flags))
                return Network()

            def create_builder_config(self):
                return Config()

            def create_optimization_profile(self):
                return Profile()

            def build_serialized_network(self, network, config):
                return b"plan of " + fake.__version__.encode()

        class OnnxParser:
            def __init__(self, network, logger):
                self.network = network

            def parse_from_file(self, path):
                import onnx

                graph = onnx.load(path).graph
                self.network.inputs = [
                    SimpleNamespace(name=v.name, dtype=Enum(name="FLOAT"), shape=(-1,)) for v in graph.input
                ]
                return True

        class Runtime:
            def __init__(self, logger):
                pass

            def deserialize_cuda_engine(self, plan):
                fake.told.append(("host code allowed", getattr(self, "engine_host_code_allowed", False)))
                report = json.dumps({"Layers": [{"Name": "a", "Outputs": [{"Name": "x", "DataType": "Half"}]}]})
                inspector = SimpleNamespace(get_engine_information=lambda form: report)
                return SimpleNamespace(create_engine_inspector=lambda: inspector)

        self.Builder, self.OnnxParser, self.Runtime = Builder, OnnxParser, Runtime


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(version: str) -> FakeTensorRT:
        module = FakeTensorRT(version)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        return module

    return install


def host(gpu: Gpu | None = H100, **libraries: str) -> Host:
    return Host("linux-x86_64", gpu, {name.replace("_", "-"): version for name, version in libraries.items()})


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    import shutil

    return Bundle.open(shutil.copytree(tiny_bundle, tmp_path / "bundle"), integrity="size")


@pytest.mark.parametrize(("version", "flags"), [("10.13.3.9", 2), ("11.0.0.114", 2), ("12.0.0.1", 0)])
def test_tensorrt_is_asked_for_strong_typing_where_it_has_a_flag_for_it(
    version: str, flags: int, fake: Any, bundle: Bundle
) -> None:
    module, here = fake(version), host(tensorrt=version)
    library = load_library("tensorrt", here)
    options = EngineOptions(workspace=2**30, timing_cache=bundle.path / "timing")
    built = build_engines(bundle, library, here, options, ["compositor"])
    assert ("network", flags) in module.told
    assert ("clear", "TF32") in module.told
    assert ("WORKSPACE", 2**30) in module.told
    assert [told[0] for told in module.told].count("profile") == 2
    assert ("host code allowed", False) in module.told
    ((plan, sidecar),) = built.items()
    assert plan.read_bytes() == b"plan of " + version.encode()
    assert plan.parent.name == f"tensorrt-{version}-nvidia-h100-80gb-hbm3"
    assert (sidecar.target.gpu, sidecar.target.compute_capabilities) == (H100.name, ("9.0",))
    assert sidecar.proof.inspected == Inspected(half=1, single=0, other=0)
    assert check_plan(plan, here) == sidecar


def test_compatible_engines_are_asked_for_and_say_so(fake: Any, bundle: Bundle) -> None:
    module, here = fake("10.13.3.9"), host(tensorrt="10.13.3.9")
    options = EngineOptions(version_compatible=True, hardware_compatible=True, timing_cache=bundle.path / "timing")
    library = load_library("tensorrt", here)
    ((plan, sidecar),) = build_engines(bundle, library, here, options, ["compositor"]).items()
    assert ("set", "VERSION_COMPATIBLE") in module.told
    assert ("hardware_compatibility_level", "AMPERE_PLUS") in module.told
    assert ("host code allowed", True) in module.told
    assert plan.parent.name == "tensorrt-10.13.3.9-cc80plus-version-compatible"
    check_plan(plan, host(Gpu("NVIDIA L4", "8.9"), tensorrt="11.0.0.114"))
    assert sidecar.target.hardware_compatible


def test_what_was_measured_is_kept_for_the_next_build(
    fake: Any, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRA_CACHE", str(tmp_path / "cache"))
    module, here = fake("10.13.3.9"), host(tensorrt="10.13.3.9")
    library = load_library("tensorrt", here)
    build_engines(bundle, library, here, EngineOptions(), ["compositor", "reranker"])
    (kept,) = (tmp_path / "cache" / "timing").iterdir()
    assert kept.name == "tensorrt-10.13.3.9-nvidia-h100-80gb-hbm3.timing"  # one for every version and GPU
    assert kept.read_bytes() == b" measured measured"  # the second graph goes on from the first
    build_engines(bundle, library, here, EngineOptions(), ["compositor"], overwrite=True)
    assert ("timing cache", b" measured measured") in module.told


def test_measurements_of_another_gpu_are_not_used(fake: Any, bundle: Bundle, tmp_path: Path) -> None:
    module, here = fake("10.13.3.9"), host(tensorrt="10.13.3.9")
    file = tmp_path / "timing"
    file.write_bytes(b"of another GPU")
    build_engines(bundle, load_library("tensorrt", here), here, EngineOptions(timing_cache=file), ["compositor"])
    assert ("timing cache", b"") in module.told
    assert file.read_bytes() == b" measured"


def test_targets_are_not_for_tensorrt(fake: Any, bundle: Bundle) -> None:
    fake("10.13.3.9")
    here = host(tensorrt="10.13.3.9")
    with pytest.raises(UsageError, match="--target is for tensorrt-rtx"):
        build_engines(bundle, load_library("tensorrt", here), here, EngineOptions(targets=("sm90",)))


def test_an_older_tensorrt_is_refused(fake: Any) -> None:
    fake("10.9.0.34")
    with pytest.raises(BackendError, match=r"tensorrt is 10\.9\.0\.34; expected 10\.13 or newer"):
        load_library("tensorrt", host(tensorrt="10.9.0.34"))


def test_tensorrt_without_a_gpu_is_refused(fake: Any) -> None:
    fake("10.13.3.9")
    with pytest.raises(BackendError, match="--backend tensorrt-rtx"):
        load_library("tensorrt", host(None, tensorrt="10.13.3.9"))


def test_without_a_library_one_line_says_what_to_install(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from dra_export.cli import main
    from dra_export.commands import engine

    monkeypatch.setattr(engine, "this_host", lambda: host(None))
    for module in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    for arguments in ([], ["--backend", "tensorrt"], ["--backend", "tensorrt-rtx"]):
        result = CliRunner().invoke(main, ["engine", str(tiny_bundle), *arguments])
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
        assert "pip install 'dra-toolkit[tensorrt" in result.stderr


@pytest.mark.parametrize(("gpu", "chosen"), [(H100, "tensorrt"), (None, "tensorrt-rtx")])
def test_of_two_libraries_the_one_is_taken_that_can_build_here(
    gpu: Gpu | None, chosen: str, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake("10.13.3.9")
    rtx = ModuleType("tensorrt_rtx")
    rtx.__version__ = "1.7.1.116"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
    assert load_library(None, host(gpu, tensorrt="10.13.3.9", tensorrt_rtx="1.7.1.116")).name == chosen


def test_the_real_tensorrt_has_what_is_used_of_it() -> None:
    trt = pytest.importorskip("tensorrt", reason="tensorrt isn't installed: its libraries come from NVIDIA's own index")
    for place in (
        "Builder.build_serialized_network",
        "IBuilderConfig.create_timing_cache",
        "IBuilderConfig.progress_monitor",
        "IProgressMonitor.step_complete",
        "BuilderFlag.VERSION_COMPATIBLE",
        "HardwareCompatibilityLevel.AMPERE_PLUS",
        "ProfilingVerbosity.DETAILED",
        "EngineInspector.get_engine_information",
    ):
        found = trt
        for name in place.split("."):
            found = getattr(found, name)


# --- proof


def layer(op: str, dtype: str, node: str = "") -> Layer:
    return Layer(name=f"{op.lower()} {node}", op=op, node=node, dtypes=(dtype,))


def test_only_what_is_computed_counts() -> None:
    layers = [
        layer("MATRIX_MULTIPLY", "half"),
        layer("CONVOLUTION", "float"),
        layer("SOFTMAX", "float", "a"),
        layer("ELEMENTWISE", "int64"),
        *(layer(op, "float") for op in ("CAST", "CONSTANT", "SHUFFLE")),
    ]
    proof = proof_of(layers, half=True, declared={"a": "softmax"})
    assert (proof.half_tensors, proof.float_tensors) == (1, 2)
    assert (proof.half_products, proof.float_products) == (1, 1)
    assert proof.half_share == 0.3333
    assert {(i.op, i.reason) for i in proof.islands} == {("CONVOLUTION", UNDECLARED), ("SOFTMAX", "softmax")}
    assert proof_of(layers, half=False).islands == ()


@pytest.mark.parametrize(("single", "passes"), [(2, True), (3, False)])
def test_eighty_percent_must_be_half(single: int, passes: bool) -> None:
    layers = [layer("ELEMENTWISE", "half")] * 8 + [layer("ELEMENTWISE", "float")] * single
    proof = proof_of(layers, half=True, declared={})
    if passes:
        require_half(proof, "query")
    else:
        with pytest.raises(PrecisionError, match="73% of the tensors outside its float32 islands"):
            require_half(proof, "query")


@pytest.mark.parametrize("declared", [{"a": "norm"}, None])
def test_islands_are_excused_and_products_are_not(declared: dict[str, str] | None) -> None:
    norms = [layer("NORMALIZATION", "float", "a")] * 30
    require_half(proof_of([*norms, layer("MATRIX_MULTIPLY", "half")], True, declared), "query")
    layers = [*norms, layer("ELEMENTWISE", "half"), layer("EINSUM", "float", "a")]
    with pytest.raises(PrecisionError, match="0% of the convolutions"):
        require_half(proof_of(layers, True, {"a": "norm"}), "query")


def test_a_network_of_no_half_at_all_fails() -> None:
    with pytest.raises(PrecisionError):
        require_half(proof_of([layer("SOFTMAX", "float")], True), "query")


def test_the_joined_graph_has_its_parts_islands_with_their_prefix() -> None:
    graphs = {
        part: {"islands": [{"reason": f"of {part}", "nodes": ["n"]}]}
        for part in ("image_encoder", "text_encoder", "compositor")
    }
    declared = declared_islands({"fp16": {"graphs": graphs}}, "query")
    assert declared == {f"{part}/n": f"of {part}" for part in graphs}
    assert declared_islands({"fp16": {"graphs": graphs}}, "compositor") == {"n": "of compositor"}
    assert declared_islands({}, "query") is None


# The forms of TensorRT 10's and 11's documentation of the engine inspector
TEN = [
    {"Name": "conv", "Outputs": [{"Name": "a", "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}]},
    {"Name": "norm", "Outputs": [{"Name": "b", "Format/Datatype": "Row major linear FP32"}]},
    {"Name": "tokens", "Outputs": [{"Name": "c", "Format/Datatype": "Row major Int32"}]},
    {"Name": "conv2", "Outputs": [{"Name": "d", "Format/Datatype": "Half"}]},
    {"Name": "nothing", "Outputs": []},
]
ELEVEN = [
    {"Name": "conv", "Outputs": [{"Name": "a", "Format": "Channel major", "DataType": "Half"}]},
    {
        "Name": "norm",
        "Outputs": [{"Name": "b", "Format": "Row major linear FP32", "DataType": "Float"}],
    },
    {"Name": "tokens", "Outputs": [{"Name": "c", "Format": "Row major", "DataType": "Int32"}]},
    {"Name": "conv2", "Outputs": [{"Name": "d", "Format": "Row major", "DataType": "FP16"}]},
]


@pytest.mark.parametrize("layers", [TEN, ELEVEN])
def test_the_inspectors_report_is_read_in_both_forms(layers: list[dict[str, Any]]) -> None:
    assert inspected_from_json(json.dumps({"Layers": layers})) == Inspected(half=2, single=1, other=1)


def test_a_report_without_types_proves_nothing() -> None:
    assert inspected_from_json(json.dumps({"Layers": ["conv", "norm"], "Bindings": ["a"]})) is None


def test_an_engine_without_a_half_layer_fails() -> None:
    require_half_layers(Inspected(half=1, single=9, other=0), "query")
    with pytest.raises(PrecisionError, match="none of the engine's 9"):
        require_half_layers(Inspected(half=0, single=9, other=3), "query")
