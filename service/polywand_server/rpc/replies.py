"""Convert results of the domain to protobuf messages."""

from collections.abc import Iterator
from io import BytesIO
from itertools import pairwise

import numpy as np

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_server.detectors.frames import FrameResult
from polywand_server.errors import PolywandError
from polywand_server.geometry.drawn import Drawn
from polywand_server.interactors.estimate import Candidate, ScoreKind, Segmentation
from polywand_server.interactors.prompt import Incomplete
from polywand_server.rpc.draining import Notices
from polywand_server.rpc.status import to_status
from polywand_server.rpc.wire import delimited
from polywand_server.session.answers import Answer, Forgotten, ImageReady, Reply
from polywand_server.session.segments import Segmented
from polywand_server.timing import Stopwatch

# Replies that are larger are written in a thread.
SMALL_REPLY_BYTES = 64 * 1024
# The largest uint32.
_MOST = 2**32 - 1

_SCORE_KINDS = {
    ScoreKind.MEAN_PROBABILITY: pb.SCORE_KIND_MEAN_PROBABILITY,
    ScoreKind.PREDICTED_IOU: pb.SCORE_KIND_PREDICTED_IOU,
    ScoreKind.SEED: pb.SCORE_KIND_SEED,
}


def write_reply(reply: Reply) -> bytes:
    """Return one answer of an Interact stream: the message `InteractResponse`, serialised."""
    response = pb.InteractResponse(sequence=reply.sequence, object_id=reply.object_id, skipped=reply.skipped)
    outline = b""
    match reply.result:
        case ImageReady(width, height, digest):
            response.image.CopyFrom(pb.ImageInfo(width=width, height=height, digest=digest))
        case Segmentation() as found:
            outline = delimited(pb.InteractResponse.SEGMENTATION_FIELD_NUMBER, _segmentation(found))
        case Incomplete() as lacking:
            response.incomplete.CopyFrom(_incomplete(lacking))
        case PolywandError() as error:
            response.error.CopyFrom(to_status(error))
        case Forgotten(objects):
            response.forgotten.objects = objects
    response.timing.CopyFrom(write_timing(reply.timer))
    return response.SerializeToString() + outline


def write_interact_draining(text: str, remaining_ms: int) -> bytes:
    """Return the announcement of the drain on an Interact stream. remaining_ms: how long the stream has left."""
    return pb.InteractResponse(draining=_draining(text, remaining_ms)).SerializeToString()


def write_frames_draining(text: str, remaining_ms: int) -> bytes:
    """Return the same on a DetectStream."""
    return pb.DetectStreamResponse(draining=_draining(text, remaining_ms)).SerializeToString()


INTERACT_NOTICES = Notices(write_interact_draining, pb.InteractResponse(heartbeat=pb.Heartbeat()).SerializeToString())
FRAMES_NOTICES = Notices(write_frames_draining, pb.DetectStreamResponse(heartbeat=pb.Heartbeat()).SerializeToString())


def write_segment_result(object_id: str, answer: Answer) -> bytes:
    """Return the answer to one prompt as a field of `SegmentResponse`, serialised."""
    result, outline = pb.SegmentResult(object_id=object_id), b""
    match answer:
        case Segmentation() as found:
            outline = delimited(pb.SegmentResult.SEGMENTATION_FIELD_NUMBER, _segmentation(found))
        case Incomplete() as lacking:
            result.incomplete.CopyFrom(_incomplete(lacking))
        case PolywandError() as error:
            result.error.CopyFrom(to_status(error))
    return delimited(pb.SegmentResponse.RESULTS_FIELD_NUMBER, result.SerializeToString(), outline)


def write_segmented(segmented: Segmented[bytes], timer: Stopwatch) -> bytes:
    """Return the answer to one call: the message `SegmentResponse`, serialised.

    Piece by piece, so that a thread that writes a large one does not hold up the others.
    """
    image = pb.ImageInfo(width=segmented.width, height=segmented.height, digest=segmented.digest)
    written = BytesIO()
    written.write(pb.SegmentResponse(image=image, timing=write_timing(timer)).SerializeToString())
    for result in segmented.results:
        written.write(result)
    return written.getvalue()


def write_detections(result: FrameResult, timer: Stopwatch) -> bytes:
    """Return the answer to one frame: the message `DetectResponse`, serialised."""
    width, height, outlines = result.width, result.height, result.outlines
    response = pb.DetectResponse(
        image=pb.ImageInfo(width=width, height=height, digest=result.digest),
        model=result.model,
        version=result.version,
    )
    shapes = [b""] * len(result.detections)
    if outlines is not None:
        response.polygons.model, response.polygons.version = outlines.model, outlines.version
        response.polygons.threshold = outlines.threshold
        drawn = (_shape(shape, width, height) for shape in outlines.shapes)
        shapes = [delimited(pb.Detection.SHAPE_FIELD_NUMBER, shape) for shape in drawn]
    detections = []
    for item, shape in zip(result.detections, shapes, strict=True):
        box = pb.Box(x0=item.box.x0, y0=item.box.y0, x1=item.box.x1, y1=item.box.y1)
        detection = pb.Detection(label=item.label, model_label=item.model_label, score=item.score, box=box)
        number = pb.DetectResponse.DETECTIONS_FIELD_NUMBER
        detections.append(delimited(number, detection.SerializeToString(), shape))
    response.timing.CopyFrom(write_timing(timer))
    return b"".join((response.SerializeToString(), *detections))


def write_frame(frame_id: int, response: bytes | PolywandError) -> bytes:
    """Return one answer of a DetectStream: the message `DetectStreamResponse`, serialised."""
    if isinstance(response, PolywandError):
        return pb.DetectStreamResponse(frame_id=frame_id, error=to_status(response)).SerializeToString()
    head = pb.DetectStreamResponse(frame_id=frame_id).SerializeToString()
    return head + delimited(pb.DetectStreamResponse.RESPONSE_FIELD_NUMBER, response)


def write_timing(timer: Stopwatch) -> pb.Timing:
    """Convert the times of one answer's stages."""

    def microseconds(seconds: float) -> int:
        return min(round(seconds * 1e6), _MOST)

    timing = pb.Timing(total_us=microseconds(timer.total()), inferences=timer.inferences)
    for stage, seconds in timer.seconds.items():
        setattr(timing, f"{stage}_us", microseconds(seconds))
    timing.receive_time.FromMicroseconds(round(timer.received_unix * 1e6))
    return timing


def _draining(text: str, remaining_ms: int) -> pb.Draining:
    return pb.Draining(message=text, remaining_ms=min(remaining_ms, _MOST))


def _segmentation(found: Segmentation) -> bytes:
    """Return an outline and what is known of it: the message `Segmentation`, serialised."""
    message = pb.Segmentation(
        model=found.model,
        version=found.version,
        threshold=found.threshold,
        score=found.score,
        score_kind=_SCORE_KINDS[found.score_kind],
        provisional=found.is_provisional,
    )
    shape = delimited(pb.Segmentation.SHAPE_FIELD_NUMBER, _shape(found.shape, found.width, found.height))
    others = (_candidate(candidate, found.width, found.height) for candidate in found.alternatives)
    number = pb.Segmentation.ALTERNATIVES_FIELD_NUMBER
    return b"".join((message.SerializeToString(), shape, *(delimited(number, other) for other in others)))


def _candidate(candidate: Candidate, width: int, height: int) -> bytes:
    """Return another answer: the message `Candidate`, serialised. width, height: of the image, in pixels."""
    message = pb.Candidate(score=candidate.score)
    shape = _shape(candidate.shape, width, height)
    return message.SerializeToString() + delimited(pb.Candidate.SHAPE_FIELD_NUMBER, shape)


def _incomplete(lacking: Incomplete) -> pb.Incomplete:
    return pb.Incomplete(
        message=str(lacking),
        missing_positive_points=lacking.positive,
        missing_negative_points=lacking.negative,
        missing_extreme_points=lacking.extreme,
        missing_box=lacking.box,
    )


def _shape(shape: Drawn, width: int, height: int) -> bytes:
    """Return an outline: the message `Shape`, serialised. width, height: of the image, in pixels.

    Coordinates are copied as arrays; as Python numbers they would take ten times as long.
    """
    message = pb.Shape(area=shape.area, tolerance=shape.tolerance, iou=shape.iou, png=shape.png or b"")
    if shape.rle is not None:
        message.rle.CopyFrom(pb.RleMask(width=width, height=height, counts=shape.rle))
    if shape.box is not None:
        box = shape.box
        message.box.CopyFrom(pb.Box(x0=box.x0, y0=box.y0, x1=box.x1, y1=box.y1))
    return b"".join((message.SerializeToString(), *_polygons(shape)))


def _polygons(shape: Drawn) -> Iterator[bytes]:
    ends = np.cumsum(shape.ring_sizes).tolist()
    rings = (
        delimited(pb.Ring.COORDINATES_FIELD_NUMBER, shape.coordinates[begin:end].astype("<f4").tobytes())
        for begin, end in pairwise([0, *ends])
    )
    for count in shape.part_sizes.tolist():
        exterior = delimited(pb.Polygon.EXTERIOR_FIELD_NUMBER, next(rings))
        holes = [delimited(pb.Polygon.HOLES_FIELD_NUMBER, next(rings)) for _ in range(count - 1)]
        yield delimited(pb.Shape.POLYGONS_FIELD_NUMBER, exterior, *holes)
