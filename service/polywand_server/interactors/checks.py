"""Checks of a prompt against its image and its tool."""

from polywand_server.errors import InvalidInputError
from polywand_server.geometry.boxes import Box
from polywand_server.interactors.prompt import Label, Prompt
from polywand_server.tools.kinds import Interactor


def check_inside_image(prompt: Prompt, width: int, height: int) -> None:
    """Refuse points and boxes outside an image of this size. Raises InvalidInputError."""
    check_inside(prompt, Box(0, 0, width, height), "the image")


def check_inside(prompt: Prompt, within: Box, what: str) -> None:
    """Refuse points and boxes outside a box, in image pixels. what: names it in errors. Raises InvalidInputError."""
    limit = f"{what} spans {within.x0:g}..{within.x1:g} by {within.y0:g}..{within.y1:g}"
    for number, point in enumerate(prompt.points):
        if not (within.x0 <= point.x <= within.x1 and within.y0 <= point.y <= within.y1):
            raise InvalidInputError(f"prompt.points[{number}]", f"({point.x:g}, {point.y:g}) is outside: {limit}")
    box = prompt.box
    if box is not None and box.union(within) != within:
        raise InvalidInputError(
            "prompt.box", f"({box.x0:g}, {box.y0:g}, {box.x1:g}, {box.y1:g}) reaches outside: {limit}"
        )


def check_fits(prompt: Prompt, tool: Interactor) -> None:
    """Refuse inputs that the tool does not read, and more points than it takes. Raises InvalidInputError."""
    needs = tool.spec.prompt
    if prompt.box is not None and needs.box == "none":
        raise InvalidInputError("prompt.box", f"model '{tool.name}' reads no box")
    if prompt.seed is not None and not tool.reads_seed:
        raise InvalidInputError("prompt.seed", f"model '{tool.name}' reads no seed mask")
    if needs.extreme_points == 0 and prompt.count(Label.EXTREME):
        raise InvalidInputError("prompt.points", f"model '{tool.name}' reads no extreme points")
    if len(prompt.points) > tool.max_points:
        raise InvalidInputError(
            "prompt.points", f"{len(prompt.points)} points; model '{tool.name}' takes at most {tool.max_points}"
        )
