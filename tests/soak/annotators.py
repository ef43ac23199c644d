"""A crew of annotators that come, work with the SDK, make mistakes, and go, in order or not."""

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import cv2
import numpy as np
import skimage.data

import polywand
from polywand.aio import AsyncClient, Session
from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1.annotation_pb2_grpc import AnnotationServiceStub
from tests.streams import POSITIVE, prompt, raw_image

INTERACTORS = ("wand_click", "wand_click", "wand_click", "grabcut")
MEGAPIXELS = (0.1, 0.5, 2, 8)
ANSWER_SECONDS = 60.0
HAND_SECONDS = 0.03  # between two moves of a hand
THOUGHT_SECONDS = 0.2  # between two clicks


class Tally:
    """What the crew met: answers by kind, errors that it had asked for or was told to expect, and all others in words.

    outage: whether Triton is known to be away, so that `Unavailable` is the right answer.
    """

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.expected: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self.outage = False

    def take(self, action: str, error: BaseException) -> None:
        """Count an error that an action raised."""
        if self.outage and isinstance(error, polywand.Unavailable):
            self.expected["Triton is away"] += 1
        else:
            self.unexpected.append(f"{action}: {type(error).__name__}: {error}")


class Crew:
    """A number of annotators at a time, a task each; one that goes is replaced, until `leave`."""

    def __init__(self, target: str, size: int, photo: Path, tally: Tally, seed: int) -> None:
        self._target, self._photo, self._tally = target, photo, tally
        self._open = True
        self._tasks = [asyncio.create_task(self._work(random.Random(seed + place))) for place in range(size)]
        self._tasks.append(asyncio.create_task(self._victims(random.Random(seed - 1))))

    async def leave(self) -> None:
        """Let everybody finish what they do now, and go."""
        self._open = False
        await asyncio.gather(*self._tasks)

    async def _work(self, dice: random.Random) -> None:
        while self._open:
            annotator = Annotator(self._tally, dice)
            visit = asyncio.create_task(annotator.visit(self._target))
            if dice.random() < 0.2:  # vanishes in the middle of something
                await asyncio.wait([visit], timeout=dice.uniform(0.1, 3))
                visit.cancel()
            try:
                await visit
            except asyncio.CancelledError:
                self._tally.answers["vanished"] += 1
            except Exception as error:
                self._tally.take(annotator.action, error)
                await asyncio.sleep(THOUGHT_SECONDS)

    async def _victims(self, dice: random.Random) -> None:
        """Every few seconds, kill a client's process some time after its start."""
        while self._open:
            process = await asyncio.create_subprocess_exec(
                *(Path(sys.executable).parent / "polywand", "--target", self._target, "interact", self._photo),
                *("--model", "wand_click", "--positive", "200,300", "--positive", "220,100"),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            await asyncio.sleep(dice.uniform(0.5, 2))
            if process.returncode is None:
                process.kill()
                self._tally.answers["killed"] += 1
            await process.wait()
            await asyncio.sleep(dice.uniform(2, 8))


class Annotator:
    """One visit: some images, some objects on each, on a connection of its own.

    action: what it does now, for reports.
    """

    def __init__(self, tally: Tally, dice: random.Random) -> None:
        self._tally, self._dice = tally, dice
        self.action = "coming"

    async def visit(self, target: str) -> None:
        """Come, do some things, and go in order."""
        actions: tuple[Callable[[AsyncClient, Session], Awaitable[None]], ...] = (
            self.click_and_correct,
            self.click_and_correct,
            self.drag,
            self.several_objects,
            self.blunder,
            self.next_image,
            self.detect,
            self.detect_burst,
        )
        async with polywand.aio.connect(target, timeout=ANSWER_SECONDS) as client:
            if self._dice.random() < 0.1:
                self.action = "never reads"
                await self.never_read(target)
            async with client.open(self.photo()) as session:
                for action in self._dice.choices(actions, k=self._dice.randint(2, 12)):
                    self.action = action.__name__.replace("_", " ")
                    await self.tried(action(client, session))

    async def tried(self, action: Awaitable[None]) -> None:
        """Await an action; an error that ends neither stream nor visit is counted, and the work goes on."""
        try:
            await action
            self._tally.answers[self.action] += 1
        except polywand.Draining:
            raise
        except polywand.PolywandError as error:
            self._tally.take(self.action, error)
            await asyncio.sleep(THOUGHT_SECONDS)

    async def click_and_correct(self, _: AsyncClient, session: Session) -> None:
        """Click, correct by more clicks, undo some, ask for another form of the answer."""
        model, name, clicks = self._dice.choice(INTERACTORS), f"object {self._dice.randint(0, 9)}", []
        for _ in range(self._dice.randint(1, 5)):
            label = "negative" if clicks and self._dice.random() < 0.3 else "positive"
            clicks.append(polywand.Point(*self.place(session), label))
            await session.prompt(model, points=clicks, object_id=name)
            await asyncio.sleep(THOUGHT_SECONDS)
        while len(clicks) > 1:
            clicks.pop()
            await session.prompt(model, points=clicks, object_id=name)
        await session.prompt(model, points=clicks, object_id=name, tolerance=0, threshold=0.3, mask=True)

    async def drag(self, _: AsyncClient, session: Session) -> None:
        """Drag a click about, faster than answers come."""
        x, y = self.place(session)
        for _ in range(self._dice.randint(5, 40)):
            x = min(session.width, x + 2)
            last = session.send("wand_click", points=[polywand.Point(x, y)], object_id="dragged")
            await asyncio.sleep(HAND_SECONDS)
        async with asyncio.timeout(ANSWER_SECONDS), aclosing(session.updates()) as updates:
            async for update in updates:
                if update.object_id == "dragged" and update.sequence == last:
                    if isinstance(update.result, polywand.PolywandError):
                        raise update.result
                    return

    async def several_objects(self, _: AsyncClient, session: Session) -> None:
        """Prompt for several objects at once."""
        prompts = (
            session.prompt("wand_click", points=[polywand.Point(*self.place(session))], object_id=f"part {number}")
            for number in range(self._dice.randint(2, 8))
        )
        await asyncio.gather(*prompts)

    async def next_image(self, _: AsyncClient, session: Session) -> None:
        """Go on to another image, perhaps with a prompt still in work."""
        if self._dice.random() < 0.5:
            session.send("wand_click", points=[polywand.Point(*self.place(session))])
        await session.set_image(self.photo())

    async def blunder(self, _: AsyncClient, session: Session) -> None:
        """Send what is wrong, one thing of many; the right answer is an error that says so."""
        inside = polywand.Point(*self.place(session))
        blunders: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: session.prompt("wand_click", points=[inside._replace(x=float("nan"))]),
            lambda: session.prompt("wand_click", points=[inside._replace(x=session.width + 1)]),
            lambda: session.prompt("wand_click", points=[inside] * 5000),
            lambda: session.prompt("wand_click", points=[inside], version=77),
            lambda: session.prompt("no such model", points=[inside]),
            lambda: session.prompt("nanodet", points=[inside]),
            lambda: session.prompt("wand_click", points=[inside], object_id="x" * 1000),
            lambda: session.set_image(b"this is no image"),
            lambda: session.set_image(encoded(self.pixels())[:1000]),
        )
        try:
            await self._dice.choice(blunders)()
        except polywand.InvalidRequest:
            self._tally.expected["bad input"] += 1
        else:
            raise AssertionError("bad input was taken")
        try:
            await session.prompt("wand_click", object_id=f"nothing {self._dice.randint(0, 9)}")
        except polywand.IncompletePrompt:
            self._tally.expected["too few points"] += 1

    async def detect(self, client: AsyncClient, _: Session) -> None:
        """One frame."""
        await client.detect(self.photo(), threshold=0.2)

    async def detect_burst(self, client: AsyncClient, _: Session) -> None:
        """Many frames, of which the last ones are left unanswered now and then."""
        photos = [self.photo(largest=0.5) for _ in range(self._dice.randint(5, 25))]
        enough = self._dice.choice((3, len(photos)))
        async with aclosing(client.detect_stream(photos)) as answers:
            async for number, answer in answers:
                if isinstance(answer, polywand.PolywandError):
                    self._tally.take(self.action, answer)
                if number + 1 >= enough:
                    return

    async def never_read(self, target: str) -> None:
        """Send prompts, read nothing, and cut the stream after a while."""
        async with polywand.aio.connect(target) as client:
            call = AnnotationServiceStub(client._channel).Interact()  # the SDK always reads
            await call.write(pb.InteractRequest(sequence=1, image=raw_image(self.pixels())))
            for number in range(2, 100):
                clicked = prompt("wand_click", (number, number, POSITIVE), object_id=str(number % 20), tolerance=0)
                await call.write(pb.InteractRequest(sequence=number, prompt=clicked))
            await asyncio.sleep(self._dice.uniform(0.5, 2))
            call.cancel()

    def place(self, session: Session) -> tuple[float, float]:
        """Somewhere on the image."""
        return self._dice.uniform(0, session.width), self._dice.uniform(0, session.height)

    def photo(self, largest: float = MEGAPIXELS[-1]) -> polywand.ImageLike:
        """A file of some size, or pixels."""
        size = self._dice.choice([size for size in MEGAPIXELS if size <= largest])
        return self.pixels() if size == MEGAPIXELS[0] and self._dice.random() < 0.5 else PHOTOS[size]

    def pixels(self) -> np.ndarray:
        """RGB uint8 [300, 400, 3], each time other ones."""
        left, top = self._dice.randint(0, 100), self._dice.randint(0, 200)
        return np.ascontiguousarray(skimage.data.astronaut()[top : top + 300, left : left + 400])


def encoded(pixels: np.ndarray) -> bytes:
    """RGB pixels as a JPEG file."""
    return cv2.imencode(".jpg", pixels[..., ::-1])[1].tobytes()


def _photos() -> Iterator[tuple[float, bytes]]:
    for megapixels in MEGAPIXELS:
        side = round((megapixels * 1e6) ** 0.5)
        yield megapixels, encoded(cv2.resize(skimage.data.astronaut(), (side, side), interpolation=cv2.INTER_CUBIC))


PHOTOS = dict(_photos())
