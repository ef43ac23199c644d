"""Metrics of sessions: each prompt is counted once, as answered or as skipped; and those that wait or are in work."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Self

from polywand_server.caller import current
from polywand_server.ops import metrics
from polywand_server.timing import Stopwatch


class PromptCounts:
    """Counts prompts by model, and images.

    is_known: whether a model's name, which the client wrote, may be a metric's label.
    """

    def __init__(self, is_known: Callable[[str], bool]) -> None:
        self._is_known = is_known

    def answered(self, model: str, outcome: str, timer: Stopwatch, seconds: float) -> None:
        """Count an answered prompt. seconds: from its receipt to its reply."""
        label = self._label(model)
        current().usage.errors += outcome == "error"
        metrics.PROMPTS.labels(label, outcome).inc()
        metrics.PROMPT_SECONDS.labels(label).observe(seconds)
        metrics.observe_stages(timer, label)
        timer.finish("prompt", model=label, outcome=outcome, inferences=timer.inferences)

    def waits(self, change: int) -> None:
        """Add to the number of prompts that wait; a negative number removes some."""
        metrics.PROMPTS_WAITING.inc(change)

    def waiting(self) -> "WaitingPrompts":
        """Count a call's prompts as waiting, until each begins."""
        return WaitingPrompts()

    def in_work(self) -> AbstractContextManager[object]:
        """Count a prompt as in work until the block ends; those with the right of way are counted there."""
        return metrics.PROMPTS_IN_WORK.track_inprogress()

    def image_ready(self, timer: Stopwatch) -> None:
        """Count the stages of an image."""
        metrics.observe_stages(timer, metrics.NO_MODEL)
        timer.finish("image")

    def image_dropped(self) -> None:
        """Count an image that was dropped to make room for others."""
        metrics.IMAGES.labels("given_up").inc()

    def skipped(self, model: str) -> None:
        """Count a prompt that gets no reply of its own."""
        metrics.PROMPTS_SKIPPED.labels(self._label(model)).inc()

    @contextmanager
    def skipped_if_cancelled(self, model: str) -> Iterator[None]:
        """Count a prompt whose stream ends in the block, before the prompt is queued or refused."""
        try:
            yield
        except asyncio.CancelledError:
            self.skipped(model)
            raise

    def _label(self, model: str) -> str:
        return model if self._is_known(model) else metrics.UNKNOWN_MODEL


class WaitingPrompts:
    """The prompts of one call that wait: one until it is known how many there are, and none after the block."""

    def __init__(self) -> None:
        self._prompts = 0

    def __enter__(self) -> Self:
        self.are(1)
        return self

    def __exit__(self, *_: object) -> None:
        self.are(0)

    def are(self, prompts: int) -> None:
        """Set their number."""
        metrics.PROMPTS_WAITING.inc(prompts - self._prompts)
        self._prompts = prompts

    def begin(self) -> None:
        """Count one less, which goes to work."""
        self.are(self._prompts - 1)
