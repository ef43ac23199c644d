"""Answers and errors on their way out: printed as text or JSON, and drawn."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

import polywand
from polywand import files
from polywand.cli import as_json
from polywand.errors import PolywandError, ServerError
from polywand.files import STANDARD_INPUT, Source
from polywand_common.console import complain, echo
from polywand_common.texts import printable, shown

RGB = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer in its forms. draw: paints it on the image, RGB uint8 [H, W, 3]."""

    text: str
    json: dict[str, Any]
    draw: Callable[[RGB], RGB]


@dataclass(frozen=True, slots=True)
class Printer:
    """Prints the answers of one command.

    json: as JSON, not as text. overlays: the picture to draw for an image; empty without --overlay.
    value_range: the values that are black and white, in image files with more than 8 bits.
    """

    json: bool
    overlays: Mapping[Source, Path] = field(default_factory=dict)
    value_range: tuple[float, float] | None = None

    def answer(self, image: Source, answer: Answer) -> bool:
        """Draw and print one answer; it is printed even if drawing fails. Return whether drawing succeeded."""
        failure: PolywandError | None = None
        try:
            if image in self.overlays:
                self._draw(image, self.overlays[image], answer.draw)
        except PolywandError as error:
            failure = error
        failed = {} if failure is None else as_json.failure(printable(image.name), failure)
        echo(as_json.line(answer.json | failed) if self.json else answer.text)
        if failure is not None:
            complain(message(failure, image.name))
        return failure is None

    def failure(self, image: Source, error: PolywandError) -> None:
        """Print that one image failed."""
        if self.json:
            echo(as_json.line(as_json.failure(printable(image.name), error)))
        complain(message(error, image.name))

    def _draw(self, image: Source, path: Path, draw: Callable[[RGB], RGB]) -> None:
        from polywand import overlay  # noqa: PLC0415 - needs an extra

        files.write(path, overlay.encode(draw(overlay.load_rgb(image.read(), self.value_range)), path.suffix))


@contextmanager
def opened(
    client: polywand.Client, image: Source, value_range: tuple[float, float] | None
) -> Iterator[polywand.Session]:
    """Open a session; its error names the image."""
    try:
        session = client.open(image, value_range=value_range, reconnect=False)
    except PolywandError as error:
        error.args = (message(error, image.name),)
        raise
    with session:
        yield session


@contextmanager
def errors_printed(image: str | None, json: bool) -> Iterator[None]:
    """Print errors, with --json as JSON too, and with the name of the image. Raises click.ClickException for them."""
    try:
        yield
    except PolywandError as error:
        if json:
            echo(as_json.line(as_json.failure(None if image is None else printable(image), error)))
        raise click.ClickException(message(error)) from error


def message(error: PolywandError, image: str | None = None) -> str:
    """Return an error as one line: with the image's name, and with the request id if the server failed."""
    text = shown(str(error))
    if isinstance(error, ServerError) and error.request_id:
        text = f"{text} [request_id={shown(error.request_id)}]"
    if image is None or text.startswith((shown(image), STANDARD_INPUT)):
        return text
    return f"{shown(image)}: {text}"


def check_standard_input(sources: Sequence[Source]) -> None:
    """Raise click.UsageError when several inputs are standard input."""
    if sum(source.is_standard_input for source in sources) > 1:
        raise click.UsageError("Standard input is read once: only one input can be '-'.")
