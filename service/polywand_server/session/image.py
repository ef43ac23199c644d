"""The current image of a stream, and the objects on it."""

import asyncio
import time

from polywand_server.errors import Reason, TooLargeError
from polywand_server.images import Lease
from polywand_server.session.backlog import Backlog
from polywand_server.session.objects import ObjectQueue, ObjectServices, PromptRequest
from polywand_server.session.outbox import Outbox
from polywand_server.session.services import Services


class CurrentImage:
    """One image on one stream: a queue of prompts for each of its objects, which do not wait for each other.

    lease: of its picture; `close` and `drop` release it.
    """

    def __init__(self, services: Services, lease: Lease, outbox: Outbox) -> None:
        self.lease = lease
        self._predictor = services.new_predictor(lease.picture)
        self._most_objects = services.limits.objects
        self._objects: dict[str, ObjectQueue] = {}
        self._backlog = Backlog()
        self._counts = services.counts
        self._is_taking = False  # a message
        self._used_at = time.monotonic()
        self._object_services = ObjectServices(
            self._predictor,
            outbox,
            asyncio.Semaphore(services.limits.stream_inflight),
            services.right_of_way,
            self._backlog,
            services.counts,
            services.accounts,
            services.limits.prompt_seconds,
        )

    def idle_seconds(self) -> float:
        """Seconds since the last request or reply; 0 while something is in work."""
        if self._is_taking or any(queue.is_busy for queue in self._objects.values()):
            return 0.0
        last_reply = max((queue.last_reply for queue in self._objects.values()), default=0.0)
        return time.monotonic() - max(self._used_at, last_reply)

    async def submit(self, request: PromptRequest) -> None:
        """Queue a prompt, when the stream's backlog has room for it.

        Raises:
            InvalidInputError: it reaches outside the image.
            TooLargeError: the image has the most objects already.
        """
        prompt, self._is_taking = request.prompt, True
        try:
            self._predictor.check(prompt)
            queue = self._queue_of(prompt.object_id)
            with self._counts.waiting(), self._counts.skipped_if_cancelled(prompt.model):
                await self._backlog.wait_for_capacity(prompt.nbytes, queue.waiting_bytes)
            queue.put(request)
        finally:
            self._is_taking, self._used_at = False, time.monotonic()

    async def forget(self, object_id: str | None) -> tuple[int, int]:
        """Cancel the work on one object, or with None on all, and free them.

        Return how many objects there were, and the number of their unanswered prompts.
        """
        forgotten = [name for name in self._objects if object_id is None or name == object_id]
        self._is_taking = True
        try:
            unanswered = await self._cancel([self._objects[name] for name in forgotten])
        finally:
            self._is_taking, self._used_at = False, time.monotonic()
        for name in forgotten:
            del self._objects[name]
        self._predictor.forget(object_id)
        return len(forgotten), unanswered

    async def finish(self) -> None:
        """Wait until all queued prompts are answered."""
        await asyncio.gather(*(queue.finish() for queue in self._objects.values()))

    async def close(self) -> int:
        """Cancel all work, and drop the image and its objects; return the number of unanswered prompts."""
        try:
            return await self._cancel(list(self._objects.values()))
        finally:  # also when this is cancelled itself
            self.drop()

    def drop(self) -> None:
        """Drop the image and its objects; none of them may be in work."""
        self._objects.clear()
        self._predictor.close()
        self.lease.release()

    async def _cancel(self, queues: list[ObjectQueue]) -> int:
        """Cancel the work on objects; return the number of unanswered prompts."""
        running = [task for queue in queues if (task := queue.cancel()) is not None]
        try:
            await asyncio.gather(*running, return_exceptions=True)
        finally:  # also when this is cancelled itself
            unanswered = sum(queue.abandon() for queue in queues)
        return unanswered

    def _queue_of(self, object_id: str) -> ObjectQueue:
        queue = self._objects.get(object_id)
        if queue is None:
            if len(self._objects) >= self._most_objects:
                raise TooLargeError(
                    "prompt.object_id",
                    f"there are already {self._most_objects} objects on this image, the most that fit: forget some",
                    reason=Reason.TOO_MANY_OBJECTS,
                    limit="stream_objects",
                )
            queue = self._objects[object_id] = ObjectQueue(self._object_services)
        return queue
