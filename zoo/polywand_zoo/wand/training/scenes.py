"""Scenes: a photo and what is to be cut out of it, now and then made up of several photos or drawn."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from polywand_zoo.wand.training.dataset import Dataset, Pixels, Thing, shape_of

GROUP_EXPONENT = 0.6  # a group of n things is drawn from in proportion to n to this power
SMALLEST_SCENE = 200  # pixels of a target that is worth a prompt


@dataclass(frozen=True, slots=True)
class Scene:
    """image: RGB uint8 [h, w, 3]; target: uint8 [h, w] of 0 and 1; group: what it was made from."""

    image: Pixels
    target: Pixels
    group: str


Maker = Callable[[Generator], Scene | None]


class Scenes:
    """Draws scenes from a data set.

    weights: factors of groups; 1 for those not named.
    shares: how often each of the methods `merged`, `pasted`, `thin`, `blob`, `region` is used; a plain photo otherwise.
    """

    def __init__(self, dataset: Dataset, weights: Mapping[str, float], shares: Mapping[str, float]) -> None:
        self._dataset = dataset
        self._by_photo = dataset.by_photo()
        counts = Counter(thing.group for thing in dataset.things)
        names = sorted(counts)
        self._groups = [[thing for thing in dataset.things if thing.group == name] for name in names]
        odds = np.array([counts[name] ** GROUP_EXPONENT * weights.get(name, 1.0) for name in names])
        self._odds = np.cumsum(odds / odds.sum())
        makers = {
            "merged": self.merged, "pasted": self.pasted, "thin": self.thin, "blob": self.blob, "region": self.region,
        }  # fmt: skip
        self._makers = [(makers[name], share) for name, share in shares.items()]

    def draw(self, random: Generator) -> Scene:
        """Draw a scene whose target has some pixels."""
        while True:
            chance = random.random()
            make: Maker = self.plain
            for maker, share in self._makers:
                chance -= share
                if chance < 0:
                    make = maker
                    break
            scene = make(random)
            if scene is not None and np.count_nonzero(scene.target) >= SMALLEST_SCENE:
                return scene

    def thing(self, random: Generator) -> Thing:
        """Draw a thing: first its group, then one of that."""
        number = min(int(np.searchsorted(self._odds, random.random())), len(self._odds) - 1)
        group = self._groups[number]
        return group[int(random.integers(len(group)))]

    def plain(self, random: Generator) -> Scene:
        """A thing on its photo."""
        thing = self.thing(random)
        return Scene(self._dataset.photos[thing.photo], thing.pixels(), thing.group)

    def merged(self, random: Generator) -> Scene | None:
        """Two or three things that touch or overlap, as one."""
        thing = self.thing(random)
        target = thing.pixels()
        reach = cv2.dilate(target, np.ones((9, 9), np.uint8))
        others = [o for o in self._by_photo[thing.photo] if o is not thing and _overlap(o.box, thing.box)]
        joined = 0
        for index in random.permutation(len(others))[:6]:
            pixels = others[index].pixels()
            touching = np.count_nonzero(reach & pixels)
            if touching > 20 and np.count_nonzero(pixels & ~target & 1) > 100:
                target = target | pixels
                joined += 1
                if joined == 2 or random.random() < 0.6:
                    break
        if not joined or target.mean() > 0.9:
            return None
        return Scene(self._dataset.photos[thing.photo], target, "merged")

    def pasted(self, random: Generator) -> Scene | None:
        """A thing cut out and pasted onto another photo; the target is that thing, or what it now half covers."""
        thing, below = self.thing(random), self.thing(random)
        background, covered = self._dataset.photos[below.photo], below.pixels()
        height, width = covered.shape
        cut, mask = _cut_out(self._dataset.photos[thing.photo], thing)
        scale = random.uniform(0.2, 0.8) * max(height, width) / max(mask.shape)
        if scale > 2.5:
            return None
        angle = random.uniform(-25, 25) if random.random() < 0.4 else 0.0
        matrix = cv2.getRotationMatrix2D((0, 0), angle, scale)
        matrix[:, 0] *= random.choice([-1, 1])
        centre = matrix[:, :2] @ (np.array(mask.shape[::-1]) / 2)
        matrix[:, 2] = random.uniform(0.2, 0.8, 2) * (width, height) - centre
        pasted = cv2.warpAffine(cut, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
        alpha = cv2.warpAffine(mask * 255, matrix, (width, height))
        if random.random() < 0.6:  # light of another scene
            pasted = cv2.convertScaleAbs(pasted, alpha=random.uniform(0.75, 1.25), beta=random.uniform(-20, 20))
        image = blend(background, pasted, alpha, random.uniform(0.3, 1.2))
        top = (alpha > 127).astype(np.uint8)
        rest = covered & ~top & 1
        visible = np.count_nonzero(rest) / max(1, np.count_nonzero(covered))
        if random.random() < 0.65 or not 0.4 < visible < 0.98:
            return Scene(image, top, "pasted")
        return Scene(image, rest, "covered")

    def thin(self, random: Generator) -> Scene:
        """Cords, spokes, rungs or a thing's legs, drawn onto a photo."""
        below = self.thing(random)
        background = self._dataset.photos[below.photo]
        target = _lines(shape_of(background), random)
        return Scene(self._filled(background, target, random), target, "thin")

    def blob(self, random: Generator) -> Scene:
        """A smooth shape filled with another photo, some of them with legs."""
        below = self.thing(random)
        background = self._dataset.photos[below.photo]
        target = _blob(shape_of(background), random)
        if random.random() < 0.4:
            target |= _legs(target, random)
        return Scene(self._filled(background, target, random), target, "blob")

    def region(self, random: Generator) -> Scene | None:
        """A region of about one colour around a random pixel, without pinholes."""
        image = self._dataset.photos[self.thing(random).photo]
        height, width = image.shape[:2]
        smooth = cv2.medianBlur(image, 7)
        seed = int(random.integers(width)), int(random.integers(height))
        tolerance = (int(random.integers(8, 30)),) * 3
        grown = np.zeros((height + 2, width + 2), np.uint8)
        cv2.floodFill(
            smooth, grown, seed, 0, tolerance, tolerance, 4 | cv2.FLOODFILL_MASK_ONLY | cv2.FLOODFILL_FIXED_RANGE
        )
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
        target = cv2.morphologyEx(grown[1:-1, 1:-1], cv2.MORPH_CLOSE, kernel)
        target = cv2.morphologyEx(target, cv2.MORPH_OPEN, kernel)
        outlines, _ = cv2.findContours(target, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        if not outlines:
            return None
        largest = max(outlines, key=cv2.contourArea)
        area, hull = cv2.contourArea(largest), cv2.contourArea(cv2.convexHull(largest))
        if not 0.006 < area / target.size < 0.5 or area < 0.6 * hull:
            return None
        target = np.zeros_like(target)
        cv2.drawContours(target, [largest], -1, 1, cv2.FILLED)
        return Scene(image, target, "region")

    def _filled(self, background: Pixels, target: Pixels, random: Generator) -> Pixels:
        """Fill a shape with a colour or with another photo."""
        height, width = target.shape
        if random.random() < 0.5:
            texture = np.empty_like(background)
            texture[:] = random.integers(0, 256, 3)
            shade = cv2.resize(
                random.uniform(-40, 40, (4, 4)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
            )
            texture = np.clip(texture + shade[..., None], 0, 255).astype(np.uint8)
        else:
            texture = cv2.resize(self._dataset.photos[self.thing(random).photo], (width, height))
        return blend(background, texture, target * np.uint8(255), random.uniform(0.3, 0.9))


def blend(below: Pixels, above: Pixels, alpha: Pixels, softness: float) -> Pixels:
    """Lay one image over another where alpha [h, w] says, with an edge softened by a Gaussian of this sigma."""
    share = cv2.GaussianBlur(alpha, (0, 0), softness).astype(np.float32)[..., None] / 255
    blended: Pixels = (below + share * (above.astype(np.float32) - below)).astype(np.uint8)
    return blended


def _overlap(first: tuple[int, int, int, int], second: tuple[int, int, int, int], slack: int = 6) -> bool:
    return all(
        first[axis] < second[axis] + second[axis + 2] + slack and second[axis] < first[axis] + first[axis + 2] + slack
        for axis in (0, 1)
    )


def _cut_out(photo: Pixels, thing: Thing) -> tuple[Pixels, Pixels]:
    left, top, width, height = thing.box
    window = slice(max(0, top - 6), top + height + 6), slice(max(0, left - 6), left + width + 6)
    return photo[window], thing.pixels()[window]


def _lines(shape: tuple[int, int], random: Generator) -> Pixels:
    height, width = shape
    target = np.zeros(shape, np.uint8)
    size = min(shape)
    thickness = int(random.integers(2, 8))
    centre = random.uniform(0.3, 0.7, 2) * (width, height)
    radius = random.uniform(0.15, 0.45) * size
    kind = random.integers(4)
    if kind == 0:  # a wheel
        cv2.circle(target, _point(centre), int(radius), 1, thickness)
        for angle in np.arange(random.integers(4, 12)) * 2 * np.pi / 8 + random.uniform(0, np.pi):
            cv2.line(
                target,
                _point(centre),
                _point(centre + radius * np.array([np.cos(angle), np.sin(angle)])),
                1,
                max(2, thickness // 2),
            )
    elif kind == 1:  # a ladder or a fence
        along = np.array([np.cos(angle := random.uniform(0, np.pi)), np.sin(angle)])
        across = np.array([-along[1], along[0]]) * random.uniform(0.2, 0.6)
        for side in (-1, 1):
            cv2.line(
                target,
                _point(centre + radius * (side * across - along)),
                _point(centre + radius * (side * across + along)),
                1,
                thickness,
            )
        for step in np.linspace(-0.9, 0.9, random.integers(3, 9)):
            cv2.line(
                target,
                _point(centre + radius * (step * along - across)),
                _point(centre + radius * (step * along + across)),
                1,
                thickness,
            )
    else:  # cords from one point, or one that winds
        ends = 1 if kind == 2 else int(random.integers(2, 5))
        for _ in range(ends):
            corners = np.vstack([centre, random.uniform(0.05, 0.95, (3, 2)) * (width, height)])
            t = np.linspace(0, 1, 40)[:, None]
            curve = (
                (1 - t) ** 3 * corners[0]
                + 3 * t * (1 - t) ** 2 * corners[1]
                + 3 * t**2 * (1 - t) * corners[2]
                + t**3 * corners[3]
            )
            cv2.polylines(target, [np.round(curve).astype(np.int32)], False, 1, thickness)
    return target


def _blob(shape: tuple[int, int], random: Generator) -> Pixels:
    height, width = shape
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    radii = np.ones_like(angles)
    for harmonic in range(2, 8):
        radii += random.normal(0, 0.5 / harmonic) * np.cos(harmonic * angles + random.uniform(0, 2 * np.pi))
    radii = np.clip(radii, 0.25, None) * random.uniform(0.1, 0.32) * min(shape)
    turned = angles + random.uniform(0, np.pi)
    stretch = np.exp(random.uniform(-0.5, 0.5))
    outline = np.stack([np.cos(turned) * radii * stretch, np.sin(turned) * radii / stretch], axis=1)
    outline += random.uniform(0.25, 0.75, 2) * (width, height)
    target = np.zeros(shape, np.uint8)
    cv2.fillPoly(target, [np.round(outline).astype(np.int32)], 1)
    return target


def _legs(target: Pixels, random: Generator) -> Pixels:
    legs: Pixels = np.zeros_like(target)
    rows, columns = np.nonzero(target)
    if len(rows) == 0:
        return legs
    for _ in range(random.integers(2, 6)):
        start = random.integers(len(rows))
        begin = np.array([columns[start], rows[start]], np.float64)
        end = begin + random.normal(0, 0.3, 2) * min(target.shape) + (0, 0.2 * target.shape[0])
        cv2.line(legs, _point(begin), _point(end), 1, int(random.integers(2, 9)))
    return legs


def _point(xy: NDArray[np.float64]) -> tuple[int, int]:
    return round(float(xy[0])), round(float(xy[1]))
