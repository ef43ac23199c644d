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
        self._is_submitting = False
        self._used_at = time.monotonic()
        self._object_services = ObjectServices(
            self._predictor,
            outbox,
            asyncio.Semaphore(services.limits.stream_inflight),
            services.right_of_way,
            self._backlog,
            services.counts,
            services.limits.prompt_seconds,
        )

    def idle_seconds(self) -> float:
        """Seconds since the last request or reply; 0 while something is in work."""
        if self._is_submitting or any(queue.is_busy for queue in self._objects.values()):
            return 0.0
        last_reply = max((queue.last_reply for queue in self._objects.values()), default=0.0)
        return time.monotonic() - max(self._used_at, last_reply)

    async def submit(self, request: PromptRequest) -> None:
        """Queue a prompt, when the stream's backlog has room for it.

        Raises:
            InvalidInputError: it reaches outside the image.
            TooLargeError: the image has the most objects already.
        """
        prompt, self._is_submitting = request.prompt, True
        try:
            self._predictor.check(prompt)
            queue = self._queue_of(prompt.object_id)
            with self._counts.skipped_if_cancelled(prompt.model):
                await self._backlog.wait_for_capacity(prompt.nbytes, queue.waiting_bytes)
            queue.put(request)
        finally:
            self._is_submitting, self._used_at = False, time.monotonic()

    async def finish(self) -> None:
        """Wait until all queued prompts are answered."""
        await asyncio.gather(*(queue.finish() for queue in self._objects.values()))

    async def close(self) -> int:
        """Cancel all work, and drop the image and its objects; return the number of unanswered prompts."""
        queues = list(self._objects.values())
        running = [task for queue in queues if (task := queue.cancel()) is not None]
        try:
            await asyncio.gather(*running, return_exceptions=True)
        finally:  # also when this is cancelled itself
            unanswered = sum(queue.abandon() for queue in queues)
            self.drop()
        return unanswered

    def drop(self) -> None:
        """Drop the image and its objects; none of them may be in work."""
        self._objects.clear()
        self._predictor.close()
        self.lease.release()

    def _queue_of(self, object_id: str) -> ObjectQueue:
        queue = self._objects.get(object_id)
        if queue is None:
            if len(self._objects) >= self._most_objects:
                raise TooLargeError(
                    "prompt.object_id",
                    f"there are already {self._most_objects} objects on this image, the most that fit",
                    reason=Reason.TOO_MANY_OBJECTS,
                    limit="stream_objects",
                )
            queue = self._objects[object_id] = ObjectQueue(self._object_services)
        return queue
