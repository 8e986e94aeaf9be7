"""Threads follow the CPU affinity and the container's quota."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dra_runtime.threads import available_threads, run_together


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def threads(tmp_path, groups: str, files: dict[str, str]) -> int:
    process = tmp_path / "cgroup"
    process.write_text(groups)
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return available_threads(tmp_path / "root", process)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "20000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "1600000 100000\n"}, 8),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "max 100000\n", "a/b/cpu.max": "500000 100000\n"}, 5),
        ("0::/../../host/path\n", {"cpu.max": "400000 100000\n"}, 4),
        ("0::/\n", {"cpu.max": "nonsense\n"}, 8),
        ("3:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "300000\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, 3),
        ("3:cpu:/x\n", {"cpu,cpuacct/cpu.cfs_quota_us": "200000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 2),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ("3:memory:/\n", {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
    ],
)
def test_quota(tmp_path, groups, files, expected):
    assert threads(tmp_path, groups, files) == expected


def test_affinity(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 6}, raising=False)
    assert threads(tmp_path, "0::/\n", {"cpu.max": "600000 100000\n"}) == 3
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert available_threads(tmp_path / "none", tmp_path / "none") == 4


def test_this_machine():
    assert available_threads() >= 1


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        # a container's own group inside a pod's: the tightest limit on the way up counts, wherever it stands
        ("0::/pod/box\n", {"cpu.max": "700000 100000\n", "pod/cpu.max": "150000 100000\n"}, 1),
        (
            "3:cpu,cpuacct:/pod/box\n",
            {
                "cpu/pod/cpu.cfs_quota_us": "200000\n",
                "cpu/pod/cpu.cfs_period_us": "100000\n",
                "cpu/pod/box/cpu.cfs_quota_us": "-1\n",
                "cpu/pod/box/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        # both versions at once: systemd's hybrid layout
        (
            "1:name=systemd:/box\n4:cpuacct,cpu:/box\n0::/box\n",
            {
                "cpuacct,cpu/box/cpu.cfs_quota_us": "350000\n",
                "cpuacct,cpu/box/cpu.cfs_period_us": "100000\n",
                "box/cpu.max": "500000 100000\n",
            },
            3,
        ),
        # version 1 names the host's path, which a container doesn't see: its own group is the root of the mount
        ("2:cpu:/docker/0123\n", {"cpu/cpu.cfs_quota_us": "600000\n", "cpu/cpu.cfs_period_us": "200000\n"}, 3),
        # another period than the usual one, and one that makes no sense
        ("0::/\n", {"cpu.max": "20000 10000\n"}, 2),
        ("0::/\n", {"cpu.max": "20000 0\n"}, 8),
    ],
)
def test_nested_quotas(tmp_path, groups, files, expected):
    assert threads(tmp_path, groups, files) == expected


def test_a_session_has_the_threads_asked_for_and_they_sleep_when_idle(bundle_path):
    # More threads than a machine has CPUs would show best; processor time is counted, whatever else runs here
    code = """
import sys, time
from pathlib import Path
import numpy as np
import dra_runtime as dra

def threads():
    return len(list(Path("/proc/self/task").glob("*")))

encoder = dra.Encoder.open(sys.argv[1], threads=4)
import onnxruntime  # it starts a thread of its own
before = threads()
encoder.encode_texts("in red")
print(threads() - before)
gallery = dra.Gallery.build(encoder, {str(n): np.full((9, 9, 3), n, np.uint8) for n in range(40)})
with dra.Batcher(gallery) as batcher:
    batcher.submit(text="in red", image=np.zeros((9, 9, 3), np.uint8)).result()
    start = time.process_time()
    time.sleep(1)
    print(time.process_time() - start)
"""
    command = [sys.executable, "-c", code, str(bundle_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    started, used = done.stdout.split()
    assert int(started) == (3 if Path("/proc/self/task").is_dir() else 0)  # the fourth is the caller
    assert float(used) < 0.03  # one spinning thread would use 1; measured: 0.0001


def test_run_together_uses_a_thread_each_and_leaves_none():
    meeting = threading.Barrier(3, timeout=30)  # passes only if all three run at once
    seen = {}

    def work(worker):
        meeting.wait()
        seen[worker] = threading.get_ident()

    before = threading.active_count()
    run_together(work, 3)
    assert sorted(seen) == [0, 1, 2]
    assert len(set(seen.values())) == 3
    assert seen[0] == threading.get_ident()
    assert threading.active_count() == before


@pytest.mark.parametrize("failing", [0, 1])
def test_run_together_raises_what_a_worker_raised_after_all_are_done(failing):
    done = []

    def work(worker):
        if worker == failing:
            raise MemoryError(f"worker {worker}")
        done.append(worker)

    with pytest.raises(MemoryError, match=f"worker {failing}"):
        run_together(work, 2)
    assert done == [1 - failing]


def test_run_together_does_the_work_of_threads_that_cannot_be_started(monkeypatch):
    """As in a container whose limit of processes is reached."""
    done = []
    start = threading.Thread.start

    def start_one(thread):
        if done_or_started:
            raise RuntimeError("can't start new thread")
        done_or_started.append(thread)
        start(thread)

    done_or_started = []
    monkeypatch.setattr(threading.Thread, "start", start_one)
    run_together(done.append, 4)
    assert sorted(done) == [0, 1, 2, 3]
    assert not done_or_started[0].is_alive()
