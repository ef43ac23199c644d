"""The way "service": prompts to a running service over gRPC, and its polygons as masks."""

from collections.abc import Iterator
from contextlib import contextmanager

import polywand
from polywand_zoo.evaluation.modelfolder import ModelError
from polywand_zoo.evaluation.objects import Mask, Photo
from polywand_zoo.evaluation.prompts import Needs, Prompt


class ServedTool:
    """A tool of a running service; see `Tool`.

    tolerance: how far the service may simplify its outlines, in image pixels; 0 keeps them exact, None is its default.
    """

    way = "service"

    def __init__(self, client: polywand.Client, model: str, version: int = 0, tolerance: float | None = 0.0) -> None:
        found = _find(client, model)
        if found.interactor is None:
            raise ModelError(f"'{model}' at {client.target} is no interactor; only these can be evaluated")
        ready = [candidate.version for candidate in found.versions if candidate.ready]
        if version not in (0, *ready):
            raise ModelError(f"'{model}' at {client.target} has no version {version} that is ready; there: {ready}")
        spec = found.interactor
        self._client, self._tolerance = client, tolerance
        self.model, self.version = model, version or max(ready)
        self.needs = Needs(
            *(spec.min_positive_points, spec.min_negative_points, spec.min_extreme_points, spec.box, spec.max_points)
        )
        outlines = {None: "simplified as by default", 0.0: "exact (tolerance 0)"}
        kind = outlines.get(tolerance, f"simplified by up to {tolerance} pixels")
        self.masks = f"the polygons that come over gRPC, {kind}, rasterised: pixels whose centres lie inside"

    @contextmanager
    def open(self, photo: Photo) -> Iterator["_Session"]:
        """See Tool. The image's file is sent unchanged: the service decodes it."""
        with self._client.open(photo.subject.image) as session:
            if (session.width, session.height) != (photo.width, photo.height):
                size, here = f"{session.width} x {session.height}", f"{photo.width} x {photo.height}"
                raise ModelError(f"{photo.subject.image}: the service decodes {size} pixels, and the evaluation {here}")
            yield _Session(session, self)

    def answer(self, session: polywand.Session, prompt: Prompt, object_id: str) -> Mask:
        """Answer a prompt of a session."""
        answer = session.prompt(
            self.model,
            version=self.version,
            object_id=object_id,
            points=prompt.points,
            box=prompt.box,
            tolerance=self._tolerance,
        )
        return polywand.rasterise(answer.polygons, session.width, session.height)


class _Session:
    def __init__(self, session: polywand.Session, tool: ServedTool) -> None:
        self._session, self._tool = session, tool

    def answer(self, prompt: Prompt, object_id: str) -> Mask:
        """See Session."""
        return self._tool.answer(self._session, prompt, object_id)


def _find(client: polywand.Client, name: str) -> polywand.Model:
    models = {model.name: model for model in client.models()}
    if name not in models:
        raise ModelError(f"no model '{name}' at {client.target}; there: {', '.join(models) or 'none'}")
    if not models[name].ready:
        raise ModelError(f"model '{name}' at {client.target} is not ready: {models[name].state_message}")
    return models[name]
