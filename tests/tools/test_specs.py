"""The parameters of a detector's labels: what may stand there, and what the error says."""

import json

import pytest

from polywand_server.tools.specs import MAX_LABEL_CHARACTERS, DetectorSpec, parse_specs


def parse(*labels: object) -> DetectorSpec:
    text = json.dumps({"kind": "detector", "display_name": "Finder", "labels": labels})
    (spec,) = parse_specs(text, "finder").values()
    assert isinstance(spec, DetectorSpec)
    return spec


def test_a_label_is_a_name_or_has_a_colour_and_a_parent_too() -> None:
    spec = parse("cat", {"name": "dog", "color": "#FF8000", "parent": "animal"}, {"name": "cow"})
    assert spec.labels == ("cat", "dog", "cow")
    assert [(label.color, label.parent) for label in spec.label_specs] == [("", ""), ("#ff8000", "animal"), ("", "")]


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ((), "detector: a detector needs at least one label"),
        (("cat", "dog", {"name": "cat"}), "detector: several labels have the same name: cat"),
        (({"name": "cat", "parent": "cat"},), "detector.labels.0: label 'cat' cannot be its own parent"),
        (("cat", {"name": "dog", "color": "orange"}), "detector.labels.1.color: String should match pattern"),
        (({"name": "dog", "color": "#ff80000"},), "detector.labels.0.color: String should match pattern"),
        (({"name": "dog", "colour": "#ff8000"},), "detector.labels.0.colour: Extra inputs are not permitted"),
        (({"color": "#ff8000"},), "detector.labels.0.name: Field required"),
        (("",), "detector.labels.0.name: String should have at least 1 character"),
        (("x" * (MAX_LABEL_CHARACTERS + 1),), f"at most {MAX_LABEL_CHARACTERS} characters"),
        ((7,), "detector.labels.0: "),
    ],
)
def test_a_wrong_label_is_refused_with_a_sentence_that_says_which(labels, error) -> None:
    with pytest.raises(ValueError, match=r"^detector") as caught:
        parse(*labels)
    assert error in str(caught.value)
