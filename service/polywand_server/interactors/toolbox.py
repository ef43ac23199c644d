"""The tool of a prompt: the named one, or the server's choice."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from polywand_server.caller import current
from polywand_server.errors import InvalidInputError
from polywand_server.interactors.checks import check_fits
from polywand_server.interactors.prompt import Prompt, incomplete
from polywand_server.tools.choice import interactors
from polywand_server.tools.kinds import Interactor
from polywand_server.tools.registry import Registry
from polywand_server.tools.retry import use_tool

Result = TypeVar("Result")


class InteractorToolbox:
    """Chooses interactors for prompts."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def choose(self, prompt: Prompt) -> Interactor:
        """Find the ready tool that a prompt names or, if it names none, choose one.

        That is the first one for which the prompt is enough; if it is enough for none, the first one that reads all
        that the prompt has, so that the answer says what is missing.

        Raises:
            NotFoundError, WrongStateError (it is a detector), UnavailableError (not now), InvalidInputError (no tool
            reads all that the prompt has)
        """
        tool = self._find(prompt)
        current().usage.add_model(tool.name)
        return tool

    async def use(self, prompt: Prompt, work: Callable[[Interactor], Awaitable[Result]]) -> Result:
        """Choose a tool and run `work` with it; again if its version was unloaded meanwhile.

        Raises:
            Errors of `choose` and `work`.
        """
        return await use_tool(self._registry, lambda: self.choose(prompt), work)

    def _find(self, prompt: Prompt) -> Interactor:
        if prompt.model:
            return self._registry.interactor(prompt.model, prompt.version)
        candidates = interactors(self._registry)
        if not candidates.ready:
            raise candidates.error("prompt.model", "interactor")
        fitting: list[Interactor] = []
        refusals: list[InvalidInputError] = []
        for tool in candidates.ready:
            try:
                check_fits(prompt, tool)
            except InvalidInputError as error:
                refusals.append(error)
                continue
            if not incomplete(prompt, tool.spec.prompt):
                return tool
            fitting.append(tool)
        if fitting:
            return fitting[0]
        field, text = refusals[0].field, refusals[0].description
        raise InvalidInputError(field, f"{text}, and no other tool takes this prompt")
