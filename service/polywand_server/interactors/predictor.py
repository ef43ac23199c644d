"""Predictors: from prompts on one image to outlines.

An answer depends on the prompt alone. Clicks whose estimates are not remembered are run one after another, each with
the passes that it would have had as the last click.
"""

from dataclasses import replace

from polywand_server.images import Picture
from polywand_server.interactors.answers import draw_answer
from polywand_server.interactors.checks import check_fits, check_inside_image
from polywand_server.interactors.drawer import Drawer
from polywand_server.interactors.estimate import Estimate, Found, Segmentation
from polywand_server.interactors.memory import EstimateMemory, Key, keys_of, seed_key
from polywand_server.interactors.prompt import Incomplete, Prompt, Supersession, first_step, incomplete
from polywand_server.interactors.steps import Call, Steps
from polywand_server.interactors.toolbox import InteractorToolbox
from polywand_server.timing import Stopwatch


class Predictor:
    """Finds objects on one image: `check`, `find` and `draw` a prompt.

    memory, steps: of this picture alone; `close` closes them.
    """

    def __init__(
        self,
        toolbox: InteractorToolbox,
        drawer: Drawer,
        memory: EstimateMemory,
        steps: Steps,
        picture: Picture,
    ) -> None:
        self.picture = picture
        self._toolbox = toolbox
        self._drawer = drawer
        self._steps = steps
        self._memory = memory

    def close(self) -> None:
        """Cancel a detector's work, and drop all estimates."""
        self._steps.close()
        self._memory.close()

    def forget(self, object_id: str | None) -> None:
        """Drop what is remembered of one object, or with None of all; no prompt of it may be in work."""
        self._memory.forget(object_id)

    def check(self, prompt: Prompt) -> None:
        """Refuse a prompt that reaches outside the image. Raises InvalidInputError."""
        check_inside_image(prompt, self.picture.width, self.picture.height)

    async def answer(self, prompt: Prompt, timer: Stopwatch) -> Segmentation | Incomplete:
        """Check, find and draw a prompt that has no newer ones. Raises what these do."""
        self.check(prompt)
        found = await self.find(prompt, timer, Supersession.never())
        return found if isinstance(found, Incomplete) else await self.draw(prompt, found, timer)

    async def find(self, prompt: Prompt, timer: Stopwatch, newer: Supersession) -> Found | Incomplete:
        """Find the object that a prompt means, or return what the prompt still lacks for its tool.

        If the prompt is superseded, the running pass completes, and at most one more is run, with all points; the
        estimate is partial then.

        Raises:
            NotFoundError, WrongStateError, InvalidInputError (the tool does not read this prompt),
            TooLargeError (the seed), UnavailableError, DeadlineError, ModelFailedError
        """
        return await self._toolbox.use(
            prompt, lambda tool: self._find(Call(tool, timer, newer), replace(prompt, model=tool.name))
        )

    async def draw(self, prompt: Prompt, found: Found, timer: Stopwatch) -> Segmentation:
        """Draw the outline of what was found.

        Raises:
            InvalidInputError, TooLargeError (the outline has too many vertices or rings, or takes too long)
        """
        with timer.stage("geometry"):
            return await draw_answer(self._drawer, prompt, found, (self.picture.width, self.picture.height))

    async def _find(self, call: Call, prompt: Prompt) -> Found | Incomplete:
        tool = call.tool
        check_fits(prompt, tool)
        lacking = incomplete(prompt, tool.spec.prompt)
        if lacking:
            return lacking
        estimate = await self._estimate(call, prompt)
        return Found(tool, estimate, self._steps.is_provisional(tool, estimate))

    async def _estimate(self, call: Call, prompt: Prompt) -> Estimate:
        """Continue from the longest remembered prefix of the prompt, click by click."""
        tool, last, keys = call.tool, len(prompt.points), keys_of(prompt, call.tool.version)
        first = first_step(prompt, tool.spec.prompt) if self._steps.depends_on_earlier_clicks(tool) else last
        done, estimate = self._longest_known_prefix(call, keys, first)
        if estimate is not None and done == last:
            return estimate
        if estimate is None and prompt.seed is not None:
            estimate = await self._seed_estimate(call, prompt)
            if prompt.is_seed_alone:
                return estimate
        for count in range(done + 1, last):
            if call.newer.is_superseded():
                break
            estimate, done = await self._steps.run(call, prompt.up_to(count), estimate), count
            if not estimate.is_partial:
                self._memory.remember(keys[count], estimate)
        left_out = done < last - 1 or (estimate is not None and estimate.is_partial)
        estimate = await self._steps.run(call, prompt, estimate)
        if left_out:
            return replace(estimate, is_partial=True)
        if not estimate.is_partial:
            self._memory.remember(keys[last], estimate)
        return estimate

    def _longest_known_prefix(self, call: Call, keys: list[Key], first: int) -> tuple[int, Estimate | None]:
        """Find the longest remembered prefix with at least `first` points; if none, return first - 1 and None."""
        for count in range(len(keys) - 1, first - 1, -1):
            estimate = self._remembered(call, keys[count])
            if estimate is not None:
                return count, estimate
        return first - 1, None

    def _remembered(self, call: Call, key: Key) -> Estimate | None:
        """Find the estimate of a prefix, if it is still current."""
        estimate = self._memory.find(key)
        return estimate if estimate is not None and self._steps.is_current(call.tool, estimate) else None

    async def _seed_estimate(self, call: Call, prompt: Prompt) -> Estimate:
        """Fill the map of the seed that the object starts from."""
        assert prompt.seed is not None  # checked by the caller
        key = seed_key(prompt, call.tool.version)
        known = self._memory.find(key)
        if known is not None:
            return known
        with call.timer.stage("prepare"):
            filled = await self._drawer.seed_map(prompt.seed, (self.picture.width, self.picture.height))
        estimate = Estimate(filled, is_seed=True)
        self._memory.remember(key, estimate)
        return estimate
