"""Makes the folder's helpers importable."""

import importlib.util
import sys
from pathlib import Path


def _load(name):
    # pytest's importlib mode puts no test folder on the path, so a helper is loaded by its place
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


_load("pbtxt")
_load("int8_nets")
_load("plan_stand_ins")
