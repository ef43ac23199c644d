"""Signatures of methods that pass their keyword arguments on, so that `help` shows them in full."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])


def keywords_of(source: Callable[..., Any], options: type) -> Callable[[Method], Method]:
    """Replace a method's `**options` by the keyword arguments of `source`, and add the docstring of `options`.

    options: the TypedDict of these arguments, which type checkers read.
    """

    def show(method: Method) -> Method:
        own = inspect.signature(method)
        kept = [part for part in own.parameters.values() if part.kind is not inspect.Parameter.VAR_KEYWORD]
        passed_on = inspect.signature(source).parameters.values()
        more = [part for part in passed_on if part.kind is inspect.Parameter.KEYWORD_ONLY]
        method.__signature__ = own.replace(parameters=[*kept, *more])  # type: ignore[attr-defined]
        method.__doc__ = f"{inspect.getdoc(method)}\n\n{inspect.getdoc(options)}"
        return method

    return show
