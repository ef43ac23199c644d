"""Figures are those of the field."""

from pathlib import Path

import pytest

from polywand import Point
from polywand_zoo.evaluation.objects import Subject, Truth
from polywand_zoo.evaluation.prompts import Kind, Needs, Prompt
from polywand_zoo.evaluation.scores import agreement, score
from polywand_zoo.evaluation.trials import Likeness, Outcome, Trial


def unread() -> Truth:
    raise AssertionError("scores read no files")


def outcome(*ious: float, obeyed: bool = True, **starts: float) -> Outcome:
    subject = Subject("data", "", "x", Path("x.png"), Path("x.png"), unread)
    click = Prompt((Point(1, 1),))
    clicks = tuple(Trial(click, iou, obeyed, 0.1) for iou in ious)
    return Outcome(subject, 9, 9, clicks, {Kind(kind): Trial(Prompt(), iou, True, 0.1) for kind, iou in starts.items()})


def test_an_iou_that_is_never_reached_counts_as_all_clicks():
    scores = score([outcome(0.5, 0.86, 0.91, 0.8), outcome(0.3, 0.8, 0.82, 0.84)], clicks=4)
    assert scores.noc == {0.80: 2, 0.85: (2 + 4) / 2, 0.90: (3 + 4) / 2}
    assert scores.never == {0.80: 0, 0.85: 1, 0.90: 1}


def test_an_iou_that_the_last_click_reaches_is_no_failure():
    scores = score([outcome(0.1, 0.2, 0.95)], clicks=3)
    assert (scores.noc[0.90], scores.never[0.90]) == (3, 0)


def test_a_mask_that_needs_no_further_click_stays():
    assert score([outcome(0.5, 1.0), outcome(0.1, 0.2, 0.3, 0.4)], clicks=4).iou == pytest.approx((0.3, 0.6, 0.65, 0.7))


def test_only_a_loss_of_more_than_3_points_counts_as_lowered():
    assert score([outcome(0.5, 0.48, 0.44, 0.9, 0.8)], clicks=5).lowered == 2 / 4


def test_disobedience_is_a_share_of_prompts_with_clicks():
    scores = score([outcome(0.5, 0.6, obeyed=False), outcome(0.5, 0.6, box=0.7)], clicks=2)
    assert scores.obeyed == 0.5


def test_tools_without_clicks_have_no_figures_of_clicks():
    scores = score([outcome(extreme=0.8), outcome(extreme=0.9)], clicks=20)
    assert (scores.iou, scores.noc, scores.obeyed, scores.lowered) == ((), {}, None, None)
    assert scores.starts == pytest.approx({Kind.EXTREME: 0.85})


def test_ways_agree_up_to_half_a_percent_of_iou_on_average_over_prompts():
    near = agreement([Likeness(0.80, 0.804, 0.99), Likeness(0.80, 0.804, 0.97)])
    assert (near.holds, near.mutual) == (True, pytest.approx(0.98))
    assert not agreement([Likeness(0.80, 0.806, 0.99)]).holds


def test_errors_that_cancel_in_the_mean_are_no_agreement():
    assert not agreement([Likeness(0.80, 0.82, 0.99), Likeness(0.80, 0.78, 0.97)]).holds


@pytest.mark.parametrize(
    ("needs", "understood"),
    [
        (Needs(1, 0, 0, "optional", 62), {Kind.CLICKS, Kind.BOX, Kind.BOX_INSIDE}),
        (Needs(1, 0, 0, "none", 64), {Kind.CLICKS}),
        (Needs(0, 0, 4, "none", 4), {Kind.EXTREME}),
        (Needs(1, 0, 0, "required", 10), {Kind.BOX_INSIDE}),
        (Needs(0, 0, 0, "required", 10), {Kind.BOX, Kind.BOX_INSIDE}),
    ],
)
def test_a_tool_is_asked_what_its_parameters_say_that_it_takes(needs, understood):
    assert {kind for kind in Kind if needs.understands(kind)} == understood
