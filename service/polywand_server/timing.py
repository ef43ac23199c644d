"""The time of each stage of a request, from its receipt to its reply."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol, get_args

Stage = Literal["wait", "decode", "prepare", "triton", "geometry"]
STAGES: tuple[Stage, ...] = get_args(Stage)


class Noted(Protocol):
    """A stage that a recorder has noted."""

    def end(self) -> None:
        """Note its end."""


class Recorder(Protocol):
    """Notes the stages of one request, for a trace."""

    @property
    def traceparent(self) -> str:
        """The header (W3C Trace Context) that puts another service's work below the stage that was begun last."""

    def begin(self, stage: Stage) -> Noted:
        """Note that a stage begins."""

    def counted(self, stage: Stage, seconds: float) -> None:
        """Note a stage that has just ended."""

    def finish(self, name: str, attributes: dict[str, Any]) -> None:
        """Note that the request is answered. name: of its kind."""


class Stopwatch:
    """Adds up the seconds spent per stage since the request was received.

    Work for several requests together has a stopwatch of its own, which they `share`. recorders: note the stages too.
    """

    __slots__ = ("_inferences", "_own", "_recorders", "_running", "_shared", "_started", "received_unix")

    def __init__(self, *recorders: Recorder) -> None:
        self._recorders = recorders
        self.received_unix = time.time()
        self._started = time.perf_counter()
        self._own: dict[Stage, float] = {}
        self._running: list[tuple[Stage, float]] = []  # stages that have not ended, and when they began
        self._inferences = 0
        self._shared: set[Stopwatch] = set()

    @property
    def seconds(self) -> dict[Stage, float]:
        """The seconds of each stage that happened, of shared work too."""
        total: dict[Stage, float] = {}
        for watch in (self, *self._shared):
            for stage, seconds in watch._own.items():
                total[stage] = total.get(stage, 0.0) + seconds
        return total

    @property
    def inferences(self) -> int:
        """The number of inferences, shared ones too."""
        return sum(watch._inferences for watch in (self, *self._shared))

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Count the time of the block as `stage`."""
        running = stage, time.perf_counter()
        self._running.append(running)
        noted = [recorder.begin(stage) for recorder in self._recorders]
        try:
            yield
        finally:
            self._running.remove(running)
            self._add(stage, time.perf_counter() - running[1])
            for one in noted:
                one.end()

    def count(self, stage: Stage, seconds: float) -> None:
        """Count the last seconds as `stage`."""
        self._add(stage, seconds)
        for recorder in self._recorders:
            recorder.counted(stage, seconds)

    def count_inference(self) -> None:
        """Count one inference."""
        self._inferences += 1

    @property
    def traceparent(self) -> str:
        """The header that puts another service's work below the running stage; empty where nothing is recorded."""
        return self._recorders[0].traceparent if self._recorders else ""

    def part(self) -> "Stopwatch":
        """Return a stopwatch for a part of this work, which is then to be added."""
        return Stopwatch(*self._recorders)

    def finish(self, name: str, **attributes: object) -> None:
        """Record that the request is answered. name: of its kind ("prompt"). attributes: of its span."""
        for recorder in self._recorders:
            recorder.finish(name, dict(attributes))

    def share(self, other: "Stopwatch") -> None:
        """Count work that is done for this request and others together."""
        self._shared.add(other)
        other._recorders += tuple(one for one in self._recorders if one not in other._recorders)

    def share_all(self, other: "Stopwatch") -> None:
        """Count the work that another request shares."""
        self._shared |= other._shared

    def add(self, other: "Stopwatch") -> None:
        """Add the stages and inferences of other work that was done for this request; shared work counts once."""
        for stage, seconds in other._own.items():
            self._add(stage, seconds)
        self._inferences += other._inferences
        self._shared |= other._shared

    def waited(self) -> None:
        """Count all time since receipt that is in no stage as "wait"."""
        self.count("wait", self.total() - sum(self.seconds.values()))

    def worked(self) -> float:
        """Seconds of all stages but "wait", those that have not ended included."""
        now = time.perf_counter()
        ended = sum(seconds for stage, seconds in self.seconds.items() if stage != "wait")
        running = [begin for watch in (self, *self._shared) for stage, begin in watch._running if stage != "wait"]
        return ended + sum(now - begin for begin in running)

    def total(self) -> float:
        """Seconds since receipt."""
        return time.perf_counter() - self._started

    def _add(self, stage: Stage, seconds: float) -> None:
        self._own[stage] = self._own.get(stage, 0.0) + seconds
