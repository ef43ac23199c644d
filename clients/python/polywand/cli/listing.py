"""`polywand models`: what there is."""

import click

import polywand
from polywand.cli import printing, report
from polywand.cli.options import AS_JSON
from polywand_common.console import Command, echo


@click.command(cls=Command)
@AS_JSON
@click.pass_obj
def models(client: polywand.Client, json: bool) -> None:
    """List the tools of the server."""
    with printing.errors_printed(None, json):
        tools = client.models()
        echo(report.line(report.models_json(tools)) if json else report.models_text(tools))
