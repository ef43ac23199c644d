"""Detection on a list of files; a file that fails does not stop the others."""

from collections.abc import Iterator, Sequence
from typing import Any

import grpc

from polywand.client import Client
from polywand.errors import Draining, PolywandError, Unavailable
from polywand.files import Source
from polywand.frames import FrameResult
from polywand.results import Detections

SILENT_STREAMS = 2
"""After this many streams in a row without an answer, the server counts as gone, and no more files are sent."""


def detect_each(client: Client, sources: Sequence[Source], options: dict[str, Any]) -> Iterator[FrameResult]:
    """Yield (number, detections or error) of every file, in order.

    After a broken stream, the file that was due is sent by a unary call, which shows whether the file is the cause;
    the files after it are sent by a new stream.
    """
    start = silent = 0
    while start < len(sources):
        answered = 0
        try:
            for number, found in client.detect_stream(sources[start:], reconnect=False, **options):
                yield FrameResult(start + number, found)
                answered += 1
            return
        except PolywandError as error:
            failure = error
        start += answered
        gone = isinstance(failure, Unavailable) and not isinstance(failure, Draining) and not answered
        silent = silent + 1 if gone else 0
        if silent >= SILENT_STREAMS:
            yield from (FrameResult(number, failure) for number in range(start, len(sources)))
            return
        if start < len(sources):
            yield FrameResult(start, _alone(client, sources[start], options, failure))
            start += 1


def _alone(
    client: Client, source: Source, options: dict[str, Any], failure: PolywandError
) -> Detections | PolywandError:
    if failure.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return failure  # it already had the whole timeout
    try:
        return client.detect(source, **options)
    except PolywandError as error:
        return error
