"""The crop policy "whole"."""

from dataclasses import dataclass

from polywand_server.images.regions import Region
from polywand_server.interactors.crops.policy import CropPolicy
from polywand_server.interactors.crops.space import CropSpace
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.prompt import Prompt
from polywand_server.tools.specs import WholeCrop


@dataclass(frozen=True, slots=True)
class Whole(CropPolicy):
    """The whole image, always."""

    spec: WholeCrop

    def candidates(self, space: CropSpace, prompt: Prompt, previous: Estimate | None) -> list[Region]:
        """See CropPolicy."""
        return [space.whole(self.spec.longest_side)]
