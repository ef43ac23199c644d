"""A click server as annotation tools commonly have it, to compare with: one JSON POST per click, a JSON mask back.

The whole image comes with every click (base64 JPEG), and the mask of the whole image goes back as nested lists. That
is the interface; behind it everything is as quick as good libraries make it: uvicorn (with uvloop and httptools),
orjson, which writes the mask straight from its array, OpenCV, and the same model in the same Triton. All work on pixels
runs in threads, off the event loop. One pass of the network per click, where Polywand makes three for an object's
first.

    python -m tests.bench.json_server --triton unix:/path --model wand

Prints its port on standard output, then serves until it is told to stop.
"""

import argparse
import asyncio
import base64
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import orjson
import tritonclient.grpc.aio as triton
import uvicorn
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

THREADS = 4  # as the service has by default
PADDING = -1


@dataclass(frozen=True, slots=True)
class Letterbox:
    """How an image was fitted into the network's input: scaled to (height, width) at its top left."""

    height: int
    width: int
    image_height: int
    image_width: int


class ClickServer:
    """Answers clicks with masks."""

    def __init__(self, url: str, model: str) -> None:
        self._url = url
        self._model = model
        self._threads = ThreadPoolExecutor(THREADS)
        self._shapes: dict[str, list[int]] = {}

    @asynccontextmanager
    async def connected(self, _: Starlette) -> AsyncIterator[None]:
        """Hold a connection to Triton."""
        self._client = triton.InferenceServerClient(self._url)
        config = (await self._client.get_model_config(self._model, as_json=True))["config"]
        self._shapes = {tensor["name"]: [int(size) for size in tensor["dims"]] for tensor in config["input"]}
        yield
        await self._client.close()

    async def segment(self, request: Request) -> Response:
        """POST {"image": base64 JPEG, "points": [[x, y, label], ...]}: {"mask": [[0 or 1, ...], ...]}."""
        loop = asyncio.get_running_loop()
        inputs, letterbox = await loop.run_in_executor(self._threads, self._prepare, await request.body())
        result = await self._client.infer(self._model, inputs, outputs=[triton.InferRequestedOutput("LOGITS")])
        logits = result.as_numpy("LOGITS")[0, 0]
        body = await loop.run_in_executor(self._threads, mask_json, logits, letterbox)
        return Response(body, media_type="application/json")

    def _prepare(self, body: bytes) -> tuple[list[Any], Letterbox]:
        message = orjson.loads(body)
        encoded = np.frombuffer(base64.b64decode(message["image"]), np.uint8)
        picture = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
        size = tuple(self._shapes["IMAGE"][:2])
        scale = min(size[0] / picture.shape[0], size[1] / picture.shape[1])
        height, width = round(picture.shape[0] * scale), round(picture.shape[1] * scale)
        image = np.zeros((*size, 3), np.uint8)
        image[:height, :width] = shrunk(picture, width, height)
        points = np.full(self._shapes["POINTS"], PADDING, np.float32)
        given = np.array(message["points"], np.float32)
        given[:, :2] = given[:, :2] * scale - 0.5  # from pixel corners to pixel centres at integers
        points[: len(given)] = given
        tensors = {"IMAGE": image, "POINTS": points, "PREV_MASK": np.zeros((1, *size), np.float32)}
        return [ready(name, values) for name, values in tensors.items()], Letterbox(height, width, *picture.shape[:2])


def shrunk(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """A picture at the network's size: halved as often as fits, which is ten times quicker than averaging in one go."""
    while picture.shape[0] >= 2 * height and picture.shape[1] >= 2 * width:
        half = picture.shape[1] // 2, picture.shape[0] // 2
        picture = cv2.resize(picture[: 2 * half[1], : 2 * half[0]], half, interpolation=cv2.INTER_AREA)
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def ready(name: str, values: NDArray[Any]) -> Any:
    """An array as one row of a batch."""
    tensor = triton.InferInput(name, [1, *values.shape], "UINT8" if values.dtype == np.uint8 else "FP32")
    tensor.set_data_from_numpy(values[None])
    return tensor


def mask_json(logits: NDArray[np.float32], letterbox: Letterbox) -> bytes:
    """Logits float32 [H, W] of the network's input as the whole image's mask."""
    size = letterbox.image_width, letterbox.image_height
    whole = cv2.resize(np.ascontiguousarray(logits[: letterbox.height, : letterbox.width]), size)
    mask = (whole > 0).view(np.uint8)
    return orjson.dumps({"mask": mask}, option=orjson.OPT_SERIALIZE_NUMPY)


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triton", required=True)
    parser.add_argument("--model", required=True)
    options = parser.parse_args()
    server = ClickServer(options.triton, options.model)
    app = Starlette(routes=[Route("/segment", server.segment, methods=["POST"])], lifespan=server.connected)
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])


if __name__ == "__main__":
    main()
