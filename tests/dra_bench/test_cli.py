"""The command dra-bench, from its words to its exit codes."""

import subprocess
import sys

import pytest

from dra_bench.cli import main


def run(capsys, *words):
    """Run a command; returns its exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as exit_info:
        main([str(word) for word in words])
    return (exit_info.value.code, *capsys.readouterr())


@pytest.mark.parametrize("command", [(), ("latency",), ("recall",), ("report",)])
def test_help_says_what_a_command_does(capsys, command):
    code, out, err = run(capsys, *command, "--help")
    assert code == 0
    assert not err
    assert "Usage: dra-bench" in out
    assert len(out.splitlines()) > 10


def test_nothing_is_plotted_before_a_report_is_asked_for():
    program = "import dra_bench.cli, sys; assert not {'matplotlib', 'jinja2'} & set(sys.modules), 'loaded'"
    subprocess.run([sys.executable, "-c", program], check=True)


def assert_one_line(code, out, err, *words):
    assert code == 2
    assert not out
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    for word in words:
        assert word in err


def test_a_missing_bundle_is_one_line(capsys, tmp_path, tiny_checkpoint):
    for command in ("latency", "recall"):
        result = run(capsys, command, "--bundle", tmp_path / "none", "--checkpoint", tiny_checkpoint)
        assert_one_line(*result, "none", "no such folder")


def test_an_output_that_can_not_be_written_is_found_before_the_work(capsys, tmp_path):
    result = run(
        capsys, "latency", "--bundle", tmp_path / "b", "--checkpoint", tmp_path / "c", "-o", tmp_path / "no" / "l.json"
    )
    assert_one_line(*result, "the folder of", "l.json")


def test_a_report_of_no_run_is_one_line(capsys, tmp_path):
    assert_one_line(*run(capsys, "report", tmp_path / "none"), "is no folder")
    assert_one_line(*run(capsys, "report", tmp_path), "eval.json", "dra-train evaluate")
    assert list(tmp_path.iterdir()) == []


def test_few_samples_are_refused(capsys, tmp_path):
    result = run(capsys, "latency", "--bundle", "b", "--checkpoint", "c", "--samples", "3")
    assert_one_line(*result, "--samples", "11")
