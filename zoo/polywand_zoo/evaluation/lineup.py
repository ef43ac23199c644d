"""The line-up: makes the tools that the command line names, by the ways that it asks for."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import polywand
from polywand_zoo.evaluation.direct import DirectTool, OnlyServedError, check
from polywand_zoo.evaluation.modelfolder import ModelError, ModelFolder, read_folder
from polywand_zoo.evaluation.networks import Precision
from polywand_zoo.evaluation.run import Row
from polywand_zoo.evaluation.served import ServedTool
from polywand_zoo.evaluation.server import own_service

BASELINE = "grabcut"


class Way(StrEnum):
    """How tools are run. AUTO: on the ONNX graph where that is possible, else through the service."""

    AUTO = "auto"
    ONNX = "onnx"
    SERVICE = "service"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Wishes:
    """The user's options.

    models: NAME or NAME:VERSION. repository: of the models.
    service: host:port of a running one; None starts one when it is needed.
    tolerance: of the outlines that come over gRPC; see ServedTool.
    precision, threads: of the ONNX way; 0 threads are as many as there are cores.
    baseline: whether to line up GrabCut as well.
    """

    models: Sequence[str]
    repository: Path
    way: Way = Way.AUTO
    service: str | None = None
    tolerance: float | None = 0.0
    precision: Precision = Precision.SERVED
    threads: int = 0
    baseline: bool = True


@dataclass(frozen=True, slots=True)
class _Entry:
    """A model, and the ways in which it is run. folder: None where only the service knows the model."""

    name: str
    version: int
    folder: ModelFolder | None
    direct: bool
    served: bool


@contextmanager
def line_up(wishes: Wishes, tell: Callable[[str], object] = lambda _: None) -> Iterator[list[Row]]:
    """Make the tools, and keep the service running until the block ends; tell: called with lines for the user.

    Raises:
        ModelError, polywand.PolywandError
    """
    entries = [_entry(name, wishes, tell) for name in _names(wishes)]
    served = [entry.name for entry in entries if entry.served]
    with ExitStack() as stack:
        client = stack.enter_context(_client(wishes, served, tell)) if served else None
        yield [row for entry in entries for row in _rows(entry, wishes, client)]


def _names(wishes: Wishes) -> list[str]:
    names = list(dict.fromkeys(wishes.models))
    has_baseline = any(name.partition(":")[0] == BASELINE for name in names)
    return names + ([BASELINE] if wishes.baseline and not has_baseline else [])


def _entry(text: str, wishes: Wishes, tell: Callable[[str], object]) -> _Entry:
    name, _, number = text.partition(":")
    if number and not number.isdecimal():
        raise ModelError(f"'{text}' is no model: say NAME or NAME:VERSION")
    version = int(number or 0)
    is_baseline = name == BASELINE and text not in wishes.models
    if wishes.way is Way.SERVICE and wishes.service is not None:
        return _Entry(name, version, None, direct=False, served=True)
    if is_baseline and wishes.service is not None:
        return _Entry(name, version, None, direct=False, served=True)
    folder = read_folder(wishes.repository, name, version)
    if wishes.way is Way.SERVICE or is_baseline:
        return _Entry(name, folder.version, folder, direct=False, served=True)
    try:
        check(folder)
    except OnlyServedError as error:
        if wishes.way is not Way.AUTO:
            raise
        tell(f"Through the service: {error.reason}.")
        return _Entry(name, folder.version, folder, direct=False, served=True)
    return _Entry(name, folder.version, folder, direct=True, served=wishes.way is Way.BOTH)


def _rows(entry: _Entry, wishes: Wishes, client: polywand.Client | None) -> list[Row]:
    direct = served = None
    if entry.direct and entry.folder is not None:
        direct = DirectTool(entry.folder, wishes.precision, wishes.threads)
    if entry.served and client is not None:
        served = ServedTool(client, entry.name, entry.version, wishes.tolerance)
    return [*([Row(direct, served)] if direct is not None else []), *([Row(served)] if served is not None else [])]


@contextmanager
def _client(wishes: Wishes, models: Sequence[str], tell: Callable[[str], object]) -> Iterator[polywand.Client]:
    with ExitStack() as stack:
        target = wishes.service
        if target is None:
            tell("Starting the service with its own Triton ...")
            target = stack.enter_context(own_service(wishes.repository, models))
        yield stack.enter_context(polywand.connect(target))
