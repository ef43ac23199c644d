"""The asyncio client: the verbs of `polywand`, awaited, and `send` and `updates` for dragging.

async with polywand.aio.connect() as client, client.open("photo.jpg") as session:
    outline = await session.prompt(points=[(120, 80, "positive")])
"""

from polywand.aio.client import AsyncClient, connect
from polywand.aio.session import Session
from polywand.answers import Update

__all__ = ["AsyncClient", "Session", "Update", "connect"]
