"""The method Segment: between messages and prompts on one image."""

from contextlib import AsyncExitStack
from functools import partial

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_server.caller import current
from polywand_server.errors import InvalidInputError, TooLargeError
from polywand_server.lanes import Lane
from polywand_server.ops import tracing
from polywand_server.rpc.intake import Refused, is_small, receive_segment
from polywand_server.rpc.messages import Context, Messages
from polywand_server.rpc.prompts import in_terms_of_the_call, read_prompts
from polywand_server.rpc.replies import SMALL_REPLY_BYTES, write_segment_result, write_segmented
from polywand_server.rpc.requests import read_image, read_roi, short_names
from polywand_server.session.answers import Answer, answer_bytes
from polywand_server.session.segments import Segments

# Of all answers of one call; a prompt whose answer does not fit any more is refused.
MAX_ANSWER_BYTES = 32 * 1024 * 1024


class SegmentCalls:
    """Serves calls. lane: for messages that take long to read or to write."""

    def __init__(self, segments: Segments, messages: Messages, lane: Lane) -> None:
        self._segments = segments
        self._messages = messages
        self._lane = lane

    async def segment(self, context: Context) -> bytes:
        """Answer one call.

        Raises:
            DecodeError, PolywandError
        """
        async with AsyncExitStack() as stack, AsyncExitStack() as until_paused:
            waiting = stack.enter_context(self._segments.waiting())
            data = await self._messages.prompts(context, until_paused)
            timer, nbytes = tracing.call_timer(), len(data)
            with self._messages.body(nbytes):
                received = await receive_segment(data, self._lane)
                del data
                if isinstance(received, Refused):
                    raise received.error
                request = received.message
                prompts = await self._lane.compute_if(not is_small(nbytes), lambda: read_prompts(request))
                roi = read_roi(request)
                source = read_image(request.image, received.image, "image")
                del received
                waiting.are(len(prompts))
                current().usage.prompts += len(prompts)
                results = _Results(request, self._lane)
                if len(prompts) == 1:
                    segmented = await self._segments.one(source, roi, prompts[0], timer, waiting, results.write)
                else:
                    await self._messages.wait_as_frame(until_paused)
                    segmented = await self._segments.many(
                        source, roi, prompts, timer, until_paused, waiting, results.write
                    )
        timer.finish("segment", prompts=len(prompts), pixels=segmented.width * segmented.height)
        is_large = sum(map(len, segmented.results)) > SMALL_REPLY_BYTES
        return await self._lane.compute_if(is_large, partial(write_segmented, segmented, timer))


class _Results:
    """Writes the answers of one call, each as soon as there is one. lane: for large ones."""

    def __init__(self, request: pb.SegmentRequest, lane: Lane) -> None:
        self._prompts = [(short_names(prompt)[0], not (prompt.model or prompt.version)) for prompt in request.prompts]
        self._lane = lane
        self._bytes_left = MAX_ANSWER_BYTES

    async def write(self, number: int, answer: Answer) -> bytes:
        """Write the answer to the prompt of this number."""
        object_id, has_calls_model = self._prompts[number]
        if isinstance(answer, InvalidInputError):
            answer = in_terms_of_the_call(answer, number, has_calls_model=has_calls_model)
        is_large = answer_bytes(answer) > SMALL_REPLY_BYTES
        data = await self._lane.compute_if(is_large, partial(write_segment_result, object_id, answer))
        if len(data) > self._bytes_left:
            most = MAX_ANSWER_BYTES >> 20
            error = TooLargeError(
                f"prompts[{number}]",
                f"the answers of this call have more than {most} MiB: send fewer prompts in one call",
            )
            return write_segment_result(object_id, error)
        self._bytes_left -= len(data)
        return data
