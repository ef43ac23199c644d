"""One annotator's stream: images and prompts in their order, and the replies."""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack

from polywand_server.caller import current
from polywand_server.errors import (
    ImageGivenUpError,
    InvalidInputError,
    PolywandError,
    Reason,
    WrongStateError,
    or_error,
)
from polywand_server.images import ImageSource, Lease
from polywand_server.interactors.prompt import Prompt
from polywand_server.session.answers import Forgotten, ImageReady, Reply
from polywand_server.session.image import CurrentImage
from polywand_server.session.objects import PromptRequest
from polywand_server.session.outbox import Outbox
from polywand_server.session.services import Services
from polywand_server.timing import Stopwatch


class Session:
    """Answers the messages of one stream; an error is an answer, and the stream goes on.

    For each object, the newest prompt wins (see `ObjectQueue`). Use as an async context manager: on exit all work is
    cancelled.

    share: see `Caller.share`. overflow: ends the stream, because its replies are not read while too many wait.
    """

    def __init__(self, services: Services, share: str, overflow: Callable[[], None]) -> None:
        self._services = services
        self.share = share
        self._image: CurrentImage | None = None
        self._image_was_dropped = False
        self._is_loading = False
        self._loaded_at = time.monotonic()
        self._outbox = Outbox(services.unread, overflow)
        self._sequence = 0

    async def __aenter__(self) -> "Session":
        self._services.holders.add(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._close_image()
        finally:  # also when this is cancelled itself
            self._services.holders.remove(self)
            self._outbox.close()

    def replies(self) -> AsyncGenerator[Reply, None]:
        """Yield replies until `finish`."""
        return self._outbox.replies()

    @property
    def image_lease(self) -> Lease | None:
        """The lease of the current image; None when there is none."""
        return self._image.lease if self._image is not None else None

    def idle_seconds(self) -> float:
        """Seconds since the last request or reply; 0 while something is in work."""
        if self._is_loading:
            return 0.0
        since_loaded = time.monotonic() - self._loaded_at
        return min(since_loaded, self._image.idle_seconds()) if self._image is not None else since_loaded

    def quiet_seconds(self) -> float:
        """Seconds since the last request or reply; 0 also while replies wait to be read."""
        return self.idle_seconds() if self._outbox.is_empty else 0.0

    def drop_image(self) -> None:
        """Drop the image of this idle stream, because others need its memory; prompts are refused until it is sent
        again.
        """
        image, self._image = self._image, None
        if image is not None:
            image.drop()
        self._image_was_dropped = True
        self._services.counts.image_dropped()

    async def set_image(self, sequence: int, source: ImageSource, timer: Stopwatch) -> None:
        """Lease the new current image and drop the last one's objects; answered with `ImageReady` or an error."""
        self._is_loading = True
        try:
            lease = await or_error(self._lease(sequence, source, timer))
        finally:
            self._is_loading = False
            self._loaded_at = time.monotonic()
        if isinstance(lease, PolywandError):
            await self.refuse(sequence, lease, timer)
            return
        with ExitStack() as stack:
            stack.callback(lease.release)
            skipped = await self._close_image()
            self._image_was_dropped = False
            self._image = CurrentImage(self._services, lease, self._outbox)
            stack.pop_all()
        ready = ImageReady(lease.picture.width, lease.picture.height, lease.digest)
        await self._outbox.put(Reply(sequence, "", skipped, timer, ready))

    async def submit(self, sequence: int, prompt: Prompt, timer: Stopwatch) -> None:
        """Queue a prompt; it is answered by its own reply, or covered by that of a newer one of the same object."""
        try:
            self._advance(sequence)
            await self._current_image("prompt").submit(PromptRequest(sequence, prompt, timer))
        except PolywandError as error:
            await self.refuse_prompt(sequence, prompt.object_id, prompt.model, error, timer)

    async def forget(self, sequence: int, object_id: str | None, timer: Stopwatch) -> None:
        """Free one object of the current image, or with None all; answered with `Forgotten` or an error."""
        objects = skipped = 0
        try:
            self._advance(sequence)
            if not self._image_was_dropped:  # its objects went with it
                objects, skipped = await self._current_image("forget").forget(object_id)
        except PolywandError as error:
            await self.refuse(sequence, error, timer, object_id or "")
        else:
            await self._outbox.put(Reply(sequence, object_id or "", skipped, timer, Forgotten(objects)))

    async def refuse(self, sequence: int, error: PolywandError, timer: Stopwatch, object_id: str = "") -> None:
        """Answer a message that is not a prompt with an error."""
        current().usage.errors += 1
        await self._outbox.put(Reply(sequence, object_id, 0, timer, error))

    async def refuse_prompt(
        self, sequence: int, object_id: str, model: str, error: PolywandError, timer: Stopwatch
    ) -> None:
        """Answer a prompt with an error before it is queued. model: as the client named it."""
        seconds, counts = timer.total(), self._services.counts
        with counts.skipped_if_cancelled(model):
            await self._outbox.put(Reply(sequence, object_id, 0, timer, error))
        counts.answered(model, "error", timer, seconds)

    async def finish(self) -> None:
        """Answer all queued prompts, and end `replies`."""
        if self._image is not None:
            await self._image.finish()
        await self._outbox.put(None)

    async def _lease(self, sequence: int, source: ImageSource, timer: Stopwatch) -> Lease:
        self._advance(sequence)
        lease = await self._services.store.lease(source, timer, replaced=self.image_lease)
        self._services.counts.image_ready(timer)
        return lease

    def _advance(self, sequence: int) -> None:
        if sequence < self._sequence:
            raise InvalidInputError("sequence", f"{sequence} came after {self._sequence}; it must not decrease")
        self._sequence = sequence

    def _current_image(self, field: str) -> CurrentImage:
        """field: of the message that needs the image."""
        if self._image_was_dropped:
            raise ImageGivenUpError(
                field, "this stream was idle, and its image made room for others: send the image again"
            )
        if self._image is None:
            text = "there is no image yet: send one on this stream first"
            raise WrongStateError(field, text, reason=Reason.NO_IMAGE)
        return self._image

    async def _close_image(self) -> int:
        """Cancel all work on the image, and drop it; return the number of unanswered prompts."""
        image, self._image = self._image, None
        return await image.close() if image is not None else 0
