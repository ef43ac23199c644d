"""Options that several commands have."""

import click

from polywand import checks
from polywand.cli.params import ImageFile, Numbers, ToolName, ValueRange
from polywand_common.console import Number

# click makes an option's environment variable from the parameter's name, so both names are the same, also `json`.
AS_JSON = click.option("--json", is_flag=True, help="Print JSON: one object a line, also for a failure.")
IMAGE = click.argument("image", type=ImageFile())
BOX = Numbers("x0,y0,x1,y1")
INTERACTOR = click.option("--model", type=ToolName("interactor"), help="An interactor.  [default: server's choice]")
VERSION = click.option(
    "--version",
    default=0,
    type=click.IntRange(0, checks.MAX_VERSION),
    help="Version of the model; 0 is the highest that is ready.",
)
MASK_THRESHOLD = click.option(
    "--threshold",
    type=Number(0, 1, min_open=True, max_open=True),
    help="Probability from which a pixel counts.  [default: model's]",
)
TOLERANCE = click.option(
    "--tolerance",
    type=Number(0, checks.MAX_TOLERANCE),
    help="Simplification in pixels; 0 keeps every vertex.  [default: server's]",
)
MAX_POINTS = click.option(
    "--max-points", type=click.IntRange(checks.MIN_POINTS, checks.MAX_POINTS), help="Most vertices of one outline."
)
RANGE = click.option(
    "--range",
    type=ValueRange(),
    help="The values that are black and white, in a file with more than 8 bits.  [default: from its values]",
)
OVERLAY = click.option(
    "--overlay",
    type=click.Path(),
    help="Draw the answer on the image, into this file; a name that ends in / is a folder, for NAME.png.",
)
