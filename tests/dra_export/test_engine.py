"""Real engines, built by tensorrt_rtx without a GPU from the tiny model in half precision."""

import _thread
import hashlib
import importlib.util
import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result
from half_bundles import make_half_bundle, sign

from dra_export.cli import main
from dra_export.engine import build as engine_module
from dra_export.engine.build import EngineOptions, build_engines, engine_from_onnx, engine_key, profiles_of
from dra_export.engine.tensorrt_api import Library, Settings, load_library
from dra_export.passes.uint8_image import take_uint8
from dra_runtime.bundle import Bundle, GraphSpec, TensorSpec, bundle_id_of
from dra_runtime.engine_file import EngineSidecar, check_plan, read_sidecar
from dra_runtime.engine_host import Gpu, Host, this_host
from dra_runtime.errors import EngineError, UsageError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx isn't installed: no wheel for this platform"
)
ONE = EngineOptions(max_batch=1, opt_batch=1, targets=("sm89",))


@pytest.fixture(scope="module")
def library() -> Library:
    return load_library("tensorrt-rtx", this_host())


@pytest.fixture(scope="module")
def built(tiny_half_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A half bundle with the engines that the command built in it, and what the command printed."""
    bundle = shutil.copytree(tiny_half_bundle, tmp_path_factory.mktemp("built") / "bundle")
    result = run("engine", bundle, "--backend", "tensorrt-rtx", "--target", "sm89", "--max", 8)
    assert result.exit_code == 0, result.stderr
    return bundle, result


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def one_line(result: Result, code: int = 2) -> str:
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def everything_in(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


# --- what the command builds


def test_every_graph_gets_a_plan_and_a_sidecar(built: tuple[Path, Result]) -> None:
    bundle, result = built
    graphs = ["image_encoder", "text_encoder", "compositor", "reranker", "query"]
    (folder,) = (bundle / "engines").iterdir()
    assert folder.name.startswith("tensorrt-rtx-1.")
    assert folder.name.endswith("-sm89")
    files = sorted(path.name for path in folder.iterdir())
    assert files == sorted([f"{name}.plan" for name in graphs] + [f"{name}.plan.json" for name in graphs])
    assert all(name in result.stdout for name in graphs)
    assert "compute capability 8.9" in result.stdout
    ada = Host("linux-x86_64", Gpu("NVIDIA L4", "8.9"), this_host().libraries)
    manifest = Bundle.open(bundle).manifest  # the bundle is still the one that was signed
    for name in graphs:
        sidecar = check_plan(folder / f"{name}.plan", ada, manifest.bundle_id)
        assert sidecar.graph == name
        assert sidecar.onnx_sha256 == hashlib.sha256((bundle / f"{name}.onnx").read_bytes()).hexdigest()
        assert sidecar.inputs == manifest.graphs[name].inputs
        assert {tensor.dtype for tensor in (*sidecar.inputs, *sidecar.outputs)} <= {"float32", "int32"}


def test_a_plan_holds_nothing_but_what_the_library_gave(built: tuple[Path, Result], library: Library) -> None:
    """The header of a plan stands at its very start: nothing is glued in front."""
    trt = library.module
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    tensor = network.add_input("x", trt.float32, (1,))
    network.mark_output(network.add_identity(tensor).get_output(0))
    raw = bytes(builder.build_serialized_network(network, builder.create_builder_config()))
    for plan in (built[0] / "engines").glob("*/*.plan"):
        with plan.open("rb") as file:
            assert file.read(16) == raw[:16]


def test_what_is_float32_is_listed_with_the_converters_reasons(built: tuple[Path, Result]) -> None:
    sidecars = {name: sidecar_of(built[0], name) for name in ("text_encoder", "query", "compositor")}
    text = sidecars["text_encoder"].proof
    # two blocks: two norms in each and one before the projection, a softmax in each
    assert {(island.op, island.reason, len(island.layers)) for island in text.islands} == {
        ("NORMALIZATION", "norm", 5),
        ("SOFTMAX", "softmax", 2),
    }
    assert text.float_tensors == 7
    assert 0.8 < text.half_share < 1
    # the joined graph has the islands of its parts
    reasons = {island.reason for island in sidecars["query"].proof.islands}
    assert {"norm", "softmax"} < reasons
    assert "not declared by the bundle" not in reasons
    assert sidecars["compositor"].proof.float_products == 0


def sidecar_of(bundle: Path, graph: str) -> EngineSidecar:
    (plan,) = (bundle / "engines").glob(f"*/{graph}.plan")
    return read_sidecar(plan)


def test_json_is_the_sidecars(tiny_half_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_half_bundle, tmp_path / "bundle")
    result = run("engine", bundle, "--graph", "compositor", "--graph", "reranker", "--json")
    values = json.loads(result.stdout)
    assert list(values["sidecars"]) == ["compositor", "reranker"]
    assert values["seconds"] > 0
    for graph, sidecar in values["sidecars"].items():
        path = tmp_path / values["engines"] / f"{graph}.plan.json"
        assert sidecar == json.loads(path.read_text(encoding="utf-8"))
        assert sidecar["target"]["compute_capabilities"] == []  # no target: all from 8.0


def test_the_command_of_a_sidecar_builds_the_engine_again(tiny_half_bundle: Path, tmp_path: Path) -> None:
    from dra_runtime.engine_file import rebuild_command

    bundle = shutil.copytree(tiny_half_bundle, tmp_path / "bundle")
    options = ("--min", 2, "--opt", 3, "--max", 4, "--target", "sm89,sm120", "--workspace", 512)
    assert run("engine", bundle, "--graph", "compositor", *options).exit_code == 0
    (plan,) = (bundle / "engines").glob("*/*.plan")
    before = read_sidecar(plan)
    plan.write_bytes(b"swapped")
    result = run(*rebuild_command(plan, before).split()[1:])
    assert result.exit_code == 0, result.stderr
    after = check_plan(plan, Host("linux-x86_64", Gpu("NVIDIA L4", "8.9"), this_host().libraries))
    assert (after.build, after.target, after.profiles) == (before.build, before.target, before.profiles)


def test_a_graph_that_takes_uint8_pixels_is_built(tiny_bundle: Path, tmp_path: Path, library: Library) -> None:
    bundle = Bundle.open(tiny_bundle, integrity="size")
    path = shutil.copy(bundle.file("image_encoder.onnx"), tmp_path)
    take_uint8(Path(path), bundle.manifest.preprocess)
    profiles = profiles_of(bundle.manifest.graphs["image_encoder"], ONE, 77)
    engine = engine_from_onnx(library, Path(path), profiles, Settings(), False, None, lambda done, note: None)
    assert engine.plan.nbytes > 1_000_000
    assert engine.proof.float_products > 0


# --- precision that was asked for and not given


def as_half_in_name_only(source: Path, out: Path, declared: dict[str, object]) -> Path:
    """A bundle from a converter that returned its float32 input."""
    shutil.copytree(source, out)
    sign(out, declared)
    return out


def test_a_converter_that_returns_float32_fails_the_build(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = as_half_in_name_only(tiny_bundle, tmp_path / "bundle", {})
    before = everything_in(bundle)
    message = one_line(run("engine", bundle), code=1)
    assert "image_encoder: precision fp16 was asked for, and 0% of" in message
    assert everything_in(bundle) == before


def test_one_float32_graph_among_half_ones_fails_the_build(
    tiny_half_bundle: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(tiny_half_bundle, tmp_path / "bundle")
    shutil.copy(tiny_bundle / "compositor.onnx", bundle)
    declared = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["provenance"]["fp16"]["graphs"]
    sign(bundle, declared)
    before = everything_in(bundle)
    message = one_line(run("engine", bundle, "--graph", "reranker", "--graph", "compositor"), code=1)
    assert message.startswith("error: compositor:")
    assert everything_in(bundle) == before


def test_calling_every_node_an_island_does_not_help(tiny_bundle: Path, tmp_path: Path) -> None:
    nodes = [node.name for node in onnx.load(tiny_bundle / "compositor.onnx").graph.node]
    declared = {"compositor": {"islands": [{"reason": "norm", "nodes": nodes}]}}
    bundle = as_half_in_name_only(tiny_bundle, tmp_path / "bundle", declared)
    assert "0% of the" in one_line(run("engine", bundle, "--graph", "compositor"), code=1)


def test_another_converters_graph_is_judged_by_its_layers(tiny_bundle: Path, tmp_path: Path, library: Library) -> None:
    """onnxruntime's converter declares no islands: softmax, norms and reductions are excused by their nature."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    model = onnx.load(bundle / "text_encoder.onnx")
    kept = ["LayerNormalization", "Softmax"]
    onnx.save(
        convert_float_to_float16(model, keep_io_types=True, op_block_list=kept),
        bundle / "text_encoder.onnx",
    )
    sign(bundle, {})
    (sidecar,) = build_engines(Bundle.open(bundle), library, this_host(), ONE, ["text_encoder"]).values()
    assert {island.reason for island in sidecar.proof.islands} == {"norm", "softmax"}


# --- nothing half-done is left


def test_ctrl_c_stops_the_build_and_leaves_nothing(
    tiny_half_bundle: Path, tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = shutil.copytree(tiny_half_bundle, tmp_path / "bundle")
    before = everything_in(bundle)
    notes: list[str] = []
    presses: list[str] = []
    done = 0

    @contextmanager
    def interrupting(length, label):
        def advance(steps, note):
            nonlocal done
            notes.append(note)
            done += steps
            if note.startswith("text_encoder") and not note.endswith("parsed"):
                presses.append(note)
                if len(presses) < 3:  # an impatient user's second one too
                    _thread.interrupt_main()

        yield advance

    monkeypatch.setattr(engine_module, "progress", interrupting)
    three = EngineOptions(max_batch=512, targets=("sm89",))  # as many profiles
    with pytest.raises(KeyboardInterrupt):
        build_engines(Bundle.open(bundle), library, this_host(), three, ["compositor", "text_encoder", "reranker"])
    assert notes[0].startswith("compositor")
    assert not any(note.startswith("reranker") for note in notes)
    parts = ("compositor.onnx", "text_encoder.onnx")
    assert done < sum((bundle / name).stat().st_size // 1000 for name in parts)  # the later profiles weren't built
    assert everything_in(bundle) == before


def test_a_graph_that_cannot_be_built_leaves_the_engines_that_stood_there(
    built: tuple[Path, Result], tmp_path: Path, library: Library
) -> None:
    bundle = shutil.copytree(built[0], tmp_path / "bundle")
    (bundle / "query.onnx").write_bytes(b"no ONNX")
    values = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    sign(bundle, values["provenance"]["fp16"]["graphs"])
    before = {path: path.read_bytes() for path in everything_in(bundle) if path.is_file()}
    options = EngineOptions(max_batch=8, targets=("sm89",))
    with pytest.raises(EngineError, match=r"query\.onnx: tensorrt-rtx .* can't read it"):
        build_engines(Bundle.open(bundle), library, this_host(), options, ["reranker", "query"], overwrite=True)
    assert {path: path.read_bytes() for path in everything_in(bundle) if path.is_file()} == before


def test_engines_are_replaced_on_request_alone(built: tuple[Path, Result], tmp_path: Path) -> None:
    bundle = shutil.copytree(built[0], tmp_path / "bundle")
    arguments = ("engine", bundle, "--target", "sm89", "--max", 1, "--opt", 1, "--graph", "compositor")
    assert "--overwrite" in one_line(run(*arguments))
    before = {path.name for path in everything_in(bundle)}
    result = run(*arguments, "--overwrite")
    assert result.exit_code == 0, result.stderr
    assert {path.name for path in everything_in(bundle)} == before  # the other graphs' engines stay
    assert len(sidecar_of(bundle, "compositor").profiles) == 1
    assert len(sidecar_of(bundle, "reranker").profiles) == 2


# --- wrong use


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--min", "0"], "rising batch sizes"),
        (["--opt", "65"], "rising batch sizes"),
        (["--max", "5000"], "rising batch sizes"),
        (["--target", "sm90x"], "'sm90x'; tensorrt-rtx"),
        (["--target", ""], "--target has ''"),
        (["--version-compatible"], "has no --version-compatible"),
        (["--hardware-compatible"], "has no --hardware-compatible"),
        (["--timing-cache", "t"], "leave --timing-cache out"),
    ],
)
def test_what_tensorrt_rtx_cannot_do_is_refused(arguments: list[str], said: str, tiny_half_bundle: Path) -> None:
    before = everything_in(tiny_half_bundle)
    assert said in one_line(run("engine", tiny_half_bundle, "--backend", "tensorrt-rtx", *arguments))
    assert everything_in(tiny_half_bundle) == before


def test_an_int8_bundle_is_for_cpus(tiny_bundle: Path, tmp_path: Path, library: Library) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    sign(bundle, {})
    values = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    values["precision"] = "int8"
    values["bundle_id"] = bundle_id_of(values)
    (bundle / "manifest.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(UsageError, match="INT8 bundle"):
        build_engines(Bundle.open(bundle), library, this_host(), ONE)


def test_a_graph_that_the_bundle_lacks_is_named(tiny_half_bundle: Path, library: Library) -> None:
    with pytest.raises(UsageError, match="--graph has 'decoder'"):
        build_engines(Bundle.open(tiny_half_bundle), library, this_host(), ONE, ["decoder"])


def test_a_folder_that_cannot_be_written_is_the_users_to_change(tiny_half_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_half_bundle, tmp_path / "bundle")
    (bundle / "engines").write_text("in the way")
    assert "can't be written" in one_line(run("engine", bundle, "--graph", "compositor"))


# --- profiles


def test_profiles_are_one_for_batch_1_one_for_the_range_and_one_far_beyond() -> None:
    tokens = TensorSpec("tokens", "int32", ("batch", "length"))
    spec = GraphSpec("query.onnx", (TensorSpec("image", "float32", ("batch", 3, 32, 32)), tokens), ())

    def batches(**options: int) -> list[tuple[int, ...]]:
        return [tuple(shape[0] for shape in p["image"]) for p in profiles_of(spec, EngineOptions(**options), 77)]

    assert batches() == [(1, 1, 1), (1, 8, 64)]
    assert batches(opt_batch=1, max_batch=1) == [(1, 1, 1)]
    assert batches(min_batch=4) == [(4, 8, 64)]
    assert batches(max_batch=512) == [(1, 1, 1), (1, 8, 64), (1, 512, 512)]
    usual = profiles_of(spec, EngineOptions(), 77)[1]
    assert usual["tokens"] == ((1, 2), (8, 16), (64, 77))
    assert usual["image"][2] == (64, 3, 32, 32)
    assert profiles_of(spec, EngineOptions(), 10)[0]["tokens"] == ((1, 2), (1, 10), (1, 10))


def test_engines_for_other_places_lie_in_other_folders(library: Library) -> None:
    host = this_host()
    names = {engine_key(library, host, EngineOptions(targets=targets)) for targets in ((), ("sm89",), ("sm80", "sm89"))}
    assert len(names) == 3
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-") for name in names)


@pytest.mark.slow
def test_rn50x4_in_half_takes_less_than_two_minutes(tmp_path: Path) -> None:
    import time

    from dra_export.bundle_writer import write_bundle
    from dra_train.backbones import model_config, untrained_model
    from dra_train.checkpoint import load_checkpoint, save_checkpoint

    checkpoint, half = tmp_path / "ckpt.pt", tmp_path / "half"
    save_checkpoint(checkpoint, untrained_model(model_config("RN50x4")), {"made_by": "tests"})
    make_half_bundle(write_bundle(load_checkpoint(checkpoint), tmp_path / "bundle").path, checkpoint, half)
    start = time.monotonic()
    result = run("engine", half, "--backend", "tensorrt-rtx", "--target", "sm89")
    seconds = time.monotonic() - start
    assert result.exit_code == 0, result.stderr
    assert seconds < 120, result.stdout
    assert len(list((half / "engines").glob("*/*.plan"))) == 5
    text = sidecar_of(half, "text_encoder")
    assert text.plan_size < 1.2 * (half / "text_encoder.onnx").stat().st_size
    # 12 blocks with two norms and a softmax each, and the last norm
    assert sum(len(island.layers) for island in text.proof.islands) == 37
    assert text.proof.half_share > 0.8


def test_the_targets_that_commands_are_made_of_are_the_librarys(library: Library) -> None:
    from dra_export.engine.tensorrt_api import compute_capabilities
    from dra_runtime.engine_file import RTX_TARGETS

    assert {f"sm{capability.replace('.', '')}" for capability in RTX_TARGETS} <= set(compute_capabilities(library))
