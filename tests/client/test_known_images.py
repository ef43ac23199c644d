"""Images by their digest on the real service: what it holds is not sent again, and what it does not is."""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

import polywand
from polywand import Client, Prompt
from tests.puppets import KEPT_IMAGES_MEBIBYTES
from tests.running import Service

HITS, MISSES = (f'polywand_image_lookups_total{{outcome="{word}"}}' for word in ("hit", "miss"))
CLICK = Prompt(points=[(100, 100, 1)], model="disk")


@pytest.fixture
def client(puppets: Service) -> Iterator[Client]:
    with polywand.connect(puppets.target) as client:
        yield client


def shade(number: int, side: int = 256) -> NDArray[np.uint8]:
    """An image that no other test sends."""
    return np.full((side, side, 3), (number, 201, 13), np.uint8)


def test_a_second_call_on_an_image_sends_its_digest(client: Client, puppets: Service) -> None:
    images = {"array": shade(1), "grey": shade(2)[..., 0], "grey of 16 bits": shade(3)[..., 0].astype(np.uint16) * 200}
    images |= {"OpenCV": polywand.Pixels(shade(4), "BGR8"), "opacity": np.dstack([shade(5), shade(6)[..., 0]])}
    for name, image in images.items():
        hits = puppets.metric(HITS)
        first = client.segment(image, [CLICK])[0].unwrap()
        assert puppets.metric(HITS) == hits, name
        second = client.segment(image, [CLICK])[0].unwrap()
        assert puppets.metric(HITS) == hits + 1, name
        assert (first.width, first.height, first.area) == (second.width, second.height, second.area)
        assert first.timing.decode_us > 0 == second.timing.decode_us


def test_a_range_of_values_is_part_of_what_is_known(client: Client, puppets: Service) -> None:
    image = np.arange(256 * 256, dtype=np.uint16).reshape(256, 256)
    hits = puppets.metric(HITS)
    client.segment(image, [CLICK], value_range=(0, 1023))
    client.segment(image, [CLICK], value_range=(0, 511))
    assert puppets.metric(HITS) == hits
    client.segment(image, [CLICK], value_range=(0, 511))
    assert puppets.metric(HITS) == hits + 1


async def test_an_image_that_made_room_for_others_is_sent_again(client: Client, puppets: Service) -> None:
    image = shade(7)

    def push_out(first: int) -> None:
        """Send images until none of the earlier ones fits into what is kept."""
        for number in range(KEPT_IMAGES_MEBIBYTES // 3 + 2):  # more than 3 MiB each
            client.segment(shade(first + number, 1024), [CLICK])

    before = client.segment(image, [CLICK])[0].unwrap()
    push_out(20)
    misses = puppets.metric(MISSES)
    assert client.segment(image, [CLICK])[0].unwrap().area == before.area
    assert puppets.metric(MISSES) == misses + 2  # for its digest, and for itself
    async with polywand.aio.connect(puppets.target) as other:
        await other.segment(image, [CLICK])
        push_out(40)
        misses = puppets.metric(MISSES)
        assert (await other.segment(image, [CLICK]))[0].unwrap().area == before.area
        assert puppets.metric(MISSES) == misses + 2
