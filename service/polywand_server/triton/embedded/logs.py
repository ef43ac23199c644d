"""Triton's output as records of Python's logging, and its last lines for error messages."""

import asyncio
import logging
import re
from collections import deque

TAIL_LINES = 50
MAX_LINE_BYTES = 16_384

_LEVELS = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}
# I1123 09:05:58.335644 4800 model_lifecycle.cc:839] "successfully loaded 'trick'"
_GLOG = re.compile(r"(?P<level>[IWEF])\d{4} [\d:.]+ \d+ (?P<source>[^\]]+)\] ?(?P<message>.*)")
# Logged at every start on a machine without an NVIDIA driver, partly as errors or warnings, although nothing is wrong.
_NO_GPU = (
    "CUDA memory pool disabled",
    "CudaDriverHelper has not been initialized",
    "pinned memory pool will not be available",
    "DCGM unable to start",
)
# Printed by libraries: at a start without a driver, and at each connection to the socket of the metrics.
_HARMLESS = ("Error: Failed to initialize NVML", "NODELAY NOT SUPPORTED")
_TABLE = ("+--", "| ")

_log = logging.getLogger("polywand.triton")


def parse(line: str) -> tuple[int, str]:
    """Return level and text of a line of Triton's output ("" for headings). Lines that models print are INFO."""
    match = _GLOG.fullmatch(line)
    if match is None:
        is_noise = line.startswith(_TABLE) or any(text in line for text in _HARMLESS)
        return (logging.DEBUG if is_noise else logging.INFO), line
    message = match["message"].strip()
    if message.startswith('"') and message.endswith('"'):
        message = message[1:-1].replace("\\n", "\n").replace('\\"', '"')
    level = logging.DEBUG if any(text in message for text in _NO_GPU) else _LEVELS[match["level"]]
    return level, f"{message.rstrip()} ({match['source']})" if message else ""


class LogPump:
    """Passes a process's output to the logger "polywand.triton" and keeps the last lines."""

    def __init__(self) -> None:
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)

    @property
    def tail(self) -> str:
        """The last lines, without tables."""
        return "\n".join(self._tail)

    async def run(self, stream: asyncio.StreamReader) -> None:
        """Read until the end of the stream, so that the pipe never fills up and blocks Triton."""
        rest = b""
        while chunk := await stream.read(65_536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._log_line(line)
            if len(rest) > MAX_LINE_BYTES:
                self._log_line(rest)
                rest = b""
        self._log_line(rest)

    def _log_line(self, raw: bytes) -> None:
        line = raw[:MAX_LINE_BYTES].decode(errors="replace").rstrip()
        level, text = parse(line)
        if not text:
            return
        _log.log(level, "%s", text)
        if level >= logging.INFO:
            self._tail.append(text)
