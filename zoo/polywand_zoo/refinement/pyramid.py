"""Convolutions over a pyramid: maps of several sizes, all resized to the finest one's and put together.

What was enlarged holds no more than before. So the coarse maps' share of a convolution is computed where they are
small: first the mixing of the channels, once for each tap of the kernel, then the resizing, with the kernel's shift
in it, as two products of matrices. That is exact, and for maps of a quarter of the size or less much less work.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from polywand_zoo.refinement.gradients import BackwardConvolution

Resizing = tuple[Tensor, Tensor]  # of rows and of columns, [large, small] each


class PyramidConvolution(nn.Module):
    """A convolution of stride 1 that keeps the size, over maps [B, C_i, h_i, w_i], the finest first.

    It computes what `convolution` computes of all maps put together, after a bilinear resizing with corners on corners.
    channels: C_i. coarse: how many of the maps, the last ones, are treated as the module says; the others are resized.
    """

    def __init__(self, convolution: nn.Conv2d, channels: Sequence[int], coarse: int) -> None:
        super().__init__()
        self.kernel = convolution.kernel_size[0]
        assert convolution.kernel_size == (self.kernel, self.kernel)
        assert convolution.padding == (self.kernel // 2, self.kernel // 2)
        assert convolution.dilation == (1, 1)
        self.outputs = convolution.out_channels
        self.fine_channels = list(channels[: len(channels) - coarse])
        weight = convolution.weight.detach()
        fine, *coarse_weights = torch.split(weight, [sum(self.fine_channels), *channels[len(self.fine_channels) :]], 1)
        self.fine = nn.Conv2d(fine.shape[1], self.outputs, self.kernel, padding=self.kernel // 2)
        self.fine.weight = nn.Parameter(fine.clone(), requires_grad=False)
        bias = torch.zeros(self.outputs) if convolution.bias is None else convolution.bias.detach().clone()
        self.fine.bias = nn.Parameter(bias, requires_grad=False)
        self.fine_backwards = BackwardConvolution(self.fine)
        for number, part in enumerate(coarse_weights):
            # [outputs, C, rows, columns] of the kernel to [outputs rows columns, C].
            mixing = part.permute(0, 2, 3, 1).reshape(-1, part.shape[1], 1, 1)
            self.register_buffer(f"mixing_{number}", mixing.contiguous(), False)
            self.register_buffer(f"mixing_back_{number}", mixing.transpose(0, 1).contiguous(), False)

    def forward(self, *maps: Tensor) -> Tensor:
        """Map the pyramid to [B, outputs, h, w]."""
        finest, fine, coarse = maps[0], maps[: len(self.fine_channels)], maps[len(self.fine_channels) :]
        together = torch.cat([finest, *(resized(x, resizing(x, finest)) for x in fine[1:])], 1)
        rows, mixed = [], []
        for number, x in enumerate(coarse):
            down, across = self._shifted(resizing(x, finest))
            mixed.append(self._mix(x, number) @ across.t())
            rows.append(down)
        convolved: Tensor = self.fine(together)
        return convolved + torch.cat(rows, 1) @ torch.cat(mixed, 2)

    def pull(self, gradient: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
        """Carry the gradient of forward's output back to the maps."""
        finest, fine, coarse = maps[0], maps[: len(self.fine_channels)], maps[len(self.fine_channels) :]
        first, *others = torch.split(self.fine_backwards(gradient), self.fine_channels, 1)
        pulled = [first]
        for x, part in zip(fine[1:], others, strict=True):
            down, across = resizing(x, finest)
            pulled.append(resized(part, (down.t(), across.t())))
        for number, x in enumerate(coarse):
            down, across = self._shifted(resizing(x, finest))
            pulled.append(self._unmix(down.t() @ gradient @ across, x, number))
        return tuple(pulled)

    def _mix(self, x: Tensor, number: int) -> Tensor:
        """Mix the channels of [B, C, h, w] for each tap of the kernel: [B, outputs, k h, k w]."""
        mixed = functional.conv2d(x, self.get_buffer(f"mixing_{number}"))
        size = x.shape[2], x.shape[3]
        taps = mixed.view(-1, self.outputs, self.kernel, self.kernel, *size).transpose(3, 4)
        return taps.reshape(-1, self.outputs, self.kernel * size[0], self.kernel * size[1])

    def _unmix(self, gradient: Tensor, x: Tensor, number: int) -> Tensor:
        """Carry the gradient of `_mix` back to its input x."""
        size = x.shape[2], x.shape[3]
        taps = gradient.view(-1, self.outputs, self.kernel, size[0], self.kernel, size[1]).transpose(3, 4)
        taps = taps.reshape(-1, self.outputs * self.kernel**2, *size)
        return functional.conv2d(taps, self.get_buffer(f"mixing_back_{number}"))

    def _shifted(self, resizing: Resizing) -> Resizing:
        """Resize, and shift by each tap of the kernel: [large, k small]; what comes from outside is 0."""
        reach = self.kernel // 2
        down, across = (
            torch.cat(
                [
                    functional.pad(matrix, (0, 0, reach, reach))[shift : shift + matrix.shape[0]]
                    for shift in range(self.kernel)
                ],
                1,
            )
            for matrix in resizing
        )
        return down, across


def resizing(x: Tensor, target: Tensor) -> Resizing:
    """Make the matrices that resize [B, C, h, w] to the target's height and width, bilinear, corners on corners."""
    down, across = (interpolation(target.shape[axis], x.shape[axis]) for axis in (2, 3))
    return down, across


def resized(x: Tensor, resizing: Resizing) -> Tensor:
    """Resize [B, C, h, w]."""
    down, across = resizing
    return down @ (x @ across.t())


def interpolation(large: int, small: int) -> Tensor:
    """Weights [large, small] of a bilinear resizing; sizes that are traced stay variable."""
    # Multiplied before divided: the last position is exact then, and no weight falls off the edge.
    positions = torch.arange(large, dtype=torch.float32) * (small - 1) / torch.clamp(torch.as_tensor(large - 1), min=1)
    return (1 - (positions.unsqueeze(1) - torch.arange(small, dtype=torch.float32)).abs()).relu()
