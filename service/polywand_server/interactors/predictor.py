"""Predictors: one image that is worked on, and what is known of its objects; a prompt comes in, an estimate goes out.

An answer depends on the prompt alone. Where its beginning is not remembered, its clicks are worked through one after
another, each with as many passes as if it had been the last one when it came.
"""

from dataclasses import dataclass, replace

from polywand_server.detectors.proposals import Proposals
from polywand_server.images import Picture
from polywand_server.images.crop_cache import View
from polywand_server.images.regions import Region
from polywand_server.interactors.crops import Frame, crop_policy
from polywand_server.interactors.drawer import Drawer
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.hurry import Hurry
from polywand_server.interactors.memory import EstimateMemory, Key, keys_of, seed_key
from polywand_server.interactors.pipeline import fill, fixed_size, forms, goes_on, read
from polywand_server.interactors.prompt import Box, Prompt, first_step
from polywand_server.lanes import Lane
from polywand_server.timing import Stopwatch
from polywand_server.tools.registry import Interactor
from polywand_server.tools.specs import FLIPPED


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
        first = first_step(prompt, tool.spec.prompt) if goes_on(tool) else last
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
        wanted = crop_policy(tool.spec.crop).proposals
        return estimate.is_hurried or (
            wanted is not None and estimate.detector == 0 and self._proposals.may_come(wanted)
        )

    def _remembered(self, tool: Interactor, key: Key) -> Estimate | None:
        """Find the estimate of a beginning, if it is what would be found now."""
        found = self._memory.find(key)
        wanted = crop_policy(tool.spec.crop).proposals
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
        policy = crop_policy(tool.spec.crop)
        frame = Frame(self.picture.width, self.picture.height, fixed_size(tool.config), threshold)
        looks = policy.candidates(frame, prompt, previous)
        found = await self._pass(call, prompt, looks[0], previous)
        proposal_crops, boxes = policy.proposal_crops(frame, prompt, previous), list[Box]()
        detector = previous.detector if previous is not None else None
        if proposal_crops is not None:
            if hurry.is_superseded():
                return replace(found, is_hurried=True)
            proposed = await self._proposals.by(proposal_crops.spec, call.watch, hurry)
            clicks = prompt.positive_clicks()
            detector, boxes = proposed.version, [box for box in proposed.boxes if box.holds(clicks)]
            looks = list(dict.fromkeys(looks + proposal_crops.candidates(boxes)))
            if proposed.version == 0 and hurry.is_superseded():  # it was not waited for
                return replace(found, is_hurried=True)
        for other in looks[1:]:
            if hurry.is_superseded():
                return replace(found, is_hurried=True)
            also = await self._pass(call, prompt, other, previous)
            found = max(found, also, key=lambda estimate: estimate.confidence(threshold))
        closer = policy.refined(frame, prompt, previous, found.probabilities)
        if closer is not None:
            if hurry.is_superseded():
                return replace(found, is_hurried=True)
            found = await self._pass(call, prompt, closer, found)
        box = proposal_crops.agreeing(boxes, found.probabilities) if proposal_crops is not None else None
        if proposal_crops is not None and box is not None:
            if hurry.is_superseded():
                return replace(found, is_hurried=True)
            found = await self._pass(call, replace(prompt, box=box), proposal_crops.around(box), None)
        return replace(found, detector=detector)

    async def _pass(self, call: _Call, prompt: Prompt, region: Region, before: Estimate | None) -> Estimate:
        """Show the network one crop. before: what is fed back of the step, or the pass, before."""
        tool, watch, lane = call.tool, call.watch, self._lane
        inputs, outputs = forms(tool.config, region, FLIPPED if tool.spec.flip else 1)
        async with lane.exchange(tool.model, tool.version, inputs, outputs) as exchange:
            with watch.stage("prepare"):
                await lane.compute(lambda: fill(exchange.inputs, self._view, prompt, region, before))
            answer = await lane.run(exchange, watch)
            with watch.stage("geometry"):
                return await lane.compute(lambda: read(answer, region, tool.name))
