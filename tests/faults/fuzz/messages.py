"""Messages of the contract: plausible ones, and the same with hostile values in some of their fields."""

import random
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from polywand_contract.v1 import annotation_pb2 as pb
from tests.faults.fuzz import values
from tests.faults.fuzz.case import DETECT, DETECT_STREAM, INTERACT, SEGMENT, Await, Case, Send
from tests.faults.fuzz.seeds import make_seed
from tests.faults.fuzz.sizes import Sizes, copies
from tests.streams import digest_of

INTERACTORS = ("wand_click", "wand_box", "wand_extreme", "", "grabcut")  # "" is the server's choice
WEIGHTS = (8, 4, 2, 2, 1)  # GrabCut takes longest
FORMS = (pb.OUTPUT_FORM_POLYGONS, pb.OUTPUT_FORM_RLE, pb.OUTPUT_FORM_PNG, pb.OUTPUT_FORM_BOX)
LARGEST_SIDE = 96
LABELS = ("person", "car", "cup", "no such label")
PIXEL_BYTES = {
    pb.PIXEL_FORMAT_RGB8: 3,
    pb.PIXEL_FORMAT_BGR8: 3,
    pb.PIXEL_FORMAT_GRAY8: 1,
    pb.PIXEL_FORMAT_RGBA8: 4,
    pb.PIXEL_FORMAT_GRAY16: 2,
}
# Of a repeated message's items, so many are gone into; they are much alike.
ITEMS_VISITED = 3


def hostile_messages(rng: random.Random, sizes: Sizes) -> Case:
    """A call with messages that are well-formed, and mostly wrong in one to three fields."""
    method = rng.choices((INTERACT, SEGMENT, DETECT, DETECT_STREAM), (6, 2, 1, 1))[0]
    if method == INTERACT:
        steps = interaction(rng, sizes, prompts=rng.randint(1, 5), spoil=spoil)
    elif method == SEGMENT:
        call = make_segment(rng, sizes)
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            spoil(call, rng, sizes)
        steps = [Send(call.SerializeToString())]
    else:
        count = 1 if method == DETECT else rng.randint(1, 4)
        frames = [make_frame(rng) if method == DETECT_STREAM else make_detect(rng) for _ in range(count)]
        steps = [Send(_spoiled_frame(frame, rng, sizes).SerializeToString()) for frame in frames]
    return Case("messages", method, tuple(steps))


def interaction(
    rng: random.Random, sizes: Sizes, prompts: int, spoil: Callable[[Message, random.Random, Sizes], None]
) -> list[Send | Await]:
    """An image, which is good in most cases, and prompts that `spoil` has changed."""
    image = make_image(rng)
    width, height = image.raw.width, image.raw.height
    first = pb.InteractRequest(sequence=1, image=image)
    steps: list[Send | Await] = [Send(first.SerializeToString())]
    if rng.random() < 0.2:
        again = pb.InteractRequest(sequence=1, image=pb.Image(digest=digest_of(image)))
        steps.append(Send(again.SerializeToString()))
    if rng.random() < 0.2:
        spoil(first, rng, sizes)
        steps.append(Send(first.SerializeToString()))
    for number in range(prompts):
        request = pb.InteractRequest(sequence=2 + number)
        if rng.random() < 0.1:
            request.forget.CopyFrom(make_forget(rng))
        else:
            request.prompt.CopyFrom(make_prompt(rng, width, height, sizes))
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
            spoil(request, rng, sizes)
        steps.append(Send(request.SerializeToString()))
        if rng.random() < 0.5:
            steps.append(Await(len([step for step in steps if isinstance(step, Send)])))
    return steps


def make_image(rng: random.Random) -> pb.Image:
    """A small raw image."""
    width, height = rng.randint(1, LARGEST_SIDE), rng.randint(1, LARGEST_SIDE)
    layout = rng.choice(list(PIXEL_BYTES))
    data = rng.randbytes(width * height * PIXEL_BYTES[layout])
    return pb.Image(raw=pb.RawImage(data=data, width=width, height=height, format=layout))


def make_prompt(rng: random.Random, width: int, height: int, sizes: Sizes) -> pb.Prompt:
    """A prompt that fits an image of this size, if not always its model."""
    model = rng.choices(INTERACTORS, WEIGHTS)[0]
    prompt = pb.Prompt(model=model, object_id=rng.choice(("", "a", "b", "c")), output=make_output(rng))
    if rng.random() < 0.5:
        prompt.seed.CopyFrom(make_seed(rng, width, height, sizes))
    if model == "wand_extreme" or (not model and rng.random() < 0.3):
        labels = [pb.POINT_LABEL_EXTREME] * 4
    else:
        labels = [pb.POINT_LABEL_POSITIVE, pb.POINT_LABEL_NEGATIVE][: rng.choice((0, 1, 1, 2))]
    if not prompt.HasField("seed") or rng.random() < 0.2:  # a seed alone costs no inference
        for label in labels:
            prompt.points.add(x=rng.uniform(0, width), y=rng.uniform(0, height), label=label)
        if rng.random() < 0.3 or model == "wand_box":
            prompt.box.CopyFrom(make_box(rng, width, height))
    return prompt


def make_segment(rng: random.Random, sizes: Sizes) -> pb.SegmentRequest:
    """A call of one prompt or a few, on a small image or a part of it."""
    image = make_image(rng)
    width, height = image.raw.width, image.raw.height
    call = pb.SegmentRequest(image=image)
    call.prompts.extend(make_prompt(rng, width, height, sizes) for _ in range(rng.choice((1, 1, 2, 4))))
    if rng.random() < 0.3:
        call.roi.CopyFrom(make_box(rng, width, height))
    if rng.random() < 0.3:
        call.model = rng.choice(INTERACTORS)
    if rng.random() < 0.3:
        call.output.CopyFrom(make_output(rng))
    return call


def make_forget(rng: random.Random) -> pb.Forget:
    """One of the objects of `make_prompt`, or all."""
    return rng.choice((pb.Forget(all=True), *(pb.Forget(object_id=name) for name in ("", "a", "b", "c"))))


def make_box(rng: random.Random, width: float, height: float) -> pb.Box:
    """A box inside an image of this size."""
    (x0, x1), (y0, y1) = (sorted((rng.uniform(0, side), rng.uniform(0, side))) for side in (width, height))
    return pb.Box(x0=x0, y0=y0, x1=x1, y1=y1)


def make_output(rng: random.Random) -> pb.OutputOptions:
    """Output options within their limits; each is absent in half of all cases."""
    output = pb.OutputOptions()
    if rng.random() < 0.3:
        output.forms.extend(rng.choices(FORMS, k=rng.randint(1, 6)))  # some of them several times
    elif rng.random() < 0.5:
        output.forms.extend((pb.OUTPUT_FORM_POLYGONS, pb.OUTPUT_FORM_RLE))
    if rng.random() < 0.5:
        output.threshold = rng.choice((1e-6, 0.05, 0.5, 0.95, 0.999999))
    if rng.random() < 0.5:
        output.tolerance = rng.choice((0, 0, 1e-6, 0.5, 3, 50, 1000))
    if rng.random() < 0.5:
        output.max_points = rng.choice((3, 4, 5, 10, 50, 1000, 100_000))
    return output


def make_detect(rng: random.Random) -> pb.DetectRequest:
    """A detection on a small image."""
    request = pb.DetectRequest(model=rng.choice(("nanodet", "nanodet", "")), image=make_image(rng))
    if rng.random() < 0.5:
        request.threshold = rng.choice((0.02, 0.05, 0.4, 0.99, 1.0))
    if rng.random() < 0.5:
        request.max_detections = rng.choice((1, 2, 10))
    if rng.random() < 0.3:
        for name in rng.sample(LABELS, rng.choice((1, 1, 2, 4))):
            mapping = request.labels.add(model_label=name, label=rng.choice(("thing", "")))
            if rng.random() < 0.5:
                mapping.threshold = rng.choice((0.0, 0.02, 0.5, 1.0))
    if rng.random() < 0.3:
        request.roi.CopyFrom(make_box(rng, request.image.raw.width, request.image.raw.height))
    if rng.random() < 0.3:
        request.max_detections = 2  # each outline is an inference
        request.polygons.CopyFrom(pb.PolygonOptions(model=rng.choice(INTERACTORS), output=make_output(rng)))
    return request


def make_frame(rng: random.Random) -> pb.DetectStreamRequest:
    """A frame of a stream."""
    return pb.DetectStreamRequest(frame_id=rng.choice((0, 1, 7, 2**32 - 1)), request=make_detect(rng))


def _spoiled_frame(
    frame: pb.DetectRequest | pb.DetectStreamRequest, rng: random.Random, sizes: Sizes
) -> pb.DetectRequest | pb.DetectStreamRequest:
    """The frame itself, after none to three hostile changes; it never asks for more outlines than the sizes allow."""
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        spoil(frame, rng, sizes)
    request = frame if isinstance(frame, pb.DetectRequest) else frame.request
    if request.HasField("polygons"):
        wanted = request.max_detections if request.HasField("max_detections") else sizes.outlines
        request.max_detections = min(wanted, sizes.outlines)
    return frame


def spoil(message: Message, rng: random.Random, sizes: Sizes) -> None:
    """Make one hostile change in one field, of any depth, set or not."""
    inner, field = rng.choice(list(_fields(message)))
    if field.is_repeated:
        _spoil_repeated(inner, field, rng, sizes)
    elif field.message_type is not None:
        inner.ClearField(field.name)
        if rng.random() < 0.6:
            getattr(inner, field.name).SetInParent()
    elif rng.random() < 0.1:
        inner.ClearField(field.name)
    else:
        setattr(inner, field.name, values.scalar(field, rng))


def _fields(message: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    for field in message.DESCRIPTOR.fields:
        yield message, field
        if field.message_type is None or _is_map(field):
            continue
        if field.is_repeated:
            for item in getattr(message, field.name)[:ITEMS_VISITED]:
                yield from _fields(item)
        elif message.HasField(field.name):
            yield from _fields(getattr(message, field.name))


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _spoil_repeated(message: Message, field: FieldDescriptor, rng: random.Random, sizes: Sizes) -> None:
    items = getattr(message, field.name)
    if rng.random() < 0.2:
        message.ClearField(field.name)
    elif _is_map(field):
        name, label = values.text(rng), values.text(rng)
        for number in range(copies(rng, sizes, len(name) + len(label) + 8)):
            items[f"{name}{number}" if number else name] = label
    elif field.message_type is None:
        _spoil_numbers(items, field, rng, copies(rng, sizes, 4))
    elif items and rng.random() < 0.5:
        item = items[rng.randrange(len(items))]
        items.extend([item] * copies(rng, sizes, item.ByteSize()))
    else:
        for _ in range(copies(rng, sizes, 2)):
            items.add()


def _spoil_numbers(items: Any, field: FieldDescriptor, rng: random.Random, count: int) -> None:
    if items and rng.random() < 0.5:
        items[rng.randrange(len(items))] = values.scalar(field, rng)
    else:
        items.extend([values.scalar(field, rng)] * count)
