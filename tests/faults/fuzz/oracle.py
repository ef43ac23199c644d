"""The oracle: what of the answers to a case is against the contract."""

from collections import Counter
from collections.abc import Iterator

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from polywand_contract.v1 import annotation_pb2 as pb
from tests.faults.fuzz.case import DETECT, DETECT_STREAM, INTERACT, LIST_MODELS, SEGMENT, Case, Reading
from tests.faults.fuzz.play import Record, accounted
from tests.faults.fuzz.shapes import ROUNDING, shape_breaches
from tests.streams import digest_of

MOST_TEXT_BYTES = 1_000
# What tells a client about the machine, or about the code: paths, addresses, tracebacks.
SECRETS = ("/tmp/", "/dev/shm", "/home/", ".py", "Traceback", "object at 0x", "unix:")
REQUESTS = {
    LIST_MODELS: pb.ListModelsRequest,
    SEGMENT: pb.SegmentRequest,
    INTERACT: pb.InteractRequest,
    DETECT: pb.DetectRequest,
    DETECT_STREAM: pb.DetectStreamRequest,
}
FORBIDDEN = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED)
OF_A_FIELD = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)
# Of an object's name in a reply; longer ones are empty there.
MAX_REPEATED_BYTES = 128
TEMPORARY = grpc.StatusCode.UNAVAILABLE
LIMITED = grpc.StatusCode.RESOURCE_EXHAUSTED
DEFAULT_MAX_DETECTIONS = 100
KNOWN_FORMATS = pb.PixelFormat.values()

# Of one answer, in microseconds; the longest that a prompt may take is 30 s.
LONGEST_US = 600_000_000


def breaches(case: Case, record: Record) -> list[str]:
    """What is against the contract, in words; nothing when all is well."""
    if record.is_hung:
        return [f"no end of the call after {record.seconds:.1f} s"]
    found = list(_end_breaches(case, record))
    if case.method == INTERACT:
        found += _interaction_breaches(case, record)
    elif case.method == DETECT_STREAM:
        found += _frames_breaches(case, record)
    elif case.method == SEGMENT and record.replies:
        found += _segment_breaches(pb.SegmentRequest.FromString(case.messages[0]), record.replies[0])
    elif case.method == DETECT and record.replies:
        found += _detect_breaches(pb.DetectRequest.FromString(case.messages[0]), record.replies[0])
    return found


def error_breaches(status: status_pb2.Status) -> Iterator[str]:
    """Yield what of an error is not as the contract says it."""
    code = _code(status.code)
    if code in FORBIDDEN:
        yield f"{code.name}: {status.message}"
    details = _details(status)
    texts = [status.message, *(violation.description for violation in details[0])]
    for text in texts:
        if len(text.encode()) > MOST_TEXT_BYTES:
            yield f"an error of {len(text.encode())} bytes: {text[:200]}"
        yield from (f"{secret!r} in an error: {text[:200]}" for secret in SECRETS if secret in text)
    has_field = any(violation.field for violation in details[0])
    if code in OF_A_FIELD and not has_field:
        yield f"{code.name} without a field: {status.message}"
    if not any(detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR) for detail in status.details):
        yield f"{code.name} without a reason: {status.message}"
    if code == TEMPORARY and not details[1]:
        yield f"{code.name} without RetryInfo: {status.message}"
    if code == LIMITED and not (has_field or details[1]):
        yield f"{code.name} with neither a field nor RetryInfo: {status.message}"


def _code(number: int) -> grpc.StatusCode:
    return next((code for code in grpc.StatusCode if code.value[0] == number), grpc.StatusCode.UNKNOWN)


def _details(
    status: status_pb2.Status,
) -> tuple[list[error_details_pb2.BadRequest.FieldViolation], list[error_details_pb2.RetryInfo]]:
    violations, retries = [], []
    for detail in status.details:
        bad, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(bad):
            violations += bad.field_violations
        if detail.Unpack(retry):
            retries.append(retry)
    return violations, retries


def _end_breaches(case: Case, record: Record) -> Iterator[str]:
    """Of the call's own status."""
    code = record.code
    if code == grpc.StatusCode.OK or record.is_lost:
        return
    if code == grpc.StatusCode.CANCELLED and case.is_cancelled:
        return
    if code == grpc.StatusCode.UNIMPLEMENTED and case.gzip:
        return
    if code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        yield f"the call ended with {code.name} after {record.seconds:.1f} s: {record.text}"
        return
    status = record.status or status_pb2.Status(code=code.value[0], message=record.text)
    yield from error_breaches(status)
    if code == grpc.StatusCode.INVALID_ARGUMENT and case.method in (INTERACT, DETECT_STREAM):
        count = _decodable(case)
        if count == len(case.messages):
            yield "a stream of messages that can all be parsed ended with INVALID_ARGUMENT"
        elif accounted(case.method, record.replies) != count and case.reading != Reading.NEVER:
            answered = accounted(case.method, record.replies)
            yield f"{answered} of the {count} messages before the one that cannot be parsed are accounted for"


def _decodable(case: Case) -> int:
    """How many messages come before the first that cannot be parsed."""
    for count, data in enumerate(case.messages):
        if _parsed(case.method, data) is None:
            return count
    return len(case.messages)


def _parsed(method: str, data: bytes) -> Message | None:
    try:
        return REQUESTS[method].FromString(data)
    except DecodeError:
        return None


def _interaction_breaches(case: Case, record: Record) -> Iterator[str]:
    requests = [request for data in case.messages if (request := _parsed(INTERACT, data)) is not None]
    sent = Counter((request.sequence, _object_id(request)) for request in requests)
    image: tuple[int, int] | None = None
    answered: Counter[tuple[int, str]] = Counter()
    for data in record.replies:
        reply = pb.InteractResponse.FromString(data)
        kind = reply.WhichOneof("result")
        key = (reply.sequence, reply.object_id)
        answered[key] += 1
        asked = [request for request in requests if (request.sequence, _object_id(request)) == key]
        if kind == "image":
            image = (reply.image.width, reply.image.height)
            yield from _image_breaches(asked, reply.image)
        elif kind == "segmentation":
            if image is None:
                yield "an outline before any image"
                return
            yield from _segmentation_breaches(asked, reply.segmentation, image)
        elif kind == "error":
            yield from error_breaches(reply.error)
        elif kind not in ("incomplete", "forgotten"):
            yield f"a reply of {kind}"
        yield from _timing_breaches(reply.timing)
    if answered - sent:
        yield f"replies to what was not sent, or several to one message: {list(answered - sent)[:5]}"
    if record.code == grpc.StatusCode.OK and not case.is_cancelled:
        count = accounted(INTERACT, record.replies)
        if count != len(case.messages):
            yield f"{count} of {len(case.messages)} messages are accounted for"


def _object_id(request: pb.InteractRequest) -> str:
    name = request.forget.object_id if request.WhichOneof("payload") == "forget" else request.prompt.object_id
    # A name that is refused for its length may not be repeated.
    return name if len(name.encode()) <= MAX_REPEATED_BYTES else ""


def _image_breaches(asked: list[pb.InteractRequest], info: pb.ImageInfo) -> Iterator[str]:
    images = [request.image for request in asked if request.WhichOneof("payload") == "image"]
    size = (info.width, info.height)
    if not images:
        yield "an image is confirmed that was not sent under this sequence"
    elif all(sent.WhichOneof("source") == "raw" and (sent.raw.width, sent.raw.height) != size for sent in images):
        yield f"a raw image is confirmed as {size}"
    if info.digest not in [sent.digest or digest_of(sent) for sent in images if sent.raw.format in KNOWN_FORMATS]:
        yield f"an image is confirmed as {info.digest.hex()}"
    if min(size) < 1:
        yield f"an image of {size} pixels"


def _segmentation_breaches(
    asked: list[pb.InteractRequest], answer: pb.Segmentation, image: tuple[int, int]
) -> Iterator[str]:
    """Where several prompts had this sequence and object, the answer may be to any of them."""
    found: list[list[str]] = []
    for request in asked:
        if request.WhichOneof("payload") == "prompt":
            prompt = request.prompt
            shapes = [answer.shape, *(candidate.shape for candidate in answer.alternatives)]
            wrong = [breach for shape in shapes for breach in shape_breaches(shape, image, prompt.output)]
            found.append([*_echo_breaches(prompt, answer), *_score_breaches(answer), *wrong])
    yield from min(found, key=len, default=["an outline of what was not asked for"])


def _echo_breaches(prompt: pb.Prompt, answer: pb.Segmentation) -> Iterator[str]:
    if (
        answer.model != (prompt.model or answer.model)
        or answer.version < 1
        or prompt.version not in (0, answer.version)
    ):
        yield f"{answer.model} {answer.version} answered instead of {prompt.model} {prompt.version}"
    if prompt.output.HasField("threshold") and answer.threshold != prompt.output.threshold:
        yield f"threshold {answer.threshold} instead of {prompt.output.threshold}"
    if not 0 < answer.threshold < 1:
        yield f"a threshold of {answer.threshold}"


def _score_breaches(answer: pb.Segmentation) -> Iterator[str]:
    scores = [answer.score, *(candidate.score for candidate in answer.alternatives)]
    if any(not 0 <= score <= 1 for score in scores) or scores != sorted(scores, reverse=True):
        yield f"scores {scores}"
    if not answer.score_kind:
        yield "a score of no kind"
    least = answer.threshold * (1 - ROUNDING)
    if answer.score_kind == pb.SCORE_KIND_MEAN_PROBABILITY and 0 < answer.score < least:
        yield f"a mean of {answer.score} of probabilities above {answer.threshold}"


def _timing_breaches(timing: pb.Timing) -> Iterator[str]:
    if not timing.HasField("receive_time"):
        yield "no time of receipt"
    if timing.total_us > LONGEST_US:
        yield f"{timing.total_us} us"


def _frames_breaches(case: Case, record: Record) -> Iterator[str]:
    requests = [request for data in case.messages if (request := _parsed(DETECT_STREAM, data)) is not None]
    replies = [pb.DetectStreamResponse.FromString(data) for data in record.replies]
    if record.code == grpc.StatusCode.OK and not case.is_cancelled and len(replies) != len(case.messages):
        yield f"{len(replies)} answers to {len(case.messages)} frames"
    for request, reply in zip(requests, replies, strict=False):
        if reply.frame_id != request.frame_id:
            yield f"the answer to frame {reply.frame_id} where that to {request.frame_id} was due"
        if reply.HasField("error"):
            yield from error_breaches(reply.error)
        elif reply.HasField("response"):
            yield from _detect_breaches(request.request, reply.response)
        else:
            yield f"a reply of {reply.WhichOneof('result')}"


def _segment_breaches(call: pb.SegmentRequest, data: bytes) -> Iterator[str]:
    response = pb.SegmentResponse.FromString(data)
    image = (response.image.width, response.image.height)
    if len(response.results) != len(call.prompts):
        yield f"{len(response.results)} results of {len(call.prompts)} prompts"
    for asked, result in zip(call.prompts, response.results, strict=False):
        if result.object_id not in (asked.object_id, ""):
            yield f"the object {result.object_id!r} where {asked.object_id!r} was due"
        if result.HasField("error"):
            yield from error_breaches(result.error)
        elif result.HasField("segmentation"):
            whole = pb.Prompt(model=call.model, version=call.version, output=call.output)
            if asked.model:
                whole.model, whole.version = asked.model, asked.version
            if asked.HasField("output"):
                whole.output.CopyFrom(asked.output)
            request = pb.InteractRequest(prompt=whole)
            yield from _segmentation_breaches([request], result.segmentation, image)
        elif not result.HasField("incomplete"):
            yield "a prompt without a result"
    yield from _timing_breaches(response.timing)


def _detect_breaches(request: pb.DetectRequest, response: pb.DetectResponse | bytes) -> Iterator[str]:
    if isinstance(response, bytes):
        response = pb.DetectResponse.FromString(response)
    image = (response.image.width, response.image.height)
    scores = [found.score for found in response.detections]
    if any(not 0 <= score <= 1 for score in scores) or scores != sorted(scores, reverse=True):
        yield f"scores {scores[:10]}"
    most = request.max_detections if request.HasField("max_detections") else DEFAULT_MAX_DETECTIONS
    if len(scores) > most:
        yield f"{len(scores)} detections where {most} were allowed"
    if response.model != (request.model or response.model) or response.version < 1:
        yield f"{response.model} {response.version} answered instead of {request.model}"
    if request.HasField("polygons") != response.HasField("polygons"):
        yield "outlines where none were asked for, or none where they were"
    mapped = {pair.model_label: pair for pair in request.labels}
    for found in response.detections:
        box = found.box
        if not (0 <= box.x0 < box.x1 <= image[0] and 0 <= box.y0 < box.y1 <= image[1]):
            yield f"a box ({box.x0}, {box.y0}, {box.x1}, {box.y1}) on {image}"
        if mapped:
            pair = mapped.get(found.model_label, pb.LabelMapping())
            if found.label != (pair.label or pair.model_label):
                yield f"the label {found.label!r} of {found.model_label!r}"
            if pair.HasField("threshold") and found.score < pair.threshold:
                yield f"a score of {found.score} where {pair.threshold} was the least"
        if request.HasField("polygons"):
            yield from shape_breaches(found.shape, image, request.polygons.output)
    yield from _timing_breaches(response.timing)
