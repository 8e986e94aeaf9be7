"""Makes the folder's helpers importable."""

import importlib.util
import sys
from pathlib import Path

import pytest


def _load(name):
    # pytest's importlib mode puts no test folder on the path, so a helper is loaded by its place
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


_load("pbtxt")
_load("int8_nets")
_load("plan_stand_ins")
_load("half_bundles")


@pytest.fixture(scope="session")
def tiny_half_bundle(tiny_bundle, tiny_checkpoint, tmp_path_factory):
    """Path of `tiny_bundle` in half precision (read only)."""
    from half_bundles import make_half_bundle

    path = tmp_path_factory.mktemp("half") / "bundle"
    make_half_bundle(tiny_bundle, tiny_checkpoint, path)
    return path
