"""What ListModels promises: the tools that Triton has, as they come and go."""

import time

from tritonclient.grpc import InferenceServerClient

from polywand.v1 import annotation_pb2 as pb

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
