"""`polywand models` and `polywand info`: what a server has, and what it is."""

import click

import polywand
from polywand.cli import as_json, as_text, printing
from polywand.cli.options import AS_JSON
from polywand_common.console import Command, echo


@click.command(cls=Command)
@AS_JSON
@click.pass_obj
def models(client: polywand.Client, json: bool) -> None:
    """List the tools of the server."""
    with printing.errors_printed(None, json):
        tools = client.models()
        echo(as_json.line(as_json.models(tools)) if json else as_text.models(tools))


@click.command(cls=Command)
@AS_JSON
@click.pass_obj
def info(client: polywand.Client, json: bool) -> None:
    """Print what the server is: its version, its state, its limits, what it reads and writes."""
    with printing.errors_printed(None, json):
        server = client.server_info()
        echo(as_json.line(as_json.info(server)) if json else as_text.info(client.target, server))
