"""ListModels: tools as protobuf messages."""

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_server.tools.catalogue import State, Tool
from polywand_server.tools.kinds import Detector, Interactor

_BOX_USES = {"none": pb.BOX_USE_NONE, "optional": pb.BOX_USE_OPTIONAL, "required": pb.BOX_USE_REQUIRED}

_STATES = {
    State.READY: pb.MODEL_STATE_READY,
    State.LOADING: pb.MODEL_STATE_LOADING,
    State.UNAVAILABLE: pb.MODEL_STATE_UNAVAILABLE,
    State.FAILED: pb.MODEL_STATE_FAILED,
}


def write_model(tool: Tool) -> pb.Model:
    """Convert one tool of ListModels."""
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
