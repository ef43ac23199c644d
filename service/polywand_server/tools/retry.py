"""One more attempt with another version, when the first one was unloaded after the registry last polled Triton."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from polywand_server.errors import UnavailableError
from polywand_server.tools.registry import Registry

Chosen = TypeVar("Chosen")
Result = TypeVar("Result")


async def use_tool(
    registry: Registry, choose: Callable[[], Chosen], use: Callable[[Chosen], Awaitable[Result]]
) -> Result:
    """Choose a tool and use it. If it is unavailable, refresh the registry, choose again, and use that, if it differs.

    Raises:
        What `choose` and `use` raise.
    """
    chosen = choose()
    try:
        return await use(chosen)
    except UnavailableError:
        await registry.refresh()
        other = choose()
        if other == chosen:
            raise
    return await use(other)
