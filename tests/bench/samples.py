"""Measured values of one kind, and what may be said of so many of them."""

import numpy as np

# A percentile is told only from so many values that one of them lies beyond it.
LEAST_VALUES = {50: 1, 90: 10, 99: 100}


class Samples(list[float]):
    """Values in the order in which they were measured."""

    def percentile(self, percent: int) -> float | None:
        """Return a percentile; None when there are too few values for it."""
        if len(self) < LEAST_VALUES[percent]:
            return None
        return float(np.percentile(self, percent))

    @property
    def median(self) -> float:
        """The middle value. ValueError: there are none."""
        if not self:
            raise ValueError("nothing was measured")
        return float(np.median(self))

    def summary(self) -> dict[str, object]:
        """What goes into the JSON: count, percentiles, and every value."""
        percentiles = {f"p{percent}": self.percentile(percent) for percent in LEAST_VALUES}
        return {
            "count": len(self),
            **percentiles,
            "max": max(self, default=None),
            "values": [round(v, 3) for v in self],
        }
