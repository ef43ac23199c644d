"""`polywand completion`: scripts that make a shell complete what is typed."""

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from polywand_common.console import Command, echo

PROGRAM = "polywand"
VARIABLE = "_POLYWAND_COMPLETE"  # click's name for it
SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that makes a shell complete commands, options, files and the server's models.

    \b
    bash:  in ~/.bashrc
           eval "$(polywand completion bash)"
    zsh:   in ~/.zshrc, after compinit
           eval "$(polywand completion zsh)"
    fish:  once
           polywand completion fish > ~/.config/fish/completions/polywand.fish
    """
    echo(SHELLS[shell](ctx.find_root().command, {}, PROGRAM, VARIABLE).source().strip())
