"""Decoding a request's image: off the event loop, within the limits, timed, counted."""

import threading
import weakref
from collections.abc import Callable

from polywand_server import metrics
from polywand_server.config import MEBIBYTE, Limits
from polywand_server.errors import PolywandError, TooLargeError, UnavailableError
from polywand_server.images import ImageSource, Picture, decode_image
from polywand_server.inference import Inference
from polywand_server.timing import Stopwatch


class Decoder:
    """Decodes images, and bounds what all that are alive take together."""

    def __init__(self, inference: Inference, limits: Limits) -> None:
        self._inference = inference
        self._limits = limits
        self._bytes = 0
        self._promised = 0  # of these, what pictures take that are about to be replaced by others that are here already
        self._lock = threading.RLock()  # reentrant: the collector may give a picture back in the middle of anything

    async def decode(self, source: ImageSource, watch: Stopwatch, replaced: Picture | None = None) -> Picture:
        """Decode an image; its place is free again when nobody holds the picture any more.

        replaced: what the caller will give up for it. The new one needs only the room that it adds, so that whoever has
        an image can go on to the next one of its size, however full it is; for a moment there is more than allowed.

        Raises:
            InvalidInputError, TooLargeError
            UnavailableError: this process holds as many images as it may.
        """
        metrics.IMAGE_BYTES.observe(len(source.data))
        try:
            with watch.stage("decode"):
                picture = await self._inference.compute(lambda: self._decode(source, replaced))
        except PolywandError:
            metrics.IMAGES.labels("refused").inc()
            raise
        metrics.IMAGES.labels("decoded").inc()
        metrics.IMAGE_PIXELS.observe(picture.width * picture.height)
        return picture

    def _decode(self, source: ImageSource, replaced: Picture | None) -> Picture:
        taken: list[int] = []
        promise: Callable[[], object] = lambda: None  # noqa: E731 - of nothing yet

        def reserve(nbytes: int) -> None:
            nonlocal promise
            freed = 0 if taken or replaced is None else replaced.nbytes
            self._take(nbytes, freed, source.field)
            taken.append(nbytes)
            if freed:
                promise = weakref.finalize(replaced, self._keep_promise, freed)

        try:
            picture = decode_image(source, self._limits.image_bytes, self._limits.image_pixels, reserve)
        except BaseException:
            self._give_back(sum(taken))
            promise()  # the old one stays
            raise
        # Not where a stream or a frame ends: a thread may hold a picture for longer than the task that it works for.
        weakref.finalize(picture, self._give_back, sum(taken))
        return picture

    def _take(self, nbytes: int, freed: int, field: str) -> None:
        """Take room, if need be that of a picture which will go, and is promised to nobody else."""
        limit = self._limits.images_bytes
        needs = f"needs {-(-nbytes // MEBIBYTE)} MiB"
        if nbytes > limit:
            raise TooLargeError(
                field, f"the image {needs} when decoded; this server takes at most {limit // MEBIBYTE} MiB"
            )
        with self._lock:
            if self._bytes - self._promised - freed + nbytes > limit:
                held = f"{self._bytes // MEBIBYTE} of at most {limit // MEBIBYTE} MiB of images"
                raise UnavailableError(f"this server holds {held}, and this one {needs}: try later, or another replica")
            self._bytes += nbytes
            self._promised += freed
        metrics.IMAGE_MEMORY.inc(nbytes)

    def _keep_promise(self, nbytes: int) -> None:
        with self._lock:
            self._promised -= nbytes

    def _give_back(self, nbytes: int) -> None:
        with self._lock:
            self._bytes -= nbytes
        metrics.IMAGE_MEMORY.dec(nbytes)
