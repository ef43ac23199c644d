"""The optimiser: Muon for the matrices of convolutions, AdamW for everything else."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from polywand_zoo.processor import has_bfloat16
from polywand_zoo.wand.fine import FineNetwork
from polywand_zoo.wand.training.config import Optimiser

BETAS = (0.9, 0.98)
MOMENTUM = 0.95
FEWEST_ROWS = 16  # of a matrix, or columns, for which Muon is worth its while
ADAMW_SIZE = 0.2  # root mean square of AdamW's steps at rate 1: Muon's are as large, so that one rate fits both
# Newton-Schulz iteration, quintic: K. Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class MuonAdamW(torch.optim.AdamW):
    """AdamW; in groups with `muon` set, each step is the nearest orthogonal matrix to the gradient's momentum.

    Its step has AdamW's size ("Muon is scalable for LLM training", Liu et al. 2025, section 2.2). All groups have a
    `share` of the rate. Groups with `muon` hold convolutions' weights [C out, C in, h, w].
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Change the weights by their gradients; those of the groups with `muon` are gone afterwards."""
        for group in self.param_groups:
            for parameter in group["params"] if group["muon"] else ():
                if parameter.grad is not None:
                    self._turn(group, parameter, parameter.grad)
                    parameter.grad = None  # done: AdamW passes it over
        super().step(closure)

    def _turn(self, group: dict[str, Any], parameter: nn.Parameter, gradient: Tensor) -> None:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
            state["step"] = torch.zeros(())  # AdamW reads it when it is loaded
        momentum: Tensor = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        ahead = gradient.lerp(momentum, MOMENTUM).permute(0, 2, 3, 1)  # Nesterov's; channels last, as in memory
        matrix = ahead.reshape(len(ahead), -1)
        step = orthogonal(matrix) * (ADAMW_SIZE * max(matrix.shape) ** 0.5)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(step.reshape(ahead.shape).permute(0, 3, 1, 2), alpha=-group["lr"])


def orthogonal(matrix: Tensor) -> Tensor:
    """Return about the nearest orthogonal matrix, in float32: singular values between 0.7 and 1.2."""
    x: Tensor = matrix.bfloat16() if has_bfloat16() else matrix
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.T
        x = a * x + (b * square + c * (square @ square)) @ x
    turned: Tensor = x.T if tall else x
    return turned.float()


def for_network(network: FineNetwork, settings: Optimiser) -> MuonAdamW:
    """Group parameters: the backbone learns slowly, and only the weights of the others decay."""
    others = [p for name, p in network.named_parameters() if not name.startswith("backbone.")]
    weights = [p for p in others if p.dim() > 1]
    backbone = [p for p in network.backbone.parameters() if p.requires_grad]

    def group(parameters: Iterable[nn.Parameter], *, muon: bool = False, share: float = 1.0, decay: float = 0.0) -> Any:
        return {"params": list(parameters), "muon": muon, "share": share, "weight_decay": decay}

    return MuonAdamW(
        [
            group(backbone, share=settings.backbone),
            group((p for p in weights if not _is_matrix(p)), decay=settings.weight_decay),
            group(p for p in others if p.dim() <= 1),
            group((p for p in weights if _is_matrix(p)), decay=settings.weight_decay, muon=True),
        ],
        lr=settings.rate,
        betas=BETAS,
    )


def _is_matrix(weight: nn.Parameter) -> bool:
    return min(weight.shape[0], weight[0].numel()) >= FEWEST_ROWS
