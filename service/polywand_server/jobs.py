"""All work of children: imported once by the process that they are forked from, so that each starts fast."""

import cv2

from polywand_server.geometry import jobs as _geometry  # noqa: F401
from polywand_server.images import jobs as _images  # noqa: F401

# Each child has one thread, as the process that it is forked from has.
cv2.setNumThreads(1)
