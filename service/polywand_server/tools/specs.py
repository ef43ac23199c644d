"""Tool specs: the JSON under `polywand` in the parameters of a model's config, parsed and checked."""

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, from_json

from polywand_server.images.resampling import Resampling
from polywand_server.triton.client import ModelConfig

PARAMETER_KEY = "polywand"
# Of POINTS: two for a box and one for a click.
MIN_POINT_ROWS = 3
# Answers of an interactor to one prompt.
MOST_ANSWERS = 8
BOX_COLUMNS = 4
# Rows of a batch for flip averaging: the crop, and its mirror image.
FLIPPED = 2
# Of a label's name: as bytes, requests may hold it.
MAX_LABEL_CHARACTERS = 64

Fraction = Annotated[float, Field(gt=0, lt=1)]


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LetterboxCrop(_Spec):
    """The whole image, its aspect kept, centred on black."""

    policy: Literal["letterbox"]


class MarginCrop(_Spec):
    """The box (or the extreme points' box) and a margin around it; without either the whole image.

    fraction: of the box's width and height, on each side. pixels: added on each side, in image pixels.
    keep_margin: whether the object may reach into the added pixels; without, the answer is 0 there (as in DEXTR).
    resampling: see `Resampling`. Other than "smooth", the box is that of the pixels that its corners lie in.
    longest_side: of the network's input, for models of variable size.
    """

    policy: Literal["margin"]
    fraction: NonNegativeFloat = 0.0
    pixels: NonNegativeInt = 0
    keep_margin: bool = True
    resampling: Resampling = Resampling.SMOOTH

    longest_side: PositiveInt = 512

    @model_validator(mode="after")
    def _margin_can_be_cut(self) -> Self:
        if not self.keep_margin and self.resampling is Resampling.SMOOTH:
            raise ValueError('keep_margin can be false only where resampling is not "smooth"')
        return self


class WholeCrop(_Spec):
    """The whole image, always.

    longest_side: of the network's input, for models of variable size.
    """

    policy: Literal["whole"]
    longest_side: PositiveInt = 800


# The name is typed on command lines and becomes part of file names.
ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=128)]


class ProposalSpec(_Spec):
    """A detector whose boxes are candidates for the object of a first click.

    model: its name; while it is not ready, there are no proposals. score: of a box that counts, instead of the
    detector's own threshold. at_most: so many are looked at, by score. agree_from: where the box of the mask that was
    found has this intersection over union with a proposal, or more, the network is shown the clicks and a box at once:
    the proposal, looked at or not, for which it is greatest. Without agree_from, proposals are looked at, no more.
    """

    model: ToolName
    score: Fraction = 0.3
    at_most: int = Field(2, ge=1, le=4)
    agree_from: Fraction | None = None


class ZoomInCrop(_Spec):
    """The surroundings of the first click, or the whole image; then the surroundings of the current mask.

    first_looks: the sides of the crops around the clicks that start an object, relative to the image's longer side; 1
        is the whole image. Each is looked at, and the answer that is surest of its mask stands. Where a newer prompt
        waits that does not build on this one, those looked at so far have to do.
    expansion: the crop's side relative to the mask's box.
    keep_above: the crop stays where it was as long as all clicks lie in it and its intersection over union with the one
        around the current mask is above this; 1 follows the mask with every click.
    min_fraction: the crop's shortest side relative to the image's.
    max_aspect: the crop's longer side relative to its shorter one.
    click_margin: how far beyond a click the crop reaches, relative to its longer side.
    whole_image_above: a crop of more than this share of the image's area becomes the whole image.
    refine_first: look at the first answer again, on the crop around what was found.
    look_again_below: look at a later answer again, on the crop around the new mask, where its intersection over union
        with the crop that the network saw is below this; 0 looks once.
    box_margin: around a box that starts an object, relative to its width and height, on each side.
    longest_side: of the network's input, for models of variable size.
    """

    policy: Literal["zoom_in"]
    first_looks: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field((1.0,), min_length=1, max_length=4)
    proposals: ProposalSpec | None = None
    expansion: float = Field(1.4, ge=1)
    keep_above: Annotated[float, Field(ge=0, le=1)] = 0.5
    min_fraction: NonNegativeFloat = 0.25
    max_aspect: float = Field(1.7, ge=1)
    click_margin: NonNegativeFloat = 0.06
    whole_image_above: PositiveFloat = 0.85
    refine_first: bool = False
    look_again_below: Annotated[float, Field(ge=0, le=1)] = 0.0
    box_margin: NonNegativeFloat = 0.18
    longest_side: PositiveInt = 512


class RoiCrop(_Spec):
    """The whole image for the first click, then the object's region of interest, as RITM and f-BRS choose it.

    That is the box of the current mask and the positive clicks, expanded. It stays while the positive clicks lie in it.
    Its resampling is "corners" (see `Resampling`).
    expansion: the region's side relative to the box's. min_side: of the region at least, in image pixels.
    inside_above: the probability from which a pixel belongs to the current mask.
    keep_from: the region moves when the product of its overlaps along both axes (intersection over union) with the one
        around the current mask is less.
    longest_side: of the network's input for the whole image at most. zoomed_side: the longest for a region, exactly.
    """

    policy: Literal["roi"]
    expansion: float = Field(1.4, ge=1)
    min_side: PositiveInt = 200
    inside_above: Fraction = 0.5
    keep_from: Annotated[float, Field(ge=0, le=1)] = 0.5
    longest_side: PositiveInt = 800
    zoomed_side: PositiveInt = 400


CropPolicy = WholeCrop | MarginCrop | ZoomInCrop | RoiCrop


class PromptSpec(_Spec):
    """What an interactor needs before it answers.

    min_positive_points: a given optional box stands in for them.
    extreme_points: that start an object; 0 when none are read.
    """

    min_positive_points: NonNegativeInt = 1
    min_negative_points: NonNegativeInt = 0
    extreme_points: NonNegativeInt = 0
    box: Literal["none", "optional", "required"] = "none"


class Suppression(_Spec):
    """Non-maximum suppression: the IoU from which the lower score goes, within a class and across all."""

    same_class_iou: Fraction = 0.5
    any_class_iou: Annotated[float, Field(gt=0, le=1)] = 1.0


class _ToolSpec(_Spec):
    """Fields of every tool; they mean what the contract's `Model` says."""

    display_name: str = Field(min_length=1)
    help_message: str = ""
    animated_gif: str = ""
    license: str = ""
    weights_source: str = ""
    threshold: Fraction = 0.5


class InteractorSpec(_ToolSpec):
    """A model that turns a prompt into one object's logits.

    flip: show it every crop and its mirror image in a batch of two, and average the logits.
    """

    kind: Literal["interactor"]
    prompt: PromptSpec = PromptSpec()
    crop: Annotated[CropPolicy, Field(discriminator="policy")]
    flip: bool = False

    @model_validator(mode="after")
    def _proposals_can_be_prompts(self) -> Self:
        proposals = self.crop.proposals if isinstance(self.crop, ZoomInCrop) else None
        if proposals is not None and proposals.agree_from is not None and self.prompt.box == "none":
            raise ValueError("crop.proposals.agree_from wants a tool that reads a box (prompt.box)")
        return self


class LabelSpec(_Spec):
    """A label of a detector.

    color: for drawing, "#rrggbb"; empty: the client's choice. parent: the name of a more general label, of the detector
    or not; empty: none.
    """

    name: str = Field(min_length=1, max_length=MAX_LABEL_CHARACTERS)
    color: Annotated[str, StringConstraints(pattern=r"^(#[0-9a-fA-F]{6})?$", to_lower=True)] = ""
    parent: str = Field("", max_length=MAX_LABEL_CHARACTERS)

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _parent_is_another(self) -> Self:
        if self.parent == self.name:
            raise ValueError(f"label '{self.name}' cannot be its own parent")
        return self


class DetectorSpec(_ToolSpec):
    """A model that turns an image into scored boxes.

    label_specs: by class index; `labels` in JSON, where a string is a name alone.
    """

    kind: Literal["detector"]
    label_specs: tuple[LabelSpec, ...] = Field(validation_alias="labels")
    suppression: Suppression = Suppression()
    crop: LetterboxCrop = LetterboxCrop(policy="letterbox")

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of its labels, by class index."""
        return tuple(label.name for label in self.label_specs)

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        if not self.label_specs:
            raise ValueError("a detector needs at least one label")
        twice = [name for name, count in Counter(self.labels).items() if count > 1]
        if twice:
            raise ValueError(f"several labels have the same name: {', '.join(twice)}")
        return self


ToolSpec = InteractorSpec | DetectorSpec
_AnyKind = Annotated[ToolSpec, Field(discriminator="kind")]
_ONE_TOOL: TypeAdapter[ToolSpec] = TypeAdapter(_AnyKind)


class _SeveralTools(_Spec):
    """Several tools of one model, by name: the same weights, each with its own prompts and crop."""

    tools: dict[ToolName, _AnyKind] = Field(min_length=1)


def parse_specs(text: str, model: str) -> Mapping[str, ToolSpec]:
    """Parse the parameter's JSON; return the specs by tool name. A single spec is of a tool named like the model.

    Raises:
        ValueError: it is not JSON, or a field is wrong; the message names the field and what is expected.
    """
    parsed = from_json(text)
    try:
        if isinstance(parsed, dict) and "tools" in parsed:
            return _SeveralTools.model_validate(parsed).tools
        return {model: _ONE_TOOL.validate_python(parsed)}
    except ValidationError as error:
        raise ValueError("; ".join(map(_in_words, error.errors()))) from error


def _in_words(problem: ErrorDetails) -> str:
    path = ".".join(map(str, problem["loc"]))
    return f"{path}: {problem['msg'].removeprefix('Value error, ')}"


def check_config(spec: ToolSpec, config: ModelConfig) -> None:
    """Check that a model has the tensors that a tool's kind needs (see docs/models.md, "A model of your own").

    Raises:
        ValueError: says which tensor, and what it has to be; dims are without the batch axis.
    """
    interactor = isinstance(spec, InteractorSpec)
    wanted_inputs = {"IMAGE": ("UINT8", 3)} | ({"POINTS": ("FP32", 2)} if interactor else {})
    wanted_outputs = {"LOGITS": ("FP32", 3)} if interactor else {"BOXES": ("FP32", 2), "SCORES": ("FP32", 2)}
    if config.max_batch_size < 1:
        raise ValueError("max_batch_size has to be at least 1: every tensor has a batch axis")
    if isinstance(spec, InteractorSpec) and spec.flip and config.max_batch_size < FLIPPED:
        raise ValueError(f"max_batch_size has to be at least {FLIPPED}: flip averaging sends a batch of {FLIPPED}")
    for tensors, wanted in ((config.inputs, wanted_inputs), (config.outputs, wanted_outputs)):
        for name, (dtype, rank) in wanted.items():
            if name not in tensors:
                raise ValueError(f"it has no tensor {name}")
            if tensors[name].dtype != dtype or len(tensors[name].dims) != rank:
                raise ValueError(f"{name} has to be {dtype} with {rank} dims")
    if interactor:
        _check_state(config)
        _check_answers(config)
    if interactor and config.inputs["POINTS"].dims[0] < MIN_POINT_ROWS:
        raise ValueError(f"POINTS has to have a fixed number of rows, at least {MIN_POINT_ROWS}")
    if isinstance(spec, DetectorSpec):
        if min(config.inputs["IMAGE"].dims) < 1:
            raise ValueError("IMAGE of a detector has to have a fixed size")
        if config.outputs["BOXES"].dims[1] != BOX_COLUMNS:
            raise ValueError(f"BOXES has {config.outputs['BOXES'].dims[1]} columns and not x0, y0, x1, y1")
        if config.outputs["SCORES"].dims[1] != len(spec.labels):
            raise ValueError(f"SCORES has {config.outputs['SCORES'].dims[1]} classes for {len(spec.labels)} labels")


def _check_state(config: ModelConfig) -> None:
    before, after = config.inputs.get("STATE"), config.outputs.get("STATE_OUT")
    if (before is None) != (after is None):
        raise ValueError("STATE and STATE_OUT belong together: what one inference writes, the next one reads")
    if before is None or after is None:
        return
    if before.dtype != "FP32" or after.dtype != "FP32" or before.dims != after.dims or min(before.dims) < 1:
        raise ValueError("STATE and STATE_OUT have to be FP32 with the same fixed dims")


def _check_answers(config: ModelConfig) -> None:
    answers, scores = config.outputs["LOGITS"].dims[0], config.outputs.get("SCORES")
    if not 1 <= answers <= MOST_ANSWERS:
        raise ValueError(f"LOGITS has to have a fixed number of answers as its first dim, from 1 to {MOST_ANSWERS}")
    if scores is None and answers > 1:
        raise ValueError(f"LOGITS has {answers} answers, and there is no tensor SCORES that says which is the best")
    if scores is not None and (scores.dtype != "FP32" or scores.dims != (answers,)):
        raise ValueError(f"SCORES has to be FP32 with dims [ {answers} ], one for each answer in LOGITS")
