"""The precision that training computes in."""

import torch

from polywand_zoo.processor import has_bfloat16


def mixed_precision() -> torch.autocast:
    """While entered, layers compute in bfloat16 where the processor has it, in float32 where it would be imitated."""
    return torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16())
