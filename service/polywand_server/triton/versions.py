"""A model's configuration, limited to some of its versions.

Triton loads all versions of a model that the version policy names. If one of them fails at the model's first load, it
serves none. Given a configuration with a policy of the others only, it serves those. A later load with more versions
does not reload versions that are in service and whose files are the same.
"""

from collections.abc import Collection

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2


def serving(config: str, versions: Collection[int]) -> list[int]:
    """Return the versions that Triton would load.

    config: a config.pbtxt.

    Raises:
        ValueError: it cannot be read.
    """
    policy = _parse(config).version_policy
    if policy.HasField("all"):
        return sorted(versions)
    if policy.HasField("specific"):
        return sorted(set(versions) & set(policy.specific.versions))
    newest = policy.latest.num_versions or 1
    return sorted(versions)[-newest:]


def required_file(config: str) -> str:
    """Return the name of a file without which a version must not be loaded; empty if Triton itself reports that.

    Triton 2.51 waits for ever when it loads a Python model without this file.

    Raises:
        ValueError: it cannot be read.
    """
    message = _parse(config)
    if message.backend != "python":
        return ""
    return str(message.default_model_filename) or "model.py"


def narrowed(config: str, versions: Collection[int]) -> str:
    """Return a config.pbtxt as JSON, with a policy of exactly these versions.

    Raises:
        ValueError: it cannot be read.
    """
    message = _parse(config)
    message.version_policy.specific.versions[:] = sorted(versions)
    return str(json_format.MessageToJson(message, preserving_proto_field_name=True))


def _parse(config: str) -> model_config_pb2.ModelConfig:
    try:
        return text_format.Parse(config, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise ValueError(str(error)) from error
