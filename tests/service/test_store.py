"""The store of decoded images: each is decoded once, and comes back by its digest while there is room for it."""

import asyncio
import hashlib
import signal
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import cv2
import grpc
import numpy as np
import psutil
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1.annotation_pb2_grpc import AnnotationServiceStub
from polywand_pictures import PixelFormat, RawPixels, ValueRange
from polywand_server import caller
from polywand_server.admission.quotas import Accounts
from polywand_server.config import Limits
from polywand_server.errors import ImageNotHeldError, InvalidInputError, QuotaError, or_error
from polywand_server.images import EncodedImage, ImageDigest, ImageStore, Lease, RawImage
from polywand_server.images.budget import PictureBudget
from polywand_server.images.decoder import Decoder
from polywand_server.images.holders import Holders
from polywand_server.images.kept import KeptPictures
from polywand_server.images.picture import pyramid_bytes
from polywand_server.principal import Principal, Role
from polywand_server.timing import Stopwatch
from polywand_server.workers.pool import Workers
from tests.faults.footprint import descriptors
from tests.pictures.writers import png
from tests.puppets import KEPT_IMAGES_MEBIBYTES
from tests.running import Service, images_in_use, run_the_others, until, wait_for
from tests.streams import POSITIVE, InteractStream, prompt, raw_image, stream_to

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
DECODED, REFUSED = (f'polywand_images_total{{outcome="{word}"}}' for word in ("decoded", "refused"))
HITS, MISSES = (f'polywand_image_lookups_total{{outcome="{word}"}}' for word in ("hit", "miss"))
OVER_LIMIT, FOR_ROOM = (f'polywand_image_evictions_total{{reason="{word}"}}' for word in ("limit", "room"))
KEPT = "polywand_kept_image_memory_bytes"
STREAMS = 'polywand_grpc_active_streams{method="polywand.v1.AnnotationService/Interact"}'
CLICK = prompt("disk", (100, 100, POSITIVE), tolerance=0)
# Four images of this side and their pyramids are all that is kept.
SIDE = 1000
FOUR_FIT = KEPT_IMAGES_MEBIBYTES * 2**20 // pyramid_bytes(SIDE, SIDE)


class Shades:
    """Images that no test has sent before, each of one colour."""

    def __init__(self) -> None:
        self._next = 0

    def pixels(self, side: int = 256) -> np.ndarray:
        """RGB uint8 [side, side, 3]."""
        self._next += 1
        return np.full((side, side, 3), (self._next // 256, self._next % 256, 77), np.uint8)

    def raw(self, side: int = 256) -> pb.Image:
        return raw_image(self.pixels(side))

    def jpeg(self, side: int = 256) -> bytes:
        return cv2.imencode(".jpg", self.pixels(side))[1].tobytes() + self._next.to_bytes(4, "big")


@pytest.fixture(scope="module")
def shades() -> Shades:
    return Shades()


def by_digest(digest: bytes, said: pb.ValueRange | None = None) -> pb.Image:
    return pb.Image(digest=digest, value_range=said)


def detect(stub: AnnotationServiceStub, image: pb.Image) -> pb.DetectResponse:
    """Send an image in a call that is over, with its lease, when it is answered."""
    return stub.Detect(pb.DetectRequest(model="finder", image=image))


def is_held(stub: AnnotationServiceStub, digest: bytes) -> bool:
    """Whether the service holds an image. This counts as a use of it."""
    call = stub.Detect.future(pb.DetectRequest(model="finder", image=by_digest(digest)))
    assert call.code() in (grpc.StatusCode.OK, NOT_FOUND)
    return call.code() is grpc.StatusCode.OK


def detail_of(status: Any, kind: type[Message]) -> Any:
    found = kind()
    assert any(detail.Unpack(found) for detail in status.details), status
    return found


# -- by digest


def test_a_file_comes_back_by_its_digest_without_its_bytes_and_without_decoding(puppets, idle_stub, shades):
    data = shades.jpeg()
    with InteractStream(idle_stub) as stream:
        first = stream.ask(pb.Image(encoded=data))
        assert first.image.digest == hashlib.sha256(data).digest()
        assert first.timing.decode_us > 0
        answer = stream.ask(CLICK).segmentation
        before = puppets.metric(DECODED)
        again = stream.ask(by_digest(first.image.digest))
        assert again.image == first.image
        assert again.timing.decode_us == 0
        assert stream.ask(CLICK).segmentation == answer
        assert puppets.metric(DECODED) == before


def test_the_digest_of_raw_pixels_counts_format_and_size(idle_stub):
    data = bytes(range(12))
    for form, width, height in (("RGB8", 4, 1), ("RGB8", 1, 4), ("BGR8", 2, 2), ("RGBA8", 3, 1), ("GRAY16", 3, 2)):
        raw = pb.RawImage(data=data, width=width, height=height, format=pb.PixelFormat.Value(f"PIXEL_FORMAT_{form}"))
        image = detect(idle_stub, pb.Image(raw=raw)).image
        assert (image.width, image.height) == (width, height)
        assert image.digest == hashlib.sha256(f"{form} {width} {height}\n".encode() + data).digest()
        assert detect(idle_stub, by_digest(image.digest)).image == image


def test_a_stream_is_taken_up_again_on_another_connection_by_digest_alone(puppets, idle_stub, shades):
    with stream_to(puppets.target) as stream:
        digest = stream.ask(shades.raw()).image.digest
        answer = stream.ask(CLICK).segmentation
    wait_for(lambda: images_in_use(puppets) == 0, 60, puppets)
    before = puppets.metric(DECODED)
    with stream_to(puppets.target) as stream:
        reply = stream.ask(by_digest(digest))
        assert reply.image.width == 256
        assert reply.timing.decode_us == 0
        assert stream.ask(CLICK).segmentation == answer
    assert detect(idle_stub, by_digest(digest)).image.digest == digest
    assert puppets.metric(DECODED) == before


def test_a_photo_that_comes_with_every_call_is_decoded_once(puppets, idle_stub, shades):
    image, before = pb.Image(encoded=shades.jpeg()), puppets.metric(DECODED)
    first = detect(idle_stub, image)
    for _ in range(3):
        again = detect(idle_stub, image)
        assert again.timing.decode_us == 0
        assert again.detections == first.detections
    with InteractStream(idle_stub) as stream:
        assert stream.ask(image).image == first.image
    assert puppets.metric(DECODED) == before + 1


def test_calls_of_every_kind_share_what_is_held(puppets, idle_stub, shades):
    image, before = pb.Image(encoded=shades.jpeg()), puppets.metric(DECODED)
    segmented = idle_stub.Segment(pb.SegmentRequest(image=image, prompts=[CLICK]))
    digest = segmented.image.digest
    again = idle_stub.Segment(pb.SegmentRequest(image=by_digest(digest), prompts=[CLICK, CLICK]))
    assert again.timing.decode_us == 0
    assert [result.segmentation for result in again.results] == [segmented.results[0].segmentation] * 2
    assert detect(idle_stub, by_digest(digest)).image == segmented.image
    with InteractStream(idle_stub) as stream:
        assert stream.ask(by_digest(digest)).image == segmented.image
        assert stream.ask(CLICK).segmentation == segmented.results[0].segmentation
    assert puppets.metric(DECODED) == before + 1


def test_a_digest_that_is_not_held_is_not_found_and_the_image_before_it_stays(idle_stub, shades):
    unknown = hashlib.sha256(b"never sent").digest()
    with InteractStream(idle_stub) as stream:
        stream.ask(shades.raw())
        error = stream.ask(by_digest(unknown)).error
        assert error.code == NOT_FOUND.value[0]
        reason = detail_of(error, error_details_pb2.ErrorInfo)
        assert (reason.domain, reason.reason) == ("polywand", "IMAGE_NOT_HELD")
        assert detail_of(error, error_details_pb2.BadRequest).field_violations[0].field == "image.digest"
        assert stream.ask(CLICK).HasField("segmentation")
    with pytest.raises(grpc.RpcError) as caught:
        detect(idle_stub, by_digest(unknown))
    assert caught.value.code() is NOT_FOUND
    status = rpc_status.from_call(caught.value)
    assert detail_of(status, error_details_pb2.ErrorInfo).reason == "IMAGE_NOT_HELD"
    assert detail_of(status, error_details_pb2.ResourceInfo).resource_name == unknown.hex()


@pytest.mark.parametrize("nbytes", [0, 31, 33, 100_000])
def test_what_cannot_be_a_digest_is_refused_with_its_length(idle_stub, nbytes):
    with InteractStream(idle_stub) as stream:
        error = stream.ask(by_digest(b"d" * nbytes)).error
        assert error.code == INVALID.value[0]
        violation = detail_of(error, error_details_pb2.BadRequest).field_violations[0]
        assert violation.field == "image.digest"
        assert "32 bytes" in violation.description
        assert f"{nbytes} came" in violation.description


def test_the_range_of_values_belongs_to_what_is_held(idle_stub):
    """The same file with another range is another picture, and is found by file and range."""
    data = png(np.linspace(0, 9999, 64 * 64).reshape(64, 64).astype(np.uint16))
    narrow, wide = pb.ValueRange(low=0, high=1000), pb.ValueRange(low=0, high=60_000)
    bright = prompt("brighter", (0.5, 200.5, POSITIVE), tolerance=0)
    with InteractStream(idle_stub) as stream:
        digest = stream.ask(pb.Image(encoded=data, value_range=narrow)).image.digest
        assert digest == hashlib.sha256(data).digest()
        most = stream.ask(pb.Prompt(model="brighter", points=[pb.Point(x=0.1, y=40, label=POSITIVE)])).segmentation
        assert most.shape.area > 0.8 * 64 * 64
        for said in (None, wide):
            assert stream.ask(by_digest(digest, said)).error.code == NOT_FOUND.value[0]
        assert stream.ask(pb.Image(encoded=data, value_range=wide)).image.digest == digest
        assert stream.ask(bright).segmentation.shape.area == 0
        again = stream.ask(by_digest(digest, narrow))
        assert again.timing.decode_us == 0
        error = stream.ask(by_digest(digest, pb.ValueRange(low=float("nan"), high=1))).error
        assert detail_of(error, error_details_pb2.BadRequest).field_violations[0].field == "image.value_range"


# -- decoded once


def test_fifty_clients_that_open_the_same_photo_at_once_have_it_decoded_once(puppets, idle_stub, shades):
    image, before = pb.Image(encoded=shades.jpeg(1900)), puppets.metric(DECODED)
    with ExitStack() as stack:
        streams = [stack.enter_context(stream_to(puppets.target)) for _ in range(50)]
        for stream in streams:
            stream.send(image)
        assert {stream.receive(60).image.width for stream in streams} == {1900}
        assert puppets.metric(DECODED) == before + 1
        assert images_in_use(puppets) == pyramid_bytes(1900, 1900)


@contextmanager
def stopped_decoders(service: Service) -> Iterator[None]:
    """Stop the processes that decode files other than ordinary photos, until the block ends."""
    processes = []
    for child in psutil.Process(service.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if "polywand_server.workers.spawner" in " ".join(child.cmdline()):
                processes.append(child)
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


def begin_together(service: Service, stub: AnnotationServiceStub, image: pb.Image, stack: ExitStack) -> list:
    """Open an image on two streams: the first begins to decode it, and the second waits for that."""
    misses, hits = service.metric(MISSES), service.metric(HITS)
    first, second = InteractStream(stub), InteractStream(stub)
    stack.enter_context(first).send(image)
    wait_for(lambda: service.metric(MISSES) == misses + 1, 30, service)
    stack.enter_context(second).send(image)
    wait_for(lambda: service.metric(HITS) == hits + 1, 30, service)
    return [first, second]


def test_a_caller_that_goes_while_it_decodes_does_not_fail_those_that_wait(puppets, idle_stub, shades):
    image, before = pb.Image(encoded=png(shades.pixels(1200))), puppets.metric(DECODED)
    with ExitStack() as stack:
        with stopped_decoders(puppets):
            first, second = begin_together(puppets, idle_stub, image, stack)
            first.call.cancel()
            wait_for(lambda: puppets.metric(STREAMS) == 1, 30, puppets)
            assert second.pending() == 0
        assert second.receive().image.width == 1200
        assert puppets.metric(DECODED) == before + 1


def test_decoding_ends_with_the_last_that_waits_for_it(puppets, idle_stub, shades):
    image, before = pb.Image(encoded=png(shades.pixels(1200))), puppets.metric(DECODED)
    with ExitStack() as stack:
        with stopped_decoders(puppets):
            for stream in begin_together(puppets, idle_stub, image, stack):
                stream.call.cancel()
            wait_for(lambda: puppets.metric(STREAMS) == 0, 30, puppets)
        assert detect(idle_stub, image).timing.decode_us > 0
        assert puppets.metric(DECODED) == before + 1


def test_an_image_that_fails_fails_for_all_that_wait_and_is_not_held(puppets, idle_stub, shades):
    whole = png(shades.pixels(1200))
    damaged = whole[: len(whole) // 2]
    refused = puppets.metric(REFUSED)
    with ExitStack() as stack:
        with stopped_decoders(puppets):
            streams = begin_together(puppets, idle_stub, pb.Image(encoded=damaged), stack)
        for stream in streams:
            error = stream.receive().error
            assert error.code == INVALID.value[0]
            assert detail_of(error, error_details_pb2.BadRequest).field_violations[0].field == "image.encoded"
        assert puppets.metric(REFUSED) == refused + 2
        assert not is_held(idle_stub, hashlib.sha256(damaged).digest())
        misses = puppets.metric(MISSES)
        assert streams[0].ask(pb.Image(encoded=damaged)).error.code == INVALID.value[0]  # it is tried again
        assert puppets.metric(MISSES) == misses + 1


# -- how long it stays


def test_what_nothing_uses_stays_within_a_limit_and_the_least_recently_used_goes_first(puppets, idle_stub, shades):
    assert FOUR_FIT == 4
    digests = [detect(idle_stub, shades.raw(SIDE)).image.digest for _ in range(4)]
    assert puppets.metric(KEPT) == 4 * pyramid_bytes(SIDE, SIDE)
    assert is_held(idle_stub, digests[0])  # so it is used again
    before = puppets.metric(OVER_LIMIT)
    digests.append(detect(idle_stub, shades.raw(SIDE)).image.digest)
    assert puppets.metric(OVER_LIMIT) == before + 1
    assert puppets.metric(KEPT) == 4 * pyramid_bytes(SIDE, SIDE)
    assert [is_held(idle_stub, digest) for digest in digests] == [True, False, True, True, True]


def test_an_image_that_a_stream_has_stays_whatever_others_send(puppets, idle_stub, shades):
    with InteractStream(idle_stub) as stream:
        mine = stream.ask(shades.raw(SIDE)).image.digest
        other = detect(idle_stub, shades.raw(SIDE)).image.digest
        for _ in range(8):
            detect(idle_stub, shades.raw(SIDE))
        assert is_held(idle_stub, mine)
        assert not is_held(idle_stub, other)
        assert stream.ask(CLICK).HasField("segmentation")


def test_what_nothing_uses_makes_room_before_an_image_is_refused(puppets, idle_stub, shades):
    """Thirty-two mebibytes hold one image of 2400 x 2400 pixels; sixteen of them are taken by images of before."""
    for _ in range(4):
        detect(idle_stub, shades.raw(SIDE))
    before = puppets.metric(FOR_ROOM)
    with InteractStream(idle_stub) as stream:
        assert stream.ask(shades.raw(2400)).image.width == 2400
        assert puppets.metric(FOR_ROOM) > before


def test_frames_of_a_stream_find_what_is_held_and_do_not_stay_themselves(puppets, idle_stub, shades):
    held = detect(idle_stub, shades.raw()).image.digest
    kept = puppets.metric(KEPT)
    images = [shades.raw(SIDE), by_digest(held), shades.raw(SIDE)]
    frames = [pb.DetectStreamRequest(request=pb.DetectRequest(model="finder", image=image)) for image in images]
    replies = [reply.response for reply in idle_stub.DetectStream(iter(frames))]
    assert [reply.image.width for reply in replies] == [SIDE, 256, SIDE]
    assert replies[1].timing.decode_us == 0
    assert puppets.metric(KEPT) == kept
    assert [is_held(idle_stub, reply.image.digest) for reply in replies] == [False, True, False]


def test_pictures_that_stay_hold_no_open_files(puppets, idle_stub, shades):
    """Neither small nor large ones whose memory was another process's."""
    detect(idle_stub, shades.raw())  # the connection is open
    before = descriptors(puppets)
    digests = []
    for side in (20,) * 30 + (700,) * 3:
        webp = cv2.imencode(".webp", shades.pixels(side))[1].tobytes()
        digests.append(detect(idle_stub, pb.Image(encoded=webp)).image.digest)
    assert all(is_held(idle_stub, digest) for digest in digests)
    assert descriptors(puppets) < before + 10


# -- pixel formats

RAMP = np.linspace(0, 255, 256)
# Three channels that differ everywhere, and an opacity.
COLOURS = np.stack(
    [np.tile(RAMP, (256, 1)), np.tile(RAMP[::-1], (256, 1)), np.tile(RAMP[:, None], (1, 256))], axis=2
).astype(np.uint8)
OPACITY = np.tile(np.repeat([255, 128, 0, 200], 64)[:, None], (1, 256)).astype(np.uint8)
RGBA = np.dstack([COLOURS, OPACITY])
GREY = COLOURS[..., 0]
DEEP = (GREY.astype(np.uint16) * 3 + 100).astype("<u2")
FORMATS: dict[str, tuple[pb.PixelFormat, np.ndarray, np.ndarray, tuple[float, float] | None]] = {
    "RGB8": (pb.PIXEL_FORMAT_RGB8, COLOURS, COLOURS, None),
    "BGR8": (pb.PIXEL_FORMAT_BGR8, COLOURS[..., ::-1], COLOURS, None),
    "GRAY8": (pb.PIXEL_FORMAT_GRAY8, GREY, GREY, None),
    "RGBA8": (pb.PIXEL_FORMAT_RGBA8, RGBA, RGBA, None),
    "GRAY16": (pb.PIXEL_FORMAT_GRAY16, DEEP, DEEP, None),
    "GRAY16 with a range": (pb.PIXEL_FORMAT_GRAY16, DEEP, DEEP, (100, 600)),
}


def shades_of(stream: InteractStream) -> list[bytes]:
    """What the model sees brighter than some shades, in each channel: all that it sees, in coarse steps."""
    answers = []
    for channel in range(3):
        for shade in range(7, 256, 31):
            point = (channel + 0.5, shade + 0.5, POSITIVE)
            reply = stream.ask(prompt("brighter", point, object_id=f"{channel} {shade}", mask=True, tolerance=0))
            answers.append(reply.segmentation.shape.SerializeToString())
    return answers


@pytest.mark.parametrize("name", FORMATS)
def test_raw_pixels_are_the_same_picture_as_the_file(idle_stub, name):
    layout, raw, in_file, said = FORMATS[name]
    value_range = None if said is None else pb.ValueRange(low=said[0], high=said[1])
    image = pb.RawImage(data=raw.tobytes(), width=256, height=256, format=layout)
    with InteractStream(idle_stub) as stream:
        assert stream.ask(pb.Image(raw=image, value_range=value_range)).image.width == 256
        found = shades_of(stream)
        assert stream.ask(pb.Image(encoded=png(in_file), value_range=value_range)).image.width == 256
        assert found == shades_of(stream)
    assert len(set(found)) > 5


def test_a_range_counts_for_gray16_alone(idle_stub):
    with InteractStream(idle_stub) as stream:
        for name, (layout, raw, _, _) in FORMATS.items():
            image = pb.RawImage(data=raw.tobytes(), width=256, height=256, format=layout)
            reply = stream.ask(pb.Image(raw=image, value_range=pb.ValueRange(low=0, high=100)))
            if name.startswith("GRAY16"):
                assert reply.HasField("image")
                continue
            violation = detail_of(reply.error, error_details_pb2.BadRequest).field_violations[0]
            assert violation.field == "image.value_range"
            assert f"{name} pixels have 8 bits" in violation.description


@pytest.mark.parametrize("layout", [pb.PIXEL_FORMAT_UNSPECIFIED, 6, 99])
def test_an_unknown_format_is_refused_with_those_that_are_known(idle_stub, layout):
    with InteractStream(idle_stub) as stream:
        error = stream.ask(pb.Image(raw=pb.RawImage(data=bytes(12), width=2, height=2, format=layout))).error
        assert error.code == INVALID.value[0]
        violation = detail_of(error, error_details_pb2.BadRequest).field_violations[0]
        assert violation.field == "image.raw.format"
        assert "RGB8, BGR8, GRAY8, RGBA8, GRAY16" in violation.description


@pytest.mark.parametrize("name", ["RGB8", "BGR8", "GRAY8", "RGBA8", "GRAY16"])
def test_pixels_of_the_wrong_length_are_refused_with_the_right_one(idle_stub, name):
    layout, raw, _, _ = FORMATS[name]
    with InteractStream(idle_stub) as stream:
        for data in (raw.tobytes()[:-1], raw.tobytes() + b"x", b""):
            error = stream.ask(pb.Image(raw=pb.RawImage(data=data, width=256, height=256, format=layout))).error
            violation = detail_of(error, error_details_pb2.BadRequest).field_violations[0]
            assert violation.field == "image.raw.data"
            assert f"256 x 256 {name} pixels are {raw.nbytes} bytes, and {len(data)} came" in violation.description


# -- the store itself, where a test has to decide what happens first


class Threads:
    """Threads that wait for a gate."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = 0

    async def compute(self, work: Callable[[], Any]) -> Any:
        self.begun += 1
        await self.gate.wait()
        return await asyncio.to_thread(work)


def store_of(threads: Threads, most: int, kept: int, workers: Workers | None = None) -> ImageStore:
    limits = replace(Limits(), images_bytes=most)
    pictures = KeptPictures(kept)
    budget = PictureBudget(most, pictures, Holders(), Accounts(lambda principal: principal.quotas))
    return ImageStore(Decoder(threads, workers or Workers(1), budget, limits), budget, pictures, threads)


def image_of(shade: int, side: int = 100) -> RawImage:
    pixels = np.full((side, side, 3), shade, np.uint8)
    return RawImage(RawPixels(pixels.tobytes(), side, side, PixelFormat.RGB8), "image.raw")


ONE = pyramid_bytes(100, 100)


async def test_nothing_is_shared_between_two_principals():
    threads = Threads()
    store = store_of(threads, 10 * ONE, 10 * ONE)

    async def opened(principal: str, source: RawImage | ImageDigest) -> bytes:
        caller.begin("a client")
        caller.identify(Principal(principal, frozenset(Role)))
        async with store.hold(source, Stopwatch()) as lease:
            return lease.digest

    digest = await asyncio.create_task(opened("alice", image_of(1)))
    await asyncio.create_task(opened("alice", ImageDigest(digest, "image.digest")))
    for other in ("bob", ""):
        with pytest.raises(ImageNotHeldError):
            await asyncio.create_task(opened(other, ImageDigest(digest, "image.digest")))
    await asyncio.create_task(opened("bob", image_of(1)))
    assert threads.begun == 2


async def test_with_nothing_to_keep_an_image_is_there_as_long_as_it_is_leased():
    store = store_of(Threads(), 10 * ONE, 0)
    async with store.hold(image_of(1), Stopwatch()) as lease:
        again = ImageDigest(lease.digest, "image.digest")
        async with store.hold(again, Stopwatch()) as other:
            assert other.picture is lease.picture
    with pytest.raises(ImageNotHeldError):
        await store.lease(again, Stopwatch())


async def test_the_range_of_a_key_is_the_one_that_was_given():
    store = store_of(Threads(), 10 * ONE, 10 * ONE)
    raw = RawPixels(bytes(range(200)), 10, 10, PixelFormat.GRAY16)
    given = ValueRange(0, 1000)
    async with store.hold(RawImage(raw, "image.raw", given), Stopwatch()) as lease:
        assert (await store.lease(ImageDigest(lease.digest, "d", ValueRange(0.0, 1000.0)), Stopwatch())).count == 2
        with pytest.raises(ImageNotHeldError):
            await store.lease(ImageDigest(lease.digest, "d"), Stopwatch())


async def test_the_only_user_of_an_image_may_go_on_to_another_however_full_it_is():
    store = store_of(Threads(), 2 * ONE, 2 * ONE)
    mine = await store.lease(image_of(1), Stopwatch())
    other = await store.lease(image_of(2), Stopwatch())
    for shade in range(3, 6):
        following = await store.lease(image_of(shade), Stopwatch(), replaced=mine)
        mine.release()
        mine = following
    with pytest.raises(QuotaError):
        await store.lease(image_of(9), Stopwatch())
    other.release()
    assert (await store.lease(image_of(9), Stopwatch())).picture.width == 100


async def test_one_of_two_users_of_an_image_needs_room_for_another():
    """What it leaves is not free, as the other one stays."""
    store = store_of(Threads(), 2 * ONE, 2 * ONE)
    mine = await store.lease(image_of(1), Stopwatch())
    theirs = await store.lease(image_of(1), Stopwatch())
    full = await store.lease(image_of(2), Stopwatch())
    with pytest.raises(QuotaError):
        await store.lease(image_of(3), Stopwatch(), replaced=mine)
    theirs.release()
    assert (await store.lease(image_of(3), Stopwatch(), replaced=mine)).picture.width == 100
    full.release()


async def test_an_image_that_makes_way_is_not_given_to_another_unless_there_is_room():
    threads = Threads()
    store = store_of(threads, 2 * ONE, 2 * ONE)
    mine = await store.lease(image_of(1), Stopwatch())
    digest = ImageDigest(mine.digest, "image.digest")
    other = await store.lease(image_of(2), Stopwatch())
    threads.gate.clear()
    going_on = asyncio.create_task(store.lease(image_of(3), Stopwatch(), replaced=mine))
    await until(lambda: threads.begun == 3)
    with pytest.raises(QuotaError):
        await store.lease(digest, Stopwatch())
    other.release()
    theirs = await store.lease(digest, Stopwatch())  # the other one's has made room
    threads.gate.set()
    following = await going_on
    mine.release()
    assert theirs.picture.width == following.picture.width == 100
    with pytest.raises(QuotaError):
        await store.lease(image_of(4), Stopwatch())


async def test_a_picture_that_made_way_stays_if_there_is_room_after_all():
    store = store_of(Threads(), 3 * ONE, 3 * ONE)
    mine = await store.lease(image_of(1), Stopwatch())
    following = await store.lease(image_of(2), Stopwatch(), replaced=mine)
    digest = ImageDigest(mine.digest, "image.digest")
    mine.release()
    assert (await store.lease(digest, Stopwatch())).count == 1
    following.release()


async def test_a_decoding_that_failed_for_want_of_room_is_tried_again_for_one_whose_image_makes_way():
    """Both want the same image; the first one has none that could make way."""
    threads = Threads()
    store = store_of(threads, 2 * ONE, 0)
    mine = await store.lease(image_of(1), Stopwatch())
    other = await store.lease(image_of(2), Stopwatch())
    newcomer = asyncio.create_task(store.lease(image_of(3), Stopwatch()))
    going_on = asyncio.create_task(store.lease(image_of(3), Stopwatch(), replaced=mine))
    with pytest.raises(QuotaError):
        await newcomer
    assert (await going_on).picture.width == 100
    other.release()


async def test_the_one_that_waits_gets_the_picture_when_the_one_that_decodes_is_cancelled():
    threads = Threads()
    threads.gate.clear()
    store = store_of(threads, 10 * ONE, 0)
    first = asyncio.create_task(store.lease(image_of(1), Stopwatch()))
    await until(lambda: threads.begun == 1)
    second = asyncio.create_task(store.lease(image_of(1), Stopwatch()))
    await run_the_others()
    first.cancel()
    await run_the_others()
    assert first.cancelled()
    threads.gate.set()
    lease: Lease = await second
    assert lease.count == 1
    assert threads.begun == 1


async def test_a_small_picture_does_not_hold_a_large_message():
    """As in protobuf, the last of several equal fields counts: the bytes before it are not to stay."""
    message = bytes(2**20)
    raw = RawPixels(memoryview(message)[-12:], 2, 2, PixelFormat.RGB8)
    store = store_of(Threads(), 2**20, 2**20)
    async with store.hold(RawImage(raw, "image.raw"), Stopwatch()) as lease:
        assert not np.shares_memory(lease.picture.levels[0], np.frombuffer(message, np.uint8))


async def test_what_decoding_takes_on_the_way_is_counted_and_released():
    """Two files that children decode: the second one's decoder waits for the first one's, and both fit in the end."""
    workers = Workers(2)
    pixels = np.zeros((1500, 1500, 3), np.uint8)
    # A decoder of PNG takes six times as much as the pixels.
    store = store_of(Threads(), 3 * pyramid_bytes(1500, 1500), 0, workers)
    try:
        files = [EncodedImage(png(pixels + shade), "image.encoded") for shade in range(2)]
        leases = await asyncio.gather(*(store.lease(file, Stopwatch()) for file in files))
        assert {lease.picture.width for lease in leases} == {1500}
        third = await store.lease(image_of(1), Stopwatch())
        assert third.picture.width == 100
    finally:
        await workers.close()


async def test_the_error_of_an_image_does_not_hold_the_image():
    """It may wait for long until its client reads it."""

    class Message(bytearray):
        pass

    data = Message(b"I am no image at all" * 1000)
    workers = Workers(1)
    store = store_of(Threads(), 2**20, 0, workers)
    try:
        error = await or_error(store.lease(EncodedImage(memoryview(data), "image.encoded"), Stopwatch()))
    finally:
        await workers.close()
    assert isinstance(error, InvalidInputError)
    gone = weakref.ref(data)
    del data
    assert gone() is None
