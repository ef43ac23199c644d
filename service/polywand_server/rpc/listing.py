"""ListModels: tools as protobuf messages."""

from polywand.v1 import annotation_pb2 as pb
from polywand_server.interactors.passes import max_points, reads_seed
from polywand_server.tools.catalogue import Tool
from polywand_server.tools.specs import DetectorSpec, InteractorSpec

_BOX_USES = {"none": pb.BOX_USE_NONE, "optional": pb.BOX_USE_OPTIONAL, "required": pb.BOX_USE_REQUIRED}


def write_model(tool: Tool) -> pb.Model:
    """Write one tool of ListModels."""
    model = pb.Model(name=tool.name, ready=tool.ready, not_ready_reason=tool.reason)
    for version in tool.versions:
        model.versions.add(version=version.version, ready=version.ready, not_ready_reason=version.reason)
    spec = tool.spec
    if spec is None:
        return model
    model.display_name = spec.display_name
    model.help_message = spec.help_message
    model.animated_gif = spec.animated_gif
    model.license = spec.license
    model.weights_source = spec.weights_source
    model.default_threshold = spec.threshold
    match spec:
        case InteractorSpec(prompt=prompt):
            model.kind = pb.MODEL_KIND_INTERACTOR
            model.interactor.CopyFrom(
                pb.InteractorSpec(
                    min_positive_points=prompt.min_positive_points,
                    min_negative_points=prompt.min_negative_points,
                    extreme_points=prompt.extreme_points,
                    box=_BOX_USES[prompt.box],
                    max_points=max_points(prompt, tool.config) if tool.config else 0,
                    reads_seed=tool.config is not None and reads_seed(tool.config),
                )
            )
        case DetectorSpec(labels=labels):
            model.kind = pb.MODEL_KIND_DETECTOR
            model.detector.labels.extend(labels)
    return model
