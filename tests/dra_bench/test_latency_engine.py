"""An engine alone: on a GPU of numpy that keeps time, and refused in one line where there is none."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from dra_bench.cli import main
from dra_bench.engine_alone import checked_engine, shots
from dra_runtime.engine_file import read_sidecar
from dra_runtime.errors import EngineIntegrityError, EngineMismatchError

RUNTIME_TESTS = Path(__file__).parent.parent / "dra_runtime"
MEGABYTE_MS = 0.25  #: what copying takes on the test's GPU
COMPUTE_MS = 7.0


def runtime_tests(name):
    """Import what the runtime's tests have: a bundle of formulas, and a GPU of numpy."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, RUNTIME_TESTS / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


write_bundle = runtime_tests("bundle_factory").write_bundle
fake_gpu = runtime_tests("fake_gpu")


class TimedCuda(fake_gpu.FakeCuda):
    """A GPU of numpy with events, on a clock that copies and computing move."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.marks = {}

    def enqueue(self, stream, operation):
        super().enqueue(stream, operation)
        if operation.__name__ == "compute":
            super().enqueue(stream, lambda: self.passed(COMPUTE_MS))

    def passed(self, milliseconds):
        self.now += milliseconds

    def _cudaMemcpyAsync(self, target, source, size, kind, stream):
        super()._cudaMemcpyAsync(target, source, size, kind, stream)
        super().enqueue(stream, lambda: self.passed(MEGABYTE_MS * size / 1e6))

    def _cudaEventCreate(self):
        return self._handle("event")

    def _cudaEventDestroy(self, event):
        self._destroy(event, "event")

    def _cudaEventRecord(self, event, stream):
        super().enqueue(stream, lambda: self.marks.update({event: self.now}))

    def _cudaEventElapsedTime(self, first, second):
        return self.marks[second] - self.marks[first]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("bundles") / "bundle")


@pytest.fixture
def engines(bundle, tmp_path):
    """A folder of engines for the test's GPU."""
    return fake_gpu.write_engines(shutil.copytree(bundle, tmp_path / "bundle"), "tensorrt")


@pytest.fixture
def gpu(monkeypatch):
    """A machine with that GPU."""
    from dra_bench.commands import latency_engine
    from dra_runtime import engine_file

    cuda = TimedCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_gpu.FakeTensorRT("tensorrt", cuda))
    for module in (engine_file, latency_engine):
        monkeypatch.setattr(module, "this_host", lambda: fake_gpu.HOST)
    return cuda


@pytest.fixture
def no_gpu(monkeypatch):
    from dra_bench.commands import latency_engine
    from dra_runtime.engine_host import Host

    monkeypatch.setattr(latency_engine, "this_host", lambda: Host("linux-x86_64", None, {}))


def run(capsys, *words):
    with pytest.raises(SystemExit) as exit_info:
        main(["latency", *(str(word) for word in words)])
    return (exit_info.value.code, *capsys.readouterr())


def refusal(capsys, *words):
    """Return the one line on stderr of a command that ends with 2."""
    code, out, err = run(capsys, *words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    return err


def test_an_engine_is_timed_by_the_wall_and_on_the_gpu(capsys, engines, gpu, tmp_path):
    plan = engines / "image_encoder.plan"
    code, out, _ = run(capsys, "--engine", plan, "--samples", 12, "-o", tmp_path / "engine.json")
    assert code == 0
    result = json.loads((tmp_path / "engine.json").read_text())
    assert [row["batch"] for row in result["rows"]] == [1, 4, 8]  # the profiles' shapes, each once
    sidecar = read_sidecar(plan)
    (image,) = sidecar.inputs
    for row in result["rows"]:
        device = row["device"]
        assert (row["backend"], row["part"], row["text_tokens"], row["samples"]) == (
            "tensorrt",
            "image_encoder",
            None,
            12,
        )
        assert device["to_gpu_bytes"] == row["batch"] * 4 * np.prod(image.shape[1:])
        out_bytes = sum(4 * row["batch"] * int(np.prod(tensor.shape[1:])) for tensor in sidecar.outputs)
        assert device["to_host_bytes"] == out_bytes
        assert device["compute_ms"] == pytest.approx(COMPUTE_MS, abs=1e-3)
        assert device["to_gpu_ms"] == pytest.approx(MEGABYTE_MS * device["to_gpu_bytes"] / 1e6, abs=1e-4)
        assert device["to_host_ms"] == pytest.approx(MEGABYTE_MS * out_bytes / 1e6, abs=1e-4)
        assert device["samples"] == 12
    assert (result["engine"]["graph"], result["engine"]["precision"]) == ("image_encoder", "fp32")
    assert "on Test GPU" in out
    assert "computing ms" in out
    assert max(map(len, out.splitlines())) <= 120
    assert gpu.faults == []
    assert "cudaGraphLaunch" in gpu.calls  # the wall's times are those of a service
    assert not [kind for kind in gpu.handles.values() if kind == "event"]


def test_texts_have_rows_of_every_length_and_end_with_clips_token(engines, gpu):
    made = shots(read_sidecar(engines / "text_encoder.plan"))
    assert [(shot.batch, shot.text_tokens) for shot in made] == [(1, 2), (1, 16), (1, 77), (4, 16), (8, 77)]
    for shot in made:
        tokens = shot.inputs["tokens"]
        assert (tokens.shape, tokens.dtype) == ((shot.batch, shot.text_tokens), np.int32)
        assert (tokens.argmax(axis=1) == shot.text_tokens - 1).all()


def test_without_a_gpu_one_line_says_what_was_checked(capsys, engines, no_gpu):
    line = refusal(capsys, "--engine", engines / "image_encoder.plan")
    size = (engines / "image_encoder.plan").stat().st_size
    for words in (
        "no CUDA GPU is here",
        f"{size} bytes",
        "SHA-256",
        "tensorrt 10.13",
        "Test GPU",
        "0.0 % of the tensors",
    ):
        assert words in line


def test_a_damaged_plan_is_one_line(capsys, engines, no_gpu):
    plan = engines / "image_encoder.plan"
    content = bytearray(plan.read_bytes())
    content[-2] ^= 1
    plan.write_bytes(content)
    assert "its SHA-256 starts with" in refusal(capsys, "--engine", plan)
    plan.write_bytes(content[:-1])
    assert "bytes where its sidecar says" in refusal(capsys, "--engine", plan)


def test_a_swapped_plan_is_one_line(capsys, engines, no_gpu):
    plan = engines / "image_encoder.plan"
    shutil.copy(engines / "text_encoder.plan", plan)
    assert "its sidecar says" in refusal(capsys, "--engine", plan)
    shutil.copy(engines / "text_encoder.plan.json", engines / "image_encoder.plan.json")
    assert "plan.file has 'text_encoder.plan'" in refusal(capsys, "--engine", plan)


def test_a_missing_sidecar_or_plan_is_one_line(capsys, engines, no_gpu, tmp_path):
    (engines / "image_encoder.plan.json").unlink()
    assert "sidecar can't be read" in refusal(capsys, "--engine", engines / "image_encoder.plan")
    (engines / "text_encoder.plan").unlink()
    assert "text_encoder.plan: can't be read" in refusal(capsys, "--engine", engines / "text_encoder.plan")
    assert "sidecar can't be read" in refusal(capsys, "--engine", tmp_path / "none.plan")


def test_an_engine_excludes_what_belongs_to_bundles(capsys, engines, bundle):
    plan = engines / "image_encoder.plan"
    assert "--engine" in refusal(capsys, "--engine", plan, "--bundle", bundle)
    assert "--engine" in refusal(capsys, "--engine", plan, "--text", "blue")


def test_an_engine_for_another_gpu_is_refused(engines):
    from dra_runtime.engine_host import Gpu, Host

    other = Host("linux-x86_64", Gpu("Other GPU", "9.0"), fake_gpu.VERSIONS)
    with pytest.raises(EngineMismatchError, match="built for Test GPU"):
        checked_engine(engines / "image_encoder.plan", other)
    (engines / "image_encoder.plan").write_bytes(b"")
    with pytest.raises(EngineIntegrityError):
        checked_engine(engines / "image_encoder.plan", other)
