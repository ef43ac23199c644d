"""Checks of a prompt against its image and its tool."""

from polywand_server.errors import InvalidInputError
from polywand_server.images import Picture
from polywand_server.interactors.prompt import Label, Prompt
from polywand_server.tools.kinds import Interactor


def check_inside(prompt: Prompt, picture: Picture) -> None:
    """Refuse points and boxes outside the image. Raises InvalidInputError."""
    width, height = picture.width, picture.height
    limit = f"the image spans 0..{width} by 0..{height}"
    for number, point in enumerate(prompt.points):
        if not (0 <= point.x <= width and 0 <= point.y <= height):
            raise InvalidInputError(f"prompt.points[{number}]", f"({point.x:g}, {point.y:g}) is outside: {limit}")
    box = prompt.box
    if box is not None and not (box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height):
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
