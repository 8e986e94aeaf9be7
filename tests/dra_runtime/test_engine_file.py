"""Sidecars are parsed strictly, and a plan is refused where it can't run, with the command that rebuilds it."""

import copy
import ctypes
import json
from dataclasses import replace
from importlib import metadata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dra_runtime.engine_file import check_plan, read_sidecar, rebuild_command, sidecar_from_json, sidecar_to_dict
from dra_runtime.engine_host import Gpu, Host, first_gpu, installed_libraries
from dra_runtime.errors import EngineError, EngineFormatError, EngineIntegrityError, EngineMismatchError

HASH = "0123456789abcdef" * 4
PLAN = b"a plan is what the library gave\0" * 8
PLAN_SHA256 = "0" * 64


def sidecar_values():
    """A sidecar as the format's page shows it."""
    return {
        "format": "dra-engine",
        "version": 1,
        "graph": "text_encoder",
        "bundle_id": HASH,
        "onnx_sha256": HASH,
        "plan": {"file": "text_encoder.plan", "sha256": PLAN_SHA256, "size": 256},
        "library": "tensorrt-rtx",
        "library_version": "1.7.1.116",
        "target": {
            "platform": "linux-x86_64",
            "compute_capabilities": ["8.9"],
            "gpu": None,
            "hardware_compatible": False,
            "version_compatible": False,
        },
        "precision": "fp16",
        "proof": {
            "half_share": 0.75,
            "half_tensors": 3,
            "float_tensors": 1,
            "half_products": 2,
            "float_products": 0,
            "islands": [{"op": "SOFTMAX", "reason": "softmax", "layers": ["node_softmax"]}],
            "inspected": {"half": 5, "single": 1, "other": 2},
        },
        "profiles": [
            {"tokens": {"min": [1, 2], "opt": [1, 16], "max": [1, 77]}},
            {"tokens": {"min": [1, 2], "opt": [8, 16], "max": [64, 77]}},
        ],
        "inputs": [{"name": "tokens", "dtype": "int32", "shape": ["batch", "length"]}],
        "outputs": [{"name": "text_features", "dtype": "float32", "shape": ["batch", 640]}],
        "build": {"min_batch": 1, "opt_batch": 8, "max_batch": 64, "workspace": None},
        "versions": {"dra-toolkit": "0.1.0", "tensorrt-rtx": "1.7.1.116"},
    }


def changed(path, value):
    values = sidecar_values()
    *parents, last = path.split("/")
    place = values
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    if value is KeyError:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return values


def parsed(values):
    return sidecar_from_json(json.dumps(values).encode())


def test_what_is_read_is_written_again():
    sidecar = parsed(sidecar_values())
    assert sidecar_to_dict(sidecar) == sidecar_values()
    assert sidecar.profiles[1]["tokens"] == ((1, 2), (8, 16), (64, 77))


def test_uint8_pixels_are_an_input_like_others():
    assert parsed(changed("inputs/0/dtype", "uint8")).inputs[0].dtype == "uint8"


REFUSED = {
    "unknown key": ("extra", 1),
    "missing key": ("bundle_id", KeyError),
    "other format": ("format", "dra-bundle"),
    "newer version": ("version", 2),
    "version true": ("version", True),
    "graph": ("graph", "decoder"),
    "hash": ("bundle_id", "abc"),
    "onnx hash": ("onnx_sha256", HASH.upper()),
    "plan outside": ("plan/file", "../text_encoder.plan"),
    "plan hidden": ("plan/file", ".plan"),
    "plan size": ("plan/size", 0),
    "plan size text": ("plan/size", "256"),
    "library": ("library", "openvino"),
    "library version": ("library_version", "new"),
    "library version with a line": ("library_version", "1.7\n1"),
    "capability": ("target/compute_capabilities", ["sm89"]),
    "capabilities as text": ("target/compute_capabilities", "8.9"),
    "gpu empty": ("target/gpu", ""),
    "flag": ("target/version_compatible", 1),
    "int8": ("precision", "int8"),
    "half share": ("proof/half_share", 0.99),
    "half share text": ("proof/half_share", "0.75"),
    "negative": ("proof/half_tensors", -1),
    "island": ("proof/islands/0", ["softmax"]),
    "island without a reason": ("proof/islands/0/reason", ""),
    "inspected": ("proof/inspected", {"half": 1}),
    "no profile": ("profiles", []),
    "profile of another input": ("profiles/0", {"image": {"min": [1], "opt": [1], "max": [1]}}),
    "profile falls": ("profiles/1/tokens/max", [4, 77]),
    "profile of another rank": ("profiles/1/tokens/max", [64]),
    "profile of zero": ("profiles/0/tokens/min", [0, 2]),
    "input type": ("inputs/0/dtype", "int64"),
    "no outputs": ("outputs", []),
    "output of a size that no input tells": ("outputs/0/shape", ["rows", 8]),
    "output of no dimension": ("outputs/0/shape", []),
    "output called as an input": ("outputs/0/name", "tokens"),
    "batches fall": ("build/opt_batch", 65),
    "workspace": ("build/workspace", 0),
    "versions": ("versions", ["0.1.0"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    with pytest.raises(EngineFormatError) as caught:
        parsed(changed(*REFUSED[case]))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_fixed_dimension_stays_in_every_profile():
    values = changed("inputs/0/shape", ["batch", 77])
    with pytest.raises(EngineFormatError, match="rising shapes of tokens"):
        parsed(values)


@pytest.mark.parametrize("text", [b"", b"\xff", b"[]", b"null", b'{"a": 1, "a": 2}', b'{"a": NaN}', b"[" * 100_000])
def test_no_sidecar(text):
    with pytest.raises(EngineFormatError):
        sidecar_from_json(text)


def test_a_key_twice_is_refused():
    text = (
        json.dumps(sidecar_values())
        .encode()
        .replace(b'"precision": "fp16"', b'"precision": "fp16", "precision": "fp16"')
    )
    with pytest.raises(EngineFormatError, match="twice"):
        sidecar_from_json(text)


def places(values, prefix=()):
    yield prefix
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield from places(value, (*prefix, key))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(place=st.sampled_from(list(places(sidecar_values()))[1:]), value=ANYTHING)
def test_anything_anywhere_is_taken_whole_or_refused_with_its_place(place, value):
    values = copy.deepcopy(sidecar_values())
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    try:
        sidecar = parsed(values)
    except EngineFormatError as error:
        assert "\n" not in str(error)  # noqa: PT017 - it need not be raised
    else:
        assert sidecar_to_dict(sidecar) == values


# --- the plan and the host


RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", "8.9")
H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0")
T4 = Gpu("Tesla T4", "7.5")


def host(gpu=RTX_4090, libraries=None, platform="linux-x86_64"):
    return Host(platform, gpu, {"tensorrt-rtx": "1.7.1.116"} if libraries is None else libraries)


@pytest.fixture
def engine(tmp_path):
    """A function that writes a plan with its sidecar into a bundle, with changes to the sidecar."""
    folder = tmp_path / "bundle" / "engines" / "key"
    folder.mkdir(parents=True)
    (tmp_path / "bundle" / "manifest.json").write_text("{}")

    def write(**changes):
        values = sidecar_values()
        values["plan"]["sha256"] = sha256_by_coreutils(PLAN, tmp_path)
        for path, value in changes.items():
            *parents, last = path.split("__")
            inner = values
            for key in parents:
                inner = inner[key]
            inner[last] = value
        plan = folder / "text_encoder.plan"
        plan.write_bytes(PLAN)
        (folder / "text_encoder.plan.json").write_text(json.dumps(values))
        return plan

    return write


def sha256_by_coreutils(content, folder):
    import subprocess

    (folder / "content").write_bytes(content)
    done = subprocess.run(["sha256sum", str(folder / "content")], capture_output=True, text=True, check=True)
    return done.stdout.split()[0]


def tensorrt(**changes):
    """The changes that make the sidecar one of tensorrt, built on an H100."""
    return {
        "library": "tensorrt",
        "library_version": "10.13.3.9",
        "target__compute_capabilities": ["9.0"],
        "target__gpu": H100.name,
        **changes,
    }


def refused(error, plan, where, bundle_id=None):
    with pytest.raises(error) as caught:
        check_plan(plan, where, bundle_id)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_plan_that_fits_is_accepted(engine):
    plan = engine()
    assert check_plan(plan, host(), HASH) == read_sidecar(plan)


def test_a_swapped_plan_is_refused(engine, tmp_path):
    plan = engine()
    plan.write_bytes(PLAN[:-1] + b"\1")
    message = refused(EngineIntegrityError, plan, host())
    assert "SHA-256" in message
    expected = f"dra-export engine {tmp_path / 'bundle'} --backend tensorrt-rtx --graph text_encoder --target sm89"
    assert message.endswith(f"build it again: {expected} --overwrite")


def test_a_shorter_plan_is_refused(engine):
    plan = engine()
    plan.write_bytes(PLAN[:-1])
    assert "255 bytes where its sidecar says 256" in refused(EngineIntegrityError, plan, host())


def test_a_missing_plan_and_a_missing_sidecar_are_refused(engine):
    plan = engine()
    plan.unlink()
    assert "No such file" in refused(EngineIntegrityError, plan, host())
    plan.with_name("text_encoder.plan.json").unlink()
    assert refused(EngineFormatError, plan, host()).endswith("--overwrite")


def test_a_sidecar_of_another_plan_is_refused(engine):
    plan = engine(plan__file="query.plan")
    assert "'query.plan'; expected 'text_encoder.plan'" in refused(EngineFormatError, plan, host())


def test_an_engine_of_another_bundle_is_refused(engine):
    assert "built from bundle 0123456789ab" in refused(EngineMismatchError, engine(), host(), "f" * 64)


def test_another_version_is_refused(engine):
    message = refused(EngineMismatchError, engine(), host(libraries={"tensorrt-rtx": "1.8.0.12"}))
    assert "built with tensorrt-rtx 1.7.1.116, here is 1.8.0.12" in message
    assert message.endswith("--target sm89 --overwrite")


def test_another_tensorrt_is_refused(engine):
    message = refused(EngineMismatchError, engine(**tensorrt()), host(H100, {"tensorrt": "11.0.0.114"}))
    assert "built with tensorrt 10.13.3.9, here is 11.0.0.114" in message


@pytest.mark.parametrize(
    ("installed", "fits"), [("10.13.3.9", True), ("11.0.0.114", True), ("10.14.0.1", True), ("10.13.2.6", False)]
)
def test_a_version_compatible_engine_runs_with_newer_versions_only(installed, fits, engine):
    plan, here = engine(**tensorrt(target__version_compatible=True)), host(H100, {"tensorrt": installed})
    if fits:
        check_plan(plan, here)
    else:
        assert refused(EngineMismatchError, plan, here).endswith("--version-compatible --overwrite")


def test_a_package_version_with_a_suffix_is_the_same_version(engine):
    check_plan(engine(**tensorrt()), host(H100, {"tensorrt": "10.13.3.9.post1"}))


def test_a_library_that_is_not_installed_is_named_with_its_extra(engine):
    assert "pip install 'dra-toolkit[tensorrt-rtx]'" in refused(EngineMismatchError, engine(), host(libraries={}))


def test_another_gpu_is_refused_and_the_command_is_for_this_one(engine):
    message = refused(EngineMismatchError, engine(), host(Gpu("NVIDIA GeForce RTX 5090", "12.0")))
    assert "built for a GPU of compute capability 8.9, here is NVIDIA GeForce RTX 5090" in message
    assert message.endswith("--target sm120 --overwrite")


def test_the_command_names_no_target_that_the_library_lacks(engine):
    message = refused(EngineMismatchError, engine(), host(H100))
    assert message.endswith("--backend tensorrt-rtx --graph text_encoder --overwrite")


def test_tensorrt_wants_the_very_gpu(engine):
    check_plan(engine(**tensorrt()), host(H100, {"tensorrt": "10.13.3.9"}))
    message = refused(
        EngineMismatchError, engine(**tensorrt()), host(replace(H100, name="NVIDIA H200"), {"tensorrt": "10.13.3.9"})
    )
    assert "built for NVIDIA H100 80GB HBM3 (compute capability 9.0), here is NVIDIA H200" in message


@pytest.mark.parametrize("gpu", [RTX_4090, H100, Gpu("NVIDIA GeForce RTX 5090", "12.0")])
def test_portable_engines_run_from_capability_8(gpu, engine):
    check_plan(engine(target__compute_capabilities=[]), host(gpu))
    check_plan(engine(**tensorrt(target__hardware_compatible=True)), host(gpu, {"tensorrt": "10.13.3.9"}))


def test_portable_engines_do_not_run_before_capability_8(engine):
    assert "capability 8.0 or newer, here is Tesla T4" in refused(
        EngineMismatchError, engine(target__compute_capabilities=[]), host(T4)
    )


def test_without_a_gpu_nothing_runs(engine):
    assert "no CUDA GPU is here" in refused(EngineMismatchError, engine(), host(None))


def test_another_platform_matters_to_tensorrt_alone(engine):
    check_plan(engine(), host(platform="win32-amd64"))
    assert "built for linux-x86_64" in refused(
        EngineMismatchError, engine(**tensorrt()), host(H100, {"tensorrt": "10.13.3.9"}, "win32-amd64")
    )


def test_the_command_repeats_every_option(engine, tmp_path):
    plan = engine(
        **tensorrt(
            target__version_compatible=True,
            target__hardware_compatible=True,
            build={"min_batch": 2, "opt_batch": 4, "max_batch": 64, "workspace": 512 * 2**20},
        )
    )
    command = rebuild_command(plan, read_sidecar(plan))
    assert command == (
        f"dra-export engine {tmp_path / 'bundle'} --backend tensorrt --graph text_encoder --min 2 --opt 4 --max 64 "
        "--workspace 512 --version-compatible --hardware-compatible --overwrite"
    )


def test_a_plan_outside_a_bundle_gets_a_command_to_fill_in(engine, tmp_path):
    plan = engine()
    (tmp_path / "bundle" / "manifest.json").unlink()
    assert rebuild_command(plan, read_sidecar(plan)).startswith("dra-export engine BUNDLE ")


def test_every_refusal_is_an_engine_error():
    assert all(issubclass(e, EngineError) for e in (EngineFormatError, EngineIntegrityError, EngineMismatchError))


# --- what is found of this machine


class Driver:
    """libcuda with one GPU; `status` is what every call answers."""

    def __init__(self, devices=1, status=0):
        self.devices, self.status = devices, status

    def cuInit(self, flags):
        return self.status

    def cuDeviceGetCount(self, count):
        count._obj.value = self.devices
        return 0

    def cuDeviceGet(self, device, index):
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name, length, device):
        name.value = b"NVIDIA L4"
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = {75: 8, 76: 9}[attribute]
        return 0


@pytest.mark.parametrize(
    ("driver", "gpu"), [(Driver(), Gpu("NVIDIA L4", "8.9")), (Driver(devices=0), None), (Driver(status=100), None)]
)
def test_the_driver_tells_the_gpu(driver, gpu, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert first_gpu() == gpu


def test_without_a_driver_there_is_no_gpu(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert first_gpu() is None


def test_versions_come_from_what_pip_installed(monkeypatch):
    def version(name):
        if name == "tensorrt":
            return "10.13.3.9"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert installed_libraries() == {"tensorrt": "10.13.3.9"}
