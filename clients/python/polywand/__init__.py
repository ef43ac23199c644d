"""Polywand's Python client: clicks in, polygons out.

    with polywand.connect() as client, client.open("photo.jpg") as session:
        outline = session.prompt("wand_click", positive=[(120, 80)])
        outline = session.prompt("wand_click", positive=[(120, 80)], negative=[(10, 10)])

Coordinates everywhere: image pixels, x to the right, y down, pixel corners at integers. `polywand.aio` is the same
under asyncio.
"""

from importlib.metadata import version

from polywand import aio
from polywand.client import Client, connect
from polywand.errors import (
    Closed,
    Draining,
    IncompletePrompt,
    InvalidRequest,
    NotFound,
    PolywandError,
    QuotaExceeded,
    QuotaViolation,
    ServerError,
    Superseded,
    Unauthenticated,
    Unavailable,
    Violation,
)
from polywand.images import ImageLike
from polywand.prompts import Point
from polywand.raster import decode_rle, encode_rle, rasterise
from polywand.results import (
    Box,
    Detection,
    Detections,
    InteractorSpec,
    Model,
    ModelVersion,
    Outline,
    Polygon,
    Segmentation,
    Timing,
)
from polywand.seeds import SeedLike
from polywand.session import Session

__version__ = version("polywand")

__all__ = [
    "Box",
    "Client",
    "Closed",
    "Detection",
    "Detections",
    "Draining",
    "ImageLike",
    "IncompletePrompt",
    "InteractorSpec",
    "InvalidRequest",
    "Model",
    "ModelVersion",
    "NotFound",
    "Outline",
    "Point",
    "Polygon",
    "PolywandError",
    "QuotaExceeded",
    "QuotaViolation",
    "SeedLike",
    "Segmentation",
    "ServerError",
    "Session",
    "Superseded",
    "Timing",
    "Unauthenticated",
    "Unavailable",
    "Violation",
    "aio",
    "connect",
    "decode_rle",
    "encode_rle",
    "rasterise",
]
