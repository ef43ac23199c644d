"""GetServerInfo: what this server is, as a protobuf message."""

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_pictures import media_types
from polywand_server import __version__
from polywand_server.config import Limits
from polywand_server.detectors.toolbox import default_detector
from polywand_server.images.checks import MAX_SIDE
from polywand_server.ops.health import Health
from polywand_server.rpc import requests
from polywand_server.tools.registry import Registry

# The largest uint32.
_MOST = 2**32 - 1


class ServerInfo:
    """Describes a server with these limits; it needs no Triton for that."""

    def __init__(self, limits: Limits, health: Health, registry: Registry) -> None:
        self._limits = _write_limits(limits)
        self._health = health
        self._registry = registry

    def write(self) -> pb.GetServerInfoResponse:
        """Write what the server is now."""
        return pb.GetServerInfoResponse(
            version=__version__,
            state=self._state(),
            state_message=self._health.reason,
            limits=self._limits,
            capabilities=pb.Capabilities(
                image_types=media_types(),
                pixel_formats=requests.PIXEL_FORMATS,
                output_forms=requests.OUTPUT_FORMS,
                default_detector=default_detector(self._registry),
            ),
        )

    def _state(self) -> pb.ServerState.ValueType:
        if self._health.is_draining:
            return pb.SERVER_STATE_DRAINING
        return pb.SERVER_STATE_READY if self._health.ready else pb.SERVER_STATE_STARTING


def _write_limits(limits: Limits) -> pb.ServerLimits:
    """Write the settings and the constants that bound a request."""
    values = {
        "message_bytes": limits.message_bytes,
        "image_bytes": limits.image_bytes,
        "image_pixels": limits.image_pixels,
        "image_side": MAX_SIDE,
        "segment_prompts": requests.MAX_SEGMENT_PROMPTS,
        "stream_objects": limits.objects,
        "prompt_points": requests.MAX_POINTS,
        "seed_vertices": requests.MAX_SEED_VERTICES,
        "seed_rings": requests.MAX_SEED_RINGS,
        "detections": requests.MAX_MAX_DETECTIONS,
        "labels": requests.MAX_LABELS,
        "prompt_ms": round(limits.prompt_seconds * 1000),
    }
    return pb.ServerLimits(**{name: min(value, _MOST) for name, value in values.items()})
