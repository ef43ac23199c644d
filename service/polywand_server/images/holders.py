"""Holders: streams that keep a picture, and whose picture is dropped when the budget has no room for another."""

from collections import Counter
from typing import Protocol

from polywand_server.caller import current

# A stream without requests for this long is idle: its picture is dropped before another image is refused.
IDLE_SECONDS = 10.0
# Of a client that holds more than its share, pictures that were not used for this long are dropped, too.
UNUSED_SECONDS = 0.5


class Holder(Protocol):
    """A stream that keeps a picture."""

    @property
    def client(self) -> str:
        """The client of the stream."""
        ...

    @property
    def image_bytes(self) -> int:
        """Memory of its picture; 0 when it has none."""
        ...

    def idle_seconds(self) -> float:
        """Seconds since its last request or reply; 0 while something is in work."""
        ...

    def drop_image(self) -> None:
        """Drop the picture."""
        ...


class Holders:
    """All streams that keep pictures."""

    def __init__(self) -> None:
        self._holders: set[Holder] = set()

    def add(self, holder: Holder) -> None:
        """Add a stream."""
        self._holders.add(holder)

    def remove(self, holder: Holder) -> None:
        """Remove a stream."""
        self._holders.discard(holder)

    def drop_one_image(self) -> bool:
        """Drop the picture of one stream that does not use it; return whether one was dropped.

        The client that holds most is first, and of its streams the least recently used: an idle one, or one that was
        not used for UNUSED_SECONDS if the client holds more than the calling one, and more than its share.
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
                holder.drop_image()
                return True
        return False
