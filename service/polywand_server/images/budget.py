"""The budget of decoded images: the memory of all pictures that exist, and of the decoders that make them."""

import asyncio
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from polywand_server.admission.quotas import Accounts, image_too_large, images_full
from polywand_server.caller import current
from polywand_server.config import MEBIBYTE
from polywand_server.errors import QuotaError, Reason, TooLargeError
from polywand_server.images.lease import Lease
from polywand_server.images.picture import Picture
from polywand_server.principal import Principal

RETRY_SECONDS = 1.0


class Kept(Protocol):
    """Pictures that nothing uses."""

    def drop_one(self) -> bool:
        """Drop one picture; return whether there was one."""
        ...

    def drop_one_of(self, principal: str) -> bool:
        """Drop one picture of a principal; return whether there was one."""
        ...


class Holders(Protocol):
    """The streams that hold pictures for longer than one request."""

    def drop_one_image(self) -> bool:
        """Take the picture of streams that do not use it; return whether there was one."""
        ...


class PictureBudget:
    """Counts the bytes of all pictures that are alive, and of decoders at work, and keeps them within a limit.

    kept: gives way to every request. holders: give way before a request is refused. accounts: of the quotas that each
    principal's pictures are kept within; for its quota, only its own kept pictures give way.

    Decoders are at work for a moment. So no stream loses its picture, and no request is refused, because of them: a
    picture waits for them, and a decoder for other decoders. If that is not enough, the limit is exceeded until they
    end, at most by one decoder that found no room.
    """

    def __init__(self, most: int, kept: Kept, holders: Holders, accounts: Accounts) -> None:
        self._most = most
        self._kept = kept
        self._holders = holders
        self._accounts = accounts
        self._owned_bytes: Counter[str] = Counter()  # of pictures, by principal
        self._pictures_bytes = 0
        self._decoders_bytes = 0
        self._decoders = 0
        self._decoder_ended = asyncio.Event()
        # Pictures that are alive, and that make way for others which are counted already; to their principals.
        self._leaving: weakref.WeakKeyDictionary[Picture, Principal] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()  # reentrant: the garbage collector may release a picture at any moment

    @property
    def nbytes(self) -> int:
        """Bytes of pictures and decoders now."""
        return self._pictures_bytes + self._decoders_bytes

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

    async def reserve(self, nbytes: int, field: str, attempt: Callable[[int], bool]) -> None:
        """Reserve bytes of a picture by `attempt`: see `_make_room`.

        Raises:
            TooLargeError, QuotaError
        """
        if nbytes > self._most:
            needs, most = _mebibytes(nbytes), self._most // MEBIBYTE
            text = f"the image needs {needs} MiB when decoded; this server takes at most {most} MiB"
            raise TooLargeError(field, text, reason=Reason.IMAGE_TOO_LARGE)
        owner = current().principal
        own_most = self._accounts.image_bytes(owner)
        if own_most is not None and nbytes > own_most:
            raise image_too_large(owner, own_most, field, nbytes)
        await self._make_room(nbytes, attempt)

    async def make_stay(self, picture: Picture) -> None:
        """Make room for a picture that made way for another, because it is used again. Raises QuotaError."""

        def attempt(decoders_bytes: int) -> bool:
            owner = self._leaving.get(picture)
            if owner is not None:
                self._make_own_room(owner, picture.nbytes)
            return self._try_to_stay(picture, decoders_bytes)

        await self._make_room(picture.nbytes, attempt)

    def lets_stay(self, picture: Picture) -> bool:
        """Whether there is room for a picture that made way for another; other kept pictures give way to it."""
        owner = self._leaving.get(picture)
        if owner is not None and not self._has_own_room(owner, picture.nbytes):
            return False
        while not self._try_to_stay(picture, self._decoders_bytes):
            if not self._kept.drop_one():
                return False
        return True

    def stay(self, picture: Picture) -> None:
        """Count a picture that does not make way after all."""
        with self._lock:
            self._leaving.pop(picture, None)

    def grow(self, owner: str, nbytes: int) -> None:
        """Add bytes of a picture, without a check; remove them if the number is negative. owner: its principal."""
        with self._lock:
            self._pictures_bytes += nbytes
            self._owned_bytes[owner] += nbytes
            if not self._owned_bytes[owner]:
                del self._owned_bytes[owner]

    async def reserve_for_decoder(self, nbytes: int) -> None:
        """Reserve the bytes of a decoder, when there is room or no other decoder at work."""
        while not self._fits(nbytes, self._decoders_bytes):
            if self._kept.drop_one():
                continue
            if not self._decoders:
                break
            await self._until_a_decoder_ends()
        self._decoders += 1
        self._decoders_bytes += nbytes

    def release_decoder(self, nbytes: int) -> None:
        """Release the bytes of a decoder."""
        self._decoders -= 1
        self._decoders_bytes -= nbytes
        self._decoder_ended.set()

    def try_to_reserve(self, nbytes: int, leaving: Picture | None, decoders_bytes: int, owner: Principal) -> bool:
        """Count bytes of a picture if there is room for them.

        leaving: the picture that makes way for it. owner: the principal of both.

        Raises:
            QuotaError: the principal's quota is used up.
        """
        with self._lock:
            freed = 0 if leaving is None or leaving in self._leaving else leaving.nbytes
            self._make_own_room(owner, nbytes - freed)
            if not self._fits(nbytes - freed, decoders_bytes):
                return False
            if leaving is not None:
                self._leaving[leaving] = owner
            self.grow(owner.name, nbytes)
            return True

    def _try_to_stay(self, picture: Picture, decoders_bytes: int) -> bool:
        with self._lock:
            if picture in self._leaving:
                if not self._fits(picture.nbytes, decoders_bytes):
                    return False
                del self._leaving[picture]
            return True

    def _fits(self, nbytes: int, decoders_bytes: int) -> bool:
        """Whether there is room for more bytes when the pictures that make way are gone."""
        with self._lock:
            leaving = sum(picture.nbytes for picture in self._leaving)
            return self._pictures_bytes - leaving + decoders_bytes + nbytes <= self._most

    def _make_own_room(self, owner: Principal, nbytes: int) -> None:
        """Make room for more bytes in a principal's quota. Raises QuotaError."""
        if not self._has_own_room(owner, nbytes):
            most = self._accounts.image_bytes(owner)
            assert most is not None  # else there is room
            raise images_full(owner, most, self._in_use(owner), nbytes)

    def _has_own_room(self, owner: Principal, nbytes: int) -> bool:
        """Whether a principal's quota has room for more bytes; kept pictures of the principal give way."""
        most = self._accounts.image_bytes(owner)
        while most is not None and self._in_use(owner) + nbytes > most:
            if not self._kept.drop_one_of(owner.name):
                return False
        return True

    def _in_use(self, owner: Principal) -> int:
        """Bytes of a principal's pictures when those that make way are gone."""
        with self._lock:
            leaving = sum(picture.nbytes for picture, other in self._leaving.items() if other.name == owner.name)
            return self._owned_bytes[owner.name] - leaving

    async def _make_room(self, nbytes: int, attempt: Callable[[int], bool]) -> None:
        """Call `attempt` with the bytes of decoders to count, and make room, until it returns True.

        Raises:
            QuotaError: nothing gives way.
        """
        patience = self._decoders
        while not attempt(self._decoders_bytes):
            if self._kept.drop_one():
                continue
            if patience:
                patience -= 1
                await self._until_a_decoder_ends()
            elif attempt(0):
                return
            elif not self._holders.drop_one_image():
                raise self._full(nbytes)

    async def _until_a_decoder_ends(self) -> None:
        if self._decoders:
            self._decoder_ended.clear()
            await self._decoder_ended.wait()

    def _full(self, nbytes: int) -> QuotaError:
        held = f"{self._pictures_bytes // MEBIBYTE} of at most {self._most // MEBIBYTE} MiB of images"
        text = f"this server holds {held}, and this one needs {_mebibytes(nbytes)} MiB: try later, or another replica"
        return QuotaError("images", text, RETRY_SECONDS)


class Reservation:
    """The memory of one picture that is being decoded; see `PictureBudget.reservation`."""

    def __init__(self, budget: PictureBudget, field: str, replaced: Lease | None) -> None:
        self._budget = budget
        self._field = field
        self._owner = current().principal
        self._replaced = replaced
        self._bytes = 0
        self._decoder_bytes: int | None = None  # until there is one
        self._leaving: weakref.ref[Picture] | None = None

    async def reserve(self, nbytes: int) -> None:
        """Reserve the picture's bytes, once.

        Raises:
            TooLargeError, QuotaError
        """

        def attempt(decoders_bytes: int) -> bool:
            leaving = self._replaced.picture if self._replaced is not None and self._replaced.count == 1 else None
            if not self._budget.try_to_reserve(nbytes, leaving, decoders_bytes, self._owner):
                return False
            self._bytes = nbytes
            self._leaving = None if leaving is None else weakref.ref(leaving)
            return True

        await self._budget.reserve(nbytes, self._field, attempt)

    async def reserve_for_decoder(self, nbytes: int) -> None:
        """Reserve what decoding needs besides, once, until the block ends; this may wait for other decoders."""
        await self._budget.reserve_for_decoder(nbytes)
        self._decoder_bytes = nbytes

    def keep(self, picture: Picture) -> Picture:
        """Count the reserved bytes until the picture is garbage-collected; return it."""
        # Not when a lease ends: a thread may hold the picture for longer than its task.
        weakref.finalize(picture, self._budget.grow, self._owner.name, -self._bytes)
        self._bytes, self._leaving = 0, None
        return picture

    def end(self) -> None:
        """Release what was not kept; the picture that made way stays."""
        if self._decoder_bytes is not None:
            self._budget.release_decoder(self._decoder_bytes)
        if self._bytes:
            self._budget.grow(self._owner.name, -self._bytes)
        leaving = None if self._leaving is None else self._leaving()
        if leaving is not None:
            self._budget.stay(leaving)


def _mebibytes(nbytes: int) -> int:
    return -(-nbytes // MEBIBYTE)
