"""Decoding a request's image: off the event loop, timed, counted."""

from polywand_server import metrics
from polywand_server.config import Limits
from polywand_server.errors import PolywandError
from polywand_server.images import ImageSource, Picture, decode_image
from polywand_server.inference import Inference
from polywand_server.timing import Stopwatch


async def load_picture(inference: Inference, source: ImageSource, limits: Limits, watch: Stopwatch) -> Picture:
    """Decode an image within the limits.

    Raises:
        InvalidInputError, TooLargeError
    """
    metrics.IMAGE_BYTES.observe(len(source.data))
    try:
        with watch.stage("decode"):
            picture = await inference.compute(lambda: decode_image(source, limits.image_bytes, limits.image_pixels))
    except PolywandError:
        metrics.IMAGES.labels("refused").inc()
        raise
    metrics.IMAGES.labels("decoded").inc()
    metrics.IMAGE_PIXELS.observe(picture.width * picture.height)
    return picture
