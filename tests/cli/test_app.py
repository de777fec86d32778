"""The command line imports only the module of the command that runs."""

from typing import Any

import pytest
from typer.main import get_command

from cli.app import ENTRIES, make_app


def commands_of(*words: str) -> dict[str, Any]:  # typer's own copy of click has no public types
    """The commands of the command line that runs these words."""
    command: Any = get_command(make_app(words))
    return dict(command.commands)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_command_comes_without_the_others(name: str) -> None:
    """With the help that it has among all."""
    found = commands_of(name, "--help")

    assert found[name].help == commands_of()[name].help
    assert set(found) == {name, "healthcheck"}


def test_all_commands_are_there_for_other_words() -> None:
    """For `--help`, and for a word that is no command: a similar one is proposed."""
    assert set(commands_of("--help")) == set(commands_of("predikt")) == {*ENTRIES, "healthcheck"}
