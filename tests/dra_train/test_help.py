"""Every command's help page: there, short in the list, and with its examples one a line."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from dra_train.cli import main


@pytest.mark.parametrize("name", sorted(main.commands))
def test_help_of_every_command(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    assert "\\b" not in result.stdout  # a raw docstring hides click's mark, and the examples run together
    assert all(line.count("dra-train ") <= 1 for line in result.stdout.splitlines())
