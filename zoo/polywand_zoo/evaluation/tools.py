"""Tools: what answers prompts, however it is reached."""

from contextlib import AbstractContextManager
from typing import Protocol

from polywand_zoo.evaluation.objects import Mask, Photo
from polywand_zoo.evaluation.prompts import Needs, Prompt


class Session(Protocol):
    """One photo, opened with a tool."""

    def answer(self, prompt: Prompt, object_id: str) -> Mask:
        """Answer a prompt with a mask, bool [H, W]. Of an object, a prompt that adds points refines the last answer."""


class Tool(Protocol):
    """Answers prompts.

    model: its name in the model repository. version: that answers. way: how it is reached, in a word. masks: what its
    masks are, in a sentence.
    """

    model: str
    version: int
    way: str
    masks: str
    needs: Needs

    def open(self, photo: Photo) -> AbstractContextManager[Session]:
        """Open a photo until the block ends."""
