"""Labels of detections: their names, and thresholds of their own."""

import numpy as np
import pytest

from polywand_contract.v1 import annotation_pb2 as pb
from tests.streams import raw_image

LOW = 0.05
HIGH = 0.6


def detect(stub, pixels, *labels: pb.LabelMapping, model="nanodet", **options) -> list[pb.Detection]:
    request = pb.DetectRequest(model=model, image=raw_image(pixels), labels=labels, **options)
    return list(stub.Detect(request).detections)


def of_label(detections: list[pb.Detection], *names: str) -> list[pb.Detection]:
    return [found for found in detections if found.model_label in names]


@pytest.fixture(scope="module")
def everything(puppet_stub, astronaut) -> list[pb.Detection]:
    """All detections above LOW: persons and ties above and below HIGH, and others."""
    found = detect(puppet_stub, astronaut, threshold=LOW)
    assert {"person", "tie"} < {detection.label for detection in found}
    assert [detection.score > HIGH for detection in of_label(found, "person")].count(False) > 0
    assert of_label(found, "person")[0].score > HIGH > of_label(found, "tie")[0].score
    return found


def test_a_label_that_is_not_renamed_keeps_the_models_name(puppet_stub, astronaut, everything):
    mapped = detect(
        puppet_stub,
        astronaut,
        pb.LabelMapping(model_label="tie"),
        pb.LabelMapping(model_label="person", label="human"),
        threshold=LOW,
    )
    assert {(found.model_label, found.label) for found in mapped} == {("tie", "tie"), ("person", "human")}
    for found in mapped:
        found.label = found.model_label
    assert mapped == of_label(everything, "tie", "person")


def test_several_labels_may_become_one(puppet_stub, astronaut):
    labels = [pb.LabelMapping(model_label=name, label="thing") for name in ("tie", "person")]
    assert {found.label for found in detect(puppet_stub, astronaut, *labels, threshold=LOW)} == {"thing"}


def test_a_labels_own_threshold_may_be_lower_than_the_requests(puppet_stub, astronaut, everything):
    labels = [pb.LabelMapping(model_label="person"), pb.LabelMapping(model_label="tie", threshold=LOW)]
    found = detect(puppet_stub, astronaut, *labels, threshold=HIGH)
    assert of_label(found, "person") == [person for person in of_label(everything, "person") if person.score >= HIGH]
    # And maybe more ties: those that were suppressed by what now is too unsure itself.
    ties = [tie.score for tie in of_label(found, "tie")]
    assert {tie.score for tie in of_label(everything, "tie")} <= set(ties)
    assert min(ties) >= LOW
    assert len(found) == len(of_label(found, "person", "tie"))


def test_a_labels_own_threshold_may_be_higher_than_the_requests(puppet_stub, astronaut, everything):
    labels = [pb.LabelMapping(model_label="person", threshold=HIGH), pb.LabelMapping(model_label="tie")]
    found = detect(puppet_stub, astronaut, *labels, threshold=LOW)
    persons = [detection for detection in of_label(everything, "person") if detection.score >= HIGH]
    assert found == [*persons, *of_label(everything, "tie")]


def test_a_labels_own_threshold_stands_in_for_that_of_the_model(puppet_stub):
    image = np.full((1024, 1024, 3), 127, np.uint8)

    def count(*labels: pb.LabelMapping) -> int:
        return len(detect(puppet_stub, image, *labels, model="finder"))

    assert count() == count(pb.LabelMapping(model_label="thing")) == 4  # the model's threshold is 0.5
    assert count(pb.LabelMapping(model_label="thing", threshold=0.4)) == 5
    assert count(pb.LabelMapping(model_label="thing", threshold=0)) == 5
    assert count(pb.LabelMapping(model_label="thing", threshold=0.85)) == 2
    assert count(pb.LabelMapping(model_label="thing", threshold=1)) == 0


def test_as_many_labels_as_may_be_sent_are_read(puppet_stub, astronaut, everything):
    known = sorted({found.model_label for found in everything})
    labels = [pb.LabelMapping(model_label=name, label="y" * 256) for name in known]
    assert len(detect(puppet_stub, astronaut, *labels, threshold=LOW)) == len(everything)
