"""The two kinds of tools, as one request uses them: one ready version, its spec and its model's configuration."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from polywand_server.tools.specs import FLIPPED, DetectorSpec, InteractorSpec
from polywand_server.triton.client import ModelConfig

Spec = TypeVar("Spec", InteractorSpec, DetectorSpec)

# A box takes two rows of POINTS.
BOX_ROWS = 2


@dataclass(frozen=True, slots=True)
class _VersionOfTool(Generic[Spec]):
    """One version of a tool. name: of the tool. model: the name of its model in Triton."""

    name: str
    model: str
    version: int
    spec: Spec
    config: ModelConfig


@dataclass(frozen=True, slots=True)
class Interactor(_VersionOfTool[InteractorSpec]):
    """One version of an interactor."""

    @property
    def max_points(self) -> int:
        """How many points it takes: the rows of `POINTS`, less two if it reads a box."""
        rows = self.config.inputs["POINTS"].dims[0]
        return rows if self.spec.prompt.box == "none" else rows - BOX_ROWS

    @property
    def reads_seed(self) -> bool:
        """Whether an object may start from a mask."""
        return "PREV_MASK" in self.config.inputs

    @property
    def feeds_back(self) -> bool:
        """Whether each pass is given the mask or the state of the pass before."""
        return "PREV_MASK" in self.config.inputs or "STATE" in self.config.inputs

    @property
    def rows(self) -> int:
        """Rows of a batch that one prompt takes: two where crops are flipped."""
        return FLIPPED if self.spec.flip else 1

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(height, width) of the network's input; None if it takes any size."""
        height, width = self.config.inputs["IMAGE"].dims[:2]
        return None if height < 0 or width < 0 else (height, width)


@dataclass(frozen=True, slots=True)
class Detector(_VersionOfTool[DetectorSpec]):
    """One version of a detector."""
