"""A Python-based Triton backend for ONNX models on CPUs: ONNX Runtime, or OpenVINO where the configuration says so.

It replaces NVIDIA's `onnxruntime` backend, which the nvidia-pytriton wheel lacks, so that one model repository runs in
the embedded server and in the stock container. It reads the same lines of `config.pbtxt`:

    optimization { execution_accelerators { cpu_execution_accelerator: [ { name: "openvino" ... } ] } }
        Use OpenVINO. Its parameter `precision`: "f32" (the default), "bf16", "auto" (bf16 if the processor supports it,
        except where the metadata of a version's model.onnx say `bfloat16: off`, because its masks get worse).
    parameters { key: "intra_op_thread_count" value: { string_value: "4" } }
        Threads of one inference. By default, or with "0": as many as there are cores for this process.
    parameters { key: "inter_op_thread_count" value: { string_value: "1" } }
        ONNX Runtime only.

One parameter exists only in this backend:

    parameters { key: "nice" value: { string_value: "10" } }
        The niceness of the model's process (see nice(1)). Default: 0.

This runs in Triton's stub process: nothing of polywand can be imported here. Each model has a process of its own, and
imports only the runtime that it uses (hence the imports inside of functions).
"""

import json
import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import triton_python_backend_utils as pb_utils

MODEL_FILE = "model.onnx"
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")

Feeds = Mapping[str, np.ndarray]


class Runtime(Protocol):
    """A loaded network.

    batches: whether requests are run together in one batch; the first of them then waits for the last.
    """

    batches: bool

    def run(self, feeds: Feeds, wanted: Collection[str]) -> dict[str, np.ndarray]:
        """Return outputs by name, at least those that are wanted; they are valid until the next run."""


class OnnxRuntime:
    """ONNX Runtime on the CPU."""

    batches = True

    def __init__(self, path: Path, threads: int, inter_op_threads: int) -> None:
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # it begins with the import
        import onnxruntime  # noqa: PLC0415

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = inter_op_threads
        # Idle threads sleep. If they spin, answers come 1 ms sooner, but the cores are taken from other models.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(self, feeds: Feeds, wanted: Collection[str]) -> dict[str, np.ndarray]:
        """See Runtime."""
        return dict(zip(wanted, self._session.run(list(wanted), feeds), strict=True))


class OpenVino:
    """OpenVINO on the CPU, compiled for one image at a time, with all threads: a click is answered soonest.

    The rows of a batch are computed side by side, with one thread each. A click network of 384 x 384 in bf16 takes two
    threads 27 ms, in which they work for 32; one thread alone needs 27 ms, too. So rows side by side take up to half of
    the time; the values are the same. That needs a second compilation (about 100 MB), which begins with the first
    batch, in the background; rows follow one another until it is done.
    """

    batches = False

    def __init__(self, path: Path, threads: int, asked: str, outputs: Sequence[str], *, max_batch_size: int) -> None:
        import openvino  # noqa: PLC0415

        core = openvino.Core()
        self._network = core.read_model(path)
        self.precision = openvino_precision(asked, core, self._network)
        self._has_batch_axis = max_batch_size > 0
        if self._has_batch_axis:
            shapes = {port.any_name: [1, *list(port.partial_shape)[1:]] for port in self._network.inputs}
            self._network.reshape(shapes)
        self._core = core
        self._options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": self.precision}
        compiled = core.compile_model(self._network, "CPU", self._options | {"PERFORMANCE_HINT": "LATENCY"})
        # A port has the names of all tensors with the same value, also of inner ones.
        self._outputs = [next((n for n in outputs if n in port.names), port.any_name) for port in compiled.outputs]
        self._request = compiled.create_infer_request()
        self._side_by_side: Any = None  # a queue of requests, once they are compiled
        self._streams = min(threads, max_batch_size)
        self._compiling: threading.Thread | None = None

    def run(self, feeds: Feeds, wanted: Collection[str]) -> dict[str, np.ndarray]:
        """See Runtime."""
        size = len(next(iter(feeds.values())))
        if not self._has_batch_axis or size == 1:
            return self._run(feeds)
        if self._compiling is None and self._streams > 1:
            self._compiling = threading.Thread(target=self._compile_side_by_side, daemon=True)
            self._compiling.start()
        rows = [{name: tensor[row : row + 1] for name, tensor in feeds.items()} for row in range(size)]
        answers: list[dict[str, np.ndarray]] = [{}] * size
        if self._side_by_side is None:
            for number, row in enumerate(rows):
                answers[number] = {name: tensor.copy() for name, tensor in self._run(row).items() if name in wanted}
        else:

            def keep(request: Any, number: int) -> None:
                answers[number] = self._copies(request, wanted)

            self._side_by_side.set_callback(keep)
            for number, row in enumerate(rows):
                self._side_by_side.start_async(row, number, share_inputs=True)
            self._side_by_side.wait_all()
        return {name: np.concatenate([answer[name] for answer in answers]) for name in wanted}

    def _run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        results = self._request.infer(dict(feeds), share_inputs=True, share_outputs=True)
        return dict(zip(self._outputs, results.values(), strict=True))

    def _copies(self, request: Any, wanted: Collection[str]) -> dict[str, np.ndarray]:
        """Copy outputs, as the request's next run overwrites them."""
        tensors = zip(self._outputs, request.output_tensors, strict=True)
        return {name: tensor.data.copy() for name, tensor in tensors if name in wanted}

    def _compile_side_by_side(self) -> None:
        import openvino  # noqa: PLC0415

        options = self._options | {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": self._streams}
        compiled = self._core.compile_model(self._network, "CPU", options)
        self._side_by_side = openvino.AsyncInferQueue(compiled, self._streams)


@dataclass(frozen=True)
class Work:
    """A request with its inputs; each is [rows, ...]."""

    request: Any
    feeds: dict[str, np.ndarray]
    rows: int

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes without the batch axis; they have to be equal within one batch."""
        return tuple(tensor.shape[1:] for tensor in self.feeds.values())


class TritonPythonModel:
    """The model, as Triton's Python backend calls it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the network and run it once, so that the first request is as quick as later ones."""
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"]) / args["model_version"] / MODEL_FILE
        if not path.is_file():
            raise pb_utils.TritonModelException(f"{path} does not exist")
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._max_batch_size = int(config["max_batch_size"])
        # Before the runtime starts its threads, which inherit it.
        os.nice(int(config["parameters"].get("nice", {}).get("string_value", 0)))
        self._runtime = load(path, config)
        zeros = warm_up_feeds(config)
        if zeros is not None:
            self._runtime.run(zeros, [tensor["name"] for tensor in config["output"]])

    def execute(self, requests: Sequence[Any]) -> None:
        """Answer every request as soon as it is computed; an error fails only its own request."""
        limit = self._max_batch_size if self._runtime.batches else 1
        for batch in batches([self._work(request) for request in requests], limit):
            # As late as possible: newer clicks cancel older ones while those wait here.
            self._compute([work for work in batch if not cancelled(work.request)])

    def _work(self, request: Any) -> Work:
        tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self._inputs}
        feeds = {name: tensor.as_numpy() for name, tensor in tensors.items() if tensor is not None}
        return Work(request, feeds, len(next(iter(feeds.values()))) if self._max_batch_size else 1)

    def _compute(self, batch: Sequence[Work]) -> None:
        if not batch:
            return
        try:
            answers = self._run(batch)
        except Exception as error:  # a runtime may raise anything about a network or a tensor
            if len(batch) > 1:
                for work in batch:
                    self._compute([work])
                return
            respond(batch[0].request, error=pb_utils.TritonError(f"{type(error).__name__}: {error}"))
            return
        for work, outputs in zip(batch, answers, strict=True):
            respond(work.request, outputs)

    def _run(self, batch: Sequence[Work]) -> list[dict[str, np.ndarray]]:
        wanted = sorted({name for work in batch for name in work.request.requested_output_names()})
        if len(batch) == 1:
            return [self._runtime.run(batch[0].feeds, wanted)]
        names = batch[0].feeds
        feeds = {name: np.concatenate([work.feeds[name] for work in batch]) for name in names}
        outputs = self._runtime.run(feeds, wanted)
        ends = np.cumsum([work.rows for work in batch])
        return [
            {name: tensor[end - work.rows : end] for name, tensor in outputs.items()}
            for work, end in zip(batch, ends, strict=True)
        ]


def load(path: Path, config: dict[str, Any]) -> Runtime:
    """Load the network with the runtime, the threads and the precision of its configuration."""
    parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
    threads = int(parameters.get("intra_op_thread_count", 0)) or available_cores()
    accelerators = config.get("optimization", {}).get("execution_accelerators", {}).get("cpu_execution_accelerator", [])
    openvino = next((entry for entry in accelerators if entry["name"] == "openvino"), None)
    if openvino is not None:
        asked = openvino.get("parameters", {}).get("precision", "f32")
        try:
            outputs = [tensor["name"] for tensor in config["output"]]
            runtime = OpenVino(path, threads, asked, outputs, max_batch_size=config["max_batch_size"])
        except ImportError:
            pb_utils.Logger.log_warn(f"{config['name']} runs on ONNX Runtime, slower: OpenVINO is not installed here")
        else:
            pb_utils.Logger.log_info(f"{config['name']}: OpenVINO, {runtime.precision}, {threads} threads")
            return runtime
    pb_utils.Logger.log_info(f"{config['name']}: ONNX Runtime, {threads} threads")
    return OnnxRuntime(path, threads, int(parameters.get("inter_op_thread_count", 0)))


def openvino_precision(asked: str, core: Any, network: Any) -> str:
    """Return OpenVINO's name of the precision to compute a network in."""
    if asked not in ("f32", "bf16", "auto"):
        raise pb_utils.TritonModelException(f"precision of openvino is {asked!r}; it may be f32, bf16 or auto")
    if asked != "auto":
        return asked
    refused = ["framework", "bfloat16"]  # OpenVINO's path to an ONNX file's metadata
    if network.has_rt_info(refused) and network.get_rt_info(refused).astype(str) == "off":
        return "f32"
    return "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def available_cores() -> int:
    """Return how many cores this process may use, by its affinity and the CPU limit of its container."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = CGROUP_QUOTA.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))


def warm_up_feeds(config: dict[str, Any]) -> dict[str, np.ndarray] | None:
    """Return zeros for all inputs, or None where a size is not fixed."""
    feeds = {}
    for tensor in config["input"]:
        dims = [int(size) for size in tensor["dims"]]
        if -1 in dims:
            return None
        batch = [1] if config["max_batch_size"] else []
        feeds[tensor["name"]] = np.zeros(batch + dims, pb_utils.triton_string_to_numpy(tensor["data_type"]))
    return feeds


def batches(waiting: Sequence[Work], limit: int) -> Iterator[list[Work]]:
    """Split work, in its order, into lists of equal shapes and of `limit` rows at most (one request may exceed it)."""
    batch: list[Work] = []
    for work in waiting:
        fits = sum(other.rows for other in batch) + work.rows <= limit
        if batch and not (fits and work.shapes == batch[0].shapes):
            yield batch
            batch = []
        batch.append(work)
    if batch:
        yield batch


def cancelled(request: Any) -> bool:
    """Return whether the client has cancelled a request; if so, close the request."""
    if not request.is_cancelled():
        return False
    respond(request, error=pb_utils.TritonError("cancelled", pb_utils.TritonError.CANCELLED))
    return True


def respond(request: Any, outputs: Mapping[str, np.ndarray] | None = None, error: Any = None) -> None:
    """Send a request's only response."""
    wanted = request.requested_output_names()
    tensors = [pb_utils.Tensor(name, tensor) for name, tensor in (outputs or {}).items() if name in wanted]
    response = pb_utils.InferenceResponse(tensors, error)
    request.get_response_sender().send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
