"""Estimates: the probability map of an object after a prompt, and the answer that is made of it."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from polywand_server.geometry.drawn import Drawn
from polywand_server.images.regions import ProbabilityMap
from polywand_server.tools.kinds import Interactor


@dataclass(frozen=True, slots=True)
class Estimate:
    """A probability map and the model's state after one prompt; the next prompt starts from it.

    probabilities: where the object is.
    state: the model's `STATE_OUT`, float32 with its batch axis; input of the next pass as it is.
    is_seed: whether it is the client's mask, before any network ran.
    is_partial: whether passes or clicks were left out because a newer prompt waited; not reused for other prompts.
    detector: the version of the detector whose proposals the object's first click used; 0 where it did not answer,
        None where the tool uses none.
    """

    probabilities: ProbabilityMap
    state: NDArray[np.float32] | None = None
    is_seed: bool = False
    is_partial: bool = False
    detector: int | None = None

    @property
    def nbytes(self) -> int:
        """Memory of its arrays."""
        return self.probabilities.values.nbytes + (0 if self.state is None else self.state.nbytes)

    def confidence(self, threshold: float) -> float:
        """Mean probability of the mask's pixels, which are those above the threshold; 0 for an empty mask."""
        values = self.probabilities.values
        return float(cv2.mean(values, cv2.compare(values, threshold, cv2.CMP_GT))[0])


@dataclass(frozen=True, slots=True)
class Found:
    """An estimate that is ready to be drawn, and the tool that made it.

    is_provisional: whether the same prompt may get another answer when it is sent again.
    """

    tool: Interactor
    estimate: Estimate
    is_provisional: bool


@dataclass(frozen=True, slots=True)
class Segmentation:
    """An object's outline, and the model that made it.

    width, height: of the image. threshold: probability above which a pixel belongs to the object.
    is_provisional: see `Found`.
    """

    shape: Drawn
    width: int
    height: int
    model: str
    version: int
    threshold: float
    is_provisional: bool
