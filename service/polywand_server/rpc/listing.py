"""ListModels: tools as protobuf messages, page by page."""

from base64 import b64decode, urlsafe_b64encode
from collections.abc import Sequence

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_server.errors import InvalidInputError
from polywand_server.tools.catalogue import State, Tool
from polywand_server.tools.kinds import Detector, Interactor

# Tools of one reply.
MAX_PAGE_SIZE = 1000
# A token holds one name, and no name is that long.
MAX_TOKEN_BYTES = 1024

_BOX_USES = {"none": pb.BOX_USE_NONE, "optional": pb.BOX_USE_OPTIONAL, "required": pb.BOX_USE_REQUIRED}

_STATES = {
    State.READY: pb.MODEL_STATE_READY,
    State.LOADING: pb.MODEL_STATE_LOADING,
    State.UNAVAILABLE: pb.MODEL_STATE_UNAVAILABLE,
    State.FAILED: pb.MODEL_STATE_FAILED,
}


def list_models(request: pb.ListModelsRequest, tools: Sequence[Tool]) -> pb.ListModelsResponse:
    """Write the page that a request asks for. tools: all, sorted by name.

    Raises:
        InvalidInputError
    """
    if request.page_size > MAX_PAGE_SIZE:
        raise InvalidInputError("page_size", f"{request.page_size} is too many; a page has at most {MAX_PAGE_SIZE}")
    last = _read_token(request.page_token)
    rest = [tool for tool in tools if tool.name > last]
    page = rest[: request.page_size or MAX_PAGE_SIZE]
    is_last = len(page) == len(rest)
    return pb.ListModelsResponse(
        models=map(_write_model, page), next_page_token="" if is_last else _write_token(page[-1].name)
    )


def _write_token(name: str) -> str:
    return urlsafe_b64encode(name.encode()).decode()


def _read_token(token: str) -> str:
    """Return the name of the last tool before the page; empty for the first page. Raises InvalidInputError."""
    try:
        if len(token) <= MAX_TOKEN_BYTES:
            return b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError:
        pass
    raise InvalidInputError("page_token", "it is not a token of ListModels: send next_page_token of the reply before")


def _write_model(tool: Tool) -> pb.Model:
    model = pb.Model(name=tool.name, state=_STATES[tool.state], state_message=tool.reason)
    for version in tool.versions:
        model.versions.add(version=version.version, state=_STATES[version.state], state_message=version.reason)
    spec = tool.spec
    if spec is None:
        return model
    model.display_name = spec.display_name
    model.help_message = spec.help_message
    model.animated_gif = spec.animated_gif
    model.license = spec.license
    model.weights_source = spec.weights_source
    model.default_threshold = spec.threshold
    match tool.of_version(0):
        case Interactor() as interactor:
            prompt = interactor.spec.prompt
            model.kind = pb.MODEL_KIND_INTERACTOR
            model.interactor.CopyFrom(
                pb.InteractorSpec(
                    min_positive_points=prompt.min_positive_points,
                    min_negative_points=prompt.min_negative_points,
                    min_extreme_points=prompt.extreme_points,
                    box=_BOX_USES[prompt.box],
                    max_points=interactor.max_points,
                    reads_seed=interactor.reads_seed,
                )
            )
        case Detector() as detector:
            model.kind = pb.MODEL_KIND_DETECTOR
            labels = detector.spec.label_specs
            model.detector.labels.extend(pb.Label(**label.model_dump()) for label in labels)
    return model
