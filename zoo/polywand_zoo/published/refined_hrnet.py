"""f-BRS's HRNets in the form that is refined with the least work: the branches stay at their own sizes."""

from torch import Tensor, nn

from polywand_zoo.networks.fbrs import FbrsHrnet
from polywand_zoo.networks.hrnet import HighResolutionOcr
from polywand_zoo.networks.ocr import ObjectGather
from polywand_zoo.refinement.gradients import BackwardConvolution
from polywand_zoo.refinement.pyramid import PyramidConvolution

COARSE_BRANCHES = 2  # for which it is less work to convolve them first and to resize them then


class BranchEncoding(nn.Module):
    """A network up to its branches [B, width 2^i, h / 2^i, w / 2^i]."""

    def __init__(self, network: FbrsHrnet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, maps: Tensor) -> tuple[Tensor, ...]:
        """Map a normalised image [B, 3, H, W] and prompt maps [B, 2, H, W] to the branches."""
        return tuple(self.network.feature_extractor.branches(self.network.mixed(image, maps)))


class BranchDecoding(nn.Module):
    """A network from its branches on; it has to be folded."""

    def __init__(self, network: HighResolutionOcr, channels: list[int]) -> None:
        super().__init__()
        pixels, _, pixels_activation = network.conv3x3_ocr
        hidden, _, hidden_activation, auxiliary = network.aux_head
        assert isinstance(pixels, nn.Conv2d)
        assert isinstance(hidden, nn.Conv2d)
        self.pixel_convolution = PyramidConvolution(pixels, channels, COARSE_BRANCHES)
        self.pixel_activation = pixels_activation
        self.auxiliary_convolution = PyramidConvolution(hidden, channels, COARSE_BRANCHES)
        self.auxiliary = nn.Sequential(hidden_activation, auxiliary)
        self.gather = ObjectGather()
        self.attention = network.ocr_distri_head.object_context_block
        join, activation = network.ocr_distri_head.conv_bn_dropout  # with what has become of the normalisation
        assert isinstance(join, nn.Conv2d)
        self.join = Join(join)
        self.classify = nn.Sequential(activation, network.cls_head)

    def forward(self, at4: Tensor, at8: Tensor, at16: Tensor, at32: Tensor) -> Tensor:
        """Map the branches to logits [B, 1, h, w]."""
        branches = at4, at8, at16, at32
        pixels = self.pixel_activation(self.pixel_convolution(*branches))
        auxiliary = self.auxiliary(self.auxiliary_convolution(*branches))
        context = self.attention(self.gather(pixels, auxiliary))
        logits: Tensor = self.classify(self.join(context, pixels))
        return logits


class Join(nn.Module):
    """A 1x1 convolution of what is the same at every pixel, [B, C, 1, 1], put together with pixels [B, C, h, w]."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        half = convolution.in_channels // 2
        self.context, self.pixels = (
            nn.Conv2d(half, convolution.out_channels, 1, bias=first) for first in (True, False)
        )
        weight = convolution.weight.detach()
        for part, columns in ((self.context, weight[:, :half]), (self.pixels, weight[:, half:])):
            part.weight = nn.Parameter(columns.clone(), requires_grad=False)
        assert convolution.bias is not None
        self.context.bias = nn.Parameter(convolution.bias.detach().clone(), requires_grad=False)
        self.context_backwards = BackwardConvolution(self.context)
        self.pixels_backwards = BackwardConvolution(self.pixels)

    def forward(self, context: Tensor, pixels: Tensor) -> Tensor:
        """Map both to [B, outputs, h, w]."""
        joined: Tensor = self.pixels(pixels) + self.context(context)
        return joined

    def pull(self, gradient: Tensor, context: Tensor, pixels: Tensor) -> tuple[Tensor, ...]:
        """Carry the gradient of forward's output back to its inputs."""
        return self.context_backwards(gradient.sum((2, 3), keepdim=True)), self.pixels_backwards(gradient)
