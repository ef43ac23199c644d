"""The crop cache: a picture, and the last crops that networks got of it."""

import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from polywand_server.images import Picture
from polywand_server.images.regions import Region, crop_into

# A click that keeps the crop needs the same one, and so does dragging a later click. A few objects may be edited in
# turn, and a first click needs two crops, up to five where a detector proposes some.
KEPT_CROPS = 6


class CropCache:
    """Cuts crops out of one picture, and keeps the last ones. Threads may share it."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self._crops: OrderedDict[Region, NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def crop_into(self, target: NDArray[np.uint8], region: Region) -> None:
        """Write a region, resized, into RGB uint8 [h, w, 3] of its size; black outside the image."""
        with self._lock:
            known = self._crops.get(region)
            if known is not None:
                self._crops.move_to_end(region)
        if known is not None:
            np.copyto(target, known)
            return
        crop_into(target, self.picture, region)
        with self._lock:
            self._crops[region] = target.copy()
            while len(self._crops) > KEPT_CROPS:
                self._crops.popitem(last=False)
