"""The golden file of the crop policies: random prompts and masks with fixed seeds, and the crops chosen for them.

`python -m tests.geometry.golden_crops` writes the file anew, for a change of the crops that is meant.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from polywand_server.geometry.boxes import Box
from polywand_server.images.regions import ProbabilityMap, Region, from_network
from polywand_server.interactors.crops import CropSpace, crop_policy
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.prompt import Label, Point, Prompt
from polywand_server.tools.specs import CropPolicy

GOLDEN = Path(__file__).with_name("golden_crops.json")
CASES_PER_POLICY = 80
POLICIES = ("whole", "margin", "roi", "zoom_in", "zoom_in_with_proposals")

_SPECS: TypeAdapter[CropPolicy] = TypeAdapter(CropPolicy)


@dataclass(frozen=True)
class Case:
    """One object on one image: a first prompt, a second one that extends it, and the masks found for both."""

    name: str
    spec: CropPolicy
    width: int
    height: int
    fixed_size: tuple[int, int] | None
    threshold: float
    first: Prompt
    second: Prompt
    is_seed: bool
    masks: tuple[Box, Box]
    boxes: list[Box]


def cases() -> Iterator[Case]:
    """All cases, the same in every run."""
    for policy in POLICIES:
        for number in range(CASES_PER_POLICY):
            yield _case(f"{policy} {number}", policy)


def crops_of(case: Case) -> dict[str, Any]:
    """All crops that a policy chooses for a case, as JSON."""
    policy, space = crop_policy(case.spec), CropSpace(case.width, case.height, case.fixed_size, case.threshold)
    candidates = policy.candidates(space, case.first, None)
    said: dict[str, Any] = {"first": [_listed(region) for region in candidates]}
    found = _found(candidates[-1], case.masks[0])
    refined = policy.refined(space, case.first, None, found)
    said["first_refined"] = refined and _listed(refined)
    proposal_crops = policy.proposal_crops(space, case.first, None)
    if proposal_crops is not None:
        said["proposed"] = [_listed(region) for region in proposal_crops.candidates(case.boxes)]
        agreeing = proposal_crops.agreeing(case.boxes, found)
        said["agreeing"] = None if agreeing is None else case.boxes.index(agreeing)
        said["around"] = [_listed(proposal_crops.around(box)) for box in case.boxes]
    if refined is not None:
        found = _found(refined, case.masks[0])
    previous = Estimate(found, is_seed=case.is_seed)
    assert policy.proposal_crops(space, case.second, previous) is None
    candidates = policy.candidates(space, case.second, previous)
    said["second"] = [_listed(region) for region in candidates]
    refined = policy.refined(space, case.second, previous, _found(candidates[0], case.masks[1]))
    said["second_refined"] = refined and _listed(refined)
    return said


def _case(name: str, policy: str) -> Case:
    rng = random.Random(name)
    width, height = rng.randrange(40, 2400), rng.randrange(40, 2400)
    fixed_size = rng.choice([None, (64, 64), (48, 96)])
    points = [_point(rng, width, height, Label.POSITIVE)]
    points += [
        _point(rng, width, height, rng.choice([Label.POSITIVE, Label.NEGATIVE])) for _ in range(rng.randrange(3))
    ]
    starts = {"margin": ("none", "box", "extreme")}.get(policy, ("none", "none", "none", "box", "extreme"))
    start = rng.choice(starts)
    if start == "extreme":
        points = [_point(rng, width, height, Label.EXTREME) for _ in range(4)]
    mask = _box(rng, width, height)
    first = Prompt("model", 1, "", tuple(points), box=_moved(rng, mask, width, height) if start == "box" else None)
    inside = Point(rng.uniform(mask.x0, mask.x1), rng.uniform(mask.y0, mask.y1), Label.POSITIVE)
    added = inside if rng.random() < 0.7 else _point(rng, width, height, rng.choice([Label.POSITIVE, Label.NEGATIVE]))
    close = [_moved(rng, mask, width, height) for _ in range(rng.randrange(3))]
    return Case(
        name=name,
        spec=_SPECS.validate_python(_options(rng, policy)),
        width=width,
        height=height,
        fixed_size=fixed_size,
        threshold=rng.choice([0.3, 0.5, 0.8]),
        first=first,
        second=replace(first, points=(*points, added)),
        is_seed=rng.random() < 0.1,
        masks=(mask, _moved(rng, mask, width, height)),
        boxes=close + [_box(rng, width, height) for _ in range(rng.randrange(3))],
    )


def _options(rng: random.Random, policy: str) -> dict[str, Any]:
    longest_side = rng.choice([60, 100, 160])
    match policy:
        case "whole":
            return {"policy": policy, "longest_side": longest_side}
        case "margin":
            resampling = rng.choice(["smooth", "linear", "cubic"])
            return {
                "policy": policy,
                "fraction": rng.choice([0.0, 0.15]),
                "pixels": rng.choice([0, 0, 30]),
                "keep_margin": resampling == "smooth" or rng.random() < 0.5,
                "resampling": resampling,
                "longest_side": longest_side,
            }
        case "roi":
            return {
                "policy": policy,
                "expansion": rng.choice([1.2, 1.4]),
                "min_side": rng.choice([50, 200]),
                "keep_from": rng.choice([0.0, 0.5, 0.9]),
                "longest_side": longest_side,
                "zoomed_side": rng.choice([50, 90]),
            }
    options: dict[str, Any] = {
        "policy": "zoom_in",
        "first_looks": rng.choice([[1.0], [0.5], [0.3, 0.6, 1.0]]),
        "expansion": rng.choice([1.0, 1.4]),
        "keep_above": rng.choice([0.0, 0.3, 0.5, 1.0]),
        "min_fraction": rng.choice([0.0, 0.1, 0.25]),
        "max_aspect": rng.choice([1.0, 1.7, 10.0]),
        "click_margin": rng.choice([0.0, 0.06]),
        "whole_image_above": rng.choice([0.85, 2.0]),
        "refine_first": rng.random() < 0.6,
        "look_again_below": rng.choice([0.0, 0.7, 1.0]),
        "box_margin": rng.choice([0.0, 0.18]),
        "longest_side": longest_side,
    }
    if policy == "zoom_in_with_proposals":
        agree_from = rng.choice([None, 0.1, 0.5])
        options["proposals"] = {"model": "detector", "at_most": rng.randrange(1, 4), "agree_from": agree_from}
    return options


def _point(rng: random.Random, width: int, height: int, label: Label) -> Point:
    return Point(rng.uniform(0, width), rng.uniform(0, height), label)


def _box(rng: random.Random, width: int, height: int) -> Box:
    """A box of a random size, some tiny and some nearly as large as the image."""
    x, y = (rng.uniform(1, side) * rng.choice([0.05, 0.4, 0.7, 1.0]) for side in (width, height))
    left, top = rng.uniform(0, width - x), rng.uniform(0, height - y)
    return Box(left, top, left + x, top + y)


def _moved(rng: random.Random, box: Box, width: int, height: int) -> Box:
    """A box that is almost another one, or not quite so."""
    share = rng.choice([0.02, 0.1, 0.3])
    x, y = (box.x1 - box.x0) * share, (box.y1 - box.y0) * share
    left, top = max(0.0, box.x0 + rng.uniform(-x, x)), max(0.0, box.y0 + rng.uniform(-y, y))
    right, bottom = min(float(width), box.x1 + rng.uniform(-x, x)), min(float(height), box.y1 + rng.uniform(-y, y))
    return Box(left, top, max(right, left + 0.1), max(bottom, top + 0.1))


def _found(region: Region, mask: Box) -> ProbabilityMap:
    """What a network answers on a region that sees a rectangle there."""
    rows, columns = np.mgrid[: region.size[0], : region.size[1]]
    points = region.from_input(np.stack([columns, rows], -1).reshape(-1, 2).astype(float)).reshape(*region.size, 2)
    inside = ((points >= (mask.x0, mask.y0)) & (points <= (mask.x1, mask.y1))).all(-1)
    return from_network(inside.astype(np.float32), region)


def _listed(region: Region) -> list[int | str]:
    edges = [region.left, region.top, region.width, region.height]
    return [*edges, *region.size, region.resampling.value, region.margin]


def write() -> None:
    """Write the golden file."""
    lines = [f"{json.dumps(case.name)}: {json.dumps(crops_of(case))}" for case in cases()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    write()
