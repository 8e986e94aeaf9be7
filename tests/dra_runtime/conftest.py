"""A tiny bundle, made once; tests that change it copy it."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest


def _load_factory():
    # pytest's importlib mode puts no test folder on the path, so the helper is loaded by its place
    spec = importlib.util.spec_from_file_location("bundle_factory", Path(__file__).with_name("bundle_factory.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["bundle_factory"] = module
    spec.loader.exec_module(module)
    return module


_load_factory()


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
