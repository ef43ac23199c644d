"""GIF files: the first frame on its logical screen; the rest of the screen is transparent, as in browsers."""

import io

import numpy as np

from polywand_pictures import pillow
from polywand_pictures.header import Admission, Header

_DECODER_BYTES = 16


def read(data: memoryview, admit: Admission) -> None:
    """Decode the first frame into the memory that `admit` provides.

    Raises:
        UnreadableError, and what `admit` raises
    """
    with pillow.opened(io.BytesIO(data), "GIF") as image:
        width, height = image.size
        make_room = admit(Header(width, height, width * height * _DECODER_BYTES + len(data)))
        left, top, right, bottom = image.tile[0].extents or (0, 0, width, height)
        image.load()
        pixels = make_room(width, height)
        pillow.fill(pixels, image)
        outside = np.ones((height, 1), np.bool_)
        outside[top:bottom] = False
        pixels[outside[:, 0]] = 255
        pixels[:, :left] = 255
        pixels[:, right:] = 255
