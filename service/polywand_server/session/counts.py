"""Metrics of sessions: each prompt is counted once, as answered or as skipped."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
        metrics.PROMPTS.labels(label, outcome).inc()
        metrics.PROMPT_SECONDS.labels(label).observe(seconds)
        metrics.observe_stages(timer, label)
        timer.finish("prompt", model=label, outcome=outcome, inferences=timer.inferences)

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
