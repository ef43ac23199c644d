"""Scores: the field's metrics of outcomes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from polywand_zoo.evaluation.prompts import STARTS, Kind
from polywand_zoo.evaluation.trials import Likeness, Outcome, Trial

LEVELS = (0.80, 0.85, 0.90)
# A click that lowers the IoU by more than this has made things worse.
WORSE_BY = 0.03
# Two ways differ where their IoU differ by more than this, on average over the same prompts.
LARGEST_DIFFERENCE = 0.005


@dataclass(frozen=True, slots=True)
class Scores:
    """Figures of one tool over some objects; None, or nothing, where it does not take that kind of prompt.

    clicks: how many clicks were allowed. iou: mean after 1, 2, ... clicks; a mask that needs no further click stays.
    noc: mean number of clicks until an IoU was reached, by level; all of them where it never was. never: how often.
    starts: mean IoU of single prompts.
    obeyed: the share of prompts with clicks after which all these lay on their side of the outline.
    lowered: the share of added clicks that lowered the IoU by more than WORSE_BY.
    seconds: the median time of a prompt.
    """

    objects: int
    clicks: int
    iou: tuple[float, ...]
    noc: dict[float, float]
    never: dict[float, int]
    starts: dict[Kind, float]
    obeyed: float | None
    lowered: float | None
    seconds: float


def score(outcomes: Sequence[Outcome], clicks: int) -> Scores:
    """Average over outcomes of one tool, at least one; each object counts once."""
    clicked = [outcome.clicks for outcome in outcomes if outcome.clicks]
    curves = np.array([curve(trials, clicks) for trials in clicked]).reshape(len(clicked), clicks)
    changes = [after.iou - before.iou for trials in clicked for before, after in pairwise(trials)]
    trials = [trial for outcome in outcomes for trial in (*outcome.clicks, *outcome.starts.values())]
    pointed = [trial.obeyed for trial in trials if len(trial.prompt.clicks())]
    return Scores(
        objects=len(outcomes),
        clicks=clicks,
        iou=tuple(float(value) for value in curves.mean(axis=0)) if clicked else (),
        noc={level: float(np.mean([_needed(row, level) for row in curves])) for level in LEVELS if clicked},
        never={level: int((curves < level).all(axis=1).sum()) for level in LEVELS if clicked},
        starts={
            kind: float(np.mean([outcome.starts[kind].iou for outcome in outcomes]))
            for kind in STARTS
            if all(kind in outcome.starts for outcome in outcomes)
        },
        obeyed=float(np.mean(pointed)) if pointed else None,
        lowered=float(np.mean([change < -WORSE_BY for change in changes])) if changes else None,
        seconds=float(np.median([trial.seconds for trial in trials])),
    )


def curve(trials: Sequence[Trial], clicks: int) -> list[float]:
    """The IoU after 1, 2, ... clicks; after the last trial it stays."""
    values = [trial.iou for trial in trials]
    return values + values[-1:] * (clicks - len(values))


def clicks_to(trials: Sequence[Trial], level: float) -> int | None:
    """Count the clicks until an IoU was reached; None if it never was."""
    return next((number for number, trial in enumerate(trials, 1) if trial.iou >= level), None)


def grouped(outcomes: Sequence[Outcome], key: Callable[[Outcome], str]) -> dict[str, list[Outcome]]:
    """Sort outcomes into groups, by name."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(key(outcome), []).append(outcome)
    return dict(sorted(groups.items()))


@dataclass(frozen=True, slots=True)
class Agreement:
    """How similar the answers of two ways to the same prompts are.

    first, second: mean IoU of each with the truth. typical: mean of how far these are apart, prompt by prompt.
    mutual: mean IoU of both masks with each other.
    """

    prompts: int
    first: float
    second: float
    typical: float
    mutual: float

    @property
    def holds(self) -> bool:
        """Whether both ways agree. Means do not show it: errors of one way may cancel each other."""
        return self.typical <= LARGEST_DIFFERENCE


def agreement(likenesses: Sequence[Likeness]) -> Agreement:
    """Average over prompts, at least one."""
    first, second, mutual = np.array([(item.first, item.second, item.mutual) for item in likenesses]).T
    return Agreement(
        len(likenesses),
        float(first.mean()),
        float(second.mean()),
        float(np.abs(first - second).mean()),
        float(mutual.mean()),
    )


def _needed(row: Sequence[float], level: float) -> int:
    reached = [number for number, value in enumerate(row, 1) if value >= level]
    return reached[0] if reached else len(row)
