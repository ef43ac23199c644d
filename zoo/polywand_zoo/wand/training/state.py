"""The progress of a training, and the weights that it begins with."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polywand_zoo.wand import weights
from polywand_zoo.wand.fine import FineNetwork, grow
from polywand_zoo.wand.training.config import Recipe, Schedule


@dataclass(slots=True)
class Progress:
    """step, samples: done so far; decay_from, end: in samples."""

    step: int
    samples: int
    decay_from: int
    end: int

    @classmethod
    def start(cls, schedule: Schedule) -> "Progress":
        """Nothing is done yet."""
        return cls(0, 0, round(schedule.samples * (1 - schedule.decay_share)), schedule.samples)

    @property
    def decaying(self) -> bool:
        """Whether the last phase has begun."""
        return self.samples >= self.decay_from

    @property
    def fallen(self) -> float:
        """The share of its height at which the rate is: 1 before the last phase, 0 at the end."""
        if not self.decaying:
            return 1.0
        return (self.end - self.samples) / max(1, self.end - self.decay_from)

    def end_after(self, samples: int, decay_share: float) -> None:
        """Plan to end after that many more samples; the rate falls over the last share of all, or from where it is."""
        end = self.samples + samples
        if self.decaying and self.samples < self.end:
            # The line from the present rate to nothing, drawn back to where it would have begun.
            self.decay_from = end - round(samples / self.fallen)
        else:
            self.decay_from = max(self.samples, round(end * (1 - decay_share)))
        self.end = end


def starting_network(path: Path | None) -> FineNetwork:
    """Make the network that training starts from: of a checkpoint or a graph of either generation, or untrained."""
    if path is None:
        return FineNetwork()
    network = weights.load(path)
    return network if isinstance(network, FineNetwork) else grow(network)


def copy_of(network: FineNetwork) -> FineNetwork:
    """Return a copy that takes no gradients."""
    copied = copy.deepcopy(network)
    copied.requires_grad_(False)
    return copied


def shipped(network: FineNetwork, recipe: Recipe, progress: Progress) -> dict[str, Any]:
    """What an export needs of the averaged network: its weights, in half precision, and where they come from."""
    tensors = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in network.state_dict().items()
    }
    return {"average": tensors, "recipe": recipe.as_dict(), "step": progress.step, "samples": progress.samples}
