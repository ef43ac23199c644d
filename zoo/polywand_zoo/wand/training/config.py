"""The recipe of a training, read from TOML."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

DEFAULT = Path(__file__).with_name("recipe.toml")

# What the tables of shares may name; what one leaves out does not happen.
SHARES = {
    "modes": {"click", "late", "extreme", "inside", "box"},
    "views": {"whole", "near", "part", "object"},
    "scenes": {"merged", "pasted", "thin", "blob", "region"},
}


class RecipeError(ValueError):
    """A recipe is not what it should be; the message names the entry."""


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Factors of the loss terms beside the focal one."""

    shape: float
    coarse: float
    edge: float
    clicks: float
    setback: float


@dataclass(frozen=True, slots=True)
class Optimiser:
    """rate: of the learning, at its height; backbone: the backbone's share of it.

    frozen_stages: of the backbone, together with its stem, that do not learn.
    """

    rate: float
    backbone: float
    frozen_stages: int
    weight_decay: float
    warm_up_steps: int
    clip: float
    average: float


@dataclass(frozen=True, slots=True)
class Phase:
    """sizes: of the input, in pixels, and how often each; batches: items per process at each size."""

    sizes: Mapping[str, float]
    batches: Mapping[str, int]
    frozen_statistics: bool


@dataclass(frozen=True, slots=True)
class Schedule:
    """samples: of the whole training; decay_share: the last part, in which the rate falls to nothing."""

    samples: int
    decay_share: float


@dataclass(frozen=True, slots=True)
class Validation:
    """minutes: of CPU time between two; clicks: how many; objects: annotation ids, all when empty."""

    minutes: float
    clicks: int
    objects: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what a training computes, but for the data."""

    seed: int
    modes: Mapping[str, float]
    views: Mapping[str, float]
    passes: tuple[float, ...]
    scenes: Mapping[str, float]
    weights: Mapping[str, float]
    loss: LossWeights
    optimiser: Optimiser
    schedule: Schedule
    stable: Phase
    decay: Phase
    validation: Validation

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as `parse` takes them."""
        return asdict(self)


def read(path: Path) -> Recipe:
    """Read a recipe."""
    try:
        return parse(tomllib.loads(path.read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: {error}") from error


def parse(content: Mapping[str, Any]) -> Recipe:
    """Make a recipe of plain values."""
    parts = {
        "loss": LossWeights, "optimiser": Optimiser, "schedule": Schedule, "stable": Phase, "decay": Phase,
        "validation": Validation,
    }  # fmt: skip
    values = {name: _made(parts[name], name, value) if name in parts else value for name, value in content.items()}
    recipe: Recipe = _made(Recipe, "the recipe", values)
    for name, known in SHARES.items():
        unknown = sorted(getattr(recipe, name).keys() - known)
        if unknown:
            raise RecipeError(f"{name}: unknown {unknown}, known are {sorted(known)}")
    return recipe


def _made(kind: Any, name: str, values: Mapping[str, Any]) -> Any:
    names = {field.name for field in fields(kind)}
    if names != values.keys():
        raise RecipeError(f"{name}: missing {sorted(names - values.keys())}, unknown {sorted(values.keys() - names)}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
