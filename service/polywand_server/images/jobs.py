"""Decoding in a child: the header is told to the service first, which lets it in or ends the child."""

import io
from collections.abc import Callable

import numpy as np

from polywand_server.errors import InvalidInputError
from polywand_server.images import jpeg
from polywand_server.images.files import Admission, Header, check_scans, check_size, read_file, read_jpeg, webp_header
from polywand_server.images.picture import Pixels, fill_halves, levels_in, pyramid_bytes
from polywand_server.workers.answers import Answer
from polywand_server.workers.child import Conversation

# Of reading a header, whatever the file is.
OPENING_BYTES = 96 << 20
# Bytes a pixel that OpenCV takes: its own pixels, turned ones, and the coefficients of a progressive file.
OPENCV_BYTES = 12


def decode(conversation: Conversation, field: str, max_pixels: int) -> Answer:
    """Decode the file that the conversation's input holds, into shared memory: the levels one behind the other."""
    target = _Target(conversation, field, max_pixels)
    webp = webp_header(conversation.input)
    if webp is not None:
        target.admit(webp)
    if not _by_opencv(conversation, field, target.admit):
        read_file(io.BytesIO(conversation.input), field, target.admit)
    fill_halves(target.levels)
    height, width = target.levels[0].shape[:2]
    return Answer({"width": width, "height": height, "descriptor": target.descriptor})


class _Target:
    """Where the pixels go, once the service has let the image in. levels: as of a `Picture`. descriptor: of them."""

    def __init__(self, conversation: Conversation, field: str, max_pixels: int) -> None:
        self._conversation = conversation
        self._field = field
        self._max_pixels = max_pixels
        self._pixels = 0  # of the image that was let in
        self.levels: tuple[Pixels, ...] = ()
        self.descriptor = -1

    def admit(self, header: Header) -> Callable[[int, int], Pixels]:
        """Have the image let in; returns what makes room for its pixels."""
        width, height = header.width, header.height
        if self._pixels and width * height != self._pixels:
            raise InvalidInputError(self._field, "the image is damaged: it tells of two sizes")
        if not self._pixels:
            check_size(self._field, width, height, self._max_pixels)
            self._pixels = width * height
            self._conversation.ask(width=width, height=height, decoder_bytes=header.decoder_bytes)
        self._conversation.allow_memory(header.decoder_bytes + pyramid_bytes(width, height) + OPENING_BYTES)
        return self._make_room

    def _make_room(self, width: int, height: int) -> Pixels:
        if width * height != self._pixels:
            raise InvalidInputError(self._field, "the image is damaged: it tells of two sizes")
        self.descriptor, memory = self._conversation.share(pyramid_bytes(width, height))
        self.levels = levels_in(memory, width, height)
        return self.levels[0]


def _by_opencv(conversation: Conversation, field: str, admit: Admission) -> bool:
    """Decode a whole JPEG file; returns whether it could be done."""
    data = conversation.input
    header = jpeg.read_header(data)
    if header is None:
        return False
    check_scans(field, data)
    if not header.is_common or bytes(data[-2:]) != jpeg.END:
        return False
    make_room = admit(Header(header.width, header.height, header.width * header.height * OPENCV_BYTES))
    pixels = read_jpeg(np.frombuffer(data, np.uint8), header)
    if pixels is None:
        return False
    np.copyto(make_room(*pixels.shape[1::-1]), pixels)
    return True
