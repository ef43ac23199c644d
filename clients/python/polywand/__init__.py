"""Polywand's Python client: clicks in, polygons out.

    with polywand.connect() as client, client.open("photo.jpg") as session:
        outline = session.prompt(points=[(120, 80, "positive")])
        outline = session.prompt(points=[(120, 80, "positive"), (10, 10, "negative")])

Coordinates everywhere: image pixels, x to the right, y down, pixel corners at integers. `polywand.aio` is the same
under asyncio.
"""

from importlib.metadata import version

from polywand import aio
from polywand.aio.client import AsyncClient
from polywand.catalogue import InteractorSpec, Label, Model, ModelVersion, ServerInfo, ServerLimits
from polywand.client import Client, connect
from polywand.errors import (
    Closed,
    Draining,
    IncompletePrompt,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    PolywandError,
    QuotaExceeded,
    QuotaViolation,
    ServerError,
    Superseded,
    Unauthenticated,
    Unavailable,
    Violation,
)
from polywand.frames import FrameResult
from polywand.images import ImageLike, Pixels
from polywand.options import LabelMapping
from polywand.prompts import Point, Prompt
from polywand.raster import decode_rle, encode_rle, rasterise
from polywand.results import (
    Box,
    Detection,
    Detections,
    Outline,
    Polygon,
    Segmentation,
    SegmentResult,
    Timing,
)
from polywand.seeds import SeedLike
from polywand.session import Session

__version__ = version("polywand")

__all__ = [
    "AsyncClient",
    "Box",
    "Client",
    "Closed",
    "Detection",
    "Detections",
    "Draining",
    "FrameResult",
    "ImageLike",
    "IncompletePrompt",
    "InteractorSpec",
    "InvalidRequest",
    "Label",
    "LabelMapping",
    "Model",
    "ModelVersion",
    "NotFound",
    "Outline",
    "PermissionDenied",
    "Pixels",
    "Point",
    "Polygon",
    "PolywandError",
    "Prompt",
    "QuotaExceeded",
    "QuotaViolation",
    "SeedLike",
    "SegmentResult",
    "Segmentation",
    "ServerError",
    "ServerInfo",
    "ServerLimits",
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
