"""Questions to a ledger, and what it does about them."""

import time
from concurrent.futures import Future
from typing import Any

import grpc

import polywand
from polywand.answers import Update
from polywand.backoff import Uniform
from polywand.ledger import Ledger
from polywand_contract.v1 import annotation_pb2 as pb

PATIENCE_S = 60.0
DRAINING = pb.InteractResponse(draining=pb.Draining(message="draining", remaining_ms=5000))
LOST = polywand.Unavailable("the connection was lost", grpc.StatusCode.UNAVAILABLE)


class OneStream(Ledger):
    """A ledger with the stream that every message is of, unless a test names another."""

    def __init__(self, uniform: Uniform | None = None, *, reconnects: bool = True) -> None:
        super().__init__(uniform, reconnects=reconnects)
        self.stream = self.begin()

    def pop(self, stream: int = 0) -> pb.InteractRequest | None:
        return super().pop(stream or self.stream)

    def answer(self, reply: pb.InteractResponse, stream: int = 0) -> list[Update] | pb.ImageInfo:
        return super().answer(reply, stream or self.stream)


def ask(ledger: Ledger, object_id: str = "", patience_s: float = PATIENCE_S) -> tuple[int, Future[Any]]:
    waiter: Future[Any] = Future()
    message = pb.InteractRequest(prompt=pb.Prompt(model="m", object_id=object_id))
    return ledger.add(message, waiter, patience_s), waiter


def ask_image(ledger: Ledger, encoded: bytes = b"x") -> tuple[int, Future[Any]]:
    waiter: Future[Any] = Future()
    return ledger.add(pb.InteractRequest(image=pb.Image(encoded=encoded)), waiter, PATIENCE_S), waiter


def sent(ledger: OneStream) -> int:
    """Wait until something is to be sent, and return its sequence."""
    pause_s = ledger.pause_s()
    assert pause_s is not None
    time.sleep(pause_s)
    request = ledger.pop()
    assert request is not None
    return request.sequence


def unstretched(low: float, high: float) -> float:
    """Chance at its least: rests are as long as they must be."""
    return low


def updated(ledger: OneStream, reply: pb.InteractResponse) -> Update:
    """Give an answer that settles one object's prompts, and return what is told of it."""
    updates = ledger.answer(reply)
    assert isinstance(updates, list)
    (update,) = updates
    return update
