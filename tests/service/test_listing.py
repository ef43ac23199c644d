"""What ListModels promises: the tools that Triton has, as they come and go."""

import json
import shutil
from pathlib import Path

import grpc
import pytest
from google.protobuf import text_format
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tritonclient.grpc import InferenceServerClient, model_config_pb2

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1 import annotation_pb2_grpc
from tests.interactors import DISK, add_interactor
from tests.puppets import add_detector
from tests.running import REPOSITORY, running_service, wait_for
from tests.streams import POSITIVE, InteractStream, is_ready, prompt, raw_image

GONE_SECONDS = 60
PROMPTLY = ("--poll-seconds=0.2", "--settling-seconds=0.2")
WAND = {"wand_click", "wand_extreme", "wand_box"}


def models(stub) -> dict[str, pb.Model]:
    return {model.name: model for model in stub.ListModels(pb.ListModelsRequest()).models}


def wait_until(condition) -> None:
    wait_for(condition, GONE_SECONDS)


def test_every_tool_says_what_an_annotator_must_know(stub):
    listed = models(stub)
    assert set(listed) >= {"nanodet", "grabcut", *WAND}
    assert list(listed) == sorted(listed)
    for model in listed.values():
        assert is_ready(model), model.state_message
        assert model.display_name
        assert model.help_message
        assert model.license
        assert model.weights_source
        assert 0 < model.default_threshold < 1
        assert [version.version for version in model.versions if is_ready(version)]


def test_a_detector_tells_its_labels(stub):
    nanodet = models(stub)["nanodet"]
    assert nanodet.kind == pb.MODEL_KIND_DETECTOR
    assert len(nanodet.detector.labels) == 80
    assert nanodet.detector.labels[0] == pb.Label(name="person")


def test_a_label_has_the_colour_and_the_parent_of_its_models_parameters(puppet_stub):
    assert list(models(puppet_stub)["finder"].detector.labels) == [
        pb.Label(name="thing", color="#ff8000", parent="matter")
    ]


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
    assert {name: (spec.min_positive_points, spec.min_extreme_points, spec.box) for name, spec in needs.items()} == {
        "wand_click": (1, 0, pb.BOX_USE_OPTIONAL),
        "wand_extreme": (0, 4, pb.BOX_USE_NONE),
        "wand_box": (0, 0, pb.BOX_USE_REQUIRED),
    }
    assert needs["wand_extreme"].max_points == 64
    assert len({listed[name].help_message for name in WAND}) == 3
    assert len({str(listed[name].versions) for name in WAND}) == 1


def pages(stub, size: int) -> list[list[str]]:
    """The names of all tools, page by page."""
    found, token = [], ""
    while not found or token:
        reply = stub.ListModels(pb.ListModelsRequest(page_size=size, page_token=token))
        found.append([model.name for model in reply.models])
        token = reply.next_page_token
    return found


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_pages_of_any_size_list_every_tool_once_and_in_order(puppet_stub, size):
    whole = list(models(puppet_stub))
    found = pages(puppet_stub, size)
    assert [name for page in found for name in page] == whole == sorted(whole)
    assert [len(page) for page in found[:-1]] == [size] * (len(found) - 1)
    assert 0 < len(found[-1]) <= size


def test_a_page_that_holds_exactly_the_rest_is_the_last(puppet_stub):
    whole = list(models(puppet_stub))
    assert pages(puppet_stub, len(whole)) == [whole]


@pytest.mark.parametrize(
    ("request_", "field", "words"),
    [
        (pb.ListModelsRequest(page_size=1001), "page_size", "1001 is too many; a page has at most 1000"),
        (pb.ListModelsRequest(page_size=2**32 - 1), "page_size", "a page has at most 1000"),
        (pb.ListModelsRequest(page_token="?"), "page_token", "send next_page_token"),
        (pb.ListModelsRequest(page_token="/+8="), "page_token", "send next_page_token"),
        (pb.ListModelsRequest(page_token="_w=="), "page_token", "send next_page_token"),  # not UTF-8
        (pb.ListModelsRequest(page_token="\N{SNOWMAN}"), "page_token", "send next_page_token"),
        (pb.ListModelsRequest(page_token="A" * 1_000_000), "page_token", "send next_page_token"),
    ],
)
def test_a_page_that_cannot_be_is_an_error_that_names_the_field(puppet_stub, request_, field, words):
    with pytest.raises(grpc.RpcError) as caught:
        puppet_stub.ListModels(request_)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    (violation,) = bad_request(rpc_status.from_call(caught.value)).field_violations
    assert violation.field == field
    assert words in violation.description


def test_a_tool_that_goes_between_two_pages_takes_no_other_along(puppet_stub, puppet_models):
    add_detector(puppet_models, "aa_newcomer")
    try:
        wait_until(lambda: next(iter(models(puppet_stub))) == "aa_newcomer")
        first = puppet_stub.ListModels(pb.ListModelsRequest(page_size=1))
        assert [model.name for model in first.models] == ["aa_newcomer"]
    finally:
        shutil.rmtree(puppet_models / "aa_newcomer")
    wait_until(lambda: "aa_newcomer" not in models(puppet_stub))
    rest = puppet_stub.ListModels(pb.ListModelsRequest(page_token=first.next_page_token))
    assert [model.name for model in rest.models] == list(models(puppet_stub))


def bad_request(status) -> error_details_pb2.BadRequest:
    found = error_details_pb2.BadRequest()
    assert any(detail.Unpack(found) for detail in status.details), status
    return found


def test_all_tools_of_a_model_go_when_it_is_unloaded_stay_away_and_come_back_with_it(
    puppets, puppet_stub, puppet_models
):
    tools = {"upper_half", "upper_half_flipped", "wand_click"}
    with InferenceServerClient(puppets.triton) as triton:
        triton.unload_model("upper_half")
        try:
            wait_until(lambda: not tools & models(puppet_stub).keys())
            # What was unloaded by hand stays unloaded: a scan and a poll later, it is still away.
            add_detector(puppet_models, "newcomer")
            wait_until(lambda: "newcomer" in models(puppet_stub) and is_ready(models(puppet_stub)["newcomer"]))
            shutil.rmtree(puppet_models / "newcomer")
            wait_until(lambda: "newcomer" not in models(puppet_stub))
            assert not tools & models(puppet_stub).keys()
        finally:
            triton.load_model("upper_half")
    wait_until(lambda: all(name in models(puppet_stub) and is_ready(models(puppet_stub)[name]) for name in tools))


def add_disk(repository: Path, name: str, *, change: tuple[str, str] | None = None) -> Path:
    """Add a puppet, with one thing in its config changed."""
    add_interactor(repository, name, DISK)
    config = repository / name / "config.pbtxt"
    if change is not None:
        assert change[0] in config.read_text()
        config.write_text(config.read_text().replace(*change))
    return repository / name


def add_network_without_its_file(repository: Path, name: str) -> None:
    folder = repository / name
    shutil.copytree(REPOSITORY / "nanodet", folder)
    config = (folder / "config.pbtxt").read_text()
    assert 'name: "nanodet"' in config
    (folder / "config.pbtxt").write_text(config.replace('name: "nanodet"', f'name: "{name}"', 1))
    (folder / "1" / "model.onnx").unlink()


def retry_seconds(status) -> float:
    """When the server says to try again."""
    delay = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(delay)
    return delay.retry_delay.ToTimedelta().total_seconds()


def test_broken_models_say_why_a_new_folder_appears_and_the_others_serve(tmp_path):
    repository = tmp_path / "repository"
    add_disk(repository, "disk")
    add_disk(repository, "a_wrong_card", change=('"box": "optional"', '"box": "perhaps"'))
    add_disk(repository, "no_card", change=('key: "polywand"', 'key: "other"'))
    add_disk(repository, "no_points", change=('name: "POINTS"', 'name: "PLACES"'))
    add_interactor(repository, "no_pairs", DISK, flip="true", batch=1)
    add_network_without_its_file(repository, "a_lost_file")
    (add_disk(repository, "no_config") / "config.pbtxt").unlink()
    with (
        running_service(tmp_path / "log", f"--model-repository={repository}", *PROMPTLY) as service,
        grpc.insecure_channel(service.target) as channel,
    ):
        service.wait_ready("disk")
        stub = annotation_pb2_grpc.AnnotationServiceStub(channel)
        for name, reason in (
            ("no_points", "POINTS"),
            ("a_wrong_card", "prompt.box"),
            ("no_pairs", "flip averaging"),
            ("a_lost_file", "model.onnx"),
            ("no_config", "no_config"),
        ):
            wait_until(lambda name=name, reason=reason: reason in models(stub)[name].state_message)
            assert models(stub)[name].state == pb.MODEL_STATE_FAILED
        wait_until(lambda: len(models(stub)) == 6)  # no_card is listed until it is loaded and known
        assert is_ready(models(stub)["disk"])
        with pytest.raises(grpc.RpcError, match=r"model\.onnx") as caught:
            stub.Detect(pb.DetectRequest(model="a_lost_file", image=pb.Image(encoded=b"x")))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        # A retry soon would be no use: a person has to repair it first.
        assert retry_seconds(rpc_status.from_call(caught.value)) >= 60

        (repository / ".being_prepared").mkdir()
        add_disk(repository, "brand_new")
        wait_until(lambda: "brand_new" in models(stub) and is_ready(models(stub)["brand_new"]))
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
    first = add_disk(repository, "disk")
    with (
        running_service(tmp_path / "log", f"--model-repository={repository}", *PROMPTLY) as service,
        grpc.insecure_channel(service.target) as channel,
    ):
        service.wait_ready("disk")
        stub = annotation_pb2_grpc.AnnotationServiceStub(channel)
        another = add_disk(tmp_path, "another")
        declare(another, disk={"display_name": "Mine"}, finer={"display_name": "Finer"})
        another = another.rename(repository / "another")
        wait_until(lambda: "finer" in models(stub) and is_ready(models(stub)["finer"]))
        listed = models(stub)
        assert listed.keys() == {"disk", "finer", "another/disk"}
        assert (is_ready(listed["disk"]), listed["disk"].display_name) == (True, "disk")
        why = "the name 'disk' belongs to model 'disk' already: rename one of the two tools"
        lost = listed["another/disk"]
        assert (lost.state, lost.state_message, lost.display_name) == (pb.MODEL_STATE_FAILED, why, "Mine")
        assert [version.state for version in lost.versions] == [pb.MODEL_STATE_FAILED]
        with InteractStream(stub) as stream:
            stream.ask(raw_image(astronaut))
            for name in ("disk", "finer"):
                assert stream.ask(prompt(name, (150, 400, POSITIVE))).segmentation.model == name
            refused = stream.ask(prompt("another/disk", (150, 400, POSITIVE))).error
        assert refused.code == grpc.StatusCode.UNAVAILABLE.value[0]
        assert why in refused.message
        assert retry_seconds(refused) >= 60

        # Tools that are known stay in the list while their configuration is wrong.
        declare(another, disk={"display_name": "Mine"}, finer={"crop": {"policy": "wide"}})
        wait_until(lambda: "tools.finer" in models(stub)["finer"].state_message)
        assert is_ready(models(stub)["disk"])
        declare(another, disk={"display_name": "Mine"}, finest={"display_name": "Finest"})
        wait_until(lambda: "finest" in models(stub) and is_ready(models(stub)["finest"]))
        assert "finer" not in models(stub)

        shutil.rmtree(first)  # and the name is free
        wait_until(lambda: models(stub).keys() == {"disk", "finest"} and is_ready(models(stub)["disk"]))
        assert models(stub)["disk"].display_name == "Mine"
