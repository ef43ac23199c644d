"""An answer depends on the prompt alone: clicks at once are answered as one by one, and on the way back."""

from collections.abc import Iterator, Sequence

import pytest

from polywand_contract.v1 import annotation_pb2 as pb
from tests.streams import EXTREME, NEGATIVE, POSITIVE, InteractStream, prompt, raw_image

TOOLS = ("wand_click", "wand_extreme", "wand_box", "wand_brs", "grabcut")
WOMAN = (15, 14, 364, 508)
ENDS = [(15, 480, EXTREME), (364, 420, EXTREME), (220, 14, EXTREME), (150, 508, EXTREME)]
# Inside, beside it, and far away: the crop has to move.
CLICKS = [(200, 330, POSITIVE), (430, 300, NEGATIVE), (480, 40, POSITIVE)]


@pytest.fixture(scope="module")
def image(astronaut) -> pb.Image:
    return raw_image(astronaut)


@pytest.fixture
def streams(stub, server, image) -> Iterator[Sequence[InteractStream]]:
    """Two of them, which remember nothing of each other."""
    server.wait_ready(*TOOLS)
    listed = stub.ListModels(pb.ListModelsRequest()).models
    assert {model.name for model in listed if model.kind == pb.MODEL_KIND_INTERACTOR} == set(TOOLS)
    with InteractStream(stub) as first, InteractStream(stub) as second:
        for stream in (first, second):
            stream.ask(image)
        yield first, second


def start(tool: str, kind: str) -> dict:
    """How a prompt of a tool begins."""
    begun: dict = {"points": ENDS if tool == "wand_extreme" else []}
    if kind == "box" or tool == "wand_box":
        begun["box"] = WOMAN
    if kind == "seed":
        ring = pb.Ring(coordinates=[60, 300, 300, 300, 300, 500, 60, 500])
        begun["seed"] = pb.SeedMask(polygons=pb.PolygonSet(polygons=[pb.Polygon(exterior=ring)]))
    return begun


def asked(tool: str, begun: dict, clicks: int, object_id: str) -> pb.Prompt:
    message = prompt(tool, *begun["points"], *CLICKS[:clicks], box=begun.get("box"), object_id=object_id)
    if "seed" in begun:
        message.seed.CopyFrom(begun["seed"])
    return message


@pytest.mark.parametrize(
    ("tool", "kind"),
    [
        *((tool, "plain") for tool in TOOLS),
        *((tool, "seed") for tool in TOOLS),
        *((tool, "box") for tool in ("wand_click", "wand_brs", "grabcut")),
    ],
)
def test_every_beginning_of_a_prompt_is_answered_alike_cold_and_warm(streams, tool, kind):
    begun = start(tool, kind)
    counts = range(1 if begun == {"points": []} else 0, len(CLICKS) + 1)
    one, other = streams
    warm, rounds = {}, {}
    for count in counts:
        reply = one.ask(asked(tool, begun, count, "one by one"))
        assert reply.HasField("segmentation"), reply
        assert not reply.segmentation.provisional
        warm[count], rounds[count] = reply.segmentation, reply.timing.inferences
        one.ask(asked(tool, begun, len(CLICKS), "another"))  # in between, all at once
    assert one.ask(asked(tool, begun, len(CLICKS), "another")).segmentation == warm[len(CLICKS)]

    cold = other.ask(asked(tool, begun, len(CLICKS), "all at once"))
    assert cold.segmentation == warm[len(CLICKS)]
    assert cold.timing.inferences == sum(rounds.values())  # each click is worked through, once
    for count in reversed(counts):  # undone, click by click
        back = other.ask(asked(tool, begun, count, "all at once"))
        assert (back.segmentation, back.timing.inferences) == (warm[count], 0)
    middle = counts[len(counts) // 2]
    assert other.ask(asked(tool, begun, middle, "some at once")).segmentation == warm[middle]
    assert other.ask(asked(tool, begun, len(CLICKS), "some at once")).segmentation == warm[len(CLICKS)]
