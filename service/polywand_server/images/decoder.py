"""Decoding a request's image: off the event loop, within the limits, timed, counted.

Ordinary images are decoded in a thread: common JPEG photos, small PNG files, raw pixels. All other files, which take
long or whose libraries have had vulnerabilities, are decoded in a child process.
"""

import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from polywand_pictures import Header, MakeRoom, Pixels, UnreadableError, jpeg, png
from polywand_pictures.reader import check_range, read_into
from polywand_server.config import MEBIBYTE, Limits
from polywand_server.errors import InternalError, InvalidInputError, PolywandError, QuotaError, Reason, TooLargeError
from polywand_server.images.checks import check_size, in_terms_of
from polywand_server.images.jobs import OPENING_BYTES, decode
from polywand_server.images.picture import (
    EncodedImage,
    ImageSource,
    Picture,
    RawImage,
    levels_in,
    picture_of,
    pyramid_bytes,
)
from polywand_server.ops import metrics
from polywand_server.timing import Stopwatch
from polywand_server.workers.pool import Limits as WorkLimits
from polywand_server.workers.pool import Workers

# A JPEG file is ordinary up to so many pixels; where it has many scans, fewer.
ORDINARY_PIXELS = 32_000_000
SCANS_OF_ONE_PASS = 4
# A PNG file is small up to so many bytes and pixels.
SMALL_BYTES = 1024 * 1024
SMALL_PIXELS = 1024 * 1024
# Scans of larger files are counted in a thread.
_COUNTED_AT_ONCE_BYTES = 256 * 1024


class Threads(Protocol):
    """Runs work off the event loop."""

    async def compute(self, work: Callable[[], Any]) -> Any:
        """Run work of more than a millisecond in a thread."""
        ...


class ImageHolders(Protocol):
    """The streams that hold pictures for longer than one request."""

    def drop_one_image(self) -> bool:
        """Drop the picture of one stream that does not use it; return whether one was dropped."""
        ...


class Decoder:
    """Decodes images, and bounds the memory of all pictures that exist.

    threads: for ordinary images. workers: for all others. holders: drop pictures when the budget is used up.
    """

    def __init__(self, threads: Threads, workers: Workers, holders: ImageHolders, limits: Limits) -> None:
        self._threads = threads
        self._workers = workers
        self._limits = limits
        self._budget = PictureBudget(limits.images_bytes, holders)

    async def decode(self, source: ImageSource, timer: Stopwatch, replaced: Picture | None = None) -> Picture:
        """Decode an image; its bytes are released when the picture is garbage-collected.

        replaced: the picture that the caller will drop for it. Only the bytes beyond its size are checked against the
        budget, so that a stream can always go on to an image of the same size; for a moment the budget is exceeded.

        Raises:
            InvalidInputError, TooLargeError
            QuotaError: the budget of decoded images is used up.
        """
        metrics.IMAGE_BYTES.observe(len(source.data))
        try:
            with timer.stage("decode"):
                picture = await self._decode(source, replaced)
        except PolywandError:
            metrics.IMAGES.labels("refused").inc()
            raise
        metrics.IMAGES.labels("decoded").inc()
        metrics.IMAGE_PIXELS.observe(picture.width * picture.height)
        return picture

    async def _decode(self, source: ImageSource, replaced: Picture | None) -> Picture:
        most = self._limits.image_bytes
        if len(source.data) > most:
            text = f"the image has {len(source.data)} bytes; this server takes at most {most}"
            raise TooLargeError(source.field, text, reason=Reason.IMAGE_TOO_LARGE, limit="image_bytes")
        if isinstance(source, RawImage):
            read = partial(_raw, source)
            return await self._by_thread(source.field, source.width, source.height, replaced, read)
        if not len(source.data):
            raise InvalidInputError(source.field, "the image is empty", reason=Reason.IMAGE_UNREADABLE)
        data = memoryview(source.data)
        with in_terms_of(source):
            check_range(source.value_range)
            header = jpeg.read_header(data) if source.value_range is None else None
            if header is not None and await self._is_ordinary(source.field, data, header):
                size = header.upright_size
                return await self._by_thread(source.field, *size, replaced, partial(jpeg.decode, data, header))
            small = png.small_size(data, SMALL_BYTES, SMALL_PIXELS)
            if small is not None:
                return await self._by_thread(source.field, *small, replaced, partial(_small, source, *small))
        return await self._by_child(source, replaced)

    async def _is_ordinary(self, field: str, data: memoryview, header: jpeg.JpegHeader) -> bool:
        if not header.is_common:
            return False
        check_size(field, header.width, header.height, self._limits.image_pixels)
        if len(data) <= _COUNTED_AT_ONCE_BYTES:
            scans = jpeg.check_scans(data)
        else:
            scans = await self._threads.compute(lambda: jpeg.check_scans(data))
        return header.width * header.height * max(1.0, scans / SCANS_OF_ONE_PASS) <= ORDINARY_PIXELS

    async def _by_thread(
        self, field: str, width: int, height: int, replaced: Picture | None, read: Callable[[], Pixels]
    ) -> Picture:
        """Decode in a thread. Raises what `read` does."""
        check_size(field, width, height, self._limits.image_pixels)
        async with self._budget.reserved(pyramid_bytes(width, height), field, replaced) as keep:
            return keep(await self._threads.compute(lambda: picture_of(read())))

    async def _by_child(self, source: EncodedImage, replaced: Picture | None) -> Picture:
        limits = WorkLimits(
            OPENING_BYTES + len(source.data), self._limits.work_cpu_seconds, source.field, "decoding the image"
        )
        async with self._budget.reservation(source.field, replaced) as (reserve, keep):

            async def admit(facts: dict[str, Any]) -> None:
                width, height = int(facts["width"]), int(facts["height"])
                check_size(source.field, width, height, self._limits.image_pixels)
                self._check_decoder(source.field, int(facts["decoder_bytes"]))
                reserve(pyramid_bytes(width, height))

            about = replace(source, data=b"")  # the bytes are sent as the child's input
            answer, memory = await self._workers.run(
                limits, decode, about, self._limits.image_pixels, data=[source.data], reply=admit
            )
            width, height = int(answer.facts["width"]), int(answer.facts["height"])
            if memory is None or memory.nbytes < pyramid_bytes(width, height):
                raise InternalError("the service failed on this request; its log says why")
            return keep(Picture(levels_in(memory, width, height)))

    def _check_decoder(self, field: str, nbytes: int) -> None:
        most = self._limits.decoder_bytes
        if nbytes > most:
            raise TooLargeError(
                field,
                f"decoding the image needs {nbytes // MEBIBYTE} MiB beside its pixels; "
                f"this server takes at most {most // MEBIBYTE} MiB",
                reason=Reason.IMAGE_TOO_LARGE,
            )


class PictureBudget:
    """Counts the bytes of all pictures that are alive, and keeps them within a limit."""

    def __init__(self, most: int, holders: ImageHolders) -> None:
        self._most = most
        self._holders = holders
        self._bytes = 0
        self._promised = 0  # of these, of pictures that are about to be replaced by others that are counted already
        self._lock = threading.RLock()  # reentrant: the garbage collector may release a picture at any moment

    @asynccontextmanager
    async def reserved(
        self, nbytes: int, field: str, replaced: Picture | None
    ) -> AsyncIterator[Callable[[Picture], Picture]]:
        """Reserve bytes for a picture that the block makes and passes to the function that it gets."""
        async with self.reservation(field, replaced) as (reserve, keep):
            reserve(nbytes)
            yield keep

    @asynccontextmanager
    async def reservation(
        self, field: str, replaced: Picture | None
    ) -> AsyncIterator[tuple[Callable[[int], None], Callable[[Picture], Picture]]]:
        """Yield two functions: one reserves bytes, once; the other passes on the picture."""
        reserved = 0
        kept = False
        promise: Callable[[], object] = lambda: None  # noqa: E731 - nothing is promised yet

        def reserve(nbytes: int) -> None:
            nonlocal reserved, promise
            freed = 0 if replaced is None else replaced.nbytes
            self._reserve(nbytes, freed, field)
            reserved = nbytes
            if replaced is not None:
                promise = weakref.finalize(replaced, self._end_promise, freed)

        def keep(picture: Picture) -> Picture:
            nonlocal kept
            kept = True
            # Not when a stream or frame ends: a thread may hold the picture for longer than its task.
            weakref.finalize(picture, self._release, reserved)
            return picture

        try:
            yield reserve, keep
        finally:
            if reserved and not kept:
                self._release(reserved)
                promise()  # the replaced picture stays

    def _reserve(self, nbytes: int, freed: int, field: str) -> None:
        """Reserve bytes, less those of a picture that will be dropped.

        Raises:
            TooLargeError, QuotaError
        """
        needs = f"needs {-(-nbytes // MEBIBYTE)} MiB"
        if nbytes > self._most:
            text = f"the image {needs} when decoded; this server takes at most {self._most // MEBIBYTE} MiB"
            raise TooLargeError(field, text, reason=Reason.IMAGE_TOO_LARGE)
        while not self._try_to_reserve(nbytes, freed):
            if not self._holders.drop_one_image():
                held = f"{self._bytes // MEBIBYTE} of at most {self._most // MEBIBYTE} MiB of images"
                raise QuotaError(
                    "images", f"this server holds {held}, and this one {needs}: try later, or another replica", 1.0
                )
        metrics.IMAGE_MEMORY.inc(nbytes)

    def _try_to_reserve(self, nbytes: int, freed: int) -> bool:
        with self._lock:
            if self._bytes - self._promised - freed + nbytes > self._most:
                return False
            self._bytes += nbytes
            self._promised += freed
            return True

    def _end_promise(self, nbytes: int) -> None:
        with self._lock:
            self._promised -= nbytes

    def _release(self, nbytes: int) -> None:
        with self._lock:
            self._bytes -= nbytes
        metrics.IMAGE_MEMORY.dec(nbytes)


def _raw(source: RawImage) -> Pixels:
    expected = source.width * source.height * 3
    if len(source.data) != expected:
        raise InvalidInputError(
            f"{source.field}.data",
            f"{source.width} x {source.height} RGB8 pixels are {expected} bytes, and {len(source.data)} came",
        )
    return np.frombuffer(source.data, np.uint8).reshape(source.height, source.width, 3)


def _small(source: EncodedImage, width: int, height: int) -> Pixels:
    """Decode a small file. width, height: of its header, before EXIF orientation."""
    made: list[Pixels] = []

    def make_room(width: int, height: int) -> Pixels:
        made.append(np.empty((height, width, 3), np.uint8))
        return made[0]

    def admit(header: Header) -> MakeRoom:
        if (header.width, header.height) != (width, height):
            raise UnreadableError("the image is damaged: it contains two different sizes")
        return make_room

    read_into(memoryview(source.data), admit, source.value_range)
    return made[0]
