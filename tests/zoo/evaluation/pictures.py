"""Photos and drawn scenes with the mask of one thing in them, and files of them."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def astronaut() -> tuple[Image, Mask]:
    """A portrait, 512 x 512, and about its person."""
    outline = [(205, 20), (250, 40), (275, 120), (265, 190), (380, 235), (450, 320), (450, 511), (20, 511)]
    outline += [(40, 330), (70, 290), (165, 215), (180, 170), (160, 90)]
    return skimage.data.astronaut(), polygon((512, 512), outline)


def face() -> tuple[Image, Mask]:
    """The same portrait, and about its face, which is small in it."""
    return skimage.data.astronaut(), ellipse((512, 512), (222, 112), (46, 62))


def coffee() -> tuple[Image, Mask]:
    """A cup on a table, 600 x 400, and about its saucer with all that stands on it."""
    return skimage.data.coffee(), ellipse((400, 600), (330, 210), (205, 150))


def cat() -> tuple[Image, Mask]:
    """A cat, 451 x 300, and about its head."""
    return skimage.data.chelsea(), ellipse((300, 451), (230, 130), (130, 115))


def disk() -> tuple[Image, Mask]:
    """A bright disk on a dark gradient, 300 x 200, and the disk."""
    mask = ellipse((200, 300), (120, 90), (50, 40))
    image = np.repeat(np.linspace(20, 90, 300).astype(np.uint8)[None, :, None], 200, axis=0).repeat(3, axis=2)
    image[mask] = (230, 120, 60)
    return image, mask


def enlarged(picture: tuple[Image, Mask], factor: int) -> tuple[Image, Mask]:
    """The same, so many times as wide and high."""
    image, mask = picture
    size = image.shape[1] * factor, image.shape[0] * factor
    larger = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), larger > 0


def polygon(shape: tuple[int, int], points: Sequence[tuple[int, int]]) -> Mask:
    """The mask of a polygon of (x, y)."""
    return cv2.fillPoly(np.zeros(shape, np.uint8), [np.array(points, np.int32)], 1) > 0


def ellipse(shape: tuple[int, int], centre: tuple[int, int], radii: tuple[int, int]) -> Mask:
    """The mask of an ellipse."""
    return cv2.ellipse(np.zeros(shape, np.uint8), centre, radii, 0, 0, 360, 1, -1) > 0


def save(path: Path, pixels: NDArray[np.generic]) -> Path:
    """Write an RGB image, a grey one or a mask (inside white) as a file, with the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    assert cv2.imwrite(str(path), written * np.uint8(255) if written.dtype == np.bool_ else written)
    return path


def save_folders(root: Path, **pictures: tuple[Image, Mask]) -> Path:
    """Write images/NAME.png and masks/NAME.png of each."""
    for name, (image, mask) in pictures.items():
        save(root / "images" / f"{name}.png", image)
        save(root / "masks" / f"{name}.png", mask)
    return root
