"""What ListModels promises: the tools that Triton has, as they come and go."""

import shutil
import time
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tritonclient.grpc import InferenceServerClient

from polywand.v1 import annotation_pb2 as pb
from polywand.v1 import annotation_pb2_grpc
from tests.running import REPOSITORY, running_service

GONE_SECONDS = 15


def models(stub) -> dict[str, pb.Model]:
    return {model.name: model for model in stub.ListModels(pb.ListModelsRequest()).models}


def wait_until(condition) -> None:
    deadline = time.monotonic() + GONE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {GONE_SECONDS} s"
        time.sleep(0.1)


def test_every_tool_says_what_an_annotator_must_know(stub):
    listed = models(stub)
    assert set(listed) >= {"nanodet", "grabcut", "wand_click"}
    assert list(listed) == sorted(listed)
    for model in listed.values():
        assert model.ready, model.not_ready_reason
        assert model.display_name
        assert model.help_message
        assert model.license
        assert model.weights_source
        assert 0 < model.default_threshold < 1
        assert [version.version for version in model.versions if version.ready]


def test_a_detector_tells_its_labels(stub):
    nanodet = models(stub)["nanodet"]
    assert nanodet.kind == pb.MODEL_KIND_DETECTOR
    assert len(nanodet.detector.labels) == 80
    assert nanodet.detector.labels[0] == "person"


def test_an_interactor_tells_what_it_needs(stub):
    for name in ("grabcut", "wand_click"):
        model = models(stub)[name]
        assert model.kind == pb.MODEL_KIND_INTERACTOR
        assert model.interactor.min_positive_points == 1
        assert model.interactor.box == pb.BOX_USE_OPTIONAL
        assert model.interactor.max_points == 62  # 64 rows, two of them for the box


def test_a_tool_goes_when_its_model_is_unloaded_and_comes_back_when_it_is_loaded(server, stub):
    with InferenceServerClient(server.triton) as triton:
        triton.unload_model("grabcut")
        try:
            wait_until(lambda: "grabcut" not in models(stub))
            time.sleep(3)  # what somebody unloaded stays unloaded
            assert "grabcut" not in models(stub)
        finally:
            triton.load_model("grabcut")
    wait_until(lambda: "grabcut" in models(stub) and models(stub)["grabcut"].ready)


def copy_model(source: str, repository: Path, name: str, *, change: tuple[str, str] | None = None) -> Path:
    """Copy a shipped model under another name, with one thing in its config changed."""
    folder = repository / name
    shutil.copytree(REPOSITORY / source, folder)
    config = (folder / "config.pbtxt").read_text().replace(f'name: "{source}"', f'name: "{name}"', 1)
    if change is not None:
        assert change[0] in config
        config = config.replace(*change)
    (folder / "config.pbtxt").write_text(config)
    return folder


def retry_seconds(status) -> float:
    """When the server says to try again."""
    (delay,) = (error_details_pb2.RetryInfo.FromString(detail.value) for detail in status.details)
    return delay.retry_delay.ToTimedelta().total_seconds()


def test_broken_models_say_why_a_new_folder_appears_and_the_others_serve(tmp_path):
    repository = tmp_path / "repository"
    copy_model("grabcut", repository, "grabcut")
    copy_model("grabcut", repository, "a_wrong_card", change=('"box": "optional"', '"box": "perhaps"'))
    copy_model("grabcut", repository, "somebody_elses", change=('key: "polywand"', 'key: "other"'))
    copy_model("grabcut", repository, "no_points", change=('name: "POINTS"', 'name: "PLACES"'))
    copy_model("grabcut", repository, "no_pairs", change=('"crop": {', '"flip": true, "crop": {'))
    (copy_model("nanodet", repository, "a_lost_file") / "1" / "model.onnx").unlink()
    (copy_model("grabcut", repository, "no_config") / "config.pbtxt").unlink()
    with (
        running_service(tmp_path / "log", f"--model-repository={repository}") as service,
        grpc.insecure_channel(service.target) as channel,
    ):
        service.wait_ready("grabcut")
        stub = annotation_pb2_grpc.AnnotationServiceStub(channel)
        for name, reason in (
            ("no_points", "POINTS"),
            ("a_wrong_card", "prompt.box"),
            ("no_pairs", "flip averaging"),
            ("a_lost_file", "model.onnx"),
            ("no_config", "no_config"),
        ):
            wait_until(lambda name=name, reason=reason: reason in models(stub)[name].not_ready_reason)
            assert not models(stub)[name].ready
        wait_until(lambda: len(models(stub)) == 6)  # somebody else's is there until it is loaded and known
        assert models(stub)["grabcut"].ready
        with pytest.raises(grpc.RpcError, match=r"model\.onnx") as caught:
            stub.Detect(pb.DetectRequest(model="a_lost_file", image=pb.Image(encoded=b"x")))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        # Nobody is told to wait for what somebody has to mend first.
        assert retry_seconds(rpc_status.from_call(caught.value)) >= 60

        (repository / ".being_prepared").mkdir()
        copy_model("grabcut", repository, "brand_new")
        wait_until(lambda: "brand_new" in models(stub) and models(stub)["brand_new"].ready)
        assert not any(name.startswith(".") for name in models(stub))
