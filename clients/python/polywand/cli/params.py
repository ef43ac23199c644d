"""Command line parameters that click does not have."""

import re
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from polywand import checks
from polywand.checks import MAX_COORDINATE
from polywand.errors import InvalidRequest
from polywand.files import Source
from polywand.options import LabelMapping
from polywand.prompts import Point, PointLabel
from polywand_common.console import Command, Number
from polywand_common.texts import shown

POINT_OPTIONS: dict[str, PointLabel] = {"--positive": "positive", "--negative": "negative", "--extreme": "extreme"}
ORDER = "polywand.point_order"  # a key of click's Context.meta


class ImageFile(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on only
    """A file that is read when it is needed, as a `Source`; "-" is standard input."""

    def __init__(self, name: str = "image") -> None:
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Source:
        """Read one value."""
        return value if isinstance(value, Source) else Source(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Have the shell complete file names."""
        return [CompletionItem(incomplete, type="file")]


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on only
    """Comma-separated numbers, as a tuple of float: Numbers("x,y") reads "120,80.5"."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._count = name.count(",") + 1

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Read one value."""
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != self._count:
            self.fail(f"'{shown(value)}' is not {self._count} comma-separated numbers ({self.name}).", param, ctx)
        if not all(abs(number) <= MAX_COORDINATE for number in numbers):  # nor NaN
            self.fail(f"'{value}': coordinates must be finite.", param, ctx)
        return numbers

    def split_envvar_value(self, rv: str) -> list[str]:
        """Split the environment variable of a repeatable option at blanks and semicolons."""
        return rv.replace(";", " ").split()


class ValueRange(Numbers):
    """Two numbers, such as "0,1023", in ascending order."""

    def __init__(self) -> None:
        super().__init__("low,high")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Read one value."""
        low, high = super().convert(value, param, ctx)
        if low >= high:
            self.fail(f"'{value}': the first number must be below the second.", param, ctx)
        return low, high


class Text(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on only
    """A text that a request can carry: UTF-8, and not too long."""

    name = "text"

    def __init__(self, max_bytes: int = checks.MAX_NAME_BYTES) -> None:
        self._max_bytes = max_bytes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read one value."""
        try:
            return checks.text("it", value, self._max_bytes)
        except InvalidRequest as error:
            self.fail(f"{error.violations[0].description}.", param, ctx)


class Version(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on only
    """A model's version; 0 is the highest that is ready."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read one value."""
        try:
            return checks.integer("version", int(value), 0, checks.MAX_VERSION)
        except ValueError:  # InvalidRequest, too
            self.fail(f"'{shown(str(value))}' is not a whole number from 0 to {checks.MAX_VERSION}.", param, ctx)


class KeyValue(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on only
    """A key and a value of metadata, as a tuple: "x-project=cars"."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Read one value."""
        key, equals, text = value.partition("=")
        if not key or not equals:
            self.fail(f"'{shown(value)}' is not KEY=VALUE.", param, ctx)
        return key, text

    def split_envvar_value(self, rv: str) -> list[str]:
        """Split an environment variable at line ends and semicolons."""
        return _parts(rv)


class LabelOption(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.2 on only
    """What becomes of a model's label: "car", "car=vehicle", "car@0.6" or "car=vehicle@0.6"."""

    name = "label[=new][@score]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> LabelMapping:
        """Read one value."""
        names, threshold = Text().convert(value, param, ctx), None
        before, at, after = names.rpartition("@")
        if at and re.fullmatch(r"[0-9.]+", after):
            names, threshold = before, Number(0, 1).convert(after, param, ctx)
        model_label, _, label = names.partition("=")
        if not model_label:
            self.fail(f"'{shown(value)}' does not name a label of the model.", param, ctx)
        return LabelMapping(model_label, label, threshold)

    def split_envvar_value(self, rv: str) -> list[str]:
        """Split an environment variable at line ends and semicolons, since labels may have blanks."""
        return _parts(rv)


def _parts(variable: str) -> list[str]:
    return [stripped for part in re.split("[;\n]", variable) if (stripped := part.strip())]


class InClickOrder(Command):
    """A command that records the order of its point options, which click keeps only within each option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Record the order of the point options, and parse."""
        names = [argument.partition("=")[0] for argument in args]
        ctx.meta[ORDER] = [POINT_OPTIONS[name] for name in names if name in POINT_OPTIONS]
        return super().parse_args(ctx, args)


def clicks_as_typed(ctx: click.Context, **points: Sequence[Sequence[float]]) -> list[Point]:
    """Return the points of all labels (by label, [(x, y), ...]) in the order that `InClickOrder` recorded.

    Points from environment variables follow.
    """
    left = {label: [Point(x, y, label) for x, y in points[label]] for label in POINT_OPTIONS.values()}
    clicks = [left[label].pop(0) for label in ctx.meta[ORDER] if left[label]]
    return clicks + [point for rest in left.values() for point in rest]
