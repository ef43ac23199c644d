"""Crop policies: which region the network sees, for a prompt and what is known of the mask."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polywand_server.geometry.boxes import Box
from polywand_server.images.regions import ProbabilityMap, Region
from polywand_server.images.resampling import Resampling
from polywand_server.interactors.crops import CropSpace, ProposalCrops, ZoomIn, crop_policy
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.prompt import Label, Point, Prompt
from polywand_server.tools.specs import CropPolicy, MarginCrop, ProposalSpec, RoiCrop, WholeCrop, ZoomInCrop

WIDTH, HEIGHT = 1600, 1200
SIZE = (384, 384)
ZOOM = ZoomInCrop(policy="zoom_in", expansion=1.4)


def clicked(*points: tuple[float, float], box: Box | None = None) -> Prompt:
    return Prompt("model", 1, "", tuple(Point(x, y, Label.POSITIVE) for x, y in points), box)


def mask_in(region: Region, x0: float, y0: float, x1: float, y1: float) -> ProbabilityMap:
    """A rectangle (image pixels) as a map of a region."""
    rows, columns = np.mgrid[: region.size[0], : region.size[1]]
    points = region.from_input(np.stack([columns, rows], -1).reshape(-1, 2).astype(float)).reshape(*region.size, 2)
    inside = (points >= (x0, y0)).all(-1) & (points <= (x1, y1)).all(-1)
    return ProbabilityMap(region, inside.astype(np.float32))


def known(mask: ProbabilityMap, *, is_seed: bool = False) -> Estimate:
    return Estimate(mask, is_seed=is_seed)


@dataclass(frozen=True)
class Crops:
    """The crops that a policy chooses on one image."""

    spec: CropPolicy
    space: CropSpace

    def candidates(self, prompt: Prompt, previous: Estimate | None) -> list[Region]:
        return crop_policy(self.spec).candidates(self.space, prompt, previous)

    def first(self, prompt: Prompt, previous: Estimate | None) -> Region:
        return self.candidates(prompt, previous)[0]

    def refined(self, prompt: Prompt, previous: Estimate | None, found: ProbabilityMap) -> Region | None:
        return crop_policy(self.spec).refined(self.space, prompt, previous, found)

    def around_mask(self, prompt: Prompt, mask: ProbabilityMap) -> Region:
        return ZoomIn(self.spec).around_mask(self.space, prompt, mask)

    def whole(self) -> Region:
        """The last candidate of a first click."""
        return self.candidates(clicked((1, 1)), None)[-1]


def on_image(
    spec: CropPolicy,
    width: int = WIDTH,
    height: int = HEIGHT,
    fixed_size: tuple[int, int] | None = SIZE,
    threshold: float = 0.5,
) -> Crops:
    return Crops(spec, CropSpace(width, height, fixed_size, threshold))


def edges(region: Region) -> tuple[int, int, int, int]:
    return region.left, region.top, region.left + region.width, region.top + region.height


@pytest.mark.parametrize("policy", [WholeCrop(policy="whole"), ZOOM])
def test_an_object_starts_with_the_whole_image(policy):
    region = on_image(policy).first(clicked((100, 100)), None)
    assert region == Region(0, 0, WIDTH, HEIGHT, SIZE)


def test_the_whole_image_is_limited_to_a_longest_side_and_keeps_its_aspect():
    crops = on_image(WholeCrop(policy="whole", longest_side=800), fixed_size=None)
    assert crops.first(clicked((100, 100)), None).size == (600, 800)
    small = on_image(WholeCrop(policy="whole", longest_side=800), 300, 200, None)
    assert small.first(clicked((100, 100)), None).size == (200, 300)  # never enlarged


class TestFirstCandidates:
    """A click says where the object is, not how large it is: the candidates are near the click and the whole image."""

    crops = on_image(ZOOM.model_copy(update={"first_looks": (0.5, 1.0)}))

    def test_each_is_a_share_of_the_images_longer_side_around_the_click(self):
        near, whole = self.crops.candidates(clicked((800, 600)), None)
        assert edges(near) == (400, 200, 1200, 1000)
        assert whole == self.crops.whole()
        assert self.crops.first(clicked((800, 600)), None) == near

    def test_they_end_at_the_images_edges(self):
        near, _ = self.crops.candidates(clicked((100, 1150)), None)
        assert edges(near) == (0, 750, 500, HEIGHT)

    def test_they_hold_all_clicks_that_start_an_object(self):
        prompt = clicked((300, 600), (1300, 700))
        near, whole = self.crops.candidates(prompt, None)
        assert near.holds(prompt.clicks())
        assert near.width < whole.width
        assert self.crops.candidates(clicked((20, 20), (1580, 1180)), None) == [whole]

    def test_a_known_mask_or_a_box_has_one_candidate(self):
        mask = mask_in(self.crops.whole(), 400, 400, 700, 700)
        assert len(self.crops.candidates(clicked((500, 500)), known(mask))) == 1
        assert len(self.crops.candidates(clicked((500, 500), box=Box(400, 400, 700, 700)), None)) == 1


class TestProposals:
    """Where clicks alone start an object, a detector's boxes add candidates."""

    spec = ZoomInCrop(
        policy="zoom_in",
        first_looks=(0.5,),
        max_aspect=10,
        proposals=ProposalSpec(model="detector", at_most=2, agree_from=0.3),
    )
    space = CropSpace(1000, 800, (100, 100), 0.5)
    close, wider, widest = Box(250, 300, 350, 500), Box(200, 300, 400, 500), Box(100, 300, 400, 500)

    def crops(self, prompt: Prompt, previous: Estimate | None = None) -> ProposalCrops | None:
        return crop_policy(self.spec).proposal_crops(self.space, prompt, previous)

    def test_the_best_boxes_have_the_crops_that_they_would_have_as_prompts(self):
        regions = self.crops(clicked((300, 400))).candidates([self.wider, self.close, self.widest])
        boxed = [
            crop_policy(self.spec).candidates(self.space, clicked(box=box), None)[0] for box in (self.wider, self.close)
        ]
        assert regions == boxed
        assert [edges(region) for region in regions] == [(164, 264, 436, 536), (232, 264, 368, 536)]

    def test_they_are_for_objects_that_start_by_clicks_alone(self):
        mask = mask_in(Region(100, 100, 500, 500, (100, 100)), 200, 200, 500, 500)
        assert self.crops(clicked((300, 400))) is not None
        assert self.crops(clicked((300, 400), box=Box(200, 200, 500, 600))) is None
        assert self.crops(clicked((300, 400), (310, 400)), known(mask)) is None
        assert self.crops(Prompt("model", 1, "", (Point(300, 400, Label.NEGATIVE),))) is None

    def test_the_box_that_agrees_most_with_the_mask_is_chosen_if_it_agrees_enough(self):
        found = mask_in(Region(100, 200, 500, 500, (100, 100)), 200, 250, 450, 500)
        crops = self.crops(clicked((300, 400)))
        assert crops.agreeing([self.close, self.wider, self.widest], found) == self.wider
        assert crops.agreeing([Box(0, 0, 1000, 800)], found) is None
        assert crops.agreeing([], found) is None

    def test_without_agree_from_no_box_is_chosen(self):
        found = mask_in(Region(100, 200, 500, 500, (100, 100)), 200, 250, 450, 500)
        spec = self.spec.model_copy(update={"proposals": ProposalSpec(model="detector")})
        crops = crop_policy(spec).proposal_crops(self.space, clicked((300, 400)), None)
        assert crops.agreeing([self.wider], found) is None


class TestRefinement:
    """The mask may turn out to need another crop than the one that the network saw."""

    crops = on_image(ZOOM.model_copy(update={"look_again_below": 0.7}))
    prompt = clicked((500, 500), (600, 600))
    before = known(mask_in(crops.whole(), 100, 100, 1200, 900))

    def test_a_mask_that_shrank_is_refined_on_a_closer_crop(self):
        found = mask_in(self.crops.whole(), 450, 450, 650, 650)
        refined = self.crops.refined(self.prompt, self.before, found)
        assert refined == self.crops.around_mask(self.prompt, found)
        assert refined.width < 400

    def test_a_mask_whose_crop_was_right_is_not_refined(self):
        seen = self.crops.around_mask(self.prompt, mask_in(self.crops.whole(), 400, 400, 700, 700))
        assert self.crops.refined(self.prompt, self.before, mask_in(seen, 410, 390, 720, 700)) is None

    def test_nothing_is_refined_unless_the_policy_says_so(self):
        found = mask_in(self.crops.whole(), 450, 450, 650, 650)
        assert on_image(ZOOM).refined(self.prompt, self.before, found) is None


def test_a_margin_reaches_outside_of_the_image():
    crops = on_image(MarginCrop(policy="margin", pixels=50))
    region = crops.first(clicked(box=Box(10, 20, 300, 400)), None)
    assert edges(region) == (-40, -30, 350, 450)


@given(x=st.floats(0, WIDTH - 60), y=st.floats(0, HEIGHT - 60), width=st.floats(50, 800), height=st.floats(50, 600))
def test_a_crop_around_the_mask_holds_it_and_every_click(x, y, width, height):
    crops = on_image(ZOOM)
    x1, y1 = min(x + width, WIDTH), min(y + height, HEIGHT)
    prompt = clicked((x, y), (WIDTH - 1, 5))
    region = crops.first(prompt, known(mask_in(crops.whole(), x, y, x1, y1)))
    assert region.holds(prompt.clicks())
    step = crops.whole().pixel_size
    assert region.holds(np.array([[x + step, y + step], [x1 - step, y1 - step]]))
    assert min(region.left, region.top) >= -8  # on whole pixels of the pyramid


class TestAfterTheFirstCloseCrop:
    """The crop stays the same as long as it is good enough."""

    crops = on_image(ZOOM)
    close = crops.around_mask(clicked((500, 500)), mask_in(crops.whole(), 400, 400, 700, 700))

    def test_a_mask_that_hardly_moved_keeps_its_crop(self):
        mask = mask_in(self.close, 410, 390, 720, 700)
        assert self.crops.first(clicked((500, 500), (600, 600)), known(mask)) == self.close

    def test_a_click_outside_moves_the_crop(self):
        mask = mask_in(self.close, 410, 390, 720, 700)
        prompt = clicked((500, 500), (900, 500))
        region = self.crops.first(prompt, known(mask))
        assert region != self.close
        assert region.holds(prompt.clicks())

    def test_a_mask_that_runs_out_of_the_crop_widens_it(self):
        right = edges(self.close)[2]
        mask = mask_in(self.close, 450, 450, right, 700)
        region = self.crops.first(clicked((500, 500)), known(mask))
        assert edges(region)[2] > right

    def test_a_mask_that_moved_or_shrank_moves_the_crop(self):
        mask = mask_in(self.close, 350, 350, 450, 450)
        region = self.crops.first(clicked((400, 400)), known(mask))
        assert region != self.close
        assert region.overlap(self.close) <= ZOOM.keep_above

    def test_a_seeds_own_region_never_stays(self):
        crops = on_image(ZOOM, fixed_size=None)  # of any size, so it might be one of this network's
        seed = mask_in(Region(399, 399, 302, 302, (302, 302)), 400, 400, 700, 700)
        assert crops.first(clicked((500, 500)), known(seed, is_seed=True)).width > 302

    def test_the_whole_image_is_followed_by_a_closer_crop(self):
        mask = mask_in(self.crops.whole(), 200, 150, 1000, 800)
        region = self.crops.first(clicked((500, 500)), known(mask))
        assert region != self.crops.whole()

    def test_keep_above_one_follows_every_change(self):
        follow = on_image(ZOOM.model_copy(update={"keep_above": 1.0}))
        mask = mask_in(self.close, 410, 390, 720, 700)
        assert follow.first(clicked((500, 500)), known(mask)) != self.close


def test_a_published_margin_is_counted_from_the_pixels_that_the_points_lie_in():
    policy = MarginCrop(policy="margin", pixels=50, keep_margin=False, resampling=Resampling.CUBIC)
    for shift in (0, 0.5, 0.99):
        points = [Point(x + shift, y + shift, Label.EXTREME) for x, y in ((120, 90), (330, 160), (200, 260), (90, 170))]
        region = on_image(policy, fixed_size=(512, 512)).first(Prompt("model", 1, "", tuple(points)), None)
        assert region == Region(40, 40, 341, 271, (512, 512), Resampling.CUBIC, margin=50)


def test_a_margin_is_not_cut_from_a_network_that_averages():
    with pytest.raises(ValueError, match="keep_margin"):
        MarginCrop(policy="margin", pixels=50, keep_margin=False)


class TestRegionsOfInterest:
    """As RITM and f-BRS choose them; expected numbers are by hand from their papers' code."""

    policy = RoiCrop(policy="roi")
    crops = on_image(policy, fixed_size=None, threshold=0.49)

    def seen(self, region: Region, x0: int, y0: int, x1: int, y1: int) -> Estimate:
        """What is known after a pass over a region: a rectangle of pixels, at the image's resolution."""
        plain = Region(region.left, region.top, region.width, region.height, (region.height, region.width))
        mask = mask_in(plain, x0, y0, x1, y1)
        return Estimate(ProbabilityMap(plain, mask.values, region))

    def test_the_first_click_sees_the_whole_image_of_limited_size(self):
        whole = Region(0, 0, WIDTH, HEIGHT, (600, 800), Resampling.CORNERS)
        assert self.crops.first(clicked((100, 100)), None) == whole
        small = on_image(self.policy, 300, 200, None).first(clicked((100, 100)), None)
        assert small.size == (200, 300)  # never enlarged

    def test_the_second_click_sees_the_masks_surroundings_enlarged_or_reduced_to_the_target(self):
        before = self.seen(self.crops.whole(), 400, 300, 900, 600)
        region = self.crops.first(clicked((500, 500), (600, 400)), before)
        # 500 pixels by 300, 1.4 times around 649.5 and 449.5: 299.5 to 999.5 and 239.5 to 659.5, rounded to even.
        assert edges(region) == (300, 240, 1001, 661)
        assert (region.size, region.resampling) == ((240, 400), Resampling.CORNERS)

    def test_a_region_has_a_smallest_side_and_ends_at_the_image(self):
        before = self.seen(self.crops.whole(), 0, 0, 20, 20)
        region = self.crops.first(clicked((5, 5), (6, 6)), before)
        assert edges(region) == (0, 0, 111, 111)  # 200 around 9.5: -90.5 to 109.5, rounded to even, inclusive
        assert region.size == (400, 400)

    def test_a_region_holds_every_positive_click_and_ignores_negative_ones(self):
        before = self.seen(self.crops.whole(), 400, 400, 600, 600)
        points = (Point(500, 500, Label.POSITIVE), Point(1000.7, 500, Label.POSITIVE), Point(5, 5, Label.NEGATIVE))
        region = self.crops.first(Prompt("model", 1, "", points), before)
        assert region.left > 200
        assert edges(region)[2] > 1000

    def test_it_stays_while_it_overlaps_along_both_axes_enough(self):
        seen = Region(300, 300, 400, 400, (400, 400), Resampling.CORNERS)
        prompt = clicked((500, 500), (450, 450))
        assert self.crops.first(prompt, self.seen(seen, 360, 360, 640, 640)) == seen
        assert self.crops.first(prompt, self.seen(seen, 340, 340, 560, 560)) == seen
        assert self.crops.first(prompt, self.seen(seen, 400, 400, 510, 510)) != seen

    def test_a_positive_click_outside_moves_it_and_a_negative_one_does_not(self):
        seen = Region(300, 300, 400, 400, (400, 400), Resampling.CORNERS)
        before = self.seen(seen, 360, 360, 640, 640)
        assert self.crops.first(clicked((500, 500), (750, 500)), before) != seen
        points = (Point(500, 500, Label.POSITIVE), Point(750, 500, Label.NEGATIVE))
        assert self.crops.first(Prompt("model", 1, "", points), before) == seen

    def test_nothing_found_leads_back_to_the_whole_image(self):
        seen = Region(300, 300, 400, 400, (400, 400), Resampling.CORNERS)
        assert self.crops.first(clicked((500, 500), (400, 400)), self.seen(seen, 0, 0, 0, 0)) == self.crops.whole()

    def test_a_seeds_own_region_never_stays(self):
        seed = Region(380, 380, 240, 240, (240, 240))
        before = known(mask_in(seed, 400, 400, 600, 600), is_seed=True)
        region = self.crops.first(clicked((500, 500), (450, 450)), before)
        assert (region.width, region.resampling) == (281, Resampling.CORNERS)
