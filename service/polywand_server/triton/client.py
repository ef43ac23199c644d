"""Asynchronous calls to one Triton server: its repository index, model configurations, loading, inference."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from polywand_common.proxies import direct
from polywand_server.config import TritonTls
from polywand_server.triton.failures import Failures, ModelDiedError
from polywand_server.triton.tensors import NOT_SHARED, Array, SharedTensors, decode_response, encode_request

CONTROL_TIMEOUT_S = 5.0  # index, configuration
LOAD_TIMEOUT_S = 300.0  # a large network is read, compiled and warmed up; an unload may have to wait for a load
STUCK_S = 0.5  # after a call's own timeout, until it is given up

_CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # So that a restarted Triton is found again at once; gRPC's own backoff starts at 1 s and grows to 2 min.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Triton closes connections that ping more often than every 5 min. The timeout matters more: gRPC sets it also as
    # TCP_USER_TIMEOUT, so a request to a host that vanished fails after 5 s and not after 15 min.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 5_000),
]

# Reasons of entries: Triton's word for a model that a client unloaded, and ours for one that it does not list now.
UNLOADED, NOT_FOUND = "unloaded", "Triton does not find it now"


class ModelState(StrEnum):
    """Triton's states of a model version."""

    READY = "READY"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One model version in Triton's repository.

    version: None when the model has not been loaded since Triton started.
    state: a `ModelState`; "" when never loaded. reason: why it is not ready, in words that clients may read.
    """

    name: str
    version: int | None
    state: str
    reason: str

    @property
    def is_ready(self) -> bool:
        """Whether it is in service."""
        return self.state == ModelState.READY

    @property
    def was_unloaded(self) -> bool:
        """Whether it is out of service because it was unloaded."""
        return self.state == ModelState.UNAVAILABLE and self.reason == UNLOADED

    @property
    def has_failed(self) -> bool:
        """Whether it is out of service because it could not be loaded."""
        return self.state == ModelState.UNAVAILABLE and self.reason not in (UNLOADED, NOT_FOUND)


@dataclass(frozen=True, slots=True)
class DeadProcess:
    """A request failed because Triton calls a process of a model dead; all requests to the model fail then.

    process: its name in Triton, where this is known. sent_at: when the request was sent, by `time.monotonic`.
    """

    model: str
    process: str | None
    sent_at: float


@dataclass(frozen=True, slots=True)
class TensorConfig:
    """A model's input or output. dtype: Triton's name ("UINT8", "FP32"). dims: without the batch axis; -1 is any."""

    dtype: str
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What Polywand reads of a model's configuration.

    max_batch_size: 0 when tensors have no batch axis. parameters: the string values of `parameters`.
    """

    name: str
    backend: str
    max_batch_size: int
    inputs: dict[str, TensorConfig]
    outputs: dict[str, TensorConfig]
    parameters: dict[str, str]


class TritonClient:
    """One channel to one Triton; make it inside the event loop that uses it, and close it.

    url: gRPC's target ("host:8001", "unix:/path").
    on_dead_process: called at once when a request fails because the process of a model died.
    Methods raise UnavailableError, DeadlineError or ModelFailedError (see `failures`), and none of gRPC's errors.
    Cancelling the task that awaits a call cancels the call, and Triton drops the request if its model has not begun.
    """

    def __init__(
        self,
        url: str,
        tls: TritonTls | None = None,
        *,
        on_dead_process: Callable[[DeadProcess], object] = lambda _: None,
    ) -> None:
        self.url = url
        options = [*_CHANNEL_OPTIONS, *direct(url)]
        if tls is None:
            self._channel = grpc.aio.insecure_channel(url, options=options)
        else:
            self._channel = grpc.aio.secure_channel(url, _credentials(tls), options=options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._on_dead_process = on_dead_process
        self._failures = Failures(url)

    async def close(self) -> None:
        """Cancel the running calls and close the channel."""
        await self._channel.close(None)

    async def server_live(self, timeout_s: float) -> bool:
        """Tell whether Triton answers at all."""
        try:
            response = await self._stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return False
        return bool(response.live)

    async def server_ready(self, timeout_s: float) -> bool:
        """Tell whether Triton accepts requests (with `--strict-readiness`: whether all its models are ready)."""
        try:
            response = await self._stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return False
        return bool(response.ready)

    async def repository_index(self) -> list[IndexEntry]:
        """List every model version in the repository, loaded or not."""
        request = service_pb2.RepositoryIndexRequest()
        response = await self._call(self._stub.RepositoryIndex, request, CONTROL_TIMEOUT_S, "repository index")
        return [
            IndexEntry(
                entry.name,
                int(entry.version) if entry.version else None,
                entry.state,
                self._failures.public_text(entry.reason),
            )
            for entry in response.models
        ]

    async def model_config(self, name: str, version: int = 0) -> ModelConfig:
        """Return the configuration of a loaded model. version: 0 lets Triton choose."""
        request = service_pb2.ModelConfigRequest(name=name, version=str(version) if version else "")
        response = await self._call(self._stub.ModelConfig, request, CONTROL_TIMEOUT_S, _describe(name, version))
        return _model_config(response.config)

    async def load(self, name: str, config: str = "") -> None:
        """Load a model, or load it again; returns when it is ready.

        config: JSON, instead of the configuration in the repository (see `versions`).

        Raises:
            ModelFailedError: Triton cannot load it. ControlRefusedError: Triton loads no models for its clients.
        """
        request = service_pb2.RepositoryModelLoadRequest(model_name=name)
        if config:
            request.parameters["config"].string_param = config
        await self._call(self._stub.RepositoryModelLoad, request, LOAD_TIMEOUT_S, _describe(name))

    async def unload(self, name: str) -> None:
        """Unload a model. Running requests are finished, after this has returned.

        Raises:
            ControlRefusedError: Triton unloads no models for its clients.
        """
        request = service_pb2.RepositoryModelUnloadRequest(model_name=name)
        await self._call(self._stub.RepositoryModelUnload, request, LOAD_TIMEOUT_S, _describe(name))

    async def model_ready(self, name: str, version: int) -> bool:
        """Tell whether a version is loaded, even if Triton does not find its folder any more."""
        request = service_pb2.ModelReadyRequest(name=name, version=str(version))
        response = await self._call(self._stub.ModelReady, request, CONTROL_TIMEOUT_S, _describe(name, version))
        return bool(response.ready)

    async def has_failed_requests(self, name: str) -> bool:
        """Tell whether any request to a model has failed since it was loaded.

        Raises:
            ModelFailedError: it is not loaded.
        """
        request = service_pb2.ModelStatisticsRequest(name=name)
        response = await self._call(self._stub.ModelStatistics, request, CONTROL_TIMEOUT_S, _describe(name))
        return any(version.inference_stats.fail.count for version in response.model_stats)

    async def infer(
        self,
        model: str,
        version: int,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        *,
        timeout_s: float,
        shared: SharedTensors = NOT_SHARED,
        request_id: str = "",
        traceparent: str = "",
        priority: int = 0,
    ) -> dict[str, Array]:
        """Run a model once.

        version: 0 lets Triton choose. inputs: by name, with the batch axis. outputs: the names wanted.
        shared: inputs that are in shared memory already, and memory for outputs there (see `exchange`).
        request_id: appears in Triton's log and error messages. traceparent: of the caller; sent as gRPC metadata.
        priority: 1 is the most urgent, 0 the model's default.
        Returns the outputs by name, as read-only arrays.
        """
        request = encode_request(
            model, version, inputs, outputs, shared=shared, request_id=request_id, priority=priority
        )
        sent_at = time.monotonic()
        try:
            what = _describe(model, version)
            response = await self._call(self._stub.ModelInfer, request, timeout_s, what, traceparent)
        except ModelDiedError as error:
            self._on_dead_process(DeadProcess(error.part or model, error.process, sent_at))
            raise
        return decode_response(response, outputs, shared)

    async def register_region(self, name: str, nbytes: int) -> None:
        """Let Triton map the shared memory object of this name, under this name.

        Raises:
            RegionError: it cannot: it runs on another host, or in a container with its own shared memory.
        """
        request = service_pb2.SystemSharedMemoryRegisterRequest(name=name, key=f"/{name}", offset=0, byte_size=nbytes)
        await self._call(self._stub.SystemSharedMemoryRegister, request, CONTROL_TIMEOUT_S, "shared memory")

    async def unregister_region(self, name: str) -> None:
        """Let Triton release a region; nothing happens if it does not know the region.

        Raises:
            ModelFailedError: a request still uses it.
        """
        request = service_pb2.SystemSharedMemoryUnregisterRequest(name=name)
        await self._call(self._stub.SystemSharedMemoryUnregister, request, CONTROL_TIMEOUT_S, "shared memory")

    async def _call(self, method: Any, request: Any, timeout_s: float, what: str, traceparent: str = "") -> Any:
        metadata = (("traceparent", traceparent),) if traceparent else None
        try:
            # A second timeout: gRPC's own, which is sent to Triton too, does not end a call whose request is stuck.
            async with asyncio.timeout(timeout_s + STUCK_S):
                return await method(request, timeout=timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise self._failures.error(error, what) from error
        except TimeoutError as error:
            raise self._failures.deadline_error(what) from error


def _describe(model: str, version: int = 0) -> str:
    return f"model '{model}' version {version}" if version else f"model '{model}'"


def _credentials(tls: TritonTls) -> grpc.ChannelCredentials:
    def read(path: Path | None) -> bytes | None:
        return path.read_bytes() if path else None

    return grpc.ssl_channel_credentials(
        root_certificates=read(tls.root_certificates),
        private_key=read(tls.private_key),
        certificate_chain=read(tls.certificate_chain),
    )


def _model_config(config: Any) -> ModelConfig:
    return ModelConfig(
        name=config.name,
        backend=config.backend,
        max_batch_size=config.max_batch_size,
        inputs={tensor.name: _tensor_config(tensor, optional=tensor.optional) for tensor in config.input},
        outputs={tensor.name: _tensor_config(tensor) for tensor in config.output},
        parameters={key: value.string_value for key, value in config.parameters.items()},
    )


def _tensor_config(tensor: Any, *, optional: bool = False) -> TensorConfig:
    dtype = model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")
    return TensorConfig("BYTES" if dtype == "STRING" else dtype, tuple(tensor.dims), optional)
