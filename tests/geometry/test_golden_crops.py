"""The crop policies choose the crops of the golden file; `golden_crops` says how it is made."""

import json

import pytest

from tests.geometry.golden_crops import GOLDEN, Case, cases, crops_of

EXPECTED = json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
def test_crops_are_those_of_the_golden_file(case: Case):
    assert crops_of(case) == EXPECTED[case.name]


def test_the_golden_file_has_every_case():
    assert list(EXPECTED) == [case.name for case in cases()]
