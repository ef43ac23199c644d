"""The short way: prompts straight to a model's ONNX graph, with crops and mapping of our own."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polywand import Box
from polywand_zoo.evaluation.crops import Frame, UnknownPolicyError, ZoomIn, read_policy
from polywand_zoo.evaluation.modelfolder import ModelError, ModelFolder, is_there, read_detector
from polywand_zoo.evaluation.networks import Precision, load_network
from polywand_zoo.evaluation.objects import Mask, Photo
from polywand_zoo.evaluation.prompts import Prompt
from polywand_zoo.evaluation.proposals import load_proposer
from polywand_zoo.evaluation.specks import without_specks
from polywand_zoo.evaluation.windows import Belief, Window, cut, moved, to_mask
from polywand_zoo.points import Label

INPUTS = {"IMAGE", "POINTS", "PREV_MASK"}
# What is said here changes nothing in the masks, or is reproduced.
KNOWN_FIELDS = {"kind", "display_name", "help_message", "animated_gif", "license", "weights_source"}
KNOWN_FIELDS |= {"threshold", "prompt", "crop"}
ADVICE = "evaluate it through the service (--way service)"


class OnlyServedError(ModelError):
    """A model that only the service can run. reason: why, in words."""

    def __init__(self, folder: ModelFolder, reason: str) -> None:
        self.reason = f"model '{folder.name}' {reason}"
        super().__init__(f"{self.reason}: {ADVICE}")


_ROWS = {"positive": Label.POSITIVE, "negative": Label.NEGATIVE, "extreme": Label.EXTREME}


class DirectTool:
    """A model's graph on the processor; see `Tool`. threads: 0 is all cores.

    Raises ModelError when the model cannot be run so.
    """

    way = "onnx"

    def __init__(self, folder: ModelFolder, precision: Precision = Precision.SERVED, threads: int = 0) -> None:
        check(folder)
        self.model, self.version, self.needs = folder.name, folder.version, folder.needs
        self._policy = read_policy(folder.spec["crop"])
        self._folder = folder
        self._network = load_network(folder, precision, threads)
        unknown = sorted(self._network.inputs - INPUTS)
        if unknown:
            raise ModelError(f"{folder.network} has an input that is not known here: {unknown[0]}")
        proposals = self._policy.proposals if isinstance(self._policy, ZoomIn) else None
        self._proposer = load_proposer(folder, proposals, precision, threads)
        self.masks = f"the pixels whose centres are above the threshold, without specks ({self._network.name})"

    @contextmanager
    def look_at(self, photo: Photo) -> Iterator["_Look"]:
        """See Tool."""
        yield _Look(self, photo)

    def answer(self, photo: Photo, prompt: Prompt, previous: Belief | None) -> Belief:
        """Run the network on a prompt, in as many windows as its crop policy asks for."""
        frame = Frame(photo.width, photo.height, self._folder.fixed_size, self._folder.threshold)
        proposals = self._proposed(photo, prompt, previous)
        windows = self._policy.looks(frame, prompt, previous, proposals)
        found = [self._pass(photo, prompt, window, previous) for window in windows]
        surest = max(found, key=lambda belief: belief.confidence(self._folder.threshold))
        closer = self._policy.again(frame, prompt, previous, surest)
        answer = surest if closer is None else self._pass(photo, prompt, closer, surest)
        box = self._policy.agreeing(frame, prompt, answer, proposals) if isinstance(self._policy, ZoomIn) else None
        return answer if box is None else self.answer(photo, dataclasses.replace(prompt, box=box), None)

    def mask(self, photo: Photo, prompt: Prompt, belief: Belief) -> Mask:
        """The mask of what is believed of a prompt's object, bool [H, W]."""
        threshold = self._folder.threshold
        kept = without_specks(belief, threshold, photo.width, photo.height, prompt.clicks())
        return to_mask(kept, threshold, photo.width, photo.height)

    def _proposed(self, photo: Photo, prompt: Prompt, previous: Belief | None) -> Sequence[Box]:
        """Where a detector sees something on the photo; it is asked where an object starts by clicks alone."""
        starts = previous is None and prompt.starting_box() is None
        if self._proposer is None or not starts or all(point.label != "positive" for point in prompt.points):
            return ()
        return [proposal.box for proposal in self._proposer.look_at(photo)]

    def _pass(self, photo: Photo, prompt: Prompt, window: Window, before: Belief | None) -> Belief:
        previous = np.zeros(window.size, np.float32) if before is None else moved(before, window)
        feeds: dict[str, NDArray[np.generic]] = {
            "IMAGE": cut(photo.pixels, window)[None],
            "POINTS": point_rows(prompt, window, self._folder.points)[None],
            "PREV_MASK": previous[None, None],
        }
        logits = self._network.run({name: feeds[name] for name in self._network.inputs})
        probabilities = 1 / (1 + np.exp(-logits[0, 0].clip(-60, 60)))
        return Belief(window, probabilities.astype(np.float32))


class _Look:
    """Remembers what was believed of each object."""

    def __init__(self, tool: DirectTool, photo: Photo) -> None:
        self._tool, self._photo = tool, photo
        self._last: dict[str, tuple[Prompt, Belief]] = {}

    def ask(self, prompt: Prompt, object_id: str) -> Mask:
        """See Look."""
        last, belief = self._last.get(object_id, (None, None))
        if last is None or not prompt.extends(last):
            last, belief = None, None
        for step in self._tool.needs.steps(prompt):
            if last is None or len(step.points) > len(last.points):
                belief = self._tool.answer(self._photo, step, belief)
        assert belief is not None  # the last step is the prompt itself
        self._last[object_id] = (prompt, belief)
        return self._tool.mask(self._photo, prompt, belief)


def check(folder: ModelFolder) -> None:
    """Refuse what cannot be run straight on its graph.

    Raises:
        OnlyServedError
    """
    if folder.network is None:
        raise OnlyServedError(folder, "is no ONNX graph (it has no model.onnx)")
    if folder.keeps_state:
        raise OnlyServedError(
            folder, "hands a STATE from prompt to prompt, as f-BRS does, and only the service does that"
        )
    unknown = sorted(set(folder.spec) - KNOWN_FIELDS)
    if unknown:
        raise OnlyServedError(folder, f"has the option '{unknown[0]}', which is not reproduced here")
    crop: Mapping[str, Any] = folder.spec.get("crop", {})
    try:
        read_policy(crop)
    except UnknownPolicyError as error:
        raise OnlyServedError(folder, f"has {error}, which is not reproduced here") from error
    detector = folder.detector
    if detector is None or not is_there(folder.repository, detector):
        return
    if read_detector(folder.repository, detector).network is None:
        raise OnlyServedError(folder, f"asks the detector '{detector}', which is no ONNX graph (it has no model.onnx)")


def point_rows(prompt: Prompt, window: Window, rows: int) -> NDArray[np.float32]:
    """A prompt as POINTS, float32 [rows, 3]: x, y in input pixels (centres at integers), and a label."""
    marks = [(point.x, point.y, _ROWS[point.label]) for point in prompt.points]
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
        marks += [(x0, y0, Label.BOX_TOP_LEFT), (x1, y1, Label.BOX_BOTTOM_RIGHT)]
    tensor = np.full((rows, 3), (0, 0, Label.PADDING), np.float32)
    values = np.array(marks, np.float64)
    tensor[: len(marks), :2] = window.to_input(values[:, :2])
    tensor[: len(marks), 2] = values[:, 2]
    return tensor
