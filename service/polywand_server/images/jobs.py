"""Decoding in a child: it sends the header to the service first, which admits the image or kills the child."""

from polywand_pictures import Header, MakeRoom, Pixels, UnreadableError, read_into
from polywand_server.images.checks import check_size, in_terms_of
from polywand_server.images.picture import EncodedImage, fill_halves, levels_in, pyramid_bytes
from polywand_server.workers.answers import Answer
from polywand_server.workers.child import Conversation

# Memory to read a header, of any file.
OPENING_BYTES = 96 << 20


def decode(conversation: Conversation, source: EncodedImage, max_pixels: int) -> Answer:
    """Decode the file that the conversation's input holds, into shared memory: the levels one after another.

    source: the image without its bytes.

    Raises:
        InvalidInputError, TooLargeError
    """
    target = _Target(conversation, source.field, max_pixels)
    with in_terms_of(source):
        read_into(conversation.input, target.admit, source.value_range)
    fill_halves(target.levels)
    height, width = target.levels[0].shape[:2]
    return Answer({"width": width, "height": height, "descriptor": target.descriptor})


class _Target:
    """Memory for the pixels of an admitted image. levels: see `Picture`. descriptor: of the memory."""

    def __init__(self, conversation: Conversation, field: str, max_pixels: int) -> None:
        self._conversation = conversation
        self._field = field
        self._max_pixels = max_pixels
        self._pixels = 0  # of the admitted image
        self.levels: tuple[Pixels, ...] = ()
        self.descriptor = -1

    def admit(self, header: Header) -> MakeRoom:
        """Ask the service to admit the image; return the function that allocates its pixels."""
        width, height = header.width, header.height
        check_size(self._field, width, height, self._max_pixels)
        self._pixels = width * height
        self._conversation.ask(width=width, height=height, decoder_bytes=header.decoder_bytes)
        self._conversation.allow_memory(header.decoder_bytes + pyramid_bytes(width, height) + OPENING_BYTES)
        return self._make_room

    def _make_room(self, width: int, height: int) -> Pixels:
        if width * height != self._pixels:
            raise UnreadableError("the image is damaged: it contains two different sizes")
        self.descriptor, memory = self._conversation.share(pyramid_bytes(width, height))
        self.levels = levels_in(memory, width, height)
        return self.levels[0]
