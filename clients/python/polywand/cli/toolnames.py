"""Names of tools, which the shell completes from the server's list."""

import click
from click.shell_completion import CompletionItem

from polywand.catalogue import ModelKind
from polywand.cli.connection import connect
from polywand.cli.params import Text
from polywand.errors import PolywandError

COMPLETION_TIMEOUT_S = 1.0


class ToolName(Text):
    """The name of a tool of one kind."""

    name = "name"

    def __init__(self, kind: ModelKind) -> None:
        super().__init__()
        self._kind = kind

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the server's tools of this kind that begin so; none if it does not answer at once."""
        try:
            with connect(ctx.find_root().params | {"timeout": COMPLETION_TIMEOUT_S}) as client:
                tools = client.models()
        except PolywandError:
            return []
        return [
            CompletionItem(tool.name, help=tool.display_name)
            for tool in tools
            if tool.kind == self._kind and tool.name.startswith(incomplete)
        ]
