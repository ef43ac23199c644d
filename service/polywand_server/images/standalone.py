"""Decoding without a service around it: for scripts and tests; the same code as the service's."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from polywand_server.config import Limits
from polywand_server.images.picture import ImageSource, Picture


def decode_image(
    source: ImageSource, max_bytes: int, max_pixels: int, reserve: Callable[[int], None] = lambda _: None
) -> Picture:
    """Decode an image after checking its size; images that are not ordinary are decoded in a child process.

    reserve: called with the bytes that the picture takes.

    Raises:
        InvalidInputError: not an image that can be read, truncated, or without a pixel.
        TooLargeError: over max_bytes or max_pixels, or it takes more memory or processor time than it may.
    """
    limits = replace(Limits(), image_bytes=max_bytes, image_pixels=max_pixels)
    picture = asyncio.run(_decode(source, limits))
    reserve(picture.nbytes)
    return picture


async def _decode(source: ImageSource, limits: Limits) -> Picture:
    # Imported here, because children that the decoder starts import this package, too.
    from polywand_server.images.decoder import Decoder  # noqa: PLC0415
    from polywand_server.timing import Stopwatch  # noqa: PLC0415
    from polywand_server.workers.pool import Workers  # noqa: PLC0415

    workers = Workers(1)
    try:
        return await Decoder(_Threads(), workers, _NoHolders(), limits).decode(source, Stopwatch())
    finally:
        await workers.close()


class _Threads:
    async def compute(self, work: Callable[[], Any]) -> Any:
        return await asyncio.to_thread(work)


class _NoHolders:
    def drop_one_image(self) -> bool:
        return False
