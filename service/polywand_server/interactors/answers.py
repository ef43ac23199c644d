"""Answers: the outlines of what was found, with their scores."""

from contextlib import suppress

from polywand_server.errors import TooLargeError
from polywand_server.geometry.drawn import Drawn
from polywand_server.images.regions import ProbabilityMap
from polywand_server.interactors.drawer import Drawer
from polywand_server.interactors.estimate import Candidate, Found, ScoreKind, Segmentation
from polywand_server.interactors.prompt import Prompt


async def draw_answer(drawer: Drawer, prompt: Prompt, found: Found, size: tuple[int, int]) -> Segmentation:
    """Draw the outline of what was found, and of the model's other answers. size: width, height of the image.

    An alternative whose outline exceeds a limit is left out.

    Raises:
        InvalidInputError, TooLargeError (the outline has too many vertices or rings, or takes too long)
    """
    tool, estimate = found.tool, found.estimate
    threshold = prompt.output.threshold or tool.spec.threshold

    async def draw(probabilities: ProbabilityMap) -> Drawn:
        field = "prompt.output.threshold"
        return await drawer.shape(probabilities, threshold, prompt.output, size, prompt.clicks(), field)

    alternatives: list[Candidate] = []
    if prompt.seed is not None and prompt.is_seed_alone:
        shape = await drawer.seed_shape(prompt.seed, estimate.probabilities, threshold, prompt.output, size)
        score, score_kind = 1.0, ScoreKind.SEED
    else:
        shape = await draw(estimate.probabilities)
        score, score_kind = shape.confidence, ScoreKind.MEAN_PROBABILITY
        if estimate.score is not None:
            score, score_kind = estimate.score, ScoreKind.PREDICTED_IOU
        for other in estimate.alternatives:
            with suppress(TooLargeError):
                alternatives.append(Candidate(await draw(other.probabilities), other.score))
    return Segmentation(
        shape=shape,
        width=size[0],
        height=size[1],
        model=tool.name,
        version=tool.version,
        threshold=threshold,
        score=score,
        score_kind=score_kind,
        alternatives=alternatives,
        is_provisional=found.is_provisional,
    )
