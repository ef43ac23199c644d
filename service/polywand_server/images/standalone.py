"""Decoding without a service around it: for scripts and tests; the same code as the service's."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from polywand_server.config import Limits
from polywand_server.images.picture import Picture, SentImage


def decode_image(
    source: SentImage, max_bytes: int, max_pixels: int, reserve: Callable[[int], None] = lambda _: None
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


async def _decode(source: SentImage, limits: Limits) -> Picture:
    # Imported here, because children that the decoder starts import this package, too.
    from polywand_server.admission.quotas import Accounts  # noqa: PLC0415
    from polywand_server.images.budget import PictureBudget  # noqa: PLC0415
    from polywand_server.images.decoder import Decoder  # noqa: PLC0415
    from polywand_server.images.holders import Holders  # noqa: PLC0415
    from polywand_server.images.kept import KeptPictures  # noqa: PLC0415
    from polywand_server.workers.pool import Workers  # noqa: PLC0415

    workers = Workers(1)
    budget = PictureBudget(
        limits.images_bytes, KeptPictures(0), Holders(), Accounts(lambda principal: principal.quotas)
    )
    try:
        decoder = Decoder(_Threads(), workers, budget, limits)
        decoder.check(source)
        return await decoder.decode(source)
    finally:
        await workers.close()


class _Threads:
    async def compute(self, work: Callable[[], Any]) -> Any:
        return await asyncio.to_thread(work)
