"""Questions to a ledger, and what it does about them."""

import time
from concurrent.futures import Future
from typing import Any

from polywand.answers import Update
from polywand.ledger import Ledger
from polywand_contract.v1 import annotation_pb2 as pb

PATIENCE_S = 60.0


def ask(ledger: Ledger, object_id: str = "", patience_s: float = PATIENCE_S) -> tuple[int, Future[Any]]:
    waiter: Future[Any] = Future()
    message = pb.InteractRequest(prompt=pb.Prompt(model="m", object_id=object_id))
    return ledger.add(message, waiter, patience_s), waiter


def ask_image(ledger: Ledger, encoded: bytes = b"x") -> tuple[int, Future[Any]]:
    waiter: Future[Any] = Future()
    return ledger.add(pb.InteractRequest(image=pb.Image(encoded=encoded)), waiter, PATIENCE_S), waiter


def sent(ledger: Ledger) -> int:
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


def updated(ledger: Ledger, reply: pb.InteractResponse) -> Update:
    """Give an answer that settles one object's prompts, and return what is told of it."""
    updates = ledger.answer(reply)
    assert isinstance(updates, list)
    (update,) = updates
    return update
