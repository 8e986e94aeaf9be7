"""The leaf stays light: no PyTorch, no other room of ours, a quick import; the linter holds the same rule."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import dra_runtime

ROOT = Path(__file__).parents[2]
FOREIGN = {"torch", "torchvision", "transformers", "open_clip", "timm", "matplotlib"}
FOREIGN |= {"dra_train", "dra_export", "dra_bench"}


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout


@pytest.mark.parametrize("module", ["dra_runtime", "dra_runtime.cli"])
def test_importing_brings_nothing_heavy(module):
    loaded = json.loads(fresh(f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"))
    roots = {name.split(".")[0] for name in loaded}
    assert "numpy" in roots
    assert roots.isdisjoint(FOREIGN)
    # loaded when they are first needed
    assert roots.isdisjoint({"onnxruntime", "onnx", "ftfy", "regex", "safetensors"})


def test_what_a_service_does_not_need_is_imported_when_it_is_asked_for():
    code = """
import json, sys, dra_runtime as dra
before = sorted(name for name in sys.modules if name.startswith("dra_runtime."))
assert set(dra.__all__) <= set(dir(dra))
print(json.dumps([before, [getattr(dra, name).__name__ for name in dra._LATER]]))
from dra_runtime import *
assert callable(drift) and callable(index_folder)
"""
    before, names = json.loads(fresh(code))
    assert {"dra_runtime.indexing", "dra_runtime.gallery_drift", "dra_runtime.journal"}.isdisjoint(before)
    assert names == ["DriftReport", "IndexingReport", "adopt_bundle", "drift", "index_folder"]
    with pytest.raises(AttributeError, match="has no attribute 'torch'"):
        dra_runtime.torch  # noqa: B018


def test_a_whole_search_brings_nothing_heavy(bundle_path, tmp_path):
    code = f"""
import json, sys, numpy, dra_runtime as dra
encoder = dra.Encoder.open({str(bundle_path)!r}, check=True)
gallery = dra.Gallery.build(encoder, {{"a": numpy.zeros((9, 9, 3), "u1"), "b": numpy.ones((9, 9, 3), "u1")}})
gallery.save({str(tmp_path / "g")!r})
dra.Gallery.open({str(tmp_path / "g")!r}, encoder).search(text="“größer” &amp; rot", id="a")
print(json.dumps(sorted(sys.modules)))
"""
    roots = {name.split(".")[0] for name in json.loads(fresh(code))}
    assert "onnxruntime" in roots
    assert roots.isdisjoint(FOREIGN)


def test_import_takes_a_fraction_of_a_second():
    # processor time, which a busy neighbour stretches less than time on the clock; 0.2 s on two cores
    code = "import time; t = time.process_time(); import dra_runtime; print(time.process_time() - t)"
    assert min(float(fresh(code)) for _ in range(4)) < 0.3


@pytest.mark.parametrize("module", ["torch", "torchvision.transforms", "open_clip", "dra_train.model", "pickle"])
def test_the_linter_bans_what_the_leaf_must_not_import(module):
    def codes(path: str) -> list[str]:
        options = ["--stdin-filename", path, "--output-format", "json", "--no-cache", "-"]
        done = subprocess.run(
            [sys.executable, "-m", "ruff", "check", *options],
            input=f"import {module}\n",
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        return [finding["code"] for finding in json.loads(done.stdout)]

    assert "TID251" in codes("dra_runtime/new_file.py")
    assert "TID251" not in codes("tests/new_file.py")
