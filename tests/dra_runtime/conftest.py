"""A tiny bundle, made once; tests that change it copy it."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest


def _load(name):
    # pytest's importlib mode puts no test folder on the path, so the helpers are loaded by their place
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


for _name in ("bundle_factory", "fake_gpu", "fuzz_files", "fuzzing"):  # each may import those before it
    _load(_name)


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory):
    from bundle_factory import write_bundle

    return write_bundle(tmp_path_factory.mktemp("bundles") / "bundle")


@pytest.fixture(scope="session")
def other_bundle_path(tmp_path_factory):
    """Another model, without a reranker."""
    from bundle_factory import write_bundle

    return write_bundle(tmp_path_factory.mktemp("bundles") / "other", seed=1, reranker=False)


@pytest.fixture
def bundle_copy(bundle_path, tmp_path):
    return Path(shutil.copytree(bundle_path, tmp_path / "bundle"))


@pytest.fixture
def fake_gpu(monkeypatch):
    """A machine with a GPU, CUDA and both TensorRT libraries, all in numpy."""
    from types import SimpleNamespace

    from fake_gpu import HOST, FakeCuda, FakeTensorRT

    from dra_runtime import engine_file, engine_host
    from dra_runtime.backends import engines

    cuda = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    libraries = {name: FakeTensorRT(name.replace("-", "_"), cuda) for name in HOST.libraries}
    for library in libraries.values():
        monkeypatch.setitem(sys.modules, library.__name__, library)
    for module in (engine_file, engines):
        monkeypatch.setattr(module, "this_host", lambda: HOST)
    monkeypatch.setattr(engine_host, "first_gpu", lambda: HOST.gpu)
    return SimpleNamespace(cuda=cuda, libraries=libraries, host=HOST)
