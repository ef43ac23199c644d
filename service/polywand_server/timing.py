"""The time of each stage of a request, from its receipt to its reply."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Stage = Literal["wait", "decode", "prepare", "triton", "geometry"]
STAGES: tuple[Stage, ...] = get_args(Stage)


class Stopwatch:
    """Adds up the seconds spent per stage since the request was received."""

    __slots__ = ("_started", "inferences", "received_unix", "seconds")

    def __init__(self) -> None:
        self.received_unix = time.time()
        self._started = time.perf_counter()
        self.seconds: dict[Stage, float] = {}
        self.inferences = 0

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Count the time of the block as `stage`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.add_seconds(stage, time.perf_counter() - begin)

    def add_seconds(self, stage: Stage, seconds: float) -> None:
        """Add seconds to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def add(self, other: "Stopwatch") -> None:
        """Add the stages and inferences of other work that was done for this request."""
        for stage, seconds in other.seconds.items():
            self.add_seconds(stage, seconds)
        self.inferences += other.inferences

    def waited(self) -> None:
        """Count all time since receipt that is in no stage as "wait"."""
        self.seconds["wait"] = self.total() - sum(self.seconds.values())

    def total(self) -> float:
        """Seconds since receipt."""
        return time.perf_counter() - self._started
