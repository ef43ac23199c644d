"""The files beside a network in the model repository: its configuration for Triton, and a notice of its origin."""

import json
import textwrap

from polywand_zoo.published.catalogue import Published

MAX_BATCH_SIZE = 8
LINE = 100  # characters of a line of JSON


def model_config(published: Published, *, points: int, size: tuple[int, int] | None, has_previous_mask: bool) -> str:
    """Return config.pbtxt.

    points: rows of POINTS. size: height and width of IMAGE, None where they vary.
    """
    height, width = size or (-1, -1)
    inputs = [
        f'  {{ name: "IMAGE" data_type: TYPE_UINT8 dims: [ {height}, {width}, 3 ] }}',
        f'  {{ name: "POINTS" data_type: TYPE_FP32 dims: [ {points}, 3 ] }}',
    ]
    if has_previous_mask:
        inputs.append(f'  {{ name: "PREV_MASK" data_type: TYPE_FP32 dims: [ 1, {height}, {width} ] }}')
    listed = ",\n".join(inputs)
    return f"""\
name: "{published.name}"
backend: "onnxruntime"
max_batch_size: {MAX_BATCH_SIZE}
version_policy {{ latest {{ num_versions: 2 }} }}

input [
{listed}
]
output [
  {{ name: "LOGITS" data_type: TYPE_FP32 dims: [ 1, {height}, {width} ] }}
]

instance_group [ {{ count: 1 }} ]  # no kind: on the GPU where there is one
dynamic_batching {{ }}

# auto: bfloat16 where the processor has it and a version's metadata do not refuse it; f32: single precision everywhere.
optimization {{
  execution_accelerators {{
    cpu_execution_accelerator: [ {{ name: "openvino" parameters {{ key: "precision" value: "auto" }} }} ]
  }}
}}

parameters {{
  key: "polywand"
  value: {{
    string_value:
{parameter(published)}
  }}
}}
"""


def parameter(published: Published) -> str:
    """Return the parameter `polywand` as strings of Triton's text format, indented."""
    return textwrap.indent(_as_strings(_spec(published)), " " * 6)


def notice(published: Published, *, checkpoint: str, sha256: str, precision: str) -> str:
    """Return a version's NOTICE: the weights' authors and licence, and how they were converted."""
    return f"""\
{published.name}: {published.title}

The weights are those of the file {checkpoint}
(SHA-256 {sha256}).

Paper: {published.paper}
Published at: {published.page}
Licence of the weights: {published.license}
Trained on: {published.trained_on}

`polywand-zoo import` exported them in {precision}; batch normalisation became part of the convolutions, and what
surrounds the network (normalisation of the image, maps of the prompt) part of the graph. Nothing was trained.
"""


def _spec(published: Published) -> str:
    spec = {
        "kind": "interactor",
        "display_name": published.title,
        "help_message": published.help_message,
        "animated_gif": "",
        "license": published.license,
        "weights_source": published.weights_source,
        "threshold": published.threshold,
        "prompt": dict(published.prompt),
        "crop": dict(published.crop),
    }
    if not published.is_refined:  # which averages within its model, since both images are refined together
        spec["flip"] = False
    fields = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in spec.items())
    return f"{{\n{fields}\n}}"


def _as_strings(text: str) -> str:
    """Write a text as strings of Triton's text format, which it joins again."""
    escaped = text.replace("\\", r"\\").replace("'", r"\'")
    lines = [part for line in escaped.splitlines() for part in _wrapped(line)]
    return "\n".join(f"'{line}'" for line in lines)


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, LINE, drop_whitespace=False, break_long_words=False, break_on_hyphens=False)
