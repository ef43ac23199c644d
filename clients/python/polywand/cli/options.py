"""Options that several commands have."""

import click

from polywand import checks
from polywand.cli.params import ImageFile, Numbers, ValueRange, Version
from polywand.cli.toolnames import ToolName
from polywand_common.console import Number, Whole

# click makes an option's environment variable from the parameter's name, so both names are the same, also `json`.
AS_JSON = click.option("--json", is_flag=True, help="Print JSON: one object a line, also for a failure.")
IMAGE = click.argument("image", type=ImageFile())
BOX = Numbers("x0,y0,x1,y1")
ROI = click.option(
    "--roi", type=BOX, help="See this part of the image only, as if the rest did not exist.  [default: all of it]"
)
INTERACTOR = click.option("--model", type=ToolName("interactor"), help="An interactor.  [default: server's choice]")
VERSION = click.option(
    "--version",
    default=0,
    type=Version(),
    show_default=False,
    help="Version of the model.  [default: the highest that is ready]",
)
MASK_THRESHOLD = click.option(
    "--threshold",
    type=Number(0, 1, min_open=True, max_open=True),
    metavar="NUMBER",
    help="Probability from which a pixel counts.  [default: model's]",
)
TOLERANCE = click.option(
    "--tolerance",
    type=Number(0, checks.MAX_TOLERANCE),
    metavar="PIXELS",
    help="How far outlines may be simplified; 0 keeps every vertex.  [default: server's]",
)
MAX_POINTS = click.option(
    "--max-points",
    type=Whole(checks.MIN_POINTS, checks.MAX_POINTS),
    metavar="NUMBER",
    help="Most vertices of one outline.",
)
RANGE = click.option(
    "--range",
    type=ValueRange(),
    help="The values that are black and white, in files of more than 8 bits.  [default: from the values]",
)
OVERLAY = click.option(
    "--overlay",
    type=click.Path(),
    help="Draw the answer on the image, into this file; a name that ends in / is a folder, for NAME.png.",
)


def check_version(version: int, model: str | None) -> None:
    """Raise click.UsageError for a version of no model."""
    if version and not model:
        raise click.UsageError("--version is that of a model: add --model.")
