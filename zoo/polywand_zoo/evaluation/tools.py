"""Tools: answer prompts with masks, each by its own way."""

from contextlib import AbstractContextManager
from typing import Protocol

from polywand_zoo.evaluation.objects import Mask, Photo
from polywand_zoo.evaluation.prompts import Needs, Prompt


class Session(Protocol):
    """One photo, opened with a tool."""

    def answer(self, prompt: Prompt, object_id: str) -> Mask:
        """Answer a prompt with a mask, bool [H, W]; a prompt that adds points refines the object's last answer."""


class Tool(Protocol):
    """Answers prompts.

    model: its name in the model repository. version: the one that answers. way: how it is run, in a word. masks: how
    its masks are made, in a sentence.
    """

    model: str
    version: int
    way: str
    masks: str
    needs: Needs

    def open(self, photo: Photo) -> AbstractContextManager[Session]:
        """Open a photo until the block ends."""
