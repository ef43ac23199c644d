"""Predictors: one image that is worked on; a prompt comes in, its object's outline goes out.

An answer depends on the prompt alone. Where its beginning is not remembered, its clicks are worked through one after
another, each with as many passes as if it had been the last one when it came.
"""

from dataclasses import replace

from polywand_server.images import Picture
from polywand_server.interactors.checks import check_fits, check_inside
from polywand_server.interactors.drawer import Drawer
from polywand_server.interactors.estimate import Estimate, Found, Segmentation
from polywand_server.interactors.memory import EstimateMemory, Key, keys_of, seed_key
from polywand_server.interactors.prompt import Incomplete, Prompt, Supersession, first_step, incomplete
from polywand_server.interactors.steps import Call, Steps
from polywand_server.lanes import Lane
from polywand_server.timing import Stopwatch
from polywand_server.tools.kinds import Interactor
from polywand_server.tools.registry import Registry
from polywand_server.tools.retry import use_tool

# A prompt with more points is checked in a thread; the shipped models take fewer.
FEW_POINTS = 256


class Predictor:
    """Finds objects on one image: `check`, `find` and `draw` a prompt; `close` ends all.

    memory, steps: for this picture alone; closed with it.
    """

    def __init__(
        self,
        registry: Registry,
        lane: Lane,
        drawer: Drawer,
        memory: EstimateMemory,
        steps: Steps,
        picture: Picture,
    ) -> None:
        self.picture = picture
        self._registry = registry
        self._lane = lane
        self._drawer = drawer
        self._steps = steps
        self._memory = memory

    def close(self) -> None:
        """Cancel a detector's work, and forget all objects."""
        self._steps.close()
        self._memory.close()

    async def check(self, prompt: Prompt) -> None:
        """Refuse a prompt that reaches outside the image. Raises InvalidInputError."""
        if len(prompt.points) > FEW_POINTS:
            await self._lane.compute(lambda: check_inside(prompt, self.picture))
        else:
            check_inside(prompt, self.picture)

    async def find(self, prompt: Prompt, timer: Stopwatch, newer: Supersession) -> Found | Incomplete:
        """Find the object that a prompt means, or say what the prompt still lacks for its tool.

        Where the prompt is superseded, the pass that is under way ends, and at most one more is run, with all points;
        the estimate is partial then.

        Raises:
            NotFoundError, WrongStateError, InvalidInputError (the tool does not read this prompt),
            TooLargeError (the seed), UnavailableError, DeadlineError, ModelFailedError
        """
        return await use_tool(
            self._registry,
            lambda: self._registry.interactor(prompt.model, prompt.version),
            lambda tool: self._find(Call(tool, timer, newer), prompt),
        )

    async def draw(self, prompt: Prompt, found: Found, timer: Stopwatch) -> Segmentation:
        """Draw the outline of what was found.

        Raises:
            InvalidInputError, TooLargeError (the outline has too many vertices or rings, or takes too long)
        """
        tool, picture, probabilities = found.tool, self.picture, found.estimate.probabilities
        threshold, size = prompt.output.threshold or tool.spec.threshold, (picture.width, picture.height)
        with timer.stage("geometry"):
            if prompt.seed is not None and prompt.is_seed_alone:
                shape = await self._drawer.seed_shape(prompt.seed, probabilities, threshold, prompt.output, size)
            else:
                field = "prompt.output.threshold"
                shape = await self._drawer.shape(probabilities, threshold, prompt.output, size, prompt.clicks(), field)
        return Segmentation(shape, *size, tool.name, tool.version, threshold, found.is_provisional)

    async def _find(self, call: Call, prompt: Prompt) -> Found | Incomplete:
        tool = call.tool
        check_fits(prompt, tool)
        lacking = incomplete(prompt, tool.spec.prompt)
        if lacking:
            return lacking
        estimate = await self._estimate(call, prompt)
        return Found(tool, estimate, self._steps.is_provisional(tool, estimate))

    async def _estimate(self, call: Call, prompt: Prompt) -> Estimate:
        """Go on from the longest beginning of the prompt that is remembered, click by click."""
        tool, last, keys = call.tool, len(prompt.points), keys_of(prompt, call.tool.version)
        first = first_step(prompt, tool.spec.prompt) if self._steps.depend_on_earlier_ones(tool) else last
        done, estimate = self._longest_beginning(tool, keys, first)
        if estimate is not None and done == last:
            return estimate
        if estimate is None and prompt.seed is not None:
            estimate = await self._seed(call, prompt)
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

    def _longest_beginning(self, tool: Interactor, keys: list[Key], first: int) -> tuple[int, Estimate | None]:
        """Find the longest remembered beginning with at least so many points; one point less, and None, if none is."""
        for count in range(len(keys) - 1, first - 1, -1):
            estimate = self._remembered(tool, keys[count])
            if estimate is not None:
                return count, estimate
        return first - 1, None

    def _remembered(self, tool: Interactor, key: Key) -> Estimate | None:
        """Find the estimate of a beginning, if it is what would be found now."""
        estimate = self._memory.find(key)
        return estimate if estimate is not None and self._steps.is_current(tool, estimate) else None

    async def _seed(self, call: Call, prompt: Prompt) -> Estimate:
        """Lay out a prompt's seed, what its object starts from."""
        assert prompt.seed is not None  # the caller has made sure
        key = seed_key(prompt, call.tool.version)
        known = self._memory.find(key)
        if known is not None:
            return known
        with call.timer.stage("prepare"):
            planted = await self._drawer.seed_map(prompt.seed, (self.picture.width, self.picture.height))
        estimate = Estimate(planted, is_seed=True)
        self._memory.remember(key, estimate)
        return estimate
