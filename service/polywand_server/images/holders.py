"""Holders: streams that keep a picture, and which of them gives its picture up when there is no room for another."""

from collections import Counter
from typing import Protocol

from polywand_server.caller import current

# A stream of which nothing was asked for so long is idle: its picture goes before anybody else is refused.
IDLE_SECONDS = 10.0
# A client that holds more than its share loses pictures that were not used for so long, idle or not.
UNUSED_SECONDS = 0.5


class Holder(Protocol):
    """A stream that keeps a picture."""

    @property
    def client(self) -> str:
        """Whose stream it is."""
        ...

    @property
    def image_bytes(self) -> int:
        """What its picture takes; 0 when it has none."""
        ...

    def idle_seconds(self) -> float:
        """How long nothing has been asked of it; 0 while something is in work."""
        ...

    def give_up_image(self) -> None:
        """Let go of the picture."""
        ...


class Holders:
    """All streams that keep pictures."""

    def __init__(self) -> None:
        self._holders: set[Holder] = set()

    def add(self, holder: Holder) -> None:
        """One more."""
        self._holders.add(holder)

    def remove(self, holder: Holder) -> None:
        """One less."""
        self._holders.discard(holder)

    def give_one_up(self) -> bool:
        """Have one of those who do not use theirs give its picture up; returns whether one did.

        The client that holds most is the first, and of its streams the one that was not used for longest: an idle one,
        or any that is not in work if the client holds more than the one that asks, and more than its share.
        """
        held: Counter[str] = Counter()
        for holder in self._holders:
            held[holder.client] += holder.image_bytes
        asking = current().client
        share = held.total() / max(1, len(held | Counter({asking: 1})))
        with_picture = [holder for holder in self._holders if holder.image_bytes]
        for holder in sorted(with_picture, key=lambda holder: (-held[holder.client], -holder.idle_seconds())):
            idle = holder.idle_seconds()
            is_over = held[holder.client] > max(share, held[asking])
            if idle >= IDLE_SECONDS or (idle >= UNUSED_SECONDS and is_over):
                holder.give_up_image()
                return True
        return False
