"""Steps: the passes for one more click of a prompt, or its box, as the tool's crop policy chooses them."""

from dataclasses import dataclass, replace

from polywand_server.geometry.boxes import Box
from polywand_server.images import Picture
from polywand_server.interactors.crops import CropSpace, crop_policy
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.passes import Passes
from polywand_server.interactors.prompt import Prompt, Supersession
from polywand_server.interactors.proposals import Proposals
from polywand_server.timing import Stopwatch
from polywand_server.tools.kinds import Interactor


@dataclass(frozen=True, slots=True)
class Call:
    """The tool, timer and supersession of the work on one prompt."""

    tool: Interactor
    timer: Stopwatch
    newer: Supersession


class Steps:
    """Runs interactors on one picture, step by step. passes, proposals: of this picture."""

    def __init__(self, passes: Passes, proposals: Proposals, picture: Picture) -> None:
        self._picture = picture
        self._proposals = proposals
        self._passes = passes

    def close(self) -> None:
        """Cancel a detector's work on this picture."""
        self._proposals.close()

    def depends_on_earlier_clicks(self, tool: Interactor) -> bool:
        """Whether the estimate before a click changes the estimate after it."""
        return tool.feeds_back or crop_policy(tool.spec.crop).follows_mask

    def is_current(self, tool: Interactor, estimate: Estimate) -> bool:
        """Whether a remembered estimate used the proposals that are available now."""
        wanted = crop_policy(tool.spec.crop).proposals
        if estimate.detector is None or wanted is None:
            return True
        return self._proposals.are_current(wanted, estimate.detector)

    def is_provisional(self, tool: Interactor, estimate: Estimate) -> bool:
        """Whether the same prompt may get another answer when it is sent again."""
        wanted = crop_policy(tool.spec.crop).proposals
        return estimate.is_partial or (
            wanted is not None and estimate.detector == 0 and self._proposals.may_come(wanted)
        )

    async def run(self, call: Call, prompt: Prompt, previous: Estimate | None) -> Estimate:
        """Run an interactor on a prompt, in as many passes as its crop policy asks for.

        previous: the estimate of the step before, None where the object starts here. If the prompt is superseded, the
        running pass is the last one, so that answers follow a drag closely.
        """
        tool, newer = call.tool, call.newer
        threshold = tool.spec.threshold
        policy = crop_policy(tool.spec.crop)
        space = CropSpace(self._picture.width, self._picture.height, tool.fixed_size, threshold)
        candidates = policy.candidates(space, prompt, previous)
        found = await self._passes.run(call.tool, prompt, candidates[0], previous, call.timer)
        proposal_crops, boxes = policy.proposal_crops(space, prompt, previous), list[Box]()
        detector = previous.detector if previous is not None else None
        if proposal_crops is not None:
            if newer.is_superseded():
                return replace(found, is_partial=True)
            proposed = await self._proposals.find(proposal_crops.spec, call.timer, newer)
            clicks = prompt.positive_clicks()
            detector, boxes = proposed.version, [box for box in proposed.boxes if box.holds(clicks)]
            candidates = list(dict.fromkeys(candidates + proposal_crops.candidates(boxes)))
            if proposed.version == 0 and newer.is_superseded():  # it was not waited for
                return replace(found, is_partial=True)
        for other in candidates[1:]:
            if newer.is_superseded():
                return replace(found, is_partial=True)
            also = await self._passes.run(call.tool, prompt, other, previous, call.timer)
            found = max(found, also, key=lambda estimate: estimate.confidence(threshold))
        closer = policy.refined(space, prompt, previous, found.probabilities)
        if closer is not None:
            if newer.is_superseded():
                return replace(found, is_partial=True)
            found = await self._passes.run(call.tool, prompt, closer, found, call.timer)
        box = proposal_crops.agreeing(boxes, found.probabilities) if proposal_crops is not None else None
        if proposal_crops is not None and box is not None:
            if newer.is_superseded():
                return replace(found, is_partial=True)
            boxed = replace(prompt, box=box)
            found = await self._passes.run(call.tool, boxed, proposal_crops.around(box), None, call.timer)
        return replace(found, detector=detector)
