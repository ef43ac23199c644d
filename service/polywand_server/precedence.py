"""Precedence: prompts go before frames, because a hand waits for them."""

import asyncio
import time
from collections.abc import Callable

# While prompts are in work, frames go on by one stage in so many seconds, all frames together: under any load they
# come to an end, and a click never waits for more than one of them.
PATIENCE_SECONDS = 0.25
# So long after a prompt another one is expected.
EXPECTED_SECONDS = 2.0


class Precedence:
    """Knows whether a prompt is in work; frames ask before each of their stages."""

    def __init__(self) -> None:
        self._prompts = 0
        self._pause = asyncio.Event()
        self._pause.set()
        self._last_prompt = -EXPECTED_SECONDS
        self._next_stage = 0.0

    @property
    def prompts_expected(self) -> bool:
        """Whether a prompt is in work, or was a moment ago: then frames' stages have to be short."""
        return self._prompts > 0 or time.monotonic() - self._last_prompt < EXPECTED_SECONDS

    def prompt(self) -> Callable[[], None]:
        """Hold frames back from now on, until the returned function is called, once or more often."""
        self._prompts += 1
        self._pause.clear()
        is_held = True

        def release() -> None:
            nonlocal is_held
            if is_held:
                is_held = False
                self._release()

        return release

    async def frame(self) -> None:
        """Wait for a pause between prompts, or until it is this frame's turn to go on without one."""
        patient_until = time.monotonic() + PATIENCE_SECONDS
        while self._prompts:
            now = time.monotonic()
            due = max(patient_until, self._next_stage)
            if now >= due:
                self._next_stage = now + PATIENCE_SECONDS
                return
            try:
                async with asyncio.timeout(due - now):
                    await self._pause.wait()
            except TimeoutError:
                pass  # it may be due now

    def _release(self) -> None:
        self._prompts -= 1
        self._last_prompt = time.monotonic()
        if self._prompts == 0:
            self._pause.set()
