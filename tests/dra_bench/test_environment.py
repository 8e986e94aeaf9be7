"""What is said about the machine, and what is not."""

import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dra_bench.environment import CpuClock, cpu_clock, cpu_name, environment, used_by_others


def test_machine_and_versions_are_named():
    found = environment(3, "dra-bench latency")
    assert found["threads"] == 3
    assert found["cores"] == os.cpu_count()
    assert found["python"] == platform.python_version()
    assert found["date"] == time.strftime("%Y-%m-%d", time.gmtime())
    for package in ("torch", "onnxruntime", "numpy", "open_clip", "dra_toolkit"):
        assert found[package][0].isdigit()
    assert {"cpu_mhz", "cpu_celsius", "gpu_name", "gpu_sm_mhz", "gpu_celsius"} <= set(found)


def test_no_name_and_no_path_of_the_machine_is_told():
    text = str(environment(1, "dra-bench latency --bundle bundle"))
    assert socket.gethostname() not in text
    assert str(Path.cwd()) not in text
    assert str(Path.home()) not in text


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="/proc/cpuinfo is Linux's")
def test_the_processor_is_named_as_the_kernel_does():
    assert cpu_name() in Path("/proc/cpuinfo").read_text()


def test_others_are_what_the_machine_did_beyond_this_process():
    cores = os.cpu_count()
    before = CpuClock(machine=100.0, own=10.0, wall=0.0)
    assert used_by_others(before, CpuClock(110.0, 20.0, 10.0)) == 0.0
    assert used_by_others(before, CpuClock(110.0 + 5 * cores, 20.0, 10.0)) == 50.0
    assert used_by_others(before, CpuClock(110.0, 20.1, 10.0)) == 0.0  # the kernel's counters are coarse
    assert used_by_others(before, before) is None
    assert used_by_others(None, before) is None


def test_processor_time_is_read_from_the_first_line(tmp_path):
    stat = tmp_path / "stat"
    ticks = os.sysconf("SC_CLK_TCK")
    stat.write_text(f"cpu  {ticks} {2 * ticks} {3 * ticks} 99999 99999 {4 * ticks} 0 {5 * ticks} 777 777\ncpu0 1 1\n")
    assert cpu_clock(stat).machine == 1 + 2 + 3 + 4 + 5
    assert cpu_clock(tmp_path / "missing") is None
    stat.write_text("cpu 1 2\n")
    assert cpu_clock(stat) is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="/proc/stat is Linux's")
def test_processes_that_we_started_are_no_others():
    before = cpu_clock()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.2: pass"], check=True)
    assert cpu_clock().own - before.own > 0.15
