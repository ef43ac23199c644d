"""The way "onnx": a model's ONNX graph without Triton and gRPC, with the service's crops and tensors."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polywand_server.errors import ModelFailedError
from polywand_server.geometry.boxes import Box
from polywand_server.images import Picture
from polywand_server.images.picture import picture_of
from polywand_server.images.regions import Region, crop_into
from polywand_server.interactors import prompt as served
from polywand_server.interactors.crops import CropSpace, ProposalCrops, crop_policy
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.tensors import read, write_prompt
from polywand_zoo.evaluation.masks import to_mask, without_specks
from polywand_zoo.evaluation.modelfolder import ModelError, ModelFolder, is_there, read_detector
from polywand_zoo.evaluation.networks import Precision, load_network
from polywand_zoo.evaluation.objects import Mask, Photo
from polywand_zoo.evaluation.prompts import Prompt
from polywand_zoo.evaluation.proposals import load_proposer

INPUTS = {"IMAGE", "POINTS", "PREV_MASK"}
ADVICE = "evaluate it through the service (--way service)"

_LABELS = {
    "positive": served.Label.POSITIVE,
    "negative": served.Label.NEGATIVE,
    "extreme": served.Label.EXTREME,
}


class OnlyServedError(ModelError):
    """A model that only the service can run. reason: why, for the user."""

    def __init__(self, folder: ModelFolder, reason: str) -> None:
        self.reason = f"model '{folder.name}' {reason}"
        super().__init__(f"{self.reason}: {ADVICE}")


class DirectTool:
    """A model's graph on the processor; see `Tool`. threads: 0 is all cores.

    Raises ModelError when the model cannot be run in this way.
    """

    way = "onnx"

    def __init__(self, folder: ModelFolder, precision: Precision = Precision.SERVED, threads: int = 0) -> None:
        check(folder)
        self.model, self.version, self.needs = folder.name, folder.version, folder.needs
        self._folder = folder
        self._policy = crop_policy(folder.spec.crop)
        self._network = load_network(folder, precision, threads)
        unknown = sorted(self._network.inputs - INPUTS)
        if unknown:
            raise ModelError(f"{folder.network} has an input that is not known here: {unknown[0]}")
        self._proposer = load_proposer(folder, self._policy.proposals, precision, threads)
        self.masks = f"the pixels whose centres are above the threshold, without specks ({self._network.name})"

    @contextmanager
    def open(self, photo: Photo) -> Iterator["_Session"]:
        """See Tool."""
        yield _Session(self, self._folder, picture_of(photo.pixels))

    def estimate(self, picture: Picture, prompt: served.Prompt, previous: Estimate | None) -> Estimate:
        """Run the network on a prompt, in as many passes as its crop policy asks for.

        previous: the estimate that the prompt extends; None where the object starts here.
        """
        space = CropSpace(picture.width, picture.height, self._folder.fixed_size, self._folder.spec.threshold)
        candidates = self._policy.candidates(space, prompt, previous)
        proposal_crops, boxes = self._policy.proposal_crops(space, prompt, previous), list[Box]()
        if proposal_crops is not None:
            boxes = self._proposed(picture, prompt)
            candidates = list(dict.fromkeys(candidates + proposal_crops.candidates(boxes)))
        estimates = [self._pass(picture, prompt, region, previous) for region in candidates]
        found = max(estimates, key=lambda estimate: estimate.confidence(space.threshold))
        closer = self._policy.refined(space, prompt, previous, found.probabilities)
        if closer is not None:
            found = self._pass(picture, prompt, closer, found)
        return found if proposal_crops is None else self._boxed(picture, prompt, proposal_crops, boxes, found)

    def _proposed(self, picture: Picture, prompt: served.Prompt) -> list[Box]:
        """List the boxes of the detector that hold the prompt's positive clicks."""
        if self._proposer is None:
            return []
        clicks = prompt.positive_clicks()
        return [proposal.box for proposal in self._proposer.propose(picture) if proposal.box.holds(clicks)]

    def _boxed(
        self, picture: Picture, prompt: served.Prompt, crops: ProposalCrops, boxes: list[Box], found: Estimate
    ) -> Estimate:
        """Run the network once more with the box that agrees with what was found, if one does."""
        box = crops.agreeing(boxes, found.probabilities)
        if box is None:
            return found
        return self._pass(picture, dataclasses.replace(prompt, box=box), crops.around(box), None)

    def _pass(self, picture: Picture, prompt: served.Prompt, region: Region, previous: Estimate | None) -> Estimate:
        height, width = region.size
        tensors: dict[str, NDArray[np.generic]] = {
            "IMAGE": np.empty((1, height, width, 3), np.uint8),
            "POINTS": np.empty((1, self._folder.points, 3), np.float32),
            "PREV_MASK": np.empty((1, 1, height, width), np.float32),
        }
        crop_into(tensors["IMAGE"][0], picture, region)
        write_prompt(tensors, prompt, region, previous)
        logits = self._network.run({name: tensors[name] for name in self._network.inputs})
        try:
            return read({"LOGITS": logits}, region, self.model)
        except ModelFailedError as error:
            raise ModelError(str(error)) from error


@dataclass(frozen=True, slots=True)
class _Last:
    """The last prompt of an object, and its estimate."""

    prompt: served.Prompt
    estimate: Estimate


class _Session:
    """Remembers the last estimate of each object."""

    def __init__(self, tool: DirectTool, folder: ModelFolder, picture: Picture) -> None:
        self._tool = tool
        self._spec = folder.spec
        self._picture = picture
        self._last: dict[str, _Last] = {}

    def answer(self, prompt: Prompt, object_id: str) -> Mask:
        """See Session."""
        asked = _as_served(prompt)
        estimate = self._estimate(asked, self._last.get(object_id))
        self._last[object_id] = _Last(asked, estimate)
        width, height, threshold = self._picture.width, self._picture.height, self._spec.threshold
        kept = without_specks(estimate.probabilities, threshold, width, height, asked.clicks())
        return to_mask(kept, threshold, width, height)

    def _estimate(self, prompt: served.Prompt, last: _Last | None) -> Estimate:
        """Work through the prompt's points one after another, from those of the last prompt on if it extends that."""
        first, estimate = served.first_step(prompt, self._spec.prompt), None
        if last is not None and prompt.builds_on(last.prompt):
            first, estimate = len(last.prompt.points) + 1, last.estimate
        for count in range(first, len(prompt.points) + 1):
            estimate = self._tool.estimate(self._picture, prompt.up_to(count), estimate)
        assert estimate is not None  # the last prompt has one, or the loop runs
        return estimate


def check(folder: ModelFolder) -> None:
    """Refuse a model that cannot be run on its graph alone.

    Raises:
        OnlyServedError
    """
    if folder.network is None:
        raise OnlyServedError(folder, "is no ONNX graph (it has no model.onnx)")
    if folder.keeps_state:
        raise OnlyServedError(
            folder, "hands a STATE from prompt to prompt, as f-BRS does, and only the service does that"
        )
    if folder.spec.flip:
        raise OnlyServedError(folder, "has the option 'flip', which only the service has")
    detector = folder.detector
    if detector is None or not is_there(folder.repository, detector):
        return
    if read_detector(folder.repository, detector).network is None:
        raise OnlyServedError(folder, f"uses the detector '{detector}', which is no ONNX graph (it has no model.onnx)")


def _as_served(prompt: Prompt) -> served.Prompt:
    """Convert a prompt to the service's type."""
    points = tuple(served.Point(point.x, point.y, _LABELS[point.label]) for point in prompt.points)
    box = None if prompt.box is None else Box(*prompt.box)
    return served.Prompt(model="", version=0, object_id="", points=points, box=box)
