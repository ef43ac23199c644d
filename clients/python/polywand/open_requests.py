"""The requests of a session that have no answer yet, and which of them are to be sent."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from polywand.answers import Waiter, resolve
from polywand.backoff import Backoff
from polywand.errors import PolywandError
from polywand_contract.v1 import annotation_pb2 as pb


@dataclass(frozen=True, slots=True, eq=False)
class Forgetting:
    """What one request to forget is about: an object, or with None all objects."""

    object_id: str | None

    def covers(self, object_id: str) -> bool:
        """Return whether it is about this object."""
        return self.object_id is None or self.object_id == object_id


Subject: TypeAlias = str | Forgetting | None
"""What a request is about: an object by its id, objects to forget, or None for the image."""


@dataclass(slots=True)
class OpenRequest:
    """A request without an answer.

    caller_sequence: the sequence that its caller knows; a retry is sent under a new one.
    backoff: the delays of its retries, and its deadline.
    by_digest: the image's digest, to be sent instead of the image itself.
    due: when to send it, in monotonic seconds; 0 is at once. stream: on which it waits for its answer; 0 is none.
    is_restore: whether it is the held image, which the ledger itself sends again.
    refusal: the last error, if it was postponed.
    """

    subject: Subject
    caller_sequence: int
    message: pb.InteractRequest
    waiter: Waiter | None
    backoff: Backoff
    by_digest: pb.Image | None = None
    due: float = 0.0
    stream: int = 0
    is_restore: bool = False
    refusal: PolywandError | None = None


class OpenRequests:
    """Open requests by ascending sequence. Newest wins: of each subject, at most one waits to be sent."""

    def __init__(self) -> None:
        self._requests: dict[int, OpenRequest] = {}
        self._unsent: dict[Subject, int] = {}  # the sequence of the request to send
        self._sequence = 0
        self._last_sent = 0

    def __bool__(self) -> bool:
        return bool(self._requests)

    def __iter__(self) -> Iterator[int]:
        """Iterate over the sequences now; requests may be closed meanwhile."""
        return iter(list(self._requests))

    def __getitem__(self, sequence: int) -> OpenRequest:
        return self._requests[sequence]

    def get(self, sequence: int) -> OpenRequest | None:
        """Return a request, or None if it is not open any more."""
        return self._requests.get(sequence)

    def of(self, subject: Subject) -> list[int]:
        """Return the sequences of one subject's requests."""
        return [sequence for sequence, request in self._requests.items() if request.subject == subject]

    def prompts(self) -> dict[str, list[int]]:
        """Return the sequences of prompts, by object."""
        prompts: dict[str, list[int]] = {}
        for sequence, request in self._requests.items():
            if isinstance(request.subject, str):
                prompts.setdefault(request.subject, []).append(sequence)
        return prompts

    def images(self) -> list[OpenRequest]:
        """Return the requests with images."""
        return [request for request in self._requests.values() if request.subject is None]

    def last_deadline(self, *, of_prompts: bool = False) -> float:
        """Return the latest deadline; 0 without requests."""
        requests = self._requests.values()
        return max((r.backoff.deadline for r in requests if not of_prompts or isinstance(r.subject, str)), default=0.0)

    def unsent(self) -> list[OpenRequest]:
        """Return the requests that are to be sent, in the order in which they were added."""
        return [self._requests[sequence] for sequence in self._unsent.values()]

    def add(
        self, subject: Subject, message: pb.InteractRequest, waiter: Waiter | None, backoff: Backoff
    ) -> OpenRequest:
        """Add a request that is to be sent, in place of an older one of its subject."""
        self._sequence += 1
        request = self._requests[self._sequence] = OpenRequest(subject, self._sequence, message, waiter, backoff)
        self._unsent.pop(subject, None)
        self._unsent[subject] = self._sequence  # at the end: requests are sent in the order of their sequence
        return request

    def send_newest(self, subject: Subject, due: float = 0.0) -> None:
        """Send the newest request of a subject again, unless it waits for its answer, or waits to be sent already."""
        newest = self.of(subject)[-1:]
        if newest and not self._requests[newest[0]].stream and self._unsent.get(subject) != newest[0]:
            self._requests[newest[0]].due = due
            self._unsent[subject] = newest[0]

    def is_unsent(self, sequence: int) -> bool:
        """Return whether a request is to be sent."""
        return self._unsent.get(self._requests[sequence].subject) == sequence

    def sent(self, request: OpenRequest, stream: int) -> int:
        """Note that a request to be sent is sent now, and return its sequence: sequences on a stream never decrease."""
        sequence = self._unsent.pop(request.subject)
        if sequence <= self._last_sent:  # a retry
            del self._requests[sequence]
            self._sequence = sequence = self._sequence + 1
            self._requests[sequence] = request
        self._last_sent = sequence
        request.stream = stream
        return sequence

    def close(self, sequence: int, answer: object) -> None:
        """Remove a request, and give its waiter the answer or error."""
        request = self._requests.pop(sequence)
        if self._unsent.get(request.subject) == sequence:
            del self._unsent[request.subject]
        if request.waiter is not None:
            resolve(request.waiter, answer)
