"""Sequences on a stream: good and bad messages in an order, at a pace, and with an end that no client should choose."""

import random
from collections.abc import Callable

from polywand_contract.v1 import annotation_pb2 as pb
from tests.faults.fuzz.case import (
    DETECT,
    DETECT_STREAM,
    INTERACT,
    Await,
    Cancel,
    Case,
    Pause,
    Reading,
    Send,
    Step,
)
from tests.faults.fuzz.messages import make_detect, make_forget, make_frame, make_image, make_prompt
from tests.faults.fuzz.seeds import make_parts
from tests.faults.fuzz.sizes import Sizes, up_to

LAST_SEQUENCE = 2**32 - 1


def hostile_stream(rng: random.Random, sizes: Sizes) -> Case:
    """One of the sequences below."""
    return rng.choice(SEQUENCES)(rng, sizes)


def _send(sequence: int, message: pb.Image | pb.Prompt | pb.Forget | None) -> Send:
    request = pb.InteractRequest(sequence=sequence)
    if isinstance(message, pb.Image):
        request.image.CopyFrom(message)
    elif isinstance(message, pb.Forget):
        request.forget.CopyFrom(message)
    elif message is not None:
        request.prompt.CopyFrom(message)
    return Send(request.SerializeToString())


def _click(rng: random.Random, image: pb.Image, object_id: str = "") -> pb.Prompt:
    point = pb.Point(
        x=rng.uniform(0, image.raw.width), y=rng.uniform(0, image.raw.height), label=pb.POINT_LABEL_POSITIVE
    )
    return pb.Prompt(model="wand_box", object_id=object_id, points=[point], box=_whole(image))


def _whole(image: pb.Image) -> pb.Box:
    return pb.Box(x1=image.raw.width, y1=image.raw.height)


def _square(side: int) -> pb.Image:
    return pb.Image(raw=pb.RawImage(data=bytes(side * side * 3), width=side, height=side, format=pb.PIXEL_FORMAT_RGB8))


def _large_answers(rng: random.Random, sizes: Sizes, count: int) -> list[Step]:
    """An image, and seeds of many parts, each of an object of its own, whose every vertex is asked for."""
    side = rng.randint(sizes.seed_side // 2, sizes.seed_side)
    steps: list[Step] = [_send(1, _square(side))]
    for number in range(count):
        forms = (pb.OUTPUT_FORM_POLYGONS, rng.choice((pb.OUTPUT_FORM_RLE, pb.OUTPUT_FORM_PNG)))
        output = pb.OutputOptions(tolerance=0, forms=forms)
        prompt = pb.Prompt(model="wand_click", object_id=str(number), seed=make_parts(rng, side), output=output)
        steps.append(_send(2 + number, prompt))
    return steps


def _before_an_image(rng: random.Random, sizes: Sizes) -> Case:
    image = make_image(rng)
    early = [_send(number, make_prompt(rng, 10, 10, sizes)) for number in range(rng.randint(1, 10))]
    steps = [*early, _send(20, None), _send(21, image), _send(22, _click(rng, image))]
    return Case("prompts before an image", INTERACT, tuple(steps))


def _wild_sequences(rng: random.Random, sizes: Sizes) -> Case:
    """Sequences that decrease, repeat, and end at the largest number there is."""
    image = make_image(rng)
    choices = (0, 1, 2, 5, 5, 5, 2**16, 2**31, LAST_SEQUENCE)
    numbers = [rng.choice(choices) for _ in range(rng.randint(2, 12))]
    messages = [
        image,
        *(rng.choice((image, make_prompt(rng, image.raw.width, image.raw.height, sizes), None)) for _ in numbers),
    ]
    return Case("wild sequences", INTERACT, tuple(map(_send, [0, *numbers], messages)))


def _cancelled(rng: random.Random, sizes: Sizes) -> Case:
    """Cancelled while an image is decoded, while the network runs, while outlines are drawn, or while replies wait."""
    image = make_image(rng)
    steps: list[Step] = [_send(1, image)]
    if rng.random() < 0.5:
        steps.append(Await(1))
    for number in range(rng.randint(0, 6)):
        click = rng.random() < 0.4
        prompt = (
            _click(rng, image, str(number)) if click else make_prompt(rng, image.raw.width, image.raw.height, sizes)
        )
        steps.append(_send(2 + number, prompt))
    steps += [Pause(rng.choice((0, 0, 0.001, 0.005, 0.02, 0.1))), Cancel()]
    return Case("cancelled", INTERACT, tuple(steps))


def _cancelled_frames(rng: random.Random, sizes: Sizes) -> Case:
    frames = [Send(make_frame(rng).SerializeToString()) for _ in range(rng.randint(0, 6))]
    return Case("cancelled frames", DETECT_STREAM, (*frames, Pause(rng.choice((0, 0.005, 0.05))), Cancel()))


def _cancelled_detect(rng: random.Random, sizes: Sizes) -> Case:
    request = Send(make_detect(rng).SerializeToString())
    return Case("cancelled detect", DETECT, (request, Pause(rng.choice((0, 0.005, 0.05))), Cancel()))


def _never_read(rng: random.Random, sizes: Sizes) -> Case:
    """Answers that are never read, until the client goes."""
    steps = _large_answers(rng, sizes, rng.randint(5, 40))
    return Case("never read", INTERACT, (*steps, Pause(0.3), Cancel()), reading=Reading.NEVER)


def _frames_never_read(rng: random.Random, sizes: Sizes) -> Case:
    """Errors, which cost nothing, that are never read."""
    frame = pb.DetectStreamRequest(frame_id=5, request=pb.DetectRequest(model="x" * 256))
    steps = [Send(frame.SerializeToString())] * rng.randint(10, 300)
    return Case("frames never read", DETECT_STREAM, (*steps, Pause(0.2), Cancel()), reading=Reading.NEVER)


def _slowly_read(rng: random.Random, sizes: Sizes) -> Case:
    steps = _large_answers(rng, sizes, rng.randint(3, 10))
    return Case("slowly read", INTERACT, tuple(steps), reading=Reading.SLOWLY)


def _images_at_once(rng: random.Random, sizes: Sizes) -> Case:
    """Images one behind the other, with prompts between them that the next image makes superfluous."""
    steps: list[Step] = []
    sequence = 0
    for _ in range(rng.randint(2, 5)):
        image = make_image(rng)
        steps.append(_send(sequence := sequence + 1, image))
        for _ in range(rng.randint(0, 4)):
            prompt = make_prompt(rng, image.raw.width, image.raw.height, sizes)
            steps.append(_send(sequence := sequence + 1, prompt))
    return Case("images at once", INTERACT, tuple(steps))


def _many_objects(rng: random.Random, sizes: Sizes) -> Case:
    image = _square(16)
    steps: list[Step] = [_send(1, image)]
    seed = make_parts(rng, 16)
    for number in range(up_to(rng, sizes.objects)):
        steps.append(_send(2, pb.Prompt(model="wand_click", object_id=f"{number}", seed=seed)))
    steps.append(_send(3, _click(rng, image)))
    return Case("many objects", INTERACT, tuple(steps))


def _flood(rng: random.Random, sizes: Sizes) -> Case:
    """Prompts of one object, faster than they can be answered: most are superseded."""
    image = make_image(rng)
    prompts = [_click(rng, image, "one") for _ in range(up_to(rng, sizes.objects))]
    return Case("flood", INTERACT, tuple(map(_send, range(1, len(prompts) + 2), [image, *prompts])))


def _forgotten_at_once(rng: random.Random, sizes: Sizes) -> Case:
    """Objects that are forgotten while they are worked on, and begin anew."""
    image = make_image(rng)
    steps: list[Step] = [_send(1, image)]
    for number in range(2, 2 + rng.randint(4, 20)):
        forget = rng.random() < 0.4
        steps.append(_send(number, make_forget(rng) if forget else _click(rng, image, rng.choice("abc"))))
        if rng.random() < 0.2:
            steps.append(Pause(rng.choice((0.001, 0.005, 0.02))))
    return Case("forgotten at once", INTERACT, tuple(steps))


def _nothing(rng: random.Random, sizes: Sizes) -> Case:
    """No message at all, or an empty one."""
    method = rng.choice((INTERACT, DETECT_STREAM))
    steps: tuple[Step, ...] = rng.choice(((), (Send(b""),), (Send(b""), Send(b"")), (Pause(0.05),), (Cancel(),)))
    return Case("nothing", method, steps)


def _mixed_frames(rng: random.Random, sizes: Sizes) -> Case:
    """Good and bad frames in turns, more than are in work at a time."""
    bad = (
        pb.DetectStreamRequest(),
        pb.DetectStreamRequest(frame_id=3, request=pb.DetectRequest(model="no such model")),
        pb.DetectStreamRequest(frame_id=4, request=pb.DetectRequest(model="wand_click", image=_square(2))),
        pb.DetectStreamRequest(frame_id=5, request=pb.DetectRequest(model="nanodet")),
    )
    frames = [rng.choice((make_frame(rng), *bad)) for _ in range(rng.randint(3, 12))]
    return Case("mixed frames", DETECT_STREAM, tuple(Send(frame.SerializeToString()) for frame in frames))


SEQUENCES: tuple[Callable[[random.Random, Sizes], Case], ...] = (
    *(_before_an_image, _wild_sequences, _cancelled, _cancelled, _cancelled_frames, _cancelled_detect, _never_read),
    *(
        _frames_never_read,
        _slowly_read,
        _images_at_once,
        _many_objects,
        _flood,
        _nothing,
        _mixed_frames,
        _forgotten_at_once,
    ),
)
