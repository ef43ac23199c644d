"""Predictors: one image that is worked on, and what is known of its objects; a prompt comes in, an estimate goes out.

An answer depends on the prompt alone. Where its beginning is not remembered, its clicks are worked through one after
another, each with as many passes as if it had been the last one when it came.
"""

from dataclasses import dataclass, replace

from polywand_server.detectors.proposals import Proposals
from polywand_server.images import Picture
from polywand_server.images.crop_cache import View
from polywand_server.images.regions import Region
from polywand_server.interactors.crops import Crops
from polywand_server.interactors.drawer import Drawer
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.hurry import Hurry
from polywand_server.interactors.memory import EstimateMemory, Key, keys_of, seed_key
from polywand_server.interactors.pipeline import fill, read, tensor_specs
from polywand_server.interactors.prompt import Box, Prompt, first_step
from polywand_server.lanes import Lane
from polywand_server.timing import Stopwatch
from polywand_server.tools.kinds import Interactor
from polywand_server.tools.specs import FLIPPED, ProposalSpec, ZoomInCrop


@dataclass(frozen=True, slots=True)
class _Call:
    """What one prompt's work is done with, beside the prompt."""

    tool: Interactor
    watch: Stopwatch
    hurry: Hurry


class Predictor:
    """Finds objects on one image. proposals: of that image. memory: for its objects alone; closed with this."""

    def __init__(
        self, lane: Lane, drawer: Drawer, proposals: Proposals, memory: EstimateMemory, picture: Picture
    ) -> None:
        self.picture = picture
        self._lane = lane
        self._drawer = drawer
        self._proposals = proposals
        self._memory = memory
        self._view = View(picture)

    def close(self) -> None:
        """Stop what is under way by itself, and forget all objects."""
        self._proposals.close()
        self._memory.close()

    async def find(self, tool: Interactor, prompt: Prompt, watch: Stopwatch, hurry: Hurry) -> Estimate:
        """Find what a prompt says; it fits the tool and lacks nothing.

        Where the prompt is superseded, at most the pass that is under way and one more, with all of its points, are
        run; then the estimate is hurried.

        Raises:
            InvalidInputError, TooLargeError (the seed), UnavailableError, DeadlineError, ModelFailedError
        """
        call = _Call(tool, watch, hurry)
        keys = keys_of(prompt, tool.version)
        last = len(prompt.points)
        first = first_step(prompt, tool.spec.prompt) if tool.depends_on_earlier_clicks else last
        done, estimate = last, self._remembered(tool, keys[last])
        while estimate is None and done > first:
            done -= 1
            estimate = self._remembered(tool, keys[done])
        if estimate is not None and done == last:
            return estimate
        if estimate is None:
            done = first - 1
            if prompt.seed is not None:
                estimate = await self._seed(call, prompt)
        if estimate is not None and prompt.is_seed_alone:
            return estimate
        while True:
            done += 1
            if done == last or hurry.is_superseded():
                break
            estimate = await self._step(call, prompt.up_to(done), estimate)
            if not estimate.is_hurried:
                self._memory.remember(keys[done], estimate)
        left_out = done < last or (estimate is not None and estimate.is_hurried)
        estimate = await self._step(call, prompt, estimate)
        if left_out:
            return replace(estimate, is_hurried=True)
        if not estimate.is_hurried:
            self._memory.remember(keys[last], estimate)
        return estimate

    def is_provisional(self, tool: Interactor, estimate: Estimate) -> bool:
        """Whether the same prompt may be answered otherwise when it comes again."""
        wanted = _proposals_of(tool)
        return estimate.is_hurried or (
            wanted is not None and estimate.detector == 0 and self._proposals.may_come(wanted)
        )

    def _remembered(self, tool: Interactor, key: Key) -> Estimate | None:
        """Find the estimate of a beginning, if it is what would be found now."""
        found = self._memory.find(key)
        wanted = _proposals_of(tool)
        if found is None or found.detector is None or wanted is None:
            return found
        return found if self._proposals.stand(wanted, found.detector) else None

    async def _seed(self, call: _Call, prompt: Prompt) -> Estimate:
        """Lay out a prompt's seed, what its object starts from."""
        assert prompt.seed is not None  # the caller has made sure
        key = seed_key(prompt, call.tool.version)
        known = self._memory.find(key)
        if known is not None:
            return known
        with call.watch.stage("prepare"):
            planted = await self._drawer.seed_map(prompt.seed, (self.picture.width, self.picture.height))
        estimate = Estimate(planted, is_seed=True)
        self._memory.remember(key, estimate)
        return estimate

    async def _step(self, call: _Call, prompt: Prompt, previous: Estimate | None) -> Estimate:
        """Run an interactor on a prompt, in as many passes as its crop policy asks for.

        previous: the estimate of the step before, None where the object starts here. Where the prompt is superseded,
        the pass that is under way is the last one, so that a drag is followed as closely as can be.
        """
        tool, hurry = call.tool, call.hurry
        threshold = tool.spec.threshold
        crops = Crops(tool.spec.crop, self.picture.width, self.picture.height, tool.fixed_size)
        looks = crops.looks(prompt, previous, threshold)
        found = await self._pass(call, prompt, looks[0], previous)
        wanted, boxes = crops.wanted_proposals(prompt, previous), list[Box]()
        detector = previous.detector if previous is not None else None
        if wanted is not None:
            if hurry.is_superseded():
                return replace(found, is_hurried=True)
            proposed = await self._proposals.by(wanted, call.watch, hurry)
            clicks = prompt.positive_clicks()
            detector, boxes = proposed.version, [box for box in proposed.boxes if box.holds(clicks)]
            looks = list(dict.fromkeys(looks + crops.proposed(wanted, boxes)))
            if proposed.version == 0 and hurry.is_superseded():  # it was not waited for
                return replace(found, is_hurried=True)
        for other in looks[1:]:
            if hurry.is_superseded():
                return replace(found, is_hurried=True)
            also = await self._pass(call, prompt, other, previous)
            found = max(found, also, key=lambda estimate: estimate.confidence(threshold))
        closer = crops.again(prompt, previous, found.probabilities, threshold)
        if closer is not None:
            if hurry.is_superseded():
                return replace(found, is_hurried=True)
            found = await self._pass(call, prompt, closer, found)
        box = crops.agreeing(wanted, boxes, found.probabilities, threshold) if wanted is not None else None
        if box is not None:
            if hurry.is_superseded():
                return replace(found, is_hurried=True)
            found = await self._pass(call, replace(prompt, box=box), crops.around_box(box), None)
        return replace(found, detector=detector)

    async def _pass(self, call: _Call, prompt: Prompt, region: Region, before: Estimate | None) -> Estimate:
        """Show the network one crop. before: what is fed back of the step, or the pass, before."""
        tool, watch, lane = call.tool, call.watch, self._lane
        inputs, outputs = tensor_specs(tool.config, region, FLIPPED if tool.spec.flip else 1)
        async with lane.exchange(tool.model, tool.version, inputs, outputs) as exchange:
            with watch.stage("prepare"):
                await lane.compute(lambda: fill(exchange.inputs, self._view, prompt, region, before))
            answer = await lane.run(exchange, watch)
            with watch.stage("geometry"):
                return await lane.compute(lambda: read(answer, region, tool.name))


def _proposals_of(tool: Interactor) -> ProposalSpec | None:
    """Whose boxes a tool asks for where clicks alone start an object."""
    crop = tool.spec.crop
    return crop.proposals if isinstance(crop, ZoomInCrop) else None
