"""What holds for all commands of the three command lines."""

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from polywand import cli
from polywand_common import console
from polywand_server.cli import main as server
from polywand_zoo.cli import main as zoo


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    yield command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from commands(child, click.Context(child, parent=context, info_name=name))


@pytest.mark.parametrize("root", [cli.main, server, zoo], ids=["polywand", "polywand-server", "polywand-zoo"])
def test_an_options_variable_bears_its_name(root: click.Command) -> None:
    wrong = []
    for command, context in commands(root, click.Context(root, **root.context_settings)):
        for option in command.get_params(context):
            longest = max(option.opts, key=len)
            if not isinstance(option, click.Option) or not option.allow_from_autoenv or longest == "--help":
                continue
            if option.name != longest.lstrip("-").replace("-", "_").lower():
                wrong.append((context.command_path, longest, option.name))
    assert wrong == []


@pytest.mark.parametrize("root", [cli.main, server], ids=["polywand", "polywand-server"])
def test_variables_that_are_no_options_are_left_alone(root: click.Command) -> None:
    result = CliRunner().invoke(root, ["--log-level"], env={"POLYWAND_VERSION": "3.1", "POLYWAND_HELP": "1"})
    assert result.exit_code == 2
    assert "--log-level" in result.output


@pytest.mark.parametrize("root", [cli.main, server, zoo], ids=["polywand", "polywand-server", "polywand-zoo"])
def test_every_command_line_ends_as_the_console_has_it(root: click.Command) -> None:
    assert isinstance(root, console.Command)
