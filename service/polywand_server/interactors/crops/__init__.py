"""Crop policies: which regions of the image the network sees, for a prompt and the mask so far."""

from polywand_server.interactors.crops.margin import Margin
from polywand_server.interactors.crops.policy import CropPolicy, ProposalCrops
from polywand_server.interactors.crops.region_of_interest import RegionOfInterest
from polywand_server.interactors.crops.space import CropSpace
from polywand_server.interactors.crops.whole import Whole
from polywand_server.interactors.crops.zoom_in import ZoomIn
from polywand_server.tools import specs


def crop_policy(spec: specs.CropPolicy) -> CropPolicy:
    """Make the policy that a tool's parameters name."""
    match spec:
        case specs.WholeCrop():
            return Whole(spec)
        case specs.MarginCrop():
            return Margin(spec)
        case specs.RoiCrop():
            return RegionOfInterest(spec)
        case specs.ZoomInCrop():
            return ZoomIn(spec)


__all__ = ["CropPolicy", "CropSpace", "Margin", "ProposalCrops", "RegionOfInterest", "Whole", "ZoomIn", "crop_policy"]
