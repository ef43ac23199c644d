"""The store of decoded images: one picture for the same bytes, however often they are sent, and by digest alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import copy

from polywand_server.caller import current
from polywand_server.errors import ImageNotHeldError, PolywandError, QuotaError, Reason, UnavailableError, or_error
from polywand_server.images.budget import PictureBudget
from polywand_server.images.decoder import Decoder, Threads
from polywand_server.images.digests import check_digest, digest_of
from polywand_server.images.kept import KeptPictures
from polywand_server.images.lease import Holding, Key, Lease
from polywand_server.images.picture import ImageDigest, ImageSource, Picture, SentImage
from polywand_server.ops import metrics
from polywand_server.timing import Stopwatch

# Larger images are hashed in a thread; SHA-256 takes up to 3 ms for a megabyte.
_HASHED_AT_ONCE_BYTES = 128 * 1024


class ImageStore:
    """Leases pictures, which it decodes at most once for all that want the same.

    A picture without a lease stays among `kept` while there is room. threads: for digests of large images.
    """

    def __init__(self, decoder: Decoder, budget: PictureBudget, kept: KeptPictures, threads: Threads) -> None:
        self._decoder = decoder
        self._budget = budget
        self._kept = kept
        self._threads = threads
        self._leased: dict[Key, Holding] = {}
        self._decodings: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Cancel all decoding."""
        running = list(self._decodings)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    @asynccontextmanager
    async def hold(self, source: ImageSource, timer: Stopwatch, *, stays: bool = True) -> AsyncIterator[Lease]:
        """Lease a picture until the block ends; see `lease`."""
        lease = await self.lease(source, timer, stays=stays)
        try:
            yield lease
        finally:
            lease.release()

    async def lease(
        self, source: ImageSource, timer: Stopwatch, *, stays: bool = True, replaced: Lease | None = None
    ) -> Lease:
        """Lease a picture, decoded now if it is not held; `Lease.release` is for the caller to call.

        stays: whether the picture is worth keeping after its last lease. replaced: see `PictureBudget.reservation`.

        Raises:
            InvalidInputError, TooLargeError
            ImageNotHeldError: only the digest was sent, and this server does not hold the image.
            QuotaError: the budget of decoded images, or the principal's quota of them, is used up.
        """
        try:
            lease = await self._lease(source, timer, stays, replaced)
        except ImageNotHeldError:
            raise
        except PolywandError:
            metrics.IMAGES.labels("refused").inc()
            raise
        current().usage.pixels += lease.picture.width * lease.picture.height
        return lease

    async def _lease(self, source: ImageSource, timer: Stopwatch, stays: bool, replaced: Lease | None) -> Lease:
        began = timer.total()
        if isinstance(source, ImageDigest):
            check_digest(source)
            key = Key(current().principal.name, source.digest, source.value_range)
        else:
            metrics.IMAGE_BYTES.observe(len(source.data))
            self._decoder.check(source)
            key = Key(current().principal.name, await self._digest(source), source.value_range)
        held = self._held(key)
        metrics.IMAGE_LOOKUPS.labels("miss" if held is None else "hit").inc()
        if held is not None and isinstance(held.result, Picture):
            return await self._lease_held(held, stays)
        try:
            return await self._lease_decoded(key, source, stays, replaced)
        finally:
            timer.count("decode", timer.total() - began)

    async def _digest(self, image: SentImage) -> bytes:
        if len(image.data) <= _HASHED_AT_ONCE_BYTES:
            return digest_of(image)
        digest: bytes = await self._threads.compute(lambda: digest_of(image))
        return digest

    def _held(self, key: Key) -> Holding | None:
        """Find a picture that is leased, kept or being decoded."""
        held = self._leased.get(key)
        if held is None and (picture := self._kept.take(key)) is not None:
            held = self._leased[key] = Holding(key, stays=True, result=picture)
        return held

    async def _lease_held(self, held: Holding, stays: bool) -> Lease:
        """Lease a picture that is there. Raises QuotaError if it was about to make way for another."""
        assert isinstance(held.result, Picture)
        lease = self._new_lease(held, stays)
        try:
            await self._budget.make_stay(held.result)
        except BaseException:
            lease.release()
            raise
        return lease

    async def _lease_decoded(self, key: Key, source: ImageSource, stays: bool, replaced: Lease | None) -> Lease:
        """Decode an image, or wait until another caller's decoding of it ends."""
        while True:
            held = self._leased.get(key)
            is_own = held is None
            if held is None:
                if isinstance(source, ImageDigest):
                    raise ImageNotHeldError(source.field, source.digest)
                held = self._begin(key, source, replaced)
            lease = self._new_lease(held, stays)
            try:
                if held.task is not None:
                    await asyncio.wait((held.task,))
                if isinstance(held.result, Picture):
                    return lease
            except BaseException:
                lease.release()
                raise
            lease.release()
            if held.result is None:
                text = "this server is about to stop: try another replica"
                raise UnavailableError(text, reason=Reason.SERVER_UNAVAILABLE)
            # A full server may have room for this caller, whose last image makes way.
            if is_own or replaced is None or not isinstance(held.result, QuotaError):
                raise copy(held.result)  # several callers raise it

    def _begin(self, key: Key, image: SentImage, replaced: Lease | None) -> Holding:
        """Begin to decode an image, for all that come to want it until that is done."""
        held = self._leased[key] = Holding(key)
        held.task = asyncio.create_task(self._decode(held, image, replaced), name="decode an image")
        self._decodings.add(held.task)
        held.task.add_done_callback(self._decodings.discard)
        return held

    async def _decode(self, held: Holding, image: SentImage, replaced: Lease | None) -> None:
        try:
            result = await or_error(self._decoder.decode(image, replaced))
        finally:
            held.task = None
        held.result = result
        if isinstance(result, Picture):
            metrics.IMAGES.labels("decoded").inc()
            metrics.IMAGE_PIXELS.observe(result.width * result.height)
        else:
            self._forget(held)  # so that it is tried again

    def _forget(self, held: Holding) -> None:
        if self._leased.get(held.key) is held:
            del self._leased[held.key]

    def _new_lease(self, held: Holding, stays: bool) -> Lease:
        held.stays |= stays
        return Lease(held, self._on_release)

    def _on_release(self, held: Holding) -> None:
        if held.leases:
            return
        self._forget(held)
        if held.task is not None:
            held.task.cancel()
        if held.stays and isinstance(held.result, Picture) and self._budget.lets_stay(held.result):
            self._kept.put(held.key, held.result)
