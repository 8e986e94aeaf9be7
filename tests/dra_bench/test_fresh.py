"""Processes that are measured from their start."""

import itertools
import json
import sys

import pytest

from dra_bench import fresh
from dra_bench.cli import main
from dra_bench.fresh import Probe, Stage, raw, run_probe, run_probes, summary
from dra_bench.memory import memory_rows, memory_table
from dra_runtime.errors import UsageError


def stage(name, ms, mb=0.0):
    return Stage(name, ms, {"peak_mb": mb + 1, "resident_mb": mb, "anonymous_mb": mb / 2})


def test_stages_are_summed_up_over_the_runs():
    runs = [(stage("import", ms, 10), stage("open", ms + step, 30)) for ms, step in ((10, 5), (20, 7), (90, 6))]
    first, last = summary(runs)
    assert (first["stage"], last["stage"]) == ("import", "open")
    assert first["ms"] == first["own_ms"] == {"median": 20, "least": 10, "most": 90}
    assert last["ms"] == {"median": 27, "least": 15, "most": 96}
    assert last["own_ms"] == {"median": 6, "least": 5, "most": 7}
    assert last["peak_mb"]["median"] == 31
    assert last["runs"] == 3
    assert raw(runs)[1][1] == {"stage": "open", "ms": 27, "peak_mb": 31, "resident_mb": 30, "anonymous_mb": 15}


def test_every_probe_runs_as_often_as_asked_for(monkeypatch):
    monkeypatch.setattr(fresh, "run_probe", lambda probe: (stage(probe.name, 1),))
    names = [name for name, _ in run_probes([Probe(name, "x", ()) for name in "abc"], 4)]
    assert sorted(names) == sorted("abc" * 4)
    assert all(set(names[i : i + 3]) == set("abc") for i in range(0, 12, 3))


def test_a_process_that_fails_is_named_with_its_reason(tmp_path):
    probe = Probe("some bundle", "bundle", (tmp_path / "none", "picture.jpg", "in red", 1, 1, "hash"))
    with pytest.raises(UsageError, match=r"'some bundle' failed: .*no such folder"):
        run_probe(probe)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read as Linux states it")
def test_a_bundles_process_tells_time_and_memory_of_every_stage(tiny_bundle, emoji_images):
    stages = run_probe(Probe("tiny", "bundle", (tiny_bundle, emoji_images[0], "in red", 2, 1, "size")))
    assert [s.name for s in stages] == [
        "interpreter",
        "import dra_runtime",
        "open the bundle",
        "import onnxruntime",
        "load the image encoder",
        "load the text encoder",
        "load the compositor",
        "first answer",
        "more answers",
    ]
    assert all(a.ms < b.ms for a, b in itertools.pairwise(stages))
    assert stages[0].ms > 0
    peaks = [s.memory["peak_mb"] for s in stages]
    assert peaks == sorted(peaks)
    assert peaks[-1] > 20
    assert all(s.memory["anonymous_mb"] < s.memory["resident_mb"] <= s.memory["peak_mb"] for s in stages)


def test_memory_is_compared_with_pytorchs():
    runs = {"pytorch-eager": [(stage("import torch", 1, 100), stage("more answers", 2, 399))]}
    runs["onnxruntime-cpu"] = [(stage("import onnxruntime", 1, 20), stage("more answers", 2, 99))]
    rows = memory_rows(runs)
    assert "share_of_pytorch" not in rows[0]
    assert rows[1]["share_of_pytorch"]["peak_mb"] == 0.25
    assert [cell.strip() for cell in memory_table(rows).splitlines()[3].strip("|").split("|")] == [
        "onnxruntime-cpu",
        "100",
        "100 to 100",
        "25%",
        "99",
        "50",
        "20",
        "1",
    ]


@pytest.mark.slow  # starts PyTorch in processes of their own
def test_the_commands_write_what_they_found(capsys, tiny_bundle, tiny_checkpoint, tmp_path):
    both = ("--bundle", tiny_bundle, "--threads", 1, "--runs", 2)
    for name, words in (("memory", (*both, "--checkpoint", tiny_checkpoint)), ("coldstart", both)):
        with pytest.raises(SystemExit) as exit_info:
            main([name, *map(str, words), "-o", str(tmp_path / f"{name}.json")])
        assert exit_info.value.code == 0
        assert str(tiny_bundle) not in (tmp_path / f"{name}.json").read_text()
    capsys.readouterr()
    memory, coldstart = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("memory", "coldstart"))
    assert [row["backend"] for row in memory["rows"]] == ["pytorch-eager", "onnxruntime-cpu"]
    assert 0 < memory["rows"][1]["share_of_pytorch"]["peak_mb"] < 1
    assert [row["start"] for row in coldstart["rows"]] == [
        "onnxruntime-cpu, hash checked",
        "onnxruntime-cpu, size checked",
    ]
    for row in coldstart["rows"]:
        assert [stage["stage"] for stage in row["stages"]][3:5] == ["open the gallery", "import onnxruntime"]
        assert row["stages"][-1]["ms"]["median"] > sum(stage["own_ms"]["least"] for stage in row["stages"][:-1])
