"""Commands that are imported when they are used."""

import sys

import pytest
from click.testing import CliRunner

from dra_runtime.console import Later, command_group


@pytest.fixture
def group(tmp_path, monkeypatch):
    (tmp_path / "console_works.py").write_text("import click\n@click.command()\ndef hello():\n    click.echo('hi')\n")
    (tmp_path / "console_lacks.py").write_text("import no_such_library.part\n")
    monkeypatch.syspath_prepend(tmp_path)
    group = command_group("tool", "A tool.")
    group.later = {
        "hello": Later("console_works", "hello", "Say hi.", "cpu"),
        "broken": Later("console_lacks", "hello", "Say nothing.", "gpu"),
    }
    yield group
    for module in ("console_works", "console_lacks"):
        sys.modules.pop(module, None)


def test_a_command_is_imported_when_it_is_used(group):
    assert CliRunner().invoke(group, ["--help"]).stdout.endswith("  hello   Say hi.\n  broken  Say nothing.\n")
    assert "console_works" not in sys.modules
    assert CliRunner().invoke(group, ["hello"]).stdout == "hi\n"
    assert "console_works" in sys.modules


def test_a_missing_library_names_the_extra_that_brings_it(group):
    result = CliRunner().invoke(group, ["broken"])
    assert result.exit_code == 2
    assert result.stderr == (
        "error: no_such_library isn't installed, and this command needs it: pip install 'dra-toolkit[gpu]'\n"
    )


def test_a_command_that_doesnt_exist_is_wrong_use(group):
    result = CliRunner().invoke(group, ["helo"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: No such command 'helo'")
