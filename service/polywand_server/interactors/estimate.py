"""Estimates: the probability map of an object after a prompt, and the answer that is made of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from polywand_server.geometry.drawn import Drawn
from polywand_server.geometry.shapes import mean_probability
from polywand_server.images.regions import ProbabilityMap
from polywand_server.tools.kinds import Interactor


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another answer of a model that has several; score: its predicted intersection over union, 0 to 1."""

    probabilities: ProbabilityMap
    score: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A probability map and the model's state after one prompt; the next prompt starts from it.

    probabilities: where the object is.
    state: the model's `STATE_OUT`, float32 with its batch axis; input of the next pass as it is.
    score: the intersection over union with the object that the model predicts, 0 to 1; None where it predicts none.
    alternatives: the model's other answers, by descending score.
    is_seed: whether it is the client's mask, before any network ran.
    is_partial: whether passes or clicks were left out because a newer prompt waited; not reused for other prompts.
    detector: the version of the detector whose proposals the object's first click used; 0 where it did not answer,
        None where the tool uses none.
    """

    probabilities: ProbabilityMap
    state: NDArray[np.float32] | None = None
    score: float | None = None
    alternatives: tuple[Alternative, ...] = ()
    is_seed: bool = False
    is_partial: bool = False
    detector: int | None = None

    @property
    def nbytes(self) -> int:
        """Memory of its arrays."""
        maps = (self.probabilities, *(alternative.probabilities for alternative in self.alternatives))
        return sum(kept.values.nbytes for kept in maps) + (0 if self.state is None else self.state.nbytes)

    def confidence(self, threshold: float) -> float:
        """How sure the model is: its predicted score, or else the mean probability of the mask's pixels, 0 to 1.

        threshold: probability above which a pixel belongs to the mask; an empty mask has a mean of 0.
        """
        return mean_probability(self.probabilities.values, threshold) if self.score is None else self.score


@dataclass(frozen=True, slots=True)
class Found:
    """An estimate that is ready to be drawn, and the tool that made it.

    is_provisional: whether the same prompt may get another answer when it is sent again.
    """

    tool: Interactor
    estimate: Estimate
    is_provisional: bool


class ScoreKind(StrEnum):
    """What a score is; the contract's `ScoreKind`."""

    MEAN_PROBABILITY = "mean probability"
    PREDICTED_IOU = "predicted iou"
    SEED = "seed"


@dataclass(frozen=True, slots=True)
class Candidate:
    """The outline of another answer; score: of the same kind as that of the answer itself, 0 to 1."""

    shape: Drawn
    score: float


@dataclass(frozen=True, slots=True)
class Segmentation:
    """An object's outline, and the model that made it.

    width, height: of the image. threshold: probability above which a pixel belongs to the object.
    score: how sure the model is, 0 to 1. alternatives: its other answers, by descending score.
    is_provisional: see `Found`.
    """

    shape: Drawn
    width: int
    height: int
    model: str
    version: int
    threshold: float
    score: float
    score_kind: ScoreKind
    alternatives: Sequence[Candidate]
    is_provisional: bool

    @property
    def nbytes(self) -> int:
        """Memory of its outlines."""
        return self.shape.nbytes + sum(candidate.shape.nbytes for candidate in self.alternatives)
