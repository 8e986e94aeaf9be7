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


for _name in ("bundle_factory", "fuzz_files", "fuzzing"):  # each may import those before it
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
