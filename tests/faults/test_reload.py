"""A model's files change while annotators work with it: they see another version's number, and no error."""

import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from tritonclient.grpc import InferenceServerClient

from polywand_contract.v1 import annotation_pb2 as pb
from polywand_contract.v1.annotation_pb2_grpc import AnnotationServiceStub
from polywand_zoo.cli import main as polywand_zoo
from tests.faults.clients import Annotator, own_connection
from tests.faults.models import SPOTTER, TINY, TINY_CONFIG, TINY_TOOL, add_spotter, add_tiny
from tests.running import Service, running_service, wait_for
from tests.streams import raw_image

SOON_SECONDS = 120  # a wait, not a promise
DETECTING = 3
ANSWERS = 6  # by each annotator, after a change has shown
PROMPTLY = ("--poll-seconds=0.1", "--settling-seconds=0.2")
# A model that is copied slowly grows more often than that, however busy the machine is.
COPY_PAUSE_SECONDS, COPY_SETTLING_SECONDS = 0.1, 3.0


@pytest.fixture(scope="module")
def tended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Path]]:
    """A service, and the folder of its model."""
    root = tmp_path_factory.mktemp("tended")
    folder = add_tiny(root / "models")
    with running_service(root / "log", f"--model-repository={folder.parent}", *PROMPTLY) as service:
        service.wait_ready(TINY_TOOL)
        yield service, folder


@pytest.fixture
def one_version(tended) -> tuple[Service, Path]:
    """The same, with version 1 alone and its first configuration, whatever a test before has made of it."""
    service, folder = tended
    for path in (path for path in folder.iterdir() if path.is_dir() and path.name != "1"):
        shutil.rmtree(path)
    (folder / "config.pbtxt").write_text(TINY_CONFIG)
    wait_for(lambda: listed(service) == {1: ""} and threshold(service) == 0.5, SOON_SECONDS, service)
    return service, folder


def add_second_version(folder: Path) -> None:
    """At once: what is loaded while it is copied is loaded again, and these tests count."""
    aside = shutil.copytree(folder / "1", folder.parent.parent / "aside")
    aside.rename(folder / "2")


@contextmanager
def annotators(service: Service, image) -> Iterator[tuple[list[Annotator], Annotator]]:
    """Three that take the newest version, and one that asks for version 1."""
    with ExitStack() as stack:
        stub = AnnotationServiceStub(stack.enter_context(own_connection(service)))
        newest = [stack.enter_context(Annotator(stub, image, model=TINY_TOOL, seed=seed)) for seed in range(3)]
        yield newest, stack.enter_context(Annotator(stub, image, model=TINY_TOOL, version=1, seed=3))


def versions(annotator: Annotator) -> list[int]:
    """Of every reply so far; a reply that is no outline fails the test."""
    assert all(reply.HasField("segmentation") for reply in annotator.replies), annotator.replies[-1]
    return [reply.segmentation.version for reply in annotator.replies]


def answer_with(version: int, annotators: list[Annotator], service: Service) -> None:
    """Wait until all have had so many answers of this version in a row."""
    before = [len(annotator.replies) for annotator in annotators]

    def done() -> bool:
        new = [versions(annotator)[start:] for annotator, start in zip(annotators, before, strict=True)]
        return all(answers[-ANSWERS:] == [version] * ANSWERS for answers in new)

    wait_for(done, SOON_SECONDS, service)


def model(service: Service) -> pb.Model:
    """What the service says of the model as one of its tools; nothing while it is not there."""
    with own_connection(service) as channel:
        models = AnnotationServiceStub(channel).ListModels(pb.ListModelsRequest()).models
    return next((model for model in models if model.name == TINY_TOOL), pb.Model())


def listed(service: Service) -> dict[int, str]:
    """Why each version is not ready; empty for one that is."""
    return {version.version: version.state_message for version in model(service).versions}


def threshold(service: Service) -> float:
    return round(model(service).default_threshold, 3)


def starts(service: Service) -> int:
    """How often Triton has started a process for the model; it says that it loads versions which it leaves alone."""
    return service.log.read_text().count(f"ModelInstanceInitialize: {TINY}_0_0")


def zoo(command: str, folder: Path) -> str:
    """Run `polywand-zoo` on the model; returns what it says."""
    arguments = [command, folder.name, "--repository", str(folder.parent)]
    return CliRunner().invoke(polywand_zoo, arguments, catch_exceptions=False).output


def test_a_new_version_is_used_as_soon_as_it_is_there_and_the_old_one_on_demand(one_version, astronaut):
    service, folder = one_version
    before = starts(service)
    with annotators(service, astronaut) as (newest, old):
        answer_with(1, newest, service)
        add_second_version(folder)
        answer_with(2, newest, service)
        wait_for(lambda: listed(service) == {1: "", 2: ""}, SOON_SECONDS, service)
        answer_with(1, [old], service)
        for annotator in newest:
            annotator.stop()
            assert all(before <= after for before, after in pairwise(versions(annotator)))
        old.stop()
        assert set(versions(old)) == {1}
    assert starts(service) == before + 1  # of version 2; version 1 has gone on all the time


def test_a_version_that_is_rolled_back_causes_no_error_and_can_be_restored(one_version, astronaut):
    service, folder = one_version
    add_second_version(folder)
    wait_for(lambda: listed(service) == {1: "", 2: ""}, SOON_SECONDS, service)
    before = starts(service)
    with annotators(service, astronaut) as (newest, old):
        answer_with(2, newest, service)
        assert "prompts go to version 1" in zoo("rollback", folder)
        answer_with(1, newest, service)
        wait_for(lambda: listed(service) == {1: ""}, SOON_SECONDS, service)
        assert "prompts go to version 2" in zoo("restore", folder)
        answer_with(2, newest, service)
        for annotator in newest:
            annotator.stop()
            assert set(versions(annotator)) == {1, 2}
        old.stop()
        assert set(versions(old)) == {1}
    assert starts(service) == before + 1  # of version 2, when it came back


def test_detections_and_their_outlines_miss_no_version_that_is_rolled_back(tmp_path, astronaut):
    """Frames choose their version, and then wait for their turn: by then it may have gone."""
    models = tmp_path / "models"
    folders = add_spotter(models), add_tiny(models)
    for folder in folders:
        shutil.copytree(folder / "1", folder / "2")
    request = pb.DetectRequest(model=SPOTTER, image=raw_image(astronaut), polygons=pb.PolygonOptions())
    replies: list[pb.DetectResponse] = []
    stopped = threading.Event()
    with (
        running_service(tmp_path / "log", f"--model-repository={models}", *PROMPTLY) as service,
        own_connection(service) as channel,
        ThreadPoolExecutor(DETECTING) as pool,
    ):
        service.wait_ready(SPOTTER, TINY_TOOL)
        stub = AnnotationServiceStub(channel)

        def detect() -> None:
            while not stopped.is_set():
                replies.append(stub.Detect(request, timeout=30))

        def answered_by(detector: int, outliner: int) -> None:
            def latest() -> bool:
                answers = [(reply.version, reply.polygons.version) for reply in replies[-ANSWERS:]]
                return answers == [(detector, outliner)] * ANSWERS or any(one.done() for one in detecting)

            wait_for(latest, SOON_SECONDS, service)
            assert not any(one.done() for one in detecting), [one.exception() for one in detecting if one.done()]

        detecting = [pool.submit(detect) for _ in range(DETECTING)]
        try:
            answered_by(2, 2)
            for folder, after in zip(folders, ((1, 2), (1, 1)), strict=True):
                zoo("rollback", folder)
                answered_by(*after)
        finally:
            stopped.set()
        assert [one.exception() for one in detecting] == [None] * DETECTING


def test_a_version_whose_folder_is_deleted_goes(one_version, astronaut):
    service, folder = one_version
    add_second_version(folder)
    wait_for(lambda: listed(service) == {1: "", 2: ""}, SOON_SECONDS, service)
    with annotators(service, astronaut) as (newest, _):
        answer_with(2, newest, service)
        shutil.rmtree(folder / "2")
        answer_with(1, newest, service)
        wait_for(lambda: listed(service) == {1: ""}, SOON_SECONDS, service)


def test_a_version_that_was_copied_in_part_causes_no_error_and_serves_when_it_is_whole(one_version, astronaut):
    service, folder = one_version
    whole = (folder / "1" / "model.onnx").read_bytes()
    with annotators(service, astronaut) as (newest, old):
        (folder / "2").mkdir()
        with (folder / "2" / "model.onnx").open("wb", buffering=0) as file:
            file.write(whole[: len(whole) // 2])  # and then the copy stalls
            wait_for(lambda: "model" in listed(service).get(2, ""), SOON_SECONDS, service)
            answer_with(1, newest, service)
            file.write(whole[len(whole) // 2 :])
        answer_with(2, newest, service)
        wait_for(lambda: listed(service) == {1: "", 2: ""}, SOON_SECONDS, service)
        old.stop()
        assert set(versions(old)) == {1}


def test_a_model_that_is_copied_slowly_is_loaded_when_it_is_whole(tmp_path):
    whole = add_spotter(tmp_path / "source")
    (tmp_path / "models").mkdir()
    options = (f"--model-repository={tmp_path / 'models'}", f"--settling-seconds={COPY_SETTLING_SECONDS}")
    with running_service(tmp_path / "log", *options, "--poll-seconds=0.1") as service:
        wait_for(lambda: "Triton answers" in service.log.read_text(), SOON_SECONDS, service)
        copied = tmp_path / "models" / SPOTTER
        (copied / "1").mkdir(parents=True)
        shutil.copy(whole / "config.pbtxt", copied)
        content = (whole / "1" / "model.onnx").read_bytes()
        with (copied / "1" / "model.onnx").open("wb", buffering=0) as target:
            for start in range(0, len(content), len(content) // 12):
                target.write(content[start : start + len(content) // 12])
                time.sleep(COPY_PAUSE_SECONDS)
        assert "loading model" not in service.log.read_text()
        service.wait_ready(SPOTTER, seconds=SOON_SECONDS)
        assert "did not load" not in service.log.read_text()


def test_a_broken_version_that_is_taken_away_is_forgotten(one_version):
    service, folder = one_version
    (folder / "2").mkdir()
    wait_for(lambda: "model.onnx" in listed(service).get(2, ""), SOON_SECONDS, service)
    (folder / "2").rmdir()
    wait_for(lambda: listed(service) == {1: ""}, SOON_SECONDS, service)


def test_an_edited_configuration_takes_effect_and_a_broken_one_causes_no_error(one_version, astronaut):
    service, folder = one_version
    config = folder / "config.pbtxt"
    good = config.read_text()
    with annotators(service, astronaut) as (newest, _):
        config.write_text(good.replace('"threshold": 0.5', '"threshold": 0.625'))
        wait_for(lambda: threshold(service) == 0.625, SOON_SECONDS, service)
        config.write_text(good[: len(good) // 2])
        wait_for(lambda: f"model {TINY} did not load" in service.log.read_text(), SOON_SECONDS, service)
        answer_with(1, newest, service)
        config.write_text(good.replace('"threshold": 0.5', '"threshold": 0.75'))
        wait_for(lambda: threshold(service) == 0.75, SOON_SECONDS, service)
        answer_with(1, newest, service)


def test_a_model_unloaded_through_triton_stays_unloaded_though_its_files_change(one_version):
    service, folder = one_version
    with InferenceServerClient(service.triton) as triton:
        triton.unload_model(TINY)
        wait_for(lambda: listed(service) == {}, SOON_SECONDS, service)
        add_second_version(folder)
        other = add_spotter(folder.parent)  # seen later, and loaded
        service.wait_ready(SPOTTER, seconds=SOON_SECONDS)
        shutil.rmtree(other)
        states = {entry.state for entry in triton.get_model_repository_index().models if entry.name == TINY}
        assert states <= {"UNLOADING", "UNAVAILABLE"}
        triton.load_model(TINY)
    wait_for(lambda: listed(service) == {1: "", 2: ""}, SOON_SECONDS, service)


def test_a_model_whose_folder_goes_is_unloaded_and_comes_back_with_it(one_version, tmp_path):
    service, folder = one_version
    unloads = service.log.read_text().count("successfully unloaded")
    shutil.move(folder, tmp_path / "aside")
    wait_for(lambda: service.log.read_text().count("successfully unloaded") > unloads, SOON_SECONDS, service)
    shutil.move(tmp_path / "aside", folder)
    wait_for(lambda: listed(service) == {1: ""}, SOON_SECONDS, service)
