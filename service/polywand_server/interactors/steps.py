"""Steps: what one more click of a prompt, or its box, changes: as many passes as the tool's crop policy asks for."""

from dataclasses import dataclass, replace

from polywand_server.geometry.boxes import Box
from polywand_server.images import Picture
from polywand_server.interactors.crops import Frame, crop_policy
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.passes import Passes
from polywand_server.interactors.prompt import Prompt, Supersession
from polywand_server.interactors.proposals import Proposals
from polywand_server.lanes import Lane
from polywand_server.timing import Stopwatch
from polywand_server.tools.kinds import Interactor


@dataclass(frozen=True, slots=True)
class Call:
    """What the work on one prompt needs beside the prompt."""

    tool: Interactor
    timer: Stopwatch
    newer: Supersession


class Steps:
    """Runs interactors on one picture, step by step. proposals: of this picture."""

    def __init__(self, lane: Lane, proposals: Proposals, picture: Picture) -> None:
        self._picture = picture
        self._proposals = proposals
        self._passes = Passes(lane, picture)

    def close(self) -> None:
        """Cancel a detector's work on this picture."""
        self._proposals.close()

    def depend_on_earlier_ones(self, tool: Interactor) -> bool:
        """Whether the answer to an earlier click changes a later one: by feedback, or by a crop around the mask."""
        return tool.has_feedback or crop_policy(tool.spec.crop).follows_mask

    def is_current(self, tool: Interactor, estimate: Estimate) -> bool:
        """Whether a remembered estimate is what would be found now, with the proposals that there are."""
        wanted = crop_policy(tool.spec.crop).proposals
        if estimate.detector is None or wanted is None:
            return True
        return self._proposals.are_current(wanted, estimate.detector)

    def is_provisional(self, tool: Interactor, estimate: Estimate) -> bool:
        """Whether the same prompt may be answered otherwise when it comes again."""
        wanted = crop_policy(tool.spec.crop).proposals
        return estimate.is_partial or (
            wanted is not None and estimate.detector == 0 and self._proposals.may_come(wanted)
        )

    async def run(self, call: Call, prompt: Prompt, previous: Estimate | None) -> Estimate:
        """Run an interactor on a prompt, in as many passes as its crop policy asks for.

        previous: the estimate of the step before, None where the object starts here. Where the prompt is superseded,
        the pass that is under way is the last one, so that a drag is followed as closely as can be.
        """
        tool, newer = call.tool, call.newer
        threshold = tool.spec.threshold
        policy = crop_policy(tool.spec.crop)
        frame = Frame(self._picture.width, self._picture.height, tool.fixed_size, threshold)
        candidates = policy.candidates(frame, prompt, previous)
        found = await self._passes.run(call.tool, prompt, candidates[0], previous, call.timer)
        proposal_crops, boxes = policy.proposal_crops(frame, prompt, previous), list[Box]()
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
        closer = policy.refined(frame, prompt, previous, found.probabilities)
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
