"""The asyncio client: the verbs of `polywand`, awaited, and `send` and `updates` for dragging.

async with polywand.aio.connect() as client, client.open("photo.jpg") as session:
    outline = await session.prompt("wand_click", positive=[(120, 80)])
"""

from polywand.aio.client import Client, connect
from polywand.aio.session import Session
from polywand.answers import Update

__all__ = ["Client", "Session", "Update", "connect"]
