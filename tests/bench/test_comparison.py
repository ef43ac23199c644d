"""The benchmark compares like with like: the three ways answer the same clicks, with the same network."""

from urllib.request import Request, urlopen

import numpy as np
import orjson

import polywand
from tests.bench.annotator import Annotator
from tests.bench.bare import BareModel
from tests.bench.json_client import base64_text, running_json_server
from tests.bench.photos import photos
from tests.running import DETECTION


def test_the_json_server_finds_the_same_object(server):
    # A cat that fills a photo that is not square: no two ways of cropping disagree on what is meant.
    photo = next(photo for photo in photos(0.5) if photo.name == "chelsea")
    clicks = photo.clicks(np.random.default_rng(1))[:2]
    with polywand.connect(server.target) as client, client.open(photo.jpeg) as session:
        ours = session.prompt("wand_click", positive=[(at.x, at.y) for at in clicks], mask=True).mask
    body = {"image": base64_text(photo.jpeg), "points": [[at.x, at.y, 1] for at in clicks]}
    with (
        running_json_server(server.triton, "wand") as (url, _),
        urlopen(Request(url, orjson.dumps(body))) as reply,
    ):
        theirs = np.array(orjson.loads(reply.read())["mask"], bool)
    assert theirs.shape == (photo.height, photo.width)
    assert np.count_nonzero(ours & theirs) / np.count_nonzero(ours | theirs) > 0.8


async def test_clicks_take_about_the_inferences_that_the_bare_model_is_asked_for_first(server):
    photo = photos(0.5)[0]
    clicks = photo.clicks(np.random.default_rng(1))
    async with Annotator(server.target, "wand_click") as annotator, BareModel(server.triton, "wand") as bare:
        await annotator.open(photo)
        ours = [await annotator.click("a", clicks[:count]) for count in range(1, len(clicks) + 1)]
        floor = [await bare.click("a", clicks[:count]) for count in range(2, len(clicks) + 1)]
        undone = await annotator.undo("a", clicks[:-1])
    assert ours[0].inferences > DETECTION
    assert {answer.inferences for answer in ours[1:]} <= {1, 2}  # two where the mask moves
    assert {answer.inferences for answer in floor} == {1}
    assert undone.inferences == 0
