"""A model that calls another one gets a new version, and loses it again: no prompt meets a part that is not there."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner

from polywand_contract.v1.annotation_pb2_grpc import AnnotationServiceStub
from polywand_zoo.cli import main as polywand_zoo
from tests.faults.clients import Annotator, own_connection, status
from tests.running import Service, running_service, wait_for
from tests.triton.models import add_model

SOON_SECONDS = 120
ANSWERS = 6
PROMPTLY = ("--poll-seconds=0.1", "--settling-seconds=0.2")

# Version N of the model calls version N of its part, as f-BRS does.
CALLER = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.version = int(args["model_version"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        image = pb_utils.get_input_tensor_by_name(request, "IMAGE")
        call = pb_utils.InferenceRequest(
            model_name="caller_part", model_version=self.version, inputs=[image], requested_output_names=["LOGITS"])
        response = call.exec()
        if response.has_error():
            return pb_utils.InferenceResponse(error=response.error())
        return pb_utils.InferenceResponse([pb_utils.get_output_tensor_by_name(response, "LOGITS")])
"""
# It starts later than its caller would, and takes its time.
PART = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        time.sleep(1)

    def execute(self, requests):
        time.sleep(0.1)
        return [self.answer(request) for request in requests]

    def answer(self, request):
        image = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
        logits = (image[:, :, :, 0].astype(np.float32) - 127)[:, None] / 16
        return pb_utils.InferenceResponse([pb_utils.Tensor("LOGITS", logits)])
"""
CARD = json.dumps({"kind": "interactor", "display_name": "Caller", "crop": {"policy": "whole", "longest_side": 128}})
CALLER_CONFIG = f"""
backend: "python"
max_batch_size: 1
version_policy {{ latest {{ num_versions: 2 }} }}
input [
  {{ name: "IMAGE" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] }},
  {{ name: "POINTS" data_type: TYPE_FP32 dims: [ 8, 3 ] }}
]
output [ {{ name: "LOGITS" data_type: TYPE_FP32 dims: [ 1, -1, -1 ] }} ]
parameters {{ key: "encoder" value: {{ string_value: "caller_part" }} }}
parameters {{ key: "polywand" value: {{ string_value: '{CARD}' }} }}
"""
PART_CONFIG = """
backend: "python"
max_batch_size: 1
version_policy { latest { num_versions: 2 } }
input [ { name: "IMAGE" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] } ]
output [ { name: "LOGITS" data_type: TYPE_FP32 dims: [ 1, -1, -1 ] } ]
"""


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[tuple[Service, Path]]:
    """A service on a repository with the two, at version 1."""
    repository = tmp_path / "models"
    add_model(repository, "caller", CALLER_CONFIG, CALLER)
    add_model(repository, "caller_part", PART_CONFIG, PART)
    with running_service(tmp_path / "log", f"--model-repository={repository}", *PROMPTLY) as service:
        wait_for(lambda: service.log.read_text().count("successfully loaded") == 2, SOON_SECONDS, service)
        service.wait_ready("caller")
        yield service, repository


def answer_with(version: int, annotators: list[Annotator], service: Service) -> None:
    def done() -> bool:
        replies = [annotator.replies[-ANSWERS:] for annotator in annotators]
        return all([reply.segmentation.version for reply in some] == [version] * ANSWERS for some in replies)

    wait_for(done, SOON_SECONDS, service)


def zoo(command: str, repository: Path) -> None:
    arguments = [command, "caller", "--repository", str(repository)]
    CliRunner().invoke(polywand_zoo, arguments, catch_exceptions=False)


def test_versions_come_after_their_parts_and_go_before_them(caller, astronaut):
    service, repository = caller
    with ExitStack() as stack:
        stub = AnnotationServiceStub(stack.enter_context(own_connection(service)))
        crowd = [stack.enter_context(Annotator(stub, astronaut, model="caller", seed=seed)) for seed in range(2)]
        answer_with(1, crowd, service)
        for name in ("caller_part", "caller"):
            shutil.copytree(repository / name / "1", repository / name / "2", ignore=shutil.ignore_patterns("_*"))
        answer_with(2, crowd, service)
        zoo("rollback", repository)
        assert [(repository / name / "02").is_dir() for name in ("caller", "caller_part")] == [True, True]
        answer_with(1, crowd, service)
        zoo("restore", repository)
        answer_with(2, crowd, service)
        for annotator in crowd:
            assert all(reply.HasField("segmentation") for reply in annotator.stop())


def test_a_version_whose_part_fails_does_not_come_until_it_is_mended(caller, tmp_path, astronaut):
    service, repository = caller
    with ExitStack() as stack:
        stub = AnnotationServiceStub(stack.enter_context(own_connection(service)))
        annotator = stack.enter_context(Annotator(stub, astronaut, model="caller"))
        add_model(tmp_path / "aside", "caller_part", PART_CONFIG, "import nothing_of_that_name")
        (tmp_path / "aside" / "caller_part" / "1").rename(repository / "caller_part" / "2")
        shutil.copytree(repository / "caller" / "1", repository / "caller" / "2", ignore=shutil.ignore_patterns("_*"))
        code = repository / "caller_part" / "2" / "model.py"
        wait_for(lambda: "model caller_part did not load" in service.log.read_text(), SOON_SECONDS, service)
        answer_with(1, [annotator], service)
        code.write_text(PART)
        answer_with(2, [annotator], service)
        # Triton 2.51 itself dies now and then when a version does not load beside one in service, and is restarted.
        wrong = {status(reply) for reply in annotator.stop()} - {grpc.StatusCode.OK}
        assert wrong <= ({grpc.StatusCode.UNAVAILABLE} if "restarting it" in service.log.read_text() else set())
