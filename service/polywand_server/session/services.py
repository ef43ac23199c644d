"""The services and limits that all sessions share."""

from collections.abc import Callable
from dataclasses import dataclass

from polywand_server.admission.quotas import Accounts
from polywand_server.config import Limits
from polywand_server.images import ImageStore, Picture
from polywand_server.images.holders import Holders
from polywand_server.interactors.predictor import Predictor
from polywand_server.lanes import RightOfWay
from polywand_server.session.counts import PromptCounts
from polywand_server.session.outbox import Unread


@dataclass(frozen=True, slots=True)
class Services:
    """Services of all sessions. new_predictor: makes the predictor of an image."""

    store: ImageStore
    new_predictor: Callable[[Picture], Predictor]
    right_of_way: RightOfWay
    holders: Holders
    unread: Unread
    counts: PromptCounts
    accounts: Accounts
    limits: Limits
