"""Trials: one object, one tool, all kinds of prompts that the tool takes."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from polywand import encode_rle
from polywand_zoo.evaluation.objects import Mask, Photo, Subject, Truth
from polywand_zoo.evaluation.prompts import STARTS, Kind, Prompt
from polywand_zoo.evaluation.simulation import extreme_points, inside_point, iou, next_click, obeys, tight_box
from polywand_zoo.evaluation.tools import Session, Tool

# The mask after so many clicks is kept for the contact sheet: about as many as an annotator makes.
SHOWN_CLICKS = 5


@dataclass(frozen=True, slots=True)
class Trial:
    """One prompt and its answer.

    iou: with the truth. obeyed: whether every click lies on its side of the outline. seconds: until the mask was there.
    mask: the answer as COCO's run lengths, where it is kept.
    """

    prompt: Prompt
    iou: float
    obeyed: bool
    seconds: float
    mask: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The trials of one tool on one object.

    clicks: one trial a click, in their order. It is empty where the tool does not start with clicks, and shorter than
    allowed when nothing was left to correct. starts: of the other kinds, those that the tool understands.
    """

    subject: Subject
    width: int
    height: int
    clicks: tuple[Trial, ...]
    starts: dict[Kind, Trial]

    @property
    def shown(self) -> Trial | None:
        """The trial that the contact sheet shows."""
        if self.clicks:
            return self.clicks[min(SHOWN_CLICKS, len(self.clicks)) - 1]
        kept = [self.starts[kind] for kind in reversed(STARTS) if kind in self.starts]
        return kept[0] if kept else None


@dataclass(frozen=True, slots=True)
class Step:
    """A prompt and its mask, so that another tool can be given the same prompt."""

    prompt: Prompt
    object_id: str
    mask: Mask


@dataclass(frozen=True, slots=True)
class Likeness:
    """One prompt, answered by two tools: IoU of each with the truth, and of their masks with each other."""

    first: float
    second: float
    mutual: float


@dataclass(frozen=True, slots=True)
class Rules:
    """When the simulated annotator stops.

    max_clicks: at most. stop_at: the IoU from which no more clicks follow; None: until the mask is right.
    """

    max_clicks: int = 20
    stop_at: float | None = None


def play(tool: Tool, session: Session, photo: Photo, rules: Rules, steps: list[Step]) -> Outcome:
    """Let the simulated annotator work on one object; steps: prompts and answers are added to it."""
    clicks = tuple(_clicks(tool, session, photo, rules, steps)) if tool.needs.understands(Kind.CLICKS) else ()
    starts = {
        kind: _trial(session, photo, _start(kind, photo.truth), kind, steps)
        for kind in STARTS
        if tool.needs.understands(kind)
    }
    return Outcome(photo.subject, photo.width, photo.height, clicks, starts)


def replay(session: Session, photo: Photo, steps: Sequence[Step]) -> list[Likeness]:
    """Give a second tool the prompts of the first one, and compare."""
    likenesses = []
    for step in steps:
        mask = session.answer(step.prompt, f"again {step.object_id}")
        mutual = iou(mask, Truth(step.mask))
        likenesses.append(Likeness(iou(step.mask, photo.truth), iou(mask, photo.truth), mutual))
    return likenesses


def _clicks(tool: Tool, session: Session, photo: Photo, rules: Rules, steps: list[Step]) -> Iterator[Trial]:
    mask, prompt = np.zeros_like(photo.truth.inside), Prompt()
    for number in range(1, 1 + min(rules.max_clicks, tool.needs.max_points)):
        click = next_click(mask, photo.truth, prompt.points)
        if click is None:
            return
        prompt = Prompt((*prompt.points, click))
        trial, mask = _answer(session, photo, prompt, Kind.CLICKS, steps, keep=number <= SHOWN_CLICKS)
        yield trial
        if rules.stop_at is not None and trial.iou >= rules.stop_at:
            return


def _start(kind: Kind, truth: Truth) -> Prompt:
    match kind:
        case Kind.BOX:
            return Prompt(box=tight_box(truth))
        case Kind.BOX_INSIDE:
            return Prompt((inside_point(truth),), tight_box(truth))
        case Kind.EXTREME:
            return Prompt(extreme_points(truth))
        case Kind.CLICKS:
            raise ValueError("clicks follow answers")


def _trial(session: Session, photo: Photo, prompt: Prompt, kind: Kind, steps: list[Step]) -> Trial:
    return _answer(session, photo, prompt, kind, steps, keep=True)[0]


def _answer(
    session: Session, photo: Photo, prompt: Prompt, kind: Kind, steps: list[Step], *, keep: bool
) -> tuple[Trial, Mask]:
    begun = time.perf_counter()
    mask = session.answer(prompt, kind)
    seconds = time.perf_counter() - begun
    steps.append(Step(prompt, kind, mask))
    kept = encode_rle(mask) if keep else None
    return Trial(prompt, iou(mask, photo.truth), obeys(mask, prompt.points), seconds, kept), mask
