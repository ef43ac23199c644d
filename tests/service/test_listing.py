"""What ListModels promises: the tools that Triton has, as they come and go."""

import json
import shutil
import time
from pathlib import Path

import grpc
import pytest
from google.protobuf import text_format
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tritonclient.grpc import InferenceServerClient, model_config_pb2

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from tests.running import REPOSITORY, running_service
from tests.streams import POSITIVE, InteractStream, prompt, raw_image

GONE_SECONDS = 60
WAND = {"wand_click", "wand_extreme", "wand_box"}


def models(stub) -> dict[str, pb.Model]:
    return {model.name: model for model in stub.ListModels(pb.ListModelsRequest()).models}


def wait_until(condition) -> None:
    deadline = time.monotonic() + GONE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {GONE_SECONDS} s"
        time.sleep(0.1)


def test_every_tool_says_what_an_annotator_must_know(stub):
    listed = models(stub)
    assert set(listed) >= {"nanodet", "grabcut", *WAND}
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


def test_one_model_is_several_tools_and_each_tells_its_own_needs(stub):
    listed = models(stub)
    assert "wand" not in listed  # the model's own name is no tool
    needs = {name: listed[name].interactor for name in WAND}
    assert {name: (spec.min_positive_points, spec.extreme_points, spec.box) for name, spec in needs.items()} == {
        "wand_click": (1, 0, pb.BOX_USE_OPTIONAL),
        "wand_extreme": (0, 4, pb.BOX_USE_NONE),
        "wand_box": (0, 0, pb.BOX_USE_REQUIRED),
    }
    assert needs["wand_extreme"].max_points == 64
    assert len({listed[name].help_message for name in WAND}) == 3
    assert len({str(listed[name].versions) for name in WAND}) == 1


def test_all_tools_of_a_model_go_when_it_is_unloaded_and_come_back_with_it(server, stub):
    with InferenceServerClient(server.triton) as triton:
        triton.unload_model("wand")
        try:
            wait_until(lambda: not WAND & models(stub).keys())
        finally:
            triton.load_model("wand")
    wait_until(lambda: all(name in models(stub) and models(stub)[name].ready for name in WAND))


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
    delay = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(delay)
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


def declare(folder: Path, **tools: dict) -> None:
    """Make a model several tools, each like the one that it was, with some fields changed."""
    config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    card = json.loads(config.parameters["polywand"].string_value)
    card = next(iter(card["tools"].values())) if "tools" in card else card
    said = {"tools": {name: {**card, **changes} for name, changes in tools.items()}}
    config.parameters["polywand"].string_value = json.dumps(said)
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))


def test_a_name_that_two_models_claim_stays_with_the_first_and_the_other_says_so(tmp_path, astronaut):
    repository = tmp_path / "repository"
    first = copy_model("grabcut", repository, "grabcut")
    with (
        running_service(tmp_path / "log", f"--model-repository={repository}") as service,
        grpc.insecure_channel(service.target) as channel,
    ):
        service.wait_ready("grabcut")
        stub = annotation_pb2_grpc.AnnotationServiceStub(channel)
        another = copy_model("grabcut", tmp_path, "another")
        declare(another, grabcut={"display_name": "Mine"}, finer={"display_name": "Finer"})
        another = another.rename(repository / "another")
        wait_until(lambda: "finer" in models(stub) and models(stub)["finer"].ready)
        listed = models(stub)
        assert listed.keys() == {"grabcut", "finer", "another/grabcut"}
        assert (listed["grabcut"].ready, listed["grabcut"].display_name) == (True, "GrabCut")
        why = "the name 'grabcut' belongs to model 'grabcut' already: rename one of the two tools"
        lost = listed["another/grabcut"]
        assert (lost.ready, lost.not_ready_reason, lost.display_name) == (False, why, "Mine")
        assert [version.ready for version in lost.versions] == [False]
        with InteractStream(stub) as stream:
            stream.ask(raw_image(astronaut))
            for name in ("grabcut", "finer"):
                assert stream.ask(prompt(name, (150, 400, POSITIVE))).segmentation.model == name
            refused = stream.ask(prompt("another/grabcut", (150, 400, POSITIVE))).error
        assert refused.code == grpc.StatusCode.UNAVAILABLE.value[0]
        assert why in refused.message
        assert retry_seconds(refused) >= 60

        # Tools that are known stay in the list while their configuration is wrong.
        declare(another, grabcut={"display_name": "Mine"}, finer={"crop": {"policy": "wide"}})
        wait_until(lambda: "tools.finer" in models(stub)["finer"].not_ready_reason)
        assert models(stub)["grabcut"].ready
        declare(another, grabcut={"display_name": "Mine"}, finest={"display_name": "Finest"})
        wait_until(lambda: "finest" in models(stub) and models(stub)["finest"].ready)
        assert "finer" not in models(stub)

        shutil.rmtree(first)  # and the name is free
        wait_until(lambda: models(stub).keys() == {"grabcut", "finest"} and models(stub)["grabcut"].ready)
        assert models(stub)["grabcut"].display_name == "Mine"
