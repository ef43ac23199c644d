"""A run: every object of every data set, given to every tool."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from polywand import InvalidRequest, ServerError, Unavailable
from polywand_zoo.evaluation.objects import DataError, DataSet, Photo, Subject, load
from polywand_zoo.evaluation.scores import agreement
from polywand_zoo.evaluation.tools import Session, Tool
from polywand_zoo.evaluation.trials import Likeness, Outcome, Rules, Step, play, replay

BY_USER = "you would not wait"
"""Why objects are missing after Ctrl-C."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the report. twin: the same tool by another way, whose masks should be the same; or None."""

    tool: Tool
    twin: Tool | None = None

    @property
    def name(self) -> str:
        """Model, version and way."""
        return f"{self.tool.model} {self.tool.version} ({self.tool.way})"


@dataclass(slots=True)
class Results:
    """The results of a run.

    outcomes: by row, one for each object that all tools answered, in the same order. likenesses: of rows with a twin.
    flaws: of the data, and of tools that failed; such objects count nowhere.
    interrupted: why objects are missing, or "".
    """

    rows: Sequence[Row]
    rules: Rules
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    likenesses: dict[str, list[Likeness]] = field(default_factory=dict)
    flaws: list[DataError] = field(default_factory=list)
    interrupted: str = ""

    @property
    def count(self) -> int:
        """Count the measured objects."""
        return min(map(len, self.outcomes.values()), default=0)

    @property
    def agrees(self) -> bool:
        """Whether all tools that were run in two ways give the same masks in both."""
        return all(agreement(likenesses).holds for likenesses in self.likenesses.values() if likenesses)


def evaluate(
    rows: Sequence[Row], data: Sequence[DataSet], rules: Rules, advance: Callable[[], None] = lambda: None
) -> Results:
    """Run every tool on every object; advance: called after each object.

    Ctrl-C, or a service that becomes unavailable, ends the run; the results so far are returned.

    Raises:
        ModelError: the evaluation cannot continue.
    """
    results = Results(rows, rules, {row.name: [] for row in rows}, {row.name: [] for row in rows if row.twin})
    results.flaws += [flaw for part in data for flaw in part.flaws]
    for subject in (subject for part in data for subject in part.subjects):
        try:
            _add(results, subject)
        except DataError as flaw:
            results.flaws.append(flaw)
        except KeyboardInterrupt:
            results.interrupted = BY_USER
            break
        except _GoneError as error:
            results.interrupted = str(error)
            break
        advance()
    return results


class _GoneError(Exception):
    """The service is unavailable, or does not answer."""


def _add(results: Results, subject: Subject) -> None:
    """Run all tools on an object; its outcomes are added when all tools have answered."""
    photo = load(subject)
    answers = [(row, *_work(row, photo, results.rules)) for row in results.rows]
    for row, outcome, likenesses in answers:
        results.outcomes[row.name].append(outcome)
        if row.twin is not None:
            results.likenesses[row.name] += likenesses


def _work(row: Row, photo: Photo, rules: Rules) -> tuple[Outcome, list[Likeness]]:
    steps: list[Step] = []
    with _open(row.tool, photo) as session:
        outcome = play(row.tool, session, photo, rules, steps)
    if row.twin is None:
        return outcome, []
    with _open(row.twin, photo) as session:
        return outcome, replay(session, photo, steps)


@contextmanager
def _open(tool: Tool, photo: Photo) -> Iterator[Session]:
    """Open a photo with a tool; errors name both."""
    where = f"{tool.model} ({tool.way}), {photo.subject.name}"
    try:
        with tool.open(photo) as session:
            yield session
    except (InvalidRequest, ServerError) as error:
        raise DataError(photo.subject.image, f"{where}: {error}") from error
    except Unavailable as error:
        raise _GoneError(f"{photo.subject.image.name}, {where}: {error}") from error
