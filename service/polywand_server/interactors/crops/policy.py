"""The protocol of crop policies."""

from collections.abc import Sequence
from typing import ClassVar, Protocol

from polywand_server.geometry.boxes import Box
from polywand_server.images.regions import ProbabilityMap, Region
from polywand_server.interactors.crops.space import CropSpace
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.prompt import Prompt
from polywand_server.tools.specs import ProposalSpec


class CropPolicy(Protocol):
    """Chooses the crops of an interactor's passes. A policy has no state.

    follows_mask: whether the crop of a prompt depends on the mask of the prompt before it.
    """

    follows_mask: ClassVar[bool] = False

    @property
    def proposals(self) -> ProposalSpec | None:
        """The detector whose boxes become candidate crops where clicks alone start an object; None without one."""
        return None

    def candidates(self, space: CropSpace, prompt: Prompt, previous: Estimate | None) -> list[Region]:
        """Choose the candidate crops of a prompt, one or more: the network sees each, the best answer stands.

        previous: the estimate that the prompt extends; None where the object starts here.
        """
        ...

    def proposal_crops(self, space: CropSpace, prompt: Prompt, previous: Estimate | None) -> "ProposalCrops | None":
        """Choose how a detector's boxes add candidate crops to this prompt; None where they add none."""
        return None

    def refined(
        self, space: CropSpace, prompt: Prompt, previous: Estimate | None, found: ProbabilityMap
    ) -> Region | None:
        """Choose the crop of one more pass that refines the best answer; None where that answer is final.

        previous: as for `candidates`. found: the best answer.
        """
        return None


class ProposalCrops(Protocol):
    """Crops around a detector's boxes, for one prompt.

    The methods take the boxes that hold the prompt's positive clicks, by descending score.
    """

    @property
    def spec(self) -> ProposalSpec:
        """Which boxes of which detector."""
        ...

    def candidates(self, boxes: Sequence[Box]) -> list[Region]:
        """Choose the candidate crops around the best boxes."""
        ...

    def agreeing(self, boxes: Sequence[Box], found: ProbabilityMap) -> Box | None:
        """Find the box that overlaps most with the mask that was found; None where none overlaps enough."""
        ...

    def around(self, box: Box) -> Region:
        """Choose the crop for a prompt of the clicks and this box."""
        ...
