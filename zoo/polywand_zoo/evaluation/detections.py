"""Detections on photos with known objects: how many objects are found, and how good their outlines are."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import polywand
from polywand import Box, Detection
from polywand_zoo.evaluation.boxes import overlap
from polywand_zoo.evaluation.objects import DataError, DataSet, Subject, Truth, load
from polywand_zoo.evaluation.simulation import iou, tight_box
from polywand_zoo.spreading import spread


@dataclass(frozen=True, slots=True)
class Asked:
    """What the service is asked to do; threshold: of the detector, None is its default.

    same_from: IoU of the boxes from which a detection matches an object of its label.
    """

    detector: str
    interactor: str
    threshold: float | None = None
    same_from: float = 0.5


@dataclass(frozen=True, slots=True)
class Match:
    """A detection and its object. IoU: of both boxes; of the detected box, filled, and of the outline with the mask."""

    photo: str
    name: str
    label: str
    score: float
    box_iou: float
    filled_box_iou: float
    outline_iou: float


@dataclass(slots=True)
class Found:
    """The results of one interactor; objects: those whose label the detector knows. seconds: of each photo."""

    asked: Asked
    objects: int = 0
    detections: int = 0
    matches: list[Match] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    flaws: list[DataError] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """An object of a photo."""

    subject: Subject
    truth: Truth
    box: Box


def measure(client: polywand.Client, data: DataSet, asked: Asked, advance: Callable[[], None] = lambda: None) -> Found:
    """Detect and outline on every photo of a data set; advance: called after each photo.

    Raises:
        polywand.PolywandError: the service is unavailable, or has no such tools.
    """
    models = [model for model in client.models() if model.name == asked.detector]
    labels = {label.name for model in models for label in model.labels}
    found = Found(asked)
    for photo, subjects in _by_photo(data):
        known, flaws = _known([subject for subject in subjects if subject.group in labels])
        found.flaws += flaws
        if known:
            answer = client.detect(
                photo,
                model=asked.detector,
                threshold=asked.threshold,
                polygons=True,
                interactor=asked.interactor,
                tolerance=0,
            )
            found.objects += len(known)
            found.detections += len(answer)
            found.matches += _matches(photo, answer, known, asked.same_from)
            found.seconds.append(answer.timing.total_us / 1e6)
        advance()
    return found


def match(detections: Sequence[Detection], labels: Sequence[str], boxes: Sequence[Box], same_from: float) -> list[int]:
    """Match each detection, best first, with the free object of its label whose box overlaps most; -1: none.

    labels, boxes: of the objects.
    """
    taken: list[int] = []
    for detection in detections:
        alike = [
            (overlap(detection.box, box), number)
            for number, (label, box) in enumerate(zip(labels, boxes, strict=True))
            if label == detection.model_label and number not in taken
        ]
        best, number = max(alike, default=(0.0, -1))
        taken.append(number if best >= same_from else -1)
    return taken


def photos(data: DataSet) -> int:
    """Count the photos of a data set."""
    return len({subject.image for subject in data.subjects})


def first_photos(data: DataSet, limit: int | None) -> DataSet:
    """The objects of so many photos at most, evenly spread; None is all."""
    chosen = set(spread(list(dict.fromkeys(subject.image for subject in data.subjects)), limit))
    return DataSet(data.name, [subject for subject in data.subjects if subject.image in chosen], data.flaws)


def _by_photo(data: DataSet) -> Iterator[tuple[Path, list[Subject]]]:
    groups: dict[Path, list[Subject]] = {}
    for subject in data.subjects:
        groups.setdefault(subject.image, []).append(subject)
    yield from groups.items()


def _known(subjects: Sequence[Subject]) -> tuple[list[_Known], list[DataError]]:
    known, flaws = [], []
    for subject in subjects:
        try:
            truth = load(subject).truth
        except DataError as flaw:
            flaws.append(flaw)
        else:
            known.append(_Known(subject, truth, tight_box(truth)))
    return known, flaws


def _matches(photo: Path, answer: polywand.Detections, known: Sequence[_Known], same_from: float) -> Iterator[Match]:
    numbers = match(answer, [item.subject.group for item in known], [item.box for item in known], same_from)
    for detection, number in zip(answer, numbers, strict=True):
        if number >= 0:
            yield _compare(photo, detection, answer, known[number])


def _compare(photo: Path, detection: Detection, answer: polywand.Detections, known: _Known) -> Match:
    x0, y0, x1, y1 = detection.box
    corners: NDArray[np.float32] = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float32)
    filled = polywand.rasterise([polywand.Polygon(corners)], answer.width, answer.height)
    outlined = polywand.rasterise(detection.polygons, answer.width, answer.height)
    return Match(
        photo=photo.name,
        name=known.subject.name,
        label=detection.model_label,
        score=detection.score,
        box_iou=overlap(detection.box, known.box),
        filled_box_iou=iou(filled, known.truth),
        outline_iou=iou(outlined, known.truth),
    )
