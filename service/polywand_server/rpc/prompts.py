"""The prompts of a Segment call: read one by one, so that each has its own error."""

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_server.errors import InvalidInputError, PolywandError, Reason, TooLargeError
from polywand_server.interactors.prompt import Prompt
from polywand_server.rpc.requests import MAX_SEGMENT_PROMPTS, read_model, read_output, read_prompt, short_names
from polywand_server.session.segments import RefusedPrompt


def read_prompts(request: pb.SegmentRequest) -> list[Prompt | RefusedPrompt]:
    """Convert the prompts of a call; one that is invalid is refused alone.

    Raises:
        InvalidInputError, TooLargeError: of the call as a whole.
    """
    count = len(request.prompts)
    if not count:
        raise InvalidInputError("prompts", "at least one prompt is needed")
    if count > MAX_SEGMENT_PROMPTS:
        text = f"{count} prompts; this server takes at most {MAX_SEGMENT_PROMPTS} in one call"
        raise TooLargeError("prompts", text, reason=Reason.MESSAGE_TOO_LARGE, limit="segment_prompts")
    read_model(request, "")
    read_output(request.output, "output")
    return [_read_prompt(prompt, request) for prompt in request.prompts]


def _read_prompt(prompt: pb.Prompt, request: pb.SegmentRequest) -> Prompt | RefusedPrompt:
    """Convert a prompt, with what it has of the call."""
    whole = pb.Prompt()
    whole.CopyFrom(prompt)
    try:
        if not prompt.model:
            read_model(prompt, "prompt.")  # which has no version of its own then
            whole.model, whole.version = request.model, request.version
        if not prompt.HasField("output"):
            whole.output.CopyFrom(request.output)
        return read_prompt(whole)
    except PolywandError as error:
        return RefusedPrompt(short_names(whole)[1], error)


def in_terms_of_the_call(error: InvalidInputError, number: int, *, has_calls_model: bool) -> InvalidInputError:
    """Name the field by its path in the call; has_calls_model: whether the prompt names none."""
    field = error.field.removeprefix("prompt.")
    if has_calls_model and field in ("model", "version"):
        return error.at(field)
    return error.at(f"prompts[{number}]" if field == "prompt" else f"prompts[{number}].{field}")
