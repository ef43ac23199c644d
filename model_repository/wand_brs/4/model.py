"""f-BRS (Sofiiuk et al. 2020) in Triton: scales and shifts a network's features until its mask agrees with all clicks.

One prompt is one run of the encoder, and with two clicks or more an L-BFGS whose every evaluation is one run of the
head. Both are models of their own, called inside Triton, so the features are never copied into this process. Whatever
depends on the network stands in `config.pbtxt`:

    encoder, head            names of the parts; version N of this model calls version N of them
    features                 names of the tensors that go from one to the other
    refine_after_clicks      up to so many clicks the network's own answer is good enough
    net_clicks_limit         the network sees so many clicks; later ones only have to be agreed with
    maxfun, m, factr, pgtol  of scipy.optimize.fmin_l_bfgs_b
    min_iou_diff             stop when the mask changes by less than this (1 - IoU) from one evaluation to the next
    prob_threshold           where the mask begins; also stop when all clicked pixels are on their side of it
    reg_weight               keeps scales near 1 and shifts near 0
    reg_bias_weight          how many times as strongly that holds for the shifts
    flip                     "true": refine the mirrored image along with it, and answer with the mean of both logits
    enforce_clicks           "true": bend the outline around clicks that the optimisation did not bring, or hardly, to
                             their side of it (prob_threshold has to be 0.5); by default, "false", as the authors do

A network that reads PREV_MASK gets it.

STATE is what the last prompt's optimisation arrived at, C scales less 1 and C shifts, from which the next one goes on.

It needs NumPy and SciPy in the interpreter of Triton's Python backend, and nothing of Polywand.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

# Before SciPy brings its own threads: each step of L-BFGS would leave one that keeps a core busy, which the head needs.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
from scipy.optimize import fmin_l_bfgs_b

NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT, PADDING = 0, 1, 2, 3, -1  # labels of points
INPUTS = ("IMAGE", "POINTS", "STATE", "PREV_MASK")  # the last one where the network reads it
HALF = 0.5
CLICK_RADIUS = 1  # pixels around a click that have to agree with it
PIXELS_STEP = 64  # PIXELS is padded to a multiple, so that a runtime sees few different shapes
EPSILON = 1e-5  # of the authors' loss
# Of clicks that are enforced: as in the graph of `wand`, where the same is done (zoo/polywand_zoo/wand/obedience.py).
MARGIN, SPREAD, TOP, ROUNDS = 0.5, 2.0, 1, 6
REACH = 11  # pixels from a click; beyond, a bump is less than a hundred-thousandth of its height

Array = NDArray[Any]


class PartError(Exception):
    """A part of this model failed; the message says which and why."""


class CancelledError(Exception):
    """The request was cancelled."""


def read_switch(text: str) -> bool:
    """Read a parameter that is on or off."""
    if text not in ("true", "false"):
        raise ValueError(f"it is {text!r}, and may be true or false")
    return text == "true"


def read_names(text: str) -> tuple[str, ...]:
    """Read a parameter that lists names with blanks between them."""
    return tuple(text.split())


# Of parameters; what is not here reads itself.
READERS: Mapping[Any, Callable[[str], Any]] = {bool: read_switch, tuple[str, ...]: read_names}


@dataclass(frozen=True)
class Settings:
    """What config.pbtxt says, see the module."""

    encoder: str
    head: str
    features: tuple[str, ...]
    refine_after_clicks: int
    net_clicks_limit: int
    maxfun: int
    m: int
    factr: float
    pgtol: float
    min_iou_diff: float
    prob_threshold: float
    reg_weight: float
    reg_bias_weight: float
    flip: bool
    enforce_clicks: bool = False

    @classmethod
    def read(cls, parameters: Mapping[str, str]) -> "Settings":
        """Read a configuration's parameters.

        Raises:
            ValueError: one is missing or wrong; the message names it.
        """
        values: dict[str, Any] = {}
        for name, kind in cls.__annotations__.items():
            if name not in parameters:
                if hasattr(cls, name):
                    continue
                raise ValueError(f"parameter {name} is missing")
            try:
                values[name] = READERS.get(kind, kind)(parameters[name])
            except ValueError as error:
                raise ValueError(f"parameter {name} is wrong: {error}") from error
        settings = cls(**values)
        if settings.enforce_clicks and settings.prob_threshold != HALF:
            raise ValueError(f"parameter enforce_clicks wants a prob_threshold of {HALF}")
        return settings


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the configuration."""
        config = json.loads(args["model_config"])
        try:
            self._settings = Settings.read(
                {name: parameter["string_value"] for name, parameter in config["parameters"].items()}
            )
        except ValueError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        self._parts = Parts(self._settings, int(args["model_version"]))

    def execute(self, requests: Sequence[Any]) -> None:
        """Answer every request as soon as it is computed; a failure is the failing request's alone."""
        for request in requests:
            try:
                respond(request, self._answer(request))
            except CancelledError:
                respond(request, error=pb_utils.TritonError("cancelled", pb_utils.TritonError.CANCELLED))
            except PartError as error:
                respond(request, error=pb_utils.TritonError(str(error)))

    def _answer(self, request: Any) -> dict[str, Array]:
        tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in INPUTS}
        inputs = {name: tensor.as_numpy() for name, tensor in tensors.items() if tensor is not None}
        rows = [
            self._refine(request, dict(zip(inputs, row, strict=True))) for row in zip(*inputs.values(), strict=True)
        ]
        logits, states = zip(*rows, strict=True)
        return {"LOGITS": np.stack(logits), "STATE_OUT": np.stack(states)}

    def _refine(self, request: Any, inputs: Mapping[str, Array]) -> tuple[Array, Array]:
        """Answer one prompt.

        inputs: IMAGE [H, W, 3], POINTS [N, 3], STATE [2 C] and, where the network reads it, PREV_MASK [1, H, W].
        Returns LOGITS [1, H, W] and STATE_OUT [2 C].
        """
        settings = self._settings
        image, points, state = inputs["IMAGE"], inputs["POINTS"], inputs["STATE"]
        views = {name: array[None] for name, array in inputs.items() if name in ("IMAGE", "PREV_MASK")}
        prompts = points[None]
        if settings.flip:
            axes = {"IMAGE": 1, "PREV_MASK": 2}
            views = {name: np.stack([view[0], np.flip(view[0], axes[name])]) for name, view in views.items()}
            prompts = np.stack([points, mirrored(points, image.shape[1])])
        seen = np.stack([first_clicks(prompt, settings.net_clicks_limit) for prompt in prompts])
        features = self._parts.encode(POINTS=seen, **views)
        evaluation = Evaluation(self._parts, request, features, prompts, (image.shape[0], image.shape[1]))
        clicks = np.isin(points[:, 2], (NEGATIVE, POSITIVE)).sum()
        if clicks > settings.refine_after_clicks:
            state, _, _ = fmin_l_bfgs_b(
                evaluation,
                state.astype(np.float64),
                m=settings.m,
                factr=settings.factr,
                pgtol=settings.pgtol,
                maxfun=settings.maxfun,
                maxiter=2 * settings.maxfun,
            )
        else:
            evaluation(state)
        logits = together(enlarged(evaluation.best_logits, (image.shape[0], image.shape[1])))
        if settings.enforce_clicks:
            logits = enforced(logits, points)
        return logits[None], state.astype(np.float32)


class Parts:
    """The network's two parts in Triton."""

    def __init__(self, settings: Settings, version: int) -> None:
        self.settings = settings
        self._version = version

    def encode(self, **inputs: Array) -> list[Any]:
        """Run the encoder on its inputs [B, ...] by name; the features stay tensors of Triton's."""
        tensors = [pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in inputs.items()]
        return self._call(self.settings.encoder, tensors, self.settings.features)

    def evaluate(self, features: Sequence[Any], **inputs: Array) -> dict[str, Array]:
        """Run the head once; its outputs by name."""
        names = ("LOGITS", "LOSS", "WORST", "SCALE_GRADIENT", "BIAS_GRADIENT")
        tensors = [pb_utils.Tensor(name, array) for name, array in inputs.items()]
        # What is read here has to be in the processor's memory, wherever the head runs.
        memory = pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0)
        answer = self._call(self.settings.head, [*features, *tensors], names, preferred_memory=memory)
        return {name: tensor.as_numpy() for name, tensor in zip(names, answer, strict=True)}

    def _call(self, part: str, inputs: Sequence[Any], outputs: Sequence[str], **options: Any) -> list[Any]:
        request = pb_utils.InferenceRequest(
            model_name=part,
            model_version=self._version,
            inputs=list(inputs),
            requested_output_names=list(outputs),
            **options,
        )
        try:
            response = request.exec()
        except pb_utils.TritonModelException as error:
            raise PartError(f"part '{part}': {error}") from error
        if response.has_error():
            raise PartError(f"part '{part}': {response.error().message()}")
        tensors = [pb_utils.get_output_tensor_by_name(response, name) for name in outputs]
        if None in tensors:
            raise PartError(f"part '{part}': it answered no {outputs[tensors.index(None)]}")
        return tensors


class Evaluation:
    """The function that L-BFGS minimises: from C scales less 1 and C shifts to the loss and its gradient.

    A gradient of zeros ends the optimisation. It remembers the logits of the smallest loss, [B, h, w].
    """

    def __init__(
        self, parts: Parts, request: Any, features: Sequence[Any], prompts: Array, size: tuple[int, int]
    ) -> None:
        self._parts = parts
        self._request = request
        self._features = features
        self._size = size
        self._pixels = clicked_pixels(prompts, size)
        self._best_loss = math.inf
        self._last_mask: Array | None = None
        self.best_logits: Array = np.empty(0)

    def __call__(self, variables: Array) -> tuple[float, Array]:
        """Evaluate [2 C]."""
        if self._request.is_cancelled():
            raise CancelledError
        settings = self._parts.settings
        views = len(self._pixels)
        scale, bias = np.split(variables.astype(np.float32), 2)
        answer = self._parts.evaluate(
            self._features,
            SCALE=np.tile(1 + scale, (views, 1)),
            BIAS=np.tile(bias, (views, 1)),
            PIXELS=self._pixels,
        )
        scale_weight, bias_weight = settings.reg_weight, settings.reg_weight * settings.reg_bias_weight
        loss = float(answer["LOSS"].sum() + scale_weight * (scale @ scale) + bias_weight * (bias @ bias))
        logits = answer["LOGITS"][:, 0]
        if self.best_logits.size == 0 or loss < self._best_loss:
            self._best_loss, self.best_logits = loss, logits.copy()
        if self._agrees(*answer["WORST"].max(0)) or self._has_settled(logits):
            return loss, np.zeros_like(variables)
        slopes = (
            answer["SCALE_GRADIENT"].sum(0) + 2 * scale_weight * scale,
            answer["BIAS_GRADIENT"].sum(0) + 2 * bias_weight * bias,
        )
        return loss, np.concatenate(slopes).astype(np.float64)

    def _agrees(self, worst_positive: float, worst_negative: float) -> bool:
        """Whether all clicked pixels are on their side of the mask's outline."""
        threshold = self._parts.settings.prob_threshold
        return bool(worst_positive < 1 - threshold and worst_negative < threshold)

    def _has_settled(self, logits: Array) -> bool:
        """Whether the mask is the one that the last evaluation gave, but for little."""
        threshold, least_change = self._parts.settings.prob_threshold, self._parts.settings.min_iou_diff
        mask = enlarged(logits, self._size) > math.log(threshold / (1 - threshold))
        if self._last_mask is not None and least_change > 0:
            union = (mask | self._last_mask).sum((1, 2))
            common = (mask & self._last_mask).sum((1, 2))[union > 0]
            if common.size and (common / union[union > 0]).mean() > 1 - least_change:
                return True
        self._last_mask = mask
        return False


def first_clicks(points: Array, limit: int) -> Array:
    """Return the first clicks of points [N, 3], and all points that are no clicks, padded to `limit` rows at least."""
    is_click = np.isin(points[:, 2], (NEGATIVE, POSITIVE))
    kept = points[np.where(is_click, is_click.cumsum() <= limit, points[:, 2] != PADDING)]
    padding = np.zeros((max(0, limit - len(kept)), 3), points.dtype)
    padding[:, 2] = PADDING
    return np.concatenate([kept, padding])


def mirrored(points: Array, width: int) -> Array:
    """Mirror points [N, 3] in an image of this width; the corners of a box change sides."""
    points = points.copy()
    points[:, 0] = width - 1 - points[:, 0]
    left, right = (np.flatnonzero(points[:, 2] == label) for label in (TOP_LEFT, BOTTOM_RIGHT))
    if len(left) == len(right):
        points[left, 0], points[right, 0] = points[right, 0], points[left, 0]
    return points


def clicked_pixels(prompts: Array, size: tuple[int, int]) -> Array:
    """Lay out the pixels around the clicks of prompts [B, N, 3] as the head's PIXELS [B, K, 4].

    A pixel's weight is one over the number of pixels of its kind, those of all prompts together.
    """
    height, width = size
    maps = np.zeros((len(prompts), 2, height, width), bool)
    for drawn, points in zip(maps, prompts, strict=True):
        for x, y, label in points:
            if label in (NEGATIVE, POSITIVE):
                # As in the authors' code: slices that begin before the image's first pixel count from its last one, so
                # a click on the first row or column has no effect.
                rows, columns = (
                    slice(centre - CLICK_RADIUS, centre + CLICK_RADIUS + 1)
                    for centre in (round(float(y)), round(float(x)))
                )
                drawn[0 if label == POSITIVE else 1, rows, columns] = True
    weights = maps / (maps.sum((0, 2, 3), keepdims=True) + EPSILON)
    positions = [np.nonzero(drawn.any(0)) for drawn in maps]
    longest = max(len(rows) for rows, _ in positions)
    pixels = np.zeros((len(prompts), PIXELS_STEP * max(1, math.ceil(longest / PIXELS_STEP)), 4), np.float32)
    for row, (ys, xs), (positive, negative) in zip(pixels, positions, weights, strict=True):
        fractions = xs / max(1, width - 1), ys / max(1, height - 1)
        row[: len(xs)] = np.stack([*fractions, positive[ys, xs], negative[ys, xs]], 1)
    return pixels


def enlarged(logits: Array, size: tuple[int, int]) -> Array:
    """Resize [B, h, w] to a height and a width, bilinear, corners on corners.

    Not by products of matrices: after each of those, NumPy's threads keep a core busy that the head needs.
    """
    for axis, length in enumerate(size, 1):
        small = logits.shape[axis]
        positions = np.arange(length) * (small - 1) / max(1, length - 1)
        before = positions.astype(np.int64)
        after = np.minimum(before + 1, small - 1)
        fraction = (positions - before).astype(np.float32).reshape((-1, 1) if axis == 1 else (1, -1))
        low = np.take(logits, before, axis)
        logits = low + (np.take(logits, after, axis) - low) * fraction
    return logits


def together(logits: Array) -> Array:
    """Make one map [H, W] of an image's logits, or of its and its mirror image's, [2, H, W]: their mean."""
    straight: Array = logits[0]
    return straight if len(logits) == 1 else (straight + logits[1, :, ::-1]) / 2


def enforced(logits: Array, points: Array) -> Array:
    """Bend logits [H, W] by bumps around those clicks of points [N, 3] that they agree with by less than MARGIN.

    For a threshold at 0. Opposite clicks within two pixels of each other cannot both be obeyed.
    """
    height, width = logits.shape
    positions = np.rint(points[:, :2]).astype(np.int64)
    is_click = np.isin(points[:, 2], (NEGATIVE, POSITIVE)) & ((positions >= 0) & (positions < (width, height))).all(1)
    (columns, rows), side = positions[is_click].T, np.where(points[is_click, 2] == POSITIVE, 1, -1).astype(np.float32)
    reach = np.arange(-TOP, TOP + 1)
    near_rows = np.clip(rows[:, None, None] + reach[:, None], 0, height - 1)
    near_columns = np.clip(columns[:, None, None] + reach, 0, width - 1)
    lacking = MARGIN - (side[:, None, None] * logits[near_rows, near_columns]).min((1, 2), initial=math.inf)
    if not (lacking > 0).any():
        return logits
    between = bump(columns - columns[:, None]) * bump(rows - rows[:, None])
    heights = np.zeros_like(side)
    for _ in range(ROUNDS):
        heights += side * np.maximum(lacking - side * (between @ heights), 0)
    bent = logits.copy()
    for row, column, top in zip(rows, columns, heights, strict=True):
        below = np.arange(max(row - REACH, 0), min(row + REACH + 1, height))
        across = np.arange(max(column - REACH, 0), min(column + REACH + 1, width))
        bent[below[0] : below[-1] + 1, across[0] : across[-1] + 1] += top * np.outer(
            bump(below - row), bump(across - column)
        )
    return bent


def bump(distances: Array) -> Array:
    """Return a bump's height, with a flat top, at distances in pixels along one axis."""
    beyond = np.maximum(np.abs(distances) - TOP, 0).astype(np.float32)
    height: Array = np.exp(beyond**2 * np.float32(-0.5 / SPREAD**2))
    return height


def respond(request: Any, outputs: Mapping[str, Array] | None = None, error: Any = None) -> None:
    """Send a request's only response."""
    wanted = request.requested_output_names()
    tensors = [
        pb_utils.Tensor(name, np.ascontiguousarray(array, np.float32))
        for name, array in (outputs or {}).items()
        if name in wanted
    ]
    response = pb_utils.InferenceResponse(tensors, error)
    request.get_response_sender().send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
