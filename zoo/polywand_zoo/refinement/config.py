"""The configurations of a refined network's three models: the tool, and the two parts that it calls."""

from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType

from polywand_zoo.refinement.parts import Parts

POINTS = 64  # of the tool; the network itself sees fewer
MAX_BATCH_SIZE = 8

# The authors' settings of f-BRS; what each means stands in `triton_model`.
SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "refine_after_clicks": "1",
        "net_clicks_limit": "8",
        "maxfun": "20",
        "m": "20",
        "factr": "0",
        "pgtol": "1e-8",
        "min_iou_diff": "0.001",
        "prob_threshold": "0.5",
        "reg_weight": "1e-3",
        "reg_bias_weight": "10",
        "flip": "false",
    }
)


def tool_code() -> bytes:
    """Return the `model.py` of every tool: a copy of `triton_model.py`, because Triton reads one folder alone."""
    return resources.files("polywand_zoo.refinement").joinpath("triton_model.py").read_bytes()


def encoder_name(name: str) -> str:
    """Name the model of a tool's encoder."""
    return f"{name}_encoder"


def head_name(name: str) -> str:
    """Name the model of a tool's head."""
    return f"{name}_head"


def tool_config(name: str, parts: Parts, parameter: str) -> str:
    """Return config.pbtxt of the tool; parameter: `polywand`, as strings of Triton's text format, indented by six."""
    own = {"encoder": encoder_name(name), "head": head_name(name), "features": " ".join(parts.features)}
    return f"""\
name: "{name}"
backend: "python"
max_batch_size: {MAX_BATCH_SIZE}
version_policy {{ latest {{ num_versions: 2 }} }}

input [
  {{ name: "IMAGE" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] }},
  {{ name: "POINTS" data_type: TYPE_FP32 dims: [ {POINTS}, 3 ] }},
  {{ name: "STATE" data_type: TYPE_FP32 dims: [ {2 * parts.variables} ] }}
]
output [
  {{ name: "LOGITS" data_type: TYPE_FP32 dims: [ 1, -1, -1 ] }},
  {{ name: "STATE_OUT" data_type: TYPE_FP32 dims: [ {2 * parts.variables} ] }}
]

instance_group [ {{ count: 1 kind: KIND_CPU }} ]  # it only conducts its parts

# What each means stands at the top of model.py.
{_parameters(own | dict(SETTINGS))}
parameters {{
  key: "polywand"
  value: {{
    string_value:
{parameter}
  }}
}}
"""


def encoder_config(name: str, parts: Parts) -> str:
    """Return config.pbtxt of the encoder."""
    inputs = {"IMAGE": ("UINT8", "-1, -1, 3"), "POINTS": ("FP32", "-1, 3")}
    return _part_config(encoder_name(name), inputs, _features(parts))


def head_config(name: str, parts: Parts) -> str:
    """Return config.pbtxt of the head."""
    variables = {key: ("FP32", str(parts.variables)) for key in ("SCALE", "BIAS")}
    outputs = {"LOGITS": ("FP32", "1, -1, -1"), "LOSS": ("FP32", "1"), "WORST": ("FP32", "2")}
    gradients = {f"{key}_GRADIENT": form for key, form in variables.items()}
    inputs = _features(parts) | variables | {"PIXELS": ("FP32", "-1, 4")}
    return _part_config(head_name(name), inputs, outputs | gradients)


def _features(parts: Parts) -> dict[str, tuple[str, str]]:
    return {
        name: ("FP32", f"{channels}, -1, -1") for name, channels in zip(parts.features, parts.channels, strict=True)
    }


def _part_config(name: str, inputs: Mapping[str, tuple[str, str]], outputs: Mapping[str, tuple[str, str]]) -> str:
    return f"""\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {MAX_BATCH_SIZE}
version_policy {{ latest {{ num_versions: 2 }} }}

input [
{_tensors(inputs)}
]
output [
{_tensors(outputs)}
]

instance_group [ {{ count: 1 }} ]  # no kind: on the GPU where there is one

# Gradients need single precision, and what they are gradients of as well.
optimization {{
  execution_accelerators {{
    cpu_execution_accelerator: [ {{ name: "openvino" parameters {{ key: "precision" value: "f32" }} }} ]
  }}
}}
"""


def _tensors(tensors: Mapping[str, tuple[str, str]]) -> str:
    return ",\n".join(
        f'  {{ name: "{name}" data_type: TYPE_{kind} dims: [ {dims} ] }}' for name, (kind, dims) in tensors.items()
    )


def _parameters(values: Mapping[str, str]) -> str:
    return "\n".join(
        f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}' for key, value in values.items()
    )
