"""Engines in a bundle: compared where they run, and where they don't, verify says why. No GPU is needed here."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dra_export.cli import main
from dra_export.parity import artifacts as parity_artifacts
from dra_export.parity.artifacts import engines_of
from dra_runtime.backends import tensorrt as backend
from dra_runtime.encoder import Encoder
from dra_runtime.engine_file import BuildOptions, EngineSidecar, Proof, Target, with_plan, write_sidecar
from dra_runtime.engine_host import TENSORRT_RTX, Gpu, Host
from dra_runtime.errors import BackendError
from dra_runtime.sessions import GpuOptions

HERE = Host("linux-x86_64", Gpu("Test GPU", "8.9"), {TENSORRT_RTX: "1.7.1.13"})


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def add_engines(bundle: Path, **changes: object) -> Path:
    """Put made-up plans of all graphs into a bundle, with sidecars that fit them."""
    manifest = Encoder.open(bundle, integrity="size").bundle.manifest
    folder = bundle / "engines" / "made-up"
    folder.mkdir(parents=True)
    for name, graph in manifest.graphs.items():
        (folder / f"{name}.plan").write_bytes(name.encode())
        sidecar = EngineSidecar(
            graph=name, bundle_id=manifest.bundle_id, onnx_sha256=manifest.files[graph.file].sha256, plan="",
            plan_sha256="", plan_size=0, library=TENSORRT_RTX, library_version="1.7.1.13",
            target=Target("linux-x86_64", ("8.9",), None), precision="fp32", proof=Proof(0, 9, 0, 3),
            profiles=({t.name: _ranges(t.shape) for t in graph.inputs},), inputs=graph.inputs,
            outputs=graph.outputs, build=BuildOptions(2, 4, 8), versions={},
        )  # fmt: skip
        write_sidecar(folder, with_plan(replace(sidecar, **changes), folder / f"{name}.plan"))
    return folder


def _ranges(shape: tuple[int | str, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    least, usual, most = (
        tuple(n if isinstance(n, int) else free[n] for n in shape)
        for free in ({"batch": 2, "length": 2}, {"batch": 4, "length": 16}, {"batch": 8, "length": 77})
    )
    return least, usual, most


def verify(bundle: Path, checkpoint: Path, exit_code: int) -> dict:
    arguments = ["verify", str(bundle), "--checkpoint", str(checkpoint), "--pairs", "6", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


class GivenEngine:
    """An opened engine; ONNX Runtime computes for it."""

    backend = TENSORRT_RTX

    def __init__(self, bundle: Path, plan: Path, noise: float = 0.0) -> None:
        self.session, self.noise = Encoder.open(bundle, integrity="size").session(plan.stem), noise

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(0)
        return {
            name: (array + self.noise * generator.standard_normal(array.shape)).astype(np.float32)
            for name, array in self.session.run(inputs).items()
        }


def test_engines_that_run_here_are_compared(
    bundle: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_engines(bundle)
    monkeypatch.setattr(parity_artifacts, "this_host", lambda: HERE)
    monkeypatch.setattr(backend, "open_tensorrt", lambda plan, gpu: GivenEngine(bundle, plan))
    result = verify(bundle, tiny_checkpoint, 0)
    [engine] = result["variants"]
    assert (engine["name"], engine["backend"], engine["precision"]) == ("engines/made-up", TENSORRT_RTX, "fp32")
    assert set(engine["graphs"]) == set(result["graphs"])
    assert result["notes"] == []

    monkeypatch.setattr(backend, "open_tensorrt", lambda plan, gpu: GivenEngine(bundle, plan, noise=0.05))
    result = verify(bundle, tiny_checkpoint, 1)
    assert (result["passed"], result["missed"], result["variants"][0]["passed"]) == (False, [], False)
    assert {line.partition(":")[0] for line in result["variants"][0]["missed"]} >= {"compositor", "query"}


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (replace(HERE, gpu=None), "no CUDA GPU is here"),
        (replace(HERE, libraries={}), "isn't installed here"),
        (replace(HERE, gpu=Gpu("Old GPU", "7.5")), "here is Old GPU"),
        (replace(HERE, libraries={TENSORRT_RTX: "1.2.0.1"}), "here is 1.2.0.1"),
    ],
)
def test_engines_that_cannot_run_here_get_one_note(
    bundle: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, host: Host, reason: str
) -> None:
    add_engines(bundle)
    monkeypatch.setattr(parity_artifacts, "this_host", lambda: host)
    result = verify(bundle, tiny_checkpoint, 0)
    [note] = result["notes"]
    assert note.startswith("not run: ")
    assert reason in note
    assert f"dra-export engine {bundle.name} --backend" in note
    assert "--graph" not in note  # one command for the five
    assert note.endswith("(5 plans)")


def test_a_host_that_lacks_something_only_when_it_opens_them_gets_a_note_too(
    bundle: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(plan: Path, gpu: GpuOptions) -> None:
        raise BackendError("cudaSetDevice failed")

    add_engines(bundle)
    monkeypatch.setattr(parity_artifacts, "this_host", lambda: HERE)
    monkeypatch.setattr(backend, "open_tensorrt", fail)
    assert "made-up: cudaSetDevice failed" in verify(bundle, tiny_checkpoint, 0)["notes"][0]


def test_a_swapped_plan_and_one_of_another_bundle_are_found_wanting(
    bundle: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = add_engines(bundle)
    monkeypatch.setattr(parity_artifacts, "this_host", lambda: replace(HERE, gpu=None))
    (folder / "query.plan").write_bytes(b"other")
    missed = verify(bundle, tiny_checkpoint, 1)["missed"]
    assert len(missed) == 1
    assert "query.plan: its SHA-256 starts with" in missed[0]

    shutil.rmtree(folder)
    add_engines(bundle, bundle_id="0" * 64)
    missed = verify(bundle, tiny_checkpoint, 1)["missed"]
    assert len(missed) == 5
    assert all("built from bundle 000000000000" in line for line in missed)


def test_a_bundle_without_engines_asks_for_no_host(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity_artifacts, "this_host", None)
    found = engines_of(Encoder.open(bundle))
    assert (dict(found.usable), found.not_run, found.broken) == ({}, (), ())
