"""Mutated files of every format end in a DraError or a right answer: hundreds here, thousands in the slow tier."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fuzzing import TARGETS, run

# In proportion to how fast a case is: about three seconds in all
FAST = {
    "manifest": 300,
    "bundle": 60,
    "sidecar": 150,
    "gallery": 150,
    "onnx": 150,
    "selftest": 100,
    "merges": 100,
    "image": 300,
}
SLOW = {
    "manifest": 12_000,
    "bundle": 1_500,
    "sidecar": 4_000,
    "gallery": 6_000,
    "index": 3_000,
    "onnx": 12_000,
    "selftest": 4_000,
    "merges": 3_000,
    "image": 40_000,
}


def test_every_format_is_fuzzed():
    assert set(SLOW) == set(TARGETS)
    assert set(TARGETS) - set(FAST) == {"index"}  # faiss takes long to import


@pytest.mark.parametrize("target", FAST)
def test_some_hundred_cases(target, bundle_path, tmp_path):
    shutil.copytree(bundle_path, tmp_path / "bundle")
    run(target, 0, FAST[target], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", SLOW)
def test_many_thousand_cases_under_bounds_of_time_and_memory(target, tmp_path):
    """A crash, a case of more than 20 seconds, or one of more than 1.5 GiB ends the process."""
    script = Path(__file__).with_name("fuzzing.py")
    done = subprocess.run(
        [sys.executable, str(script), target, "100000", str(SLOW[target]), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    last = (tmp_path / "last_case").read_text() if (tmp_path / "last_case").exists() else "none"
    assert done.returncode == 0, f"case {last.strip()} of {target}: {done.stderr[-3000:]}"
    cases, refused = map(int, re.match(r"(\d+) cases, (\d+) of them refused", done.stdout).groups())
    assert cases == SLOW[target]
    assert 0 < refused < cases  # the mutations reach both ends
