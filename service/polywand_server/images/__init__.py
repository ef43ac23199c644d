"""Images: checked by their header, decoded once, held as RGB with a pyramid of halves."""

from polywand_server.images.decoder import Decoder
from polywand_server.images.picture import EncodedImage, ImageSource, Picture, RawImage
from polywand_server.images.standalone import decode_image

__all__ = ["Decoder", "EncodedImage", "ImageSource", "Picture", "RawImage", "decode_image"]
