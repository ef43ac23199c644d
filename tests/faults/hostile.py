"""Files and frames that no honest client sends, as small as they can be for what they cost."""

import socket
import ssl
import struct
import time
import zlib


def jpeg_of_scans(width: int, height: int, scans: int) -> bytes:
    """A grey progressive JPEG file of nothing, in which refining scans follow one another, each over all blocks.

    142 bytes a scan for 100 megapixels: a run of empty blocks is one code (ITU-T T.81, G.1.2.2).
    """

    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content

    blocks = -(-width // 8) * -(-height // 8)
    frame = segment(0xC2, struct.pack(">BHHBBBB", 8, height, width, 1, 1, 0x11, 0))
    one_code = bytes([1] + [0] * 15)  # a single code, of one bit
    tables = segment(0xC4, b"\x00" + one_code + b"\x00") + segment(0xC4, b"\x10" + one_code + b"\xe0")
    dc_scan = segment(0xDA, bytes([1, 1, 0, 0, 0, 1])) + bytes(-(-blocks // 8))
    bits = ("0" + "1" * 14) * -(-blocks // 32767)  # each says that 32,767 blocks are empty
    bits += "1" * (-len(bits) % 8)
    run = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")
    ac_scans = (segment(0xDA, bytes([1, 1, 0, 1 + number % 60, 63, 0])) + run for number in range(scans))
    return b"".join((b"\xff\xd8", segment(0xDB, b"\0" + b"\1" * 64), frame, tables, dc_scan, *ac_scans, b"\xff\xd9"))


def png_of_zeros(width: int, height: int) -> bytes:
    """A black PNG file, RGB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    rows = [packer.compress(bytes(1 + 3 * width)) for _ in range(height)]
    content = b"".join((*rows, packer.flush()))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def bmp_of_run_lengths(width: int, height: int) -> bytes:
    """A BMP file of 8 bits with run lengths that say next to nothing."""
    pixels = b"\x01\x00\x00\x00"
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(pixels), 0, 0, 0, 0)
    offset = 14 + len(head) + 1024
    return b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + head + bytes(1024) + pixels


WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class H2Connection:
    """A connection to the gRPC port that sends frames as they are given (RFC 9113)."""

    FIRST_WINDOW = 65_535

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._socket = socket.create_connection((host, port), timeout=5)
        if tls is not None:
            self._socket = tls.wrap_socket(self._socket, server_hostname="localhost")
        self._received = b""
        self._first_window = self.FIRST_WINDOW
        self._windows = {0: self.FIRST_WINDOW}  # what each stream may still send; 0 is all together
        self._socket.settimeout(0)
        self.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", frame(4, 0, 0))

    def send(self, *frames: bytes, seconds: float = 10.0) -> bool:
        """Send all of it, reading meanwhile; returns whether it went, and the other side is still there."""
        left, end = memoryview(b"".join(frames)), time.monotonic() + seconds
        while left and time.monotonic() < end:
            try:
                left = left[self._socket.send(left) :]
            except WOULD_BLOCK:
                time.sleep(0.001)
            except OSError:
                return False
            if not self._read():
                return False
        return not left

    def announce(self, stream: int, size: int, part: bytes, seconds: float = 10.0) -> int:
        """Announce a message of so many bytes on a stream, and send a part of it as the windows allow; returns how many
        bytes went within the time.
        """
        data = struct.pack(">BI", 0, size) + part
        sent, end = 0, time.monotonic() + seconds
        while self._first_window == self.FIRST_WINDOW and self._read() and time.monotonic() < end:
            time.sleep(0.001)  # until the server has told of its own
        self._windows[stream] = self._first_window
        while sent < len(data) and time.monotonic() < end and self._read():
            allowed = min(16_000, self._windows[0], self._windows[stream], len(data) - sent)
            if allowed <= 0:
                time.sleep(0.001)
                continue
            if not self.send(frame(0, 0, stream, data[sent : sent + allowed])):
                break
            sent += allowed
            self._windows[0] -= allowed
            self._windows[stream] -= allowed
        return sent

    def close(self) -> None:
        """Leave."""
        self._socket.close()

    def _read(self) -> bool:
        """Read what has come; False when the other side has closed."""
        try:
            while data := self._socket.recv(65536):
                self._received += data
                self._take_frames()
            return False
        except WOULD_BLOCK:
            return True
        except OSError:
            return False

    def _take_frames(self) -> None:
        """Learn from SETTINGS and WINDOW_UPDATE how much may be sent."""
        while len(self._received) >= 9:
            size = int.from_bytes(self._received[:3], "big")
            if len(self._received) < 9 + size:
                return
            kind, flags, stream = self._received[3], self._received[4], int.from_bytes(self._received[5:9], "big")
            content, self._received = self._received[9 : 9 + size], self._received[9 + size :]
            if kind == 8:
                self._windows[stream] = self._windows.get(stream, self._first_window) + int.from_bytes(content, "big")
            elif kind == 4 and not flags:
                self._first_window = dict(struct.iter_unpack(">HI", content)).get(4, self.FIRST_WINDOW)
                self._socket.sendall(frame(4, 1, 0))  # without this acknowledgement the server keeps to the old one


def frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(content))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + content


def headers(stream: int, method: str, request_id: bytes | None = None) -> bytes:
    """The beginning of a call. request_id: the value of its x-request-id, of less than 127 bytes."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    # Each is a literal without indexing, whose name is new (RFC 7541, 6.2.2); all are shorter than 127 bytes.
    block = b"".join(b"\0" + _literal(name) + _literal(value) for name, value in fields.items())
    if request_id is not None:
        block += b"\0" + _literal("x-request-id") + bytes([len(request_id)]) + request_id
    return frame(1, 4, stream, block)


def _literal(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def message(stream: int, content: bytes) -> bytes:
    """One message of a call."""
    return frame(0, 0, stream, struct.pack(">BI", 0, len(content)) + content)


def reset(stream: int) -> bytes:
    """The end of a call, at once."""
    return frame(3, 0, stream, struct.pack(">I", 8))
