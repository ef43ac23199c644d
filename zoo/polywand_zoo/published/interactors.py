"""The published networks under Polywand's contract: pixels and clicks in, logits out. This is what is exported.

IMAGE: [B, H, W, 3], uint8, RGB. POINTS: [B, N, 3], float32 (see `points`). PREV_MASK: [B, 1, H, W], float32, 0..1.
LOGITS: [B, 1, H, W], float32.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from polywand_zoo.networks import dextr, iog
from polywand_zoo.networks.dextr import Dextr
from polywand_zoo.networks.iog import Iog
from polywand_zoo.networks.layers import resize, size_of
from polywand_zoo.networks.ritm import Ritm
from polywand_zoo.published.prompts import ClickDisks, DistanceMaps, ExtremePointHeat, InsideOutsideHeat

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in 0..1
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
WHITE = 255
RITM_DISK_RADIUS = 5  # pixels
FBRS_DISTANCE_RADIUS = 260  # pixels; the authors' `norm_radius`


class Interactor(nn.Module):
    """A network and what surrounds it.

    INPUTS: the names of forward's arguments in the graph, in order.
    POINTS: the number of rows of POINTS.
    SIZE: height and width of IMAGE, None where they may vary.
    """

    INPUTS: ClassVar[tuple[str, ...]] = ("IMAGE", "POINTS")
    POINTS: ClassVar[int]
    SIZE: ClassVar[tuple[int, int] | None] = None

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def compute(self, *inputs: Tensor) -> Tensor:
        """Run the network to its logits."""
        logits: Tensor = self.network(*inputs)
        return logits


class DextrInteractor(Interactor):
    """DEXTR: extreme points. Its logits of a quarter of the pixels are enlarged as its authors do."""

    POINTS = 8
    SIZE = (dextr.INPUT_SIZE, dextr.INPUT_SIZE)

    def __init__(self, network: Dextr) -> None:
        super().__init__(network)
        self.heat = ExtremePointHeat(dextr.INPUT_SIZE)

    def forward(self, image: Tensor, points: Tensor) -> Tensor:
        """See the module."""
        return resize(self.compute(pixels(image), self.heat(points)), self.SIZE)


class IogInteractor(Interactor):
    """IOG: a box and a click inside."""

    POINTS = 8
    SIZE = (iog.INPUT_SIZE, iog.INPUT_SIZE)

    def __init__(self, network: Iog) -> None:
        super().__init__(network)
        self.heat = InsideOutsideHeat(iog.INPUT_SIZE)

    def forward(self, image: Tensor, points: Tensor) -> Tensor:
        """See the module."""
        return self.compute(pixels(image), *self.heat(points))


class RitmInteractor(Interactor):
    """RITM: clicks, and the mask before them."""

    INPUTS = ("IMAGE", "POINTS", "PREV_MASK")
    POINTS = 64

    def __init__(self, network: Ritm) -> None:
        super().__init__(network)
        self.normalised = ImagenetNormalisation()
        self.disks = ClickDisks(RITM_DISK_RADIUS)

    def forward(self, image: Tensor, points: Tensor, previous: Tensor) -> Tensor:
        """See the module."""
        planes = pixels(image)
        maps = torch.cat([previous, self.disks(points, size_of(planes))], 1)
        return self.compute(self.normalised(planes), maps)


class FbrsInteractor(Interactor):
    """f-BRS without its refinement: clicks. Its authors show the network the first eight at most."""

    POINTS = 8

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.normalised = ImagenetNormalisation()
        self.distances = DistanceMaps(FBRS_DISTANCE_RADIUS)

    def forward(self, image: Tensor, points: Tensor) -> Tensor:
        """See the module."""
        planes = pixels(image)
        return self.compute(self.normalised(planes), self.distances(points, size_of(planes)))


class ImagenetNormalisation(nn.Module):
    """RGB in 0..255 to zero mean and unit deviation."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("mean", IMAGENET_MEAN), ("deviation", IMAGENET_DEVIATION)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1) * WHITE, False)

    def forward(self, planes: Tensor) -> Tensor:
        """Normalise [B, 3, H, W]."""
        return (planes - self.mean) / self.deviation


def pixels(image: Tensor) -> Tensor:
    """Bring an image [B, H, W, 3], uint8, to [B, 3, H, W], float32, 0..255."""
    return image.permute(0, 3, 1, 2).float()
