"""Estimates: what is known of an object after a prompt, and what the next prompt starts from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polywand_server.regions import ProbabilityMap


@dataclass(frozen=True, slots=True)
class Estimate:
    """probabilities: where the object is. state: the model's own (its `STATE_OUT`, float32,
    batch axis included), handed back unread.

    is_seed: whether the client said it, and no network has looked at it yet.
    is_hurried: whether the closer look was left out, because a newer prompt waited.
    """

    probabilities: ProbabilityMap
    state: NDArray[np.float32] | None = None
    is_seed: bool = False
    is_hurried: bool = False

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.probabilities.values.nbytes + (0 if self.state is None else self.state.nbytes)
