"""The budget of decoded images: the memory of all pictures that exist, and of the decoders that make them."""

import asyncio
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from polywand_server.config import MEBIBYTE
from polywand_server.errors import QuotaError, TooLargeError
from polywand_server.images.lease import Lease
from polywand_server.images.picture import Picture
from polywand_server.ops import metrics

RETRY_SECONDS = 1.0


class Kept(Protocol):
    """Pictures that nothing uses."""

    def drop_one(self) -> bool:
        """Drop one picture; return whether there was one."""
        ...


class Holders(Protocol):
    """The streams that hold pictures for longer than one request."""

    def drop_one_image(self) -> bool:
        """Take the picture of streams that do not use it; return whether there was one."""
        ...


class PictureBudget:
    """Counts the bytes of all pictures that are alive, and keeps them within a limit.

    kept: gives way to every request. holders: give way before a request is refused.
    """

    def __init__(self, most: int, kept: Kept, holders: Holders) -> None:
        self._most = most
        self._kept = kept
        self._holders = holders
        self._bytes = 0
        # Pictures that are alive, and that make way for others which are counted already.
        self._leaving: weakref.WeakKeyDictionary[Picture, None] = weakref.WeakKeyDictionary()
        self._decoders = 0
        self._decoder_ended = asyncio.Event()
        self._lock = threading.RLock()  # reentrant: the garbage collector may release a picture at any moment

    @contextmanager
    def reservation(self, field: str, replaced: Lease | None) -> Iterator["Reservation"]:
        """Reserve memory in the block, and pass on the picture by `Reservation.keep`; what is not kept is released.

        field: of the request, for errors. replaced: the lease that the caller will release for the new picture. If it
        is the only one of its picture, only the bytes beyond that picture's are checked, so that a stream can always go
        on to an image of the same size; for a moment the budget is exceeded.
        """
        reservation = Reservation(self, field, replaced)
        try:
            yield reservation
        finally:
            reservation.end()

    def lets_stay(self, picture: Picture) -> bool:
        """Whether there is room for a picture that made way for another; other kept pictures give way to it."""
        while not self._try_to_stay(picture):
            if not self._kept.drop_one():
                return False
        return True

    def make_stay(self, picture: Picture) -> None:
        """Make room for a picture that made way for another, because it is used again. Raises QuotaError."""
        while not self._try_to_stay(picture):
            self._make_room(picture.nbytes)

    def reserve(self, nbytes: int, field: str, replaced: Lease | None) -> Picture | None:
        """Reserve bytes of a picture; return the one that makes way for it.

        Raises:
            TooLargeError, QuotaError
        """
        if nbytes > self._most:
            raise TooLargeError(
                field,
                f"the image needs {_mebibytes(nbytes)} MiB when decoded; "
                f"this server takes at most {self._most // MEBIBYTE} MiB",
            )
        while True:
            leaving = replaced.picture if replaced is not None and replaced.count == 1 else None
            if self._try_to_reserve(nbytes, leaving):
                return leaving
            del leaving  # it may be dropped
            self._make_room(nbytes)

    async def reserve_for_decoder(self, nbytes: int) -> None:
        """Reserve the bytes of a decoder, when others have released theirs.

        If there is no other, the budget is exceeded by it: pictures are not taken away for a moment's need.
        """
        while not self._try_to_reserve(nbytes, None):
            if self._kept.drop_one():
                continue
            if not self._decoders:
                self.grow(nbytes)
                break
            self._decoder_ended.clear()
            await self._decoder_ended.wait()
        self._decoders += 1

    def release_decoder(self, nbytes: int) -> None:
        """Release the bytes of a decoder."""
        self.grow(-nbytes)
        self._decoders -= 1
        self._decoder_ended.set()

    def stay(self, picture: Picture) -> None:
        """Count a picture that does not make way after all."""
        with self._lock:
            self._leaving.pop(picture, None)

    def grow(self, nbytes: int) -> None:
        """Add bytes, without a check; remove them if the number is negative."""
        with self._lock:
            self._bytes += nbytes
        metrics.IMAGE_MEMORY.inc(nbytes)

    def _try_to_reserve(self, nbytes: int, leaving: Picture | None) -> bool:
        with self._lock:
            freed = 0 if leaving is None or leaving in self._leaving else leaving.nbytes
            if self._expected() - freed + nbytes > self._most:
                return False
            if leaving is not None:
                self._leaving[leaving] = None
            self.grow(nbytes)
            return True

    def _try_to_stay(self, picture: Picture) -> bool:
        with self._lock:
            if picture in self._leaving:
                if self._expected() + picture.nbytes > self._most:
                    return False
                del self._leaving[picture]
            return True

    def _expected(self) -> int:
        """Return the bytes that will be left when pictures that make way are gone."""
        return self._bytes - sum(picture.nbytes for picture in self._leaving)

    def _make_room(self, nbytes: int) -> None:
        """Drop a picture that gives way. Raises QuotaError if there is none."""
        if self._kept.drop_one() or self._holders.drop_one_image():
            return
        held = f"{self._bytes // MEBIBYTE} of at most {self._most // MEBIBYTE} MiB of images"
        text = f"this server holds {held}, and this one needs {_mebibytes(nbytes)} MiB: try later, or another replica"
        raise QuotaError("images", text, RETRY_SECONDS)


class Reservation:
    """The memory of one picture that is being decoded; see `PictureBudget.reservation`."""

    def __init__(self, budget: PictureBudget, field: str, replaced: Lease | None) -> None:
        self._budget = budget
        self._field = field
        self._replaced = replaced
        self._bytes = 0
        self._decoder_bytes = 0
        self._leaving: weakref.ref[Picture] | None = None

    def reserve(self, nbytes: int) -> None:
        """Reserve the picture's bytes, once.

        Raises:
            TooLargeError, QuotaError
        """
        leaving = self._budget.reserve(nbytes, self._field, self._replaced)
        self._bytes = nbytes
        self._leaving = None if leaving is None else weakref.ref(leaving)

    async def reserve_for_decoder(self, nbytes: int) -> None:
        """Reserve what decoding needs besides, once, until the block ends; this may wait for other decoders."""
        await self._budget.reserve_for_decoder(nbytes)
        self._decoder_bytes = nbytes

    def keep(self, picture: Picture) -> Picture:
        """Count the reserved bytes until the picture is garbage-collected; return it."""
        # Not when a lease ends: a thread may hold the picture for longer than its task.
        weakref.finalize(picture, self._budget.grow, -self._bytes)
        self._bytes, self._leaving = 0, None
        return picture

    def end(self) -> None:
        """Release what was not kept; the picture that made way stays."""
        if self._decoder_bytes:
            self._budget.release_decoder(self._decoder_bytes)
        if self._bytes:
            self._budget.grow(-self._bytes)
        leaving = None if self._leaving is None else self._leaving()
        if leaving is not None:
            self._budget.stay(leaving)


def _mebibytes(nbytes: int) -> int:
    return -(-nbytes // MEBIBYTE)
