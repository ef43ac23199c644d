"""Decoding a request's image: off the event loop, within the limits.

Ordinary images are decoded in a thread: common JPEG photos, small PNG files, raw pixels. All other files, which take
long or whose libraries have had vulnerabilities, are decoded in a child process.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from polywand_pictures import Header, MakeRoom, PixelFormat, Pixels, UnreadableError, jpeg, png, read_raw
from polywand_pictures.reader import read_into
from polywand_server.config import MEBIBYTE, Limits
from polywand_server.errors import FAILED, InternalError, Reason, TooLargeError
from polywand_server.images.budget import PictureBudget
from polywand_server.images.checks import check_sent, check_size, in_terms_of
from polywand_server.images.jobs import OPENING_BYTES, decode
from polywand_server.images.lease import Lease
from polywand_server.images.picture import (
    EncodedImage,
    Picture,
    RawImage,
    SentImage,
    levels_in,
    picture_of,
    pyramid_bytes,
)
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
# Pictures of this size are copied out of the memory that a child shares, as the kernel bounds the number of mappings.
_COPIED_BYTES = 1024 * 1024
# Raw pixels stay in the memory of their message, if that is larger by this share at most.
_MESSAGE_SHARE = 1 / 16


class Threads(Protocol):
    """Runs work off the event loop."""

    async def compute(self, work: Callable[[], Any]) -> Any:
        """Run work of more than a millisecond in a thread."""
        ...


class Decoder:
    """Decodes images. threads: for ordinary images. workers: for all others. budget: of the memory of pictures."""

    def __init__(self, threads: Threads, workers: Workers, budget: PictureBudget, limits: Limits) -> None:
        self._threads = threads
        self._workers = workers
        self._budget = budget
        self._limits = limits

    def check(self, image: SentImage) -> None:
        """Refuse what can be refused before the bytes are read.

        Raises:
            InvalidInputError, TooLargeError
        """
        check_sent(image, self._limits)

    async def decode(self, image: SentImage, replaced: Lease | None = None) -> Picture:
        """Decode an image that passed `check`; its bytes count until the picture is garbage-collected.

        replaced: see `PictureBudget.reservation`.

        Raises:
            InvalidInputError, TooLargeError
            QuotaError: the budget of decoded images is used up.
        """
        if isinstance(image, RawImage):
            pixels = image.pixels
            return await self._by_thread(image.field, pixels.width, pixels.height, replaced, partial(_raw, image))
        data = memoryview(image.data)
        with in_terms_of(image):
            header = jpeg.read_header(data) if image.value_range is None else None
            if header is not None and await self._is_ordinary(image.field, data, header):
                size = header.upright_size
                return await self._by_thread(image.field, *size, replaced, partial(jpeg.decode, data, header))
            small = png.small_size(data, SMALL_BYTES, SMALL_PIXELS)
            if small is not None:
                return await self._by_thread(image.field, *small, replaced, partial(_small, image, *small))
        return await self._by_child(image, replaced)

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
        self, field: str, width: int, height: int, replaced: Lease | None, read: Callable[[], Pixels]
    ) -> Picture:
        """Decode in a thread. Raises what `read` does."""
        check_size(field, width, height, self._limits.image_pixels)
        with self._budget.reservation(field, replaced) as reservation:
            await reservation.reserve(pyramid_bytes(width, height))
            return reservation.keep(await self._threads.compute(lambda: picture_of(read())))

    async def _by_child(self, image: EncodedImage, replaced: Lease | None) -> Picture:
        limits = WorkLimits(
            OPENING_BYTES + len(image.data),
            self._limits.work_cpu_seconds,
            image.field,
            "decoding the image",
            Reason.IMAGE_TOO_LARGE,
        )
        with self._budget.reservation(image.field, replaced) as reservation:

            async def admit(facts: dict[str, Any]) -> None:
                width, height, decoder_bytes = (int(facts[name]) for name in ("width", "height", "decoder_bytes"))
                check_size(image.field, width, height, self._limits.image_pixels)
                self._check_decoder(image.field, decoder_bytes)
                await reservation.reserve(pyramid_bytes(width, height))
                await reservation.reserve_for_decoder(decoder_bytes)

            about = replace(image, data=b"")  # the bytes are sent as the child's input
            answer, memory = await self._workers.run(
                limits, decode, about, self._limits.image_pixels, data=[image.data], reply=admit
            )
            width, height = int(answer.facts["width"]), int(answer.facts["height"])
            if memory is None or memory.nbytes < pyramid_bytes(width, height):
                raise InternalError(FAILED)
            if memory.nbytes <= _COPIED_BYTES:
                memory = memory.copy()
            return reservation.keep(Picture(levels_in(memory, width, height)))

    def _check_decoder(self, field: str, nbytes: int) -> None:
        most = self._limits.decoder_bytes
        if nbytes > most:
            raise TooLargeError(
                field,
                f"decoding the image needs {nbytes // MEBIBYTE} MiB beside its pixels; "
                f"this server takes at most {most // MEBIBYTE} MiB",
                reason=Reason.IMAGE_TOO_LARGE,
            )


def _raw(image: RawImage) -> Pixels:
    """Convert raw pixels; RGB8 is copied only if its message is much larger."""
    pixels = read_raw(image.pixels, image.value_range)
    if image.pixels.format is not PixelFormat.RGB8:
        return pixels
    message = memoryview(memoryview(image.data).obj)
    return pixels if message.nbytes <= len(image.data) * (1 + _MESSAGE_SHARE) else pixels.copy()


def _small(image: EncodedImage, width: int, height: int) -> Pixels:
    """Decode a small file. width, height: of its header, before EXIF orientation."""
    made: list[Pixels] = []

    def make_room(width: int, height: int) -> Pixels:
        made.append(np.empty((height, width, 3), np.uint8))
        return made[0]

    def admit(header: Header) -> MakeRoom:
        if (header.width, header.height) != (width, height):
            raise UnreadableError("the image is damaged: it contains two different sizes")
        return make_room

    read_into(memoryview(image.data), admit, image.value_range)
    return made[0]
