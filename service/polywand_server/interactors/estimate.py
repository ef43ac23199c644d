"""Estimates: what is known of an object after a prompt, and what the next prompt starts from."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from polywand_server.images.regions import ProbabilityMap


@dataclass(frozen=True, slots=True)
class Estimate:
    """probabilities: where the object is. state: the model's own (its `STATE_OUT`, float32,
    batch axis included), handed back unread.

    is_seed: whether the client said it, and no network has looked at it yet.
    is_hurried: whether further looks or clicks were left out, because a newer prompt waited: nothing is built on it.
    detector: the version of the one that told what the object's first click may mean; 0 where it did not answer, None
        where none was to be asked.
    """

    probabilities: ProbabilityMap
    state: NDArray[np.float32] | None = None
    is_seed: bool = False
    is_hurried: bool = False
    detector: int | None = None

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.probabilities.values.nbytes + (0 if self.state is None else self.state.nbytes)

    def confidence(self, threshold: float) -> float:
        """The mean probability of what belongs to the mask, that is, is above the threshold; 0 for an empty mask."""
        values = self.probabilities.values
        return float(cv2.mean(values, cv2.compare(values, threshold, cv2.CMP_GT))[0])
