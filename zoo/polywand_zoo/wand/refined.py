"""Wand for f-BRS: what is scaled and shifted until the mask agrees with all clicks, and the little that follows it.

The decoder's features at stride 8 have logits of their own, by one 1x1 convolution that training holds to the object.
These are what is refined; what the network makes of them on its way to the outline stays as it is. So an evaluation
costs next to nothing, and the network itself is the encoder: it runs once, and its weights are there once.
"""

import copy

from torch import Tensor, nn

from polywand_zoo.refinement.enlarging import Enlarging
from polywand_zoo.wand.fine import FineNetwork
from polywand_zoo.wand.network import COARSE_CHANNELS, COARSE_STRIDE, INPUT_SIZE, WandNetwork

CHANNELS = (COARSE_CHANNELS, 1, 1)  # of what `Redrawing` reads


class Redrawing(nn.Module):
    """From the coarse features, as they are or scaled and shifted, to logits."""

    def __init__(self, network: WandNetwork | FineNetwork) -> None:
        super().__init__()
        self.auxiliary = copy.deepcopy(network.decoder.auxiliary)
        self.enlarge = Enlarging(INPUT_SIZE // COARSE_STRIDE, COARSE_STRIDE)

    def forward(self, coarse: Tensor, drawn: Tensor, logits: Tensor) -> Tensor:
        """Redraw.

        coarse: the features [B, 96, S / 8, S / 8]. drawn: their logits as they were, [B, 1, S / 8, S / 8].
        logits: the network's, [B, 1, S, S].
        Returns these with what the coarse ones have changed, [B, 1, S, S].
        """
        redrawn: Tensor = self.enlarge(self.auxiliary(coarse) - drawn) + logits
        return redrawn
