"""`segment`: prompts in calls of a bounded size, and their results in order."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from numpy.typing import NDArray

from polywand import checks, prompts, wire
from polywand.errors import Closed, InvalidRequest, PolywandError, Violation
from polywand.options import BoxLike, box_message, output_options
from polywand.prompts import Prompt
from polywand.results import SegmentResult
from polywand_contract.v1 import annotation_pb2 as pb

PromptsLike: TypeAlias = Iterable[Prompt | BoxLike] | NDArray[Any]
"""Prompts: `Prompt` objects, or boxes of (x0, y0, x1, y1), such as an array [N, 4]."""

MOST_PROMPTS = 64
"""Prompts of one call: enough to share inferences, and few enough to be answered within the timeout."""

UNASKED_PROMPTS = 8
"""So many prompts are sent without asking for the server's own limit first."""

MOST_BYTES = 8 << 20  # of the prompts of one call; seeds may be large


class Segmenting:
    """The prompts of one `segment` that are not answered yet, and the results of the others.

    While `left`: send `request(limit)` with the image, then `add` its reply, or `fail`. At the end, take `results`.
    """

    def __init__(self, given: PromptsLike, template: pb.SegmentRequest) -> None:
        """Check and read the prompts. template: all other options. Raises InvalidRequest."""
        self.results: list[SegmentResult] = []
        self._template = template
        self._prompts = [_message(number, prompt) for number, prompt in enumerate(_listed(given))]
        self._sent = 0

    @property
    def left(self) -> int:
        """How many prompts have no result yet."""
        return len(self._prompts) - len(self.results)

    def request(self, limit: int) -> pb.SegmentRequest:
        """Return the next request, without its image. limit: most prompts of a call of this server; 0: not known."""
        request = pb.SegmentRequest()
        request.CopyFrom(self._template)
        nbytes = 0
        for prompt in self._prompts[len(self.results) :][: min(limit or MOST_PROMPTS, MOST_PROMPTS)]:
            nbytes += prompt.ByteSize()
            if nbytes > MOST_BYTES and request.prompts:
                break
            request.prompts.append(prompt)
        self._sent = len(request.prompts)
        return request

    def add(self, reply: pb.SegmentResponse) -> None:
        """Add the reply to the last request. Raises ServerError when it does not answer all of its prompts."""
        self.results += wire.segment_results(reply, self._sent)

    def fail(self, error: PolywandError) -> None:
        """After an error of a whole call: raise it, or if there are results already, let it be that of all others."""
        if not self.results or isinstance(error, Closed):
            raise error
        self.results += [SegmentResult(prompt.object_id, None, error) for prompt in self._prompts[len(self.results) :]]


def segment_options(
    *,
    roi: BoxLike | None = None,
    model: str = "",
    version: int = 0,
    threshold: float | None = None,
    tolerance: float | None = None,
    max_points: int | None = None,
    polygons: bool = True,
    mask: bool = False,
    png: bool = False,
) -> pb.SegmentRequest:
    """Make a request with all but its image and prompts; `Client.segment` describes the arguments."""
    model = checks.text("model", model)
    return pb.SegmentRequest(
        roi=box_message("roi", roi),
        model=model,
        version=checks.version("version", version, model),
        output=output_options("threshold", threshold, tolerance, max_points, polygons, mask, png),
    )


def _listed(given: PromptsLike) -> Iterator[Prompt | BoxLike]:
    if isinstance(given, str | bytes | Prompt) or not isinstance(given, Iterable):
        raise checks.invalid("prompts", f"prompts are a list of Prompt or of boxes, not {type(given).__name__}")
    return iter(given)


def _message(number: int, given: Prompt | Sequence[float] | NDArray[Any]) -> pb.Prompt:
    if not isinstance(given, Prompt):
        return pb.Prompt(box=box_message(f"prompts[{number}]", given))
    try:
        return prompts.to_message(given)
    except InvalidRequest as error:
        problems = [Violation(f"prompts[{number}].{field}", text) for field, text in error.violations]
        raise InvalidRequest(f"prompts[{number}]: {error}", error.code, problems) from error
