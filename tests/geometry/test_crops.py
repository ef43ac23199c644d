"""Crop policies: where a network looks, for a prompt and what is known of the mask."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polywand_server.geometry.boxes import Box
from polywand_server.images.regions import ProbabilityMap, Region
from polywand_server.images.resampling import Resampling
from polywand_server.interactors.crops import Crops
from polywand_server.interactors.estimate import Estimate
from polywand_server.interactors.prompt import Label, Point, Prompt
from polywand_server.tools.specs import MarginCrop, RoiCrop, WholeCrop, ZoomInCrop

WIDTH, HEIGHT = 1600, 1200
SIZE = (384, 384)
ZOOM = ZoomInCrop(policy="zoom_in", expansion=1.4)


def clicked(*points: tuple[float, float], box: Box | None = None) -> Prompt:
    return Prompt("model", 1, "", tuple(Point(x, y, Label.POSITIVE) for x, y in points), box)


def mask_in(region: Region, x0: float, y0: float, x1: float, y1: float) -> ProbabilityMap:
    """A rectangle (image pixels) as a map of a region."""
    rows, columns = np.mgrid[: region.size[0], : region.size[1]]
    places = region.from_input(np.stack([columns, rows], -1).reshape(-1, 2).astype(float)).reshape(*region.size, 2)
    inside = (places >= (x0, y0)).all(-1) & (places <= (x1, y1)).all(-1)
    return ProbabilityMap(region, inside.astype(np.float32))


def known(mask: ProbabilityMap, *, is_seed: bool = False) -> Estimate:
    return Estimate(mask, is_seed=is_seed)


def edges(region: Region) -> tuple[int, int, int, int]:
    return region.left, region.top, region.left + region.width, region.top + region.height


@pytest.mark.parametrize("policy", [WholeCrop(policy="whole"), ZOOM])
def test_an_object_starts_with_the_whole_image(policy):
    region = Crops(policy, WIDTH, HEIGHT, SIZE).first(clicked((100, 100)), None, 0.5)
    assert region == Region(0, 0, WIDTH, HEIGHT, SIZE)


def test_the_whole_image_is_limited_to_a_longest_side_and_keeps_its_aspect():
    crops = Crops(WholeCrop(policy="whole", longest_side=800), WIDTH, HEIGHT, None)
    assert crops.first(clicked((100, 100)), None, 0.5).size == (600, 800)
    small = Crops(WholeCrop(policy="whole", longest_side=800), 300, 200, None)
    assert small.first(clicked((100, 100)), None, 0.5).size == (200, 300)  # never enlarged


class TestTheFirstLooks:
    """A click says where the object is, and not how large: it is looked for near the click and in the whole image."""

    crops = Crops(ZOOM.model_copy(update={"first_looks": (0.5, 1.0)}), WIDTH, HEIGHT, SIZE)

    def test_each_is_a_share_of_the_images_longer_side_around_the_click(self):
        near, whole = self.crops.looks(clicked((800, 600)), None, 0.5)
        assert edges(near) == (400, 200, 1200, 1000)
        assert whole == self.crops.whole()
        assert self.crops.first(clicked((800, 600)), None, 0.5) == near

    def test_they_end_at_the_images_edges(self):
        near, _ = self.crops.looks(clicked((100, 1150)), None, 0.5)
        assert edges(near) == (0, 750, 500, HEIGHT)

    def test_they_hold_all_clicks_that_start_an_object(self):
        prompt = clicked((300, 600), (1300, 700))
        near, whole = self.crops.looks(prompt, None, 0.5)
        assert near.holds(prompt.clicks())
        assert near.width < whole.width
        assert self.crops.looks(clicked((20, 20), (1580, 1180)), None, 0.5) == [whole]

    def test_what_is_known_already_is_looked_at_once(self):
        mask = mask_in(self.crops.whole(), 400, 400, 700, 700)
        assert len(self.crops.looks(clicked((500, 500)), known(mask), 0.5)) == 1
        assert len(self.crops.looks(clicked((500, 500), box=Box(400, 400, 700, 700)), None, 0.5)) == 1


class TestLookingAgain:
    """The mask may turn out to lie elsewhere than where it was looked for."""

    crops = Crops(ZOOM.model_copy(update={"look_again_below": 0.7}), WIDTH, HEIGHT, SIZE)
    prompt = clicked((500, 500), (600, 600))
    before = known(mask_in(crops.whole(), 100, 100, 1200, 900))

    def test_a_mask_that_shrank_is_looked_at_more_closely(self):
        found = mask_in(self.crops.whole(), 450, 450, 650, 650)
        again = self.crops.again(self.prompt, self.before, found, 0.5)
        assert again == self.crops.closer(self.prompt, found, 0.5)
        assert again.width < 400

    def test_a_mask_where_it_was_looked_for_will_do(self):
        seen = self.crops.closer(self.prompt, mask_in(self.crops.whole(), 400, 400, 700, 700), 0.5)
        assert self.crops.again(self.prompt, self.before, mask_in(seen, 410, 390, 720, 700), 0.5) is None

    def test_not_unless_it_is_asked_for(self):
        found = mask_in(self.crops.whole(), 450, 450, 650, 650)
        assert Crops(ZOOM, WIDTH, HEIGHT, SIZE).again(self.prompt, self.before, found, 0.5) is None


def test_a_margin_reaches_outside_of_the_image():
    crops = Crops(MarginCrop(policy="margin", pixels=50), WIDTH, HEIGHT, SIZE)
    region = crops.first(clicked(box=Box(10, 20, 300, 400)), None, 0.5)
    assert edges(region) == (-40, -30, 350, 450)


@given(x=st.floats(0, WIDTH - 60), y=st.floats(0, HEIGHT - 60), width=st.floats(50, 800), height=st.floats(50, 600))
def test_a_crop_around_the_mask_holds_it_and_every_click(x, y, width, height):
    crops = Crops(ZOOM, WIDTH, HEIGHT, SIZE)
    x1, y1 = min(x + width, WIDTH), min(y + height, HEIGHT)
    prompt = clicked((x, y), (WIDTH - 1, 5))
    region = crops.first(prompt, known(mask_in(crops.whole(), x, y, x1, y1)), 0.5)
    assert region.holds(prompt.clicks())
    step = crops.whole().pixel_size
    assert region.holds(np.array([[x + step, y + step], [x1 - step, y1 - step]]))
    assert min(region.left, region.top) >= -8  # on whole pixels of the pyramid


class TestAfterTheFirstCloseLook:
    """The crop stays while it will do."""

    crops = Crops(ZOOM, WIDTH, HEIGHT, SIZE)
    close = crops.closer(clicked((500, 500)), mask_in(crops.whole(), 400, 400, 700, 700), 0.5)

    def test_a_mask_that_hardly_moved_is_looked_at_where_it_was(self):
        mask = mask_in(self.close, 410, 390, 720, 700)
        assert self.crops.first(clicked((500, 500), (600, 600)), known(mask), 0.5) == self.close

    def test_a_click_outside_moves_the_crop(self):
        mask = mask_in(self.close, 410, 390, 720, 700)
        prompt = clicked((500, 500), (900, 500))
        region = self.crops.first(prompt, known(mask), 0.5)
        assert region != self.close
        assert region.holds(prompt.clicks())

    def test_a_mask_that_runs_out_of_the_crop_widens_it(self):
        right = edges(self.close)[2]
        mask = mask_in(self.close, 450, 450, right, 700)
        region = self.crops.first(clicked((500, 500)), known(mask), 0.5)
        assert edges(region)[2] > right

    def test_a_mask_that_moved_or_shrank_moves_the_crop(self):
        mask = mask_in(self.close, 350, 350, 450, 450)
        region = self.crops.first(clicked((400, 400)), known(mask), 0.5)
        assert region != self.close
        assert region.overlap(self.close) <= ZOOM.keep_above

    def test_a_seeds_own_region_never_stays(self):
        crops = Crops(ZOOM, WIDTH, HEIGHT, None)  # of any size, so it might be one of this network's
        seed = mask_in(Region(399, 399, 302, 302, (302, 302)), 400, 400, 700, 700)
        assert crops.first(clicked((500, 500)), known(seed, is_seed=True), 0.5).width > 302

    def test_the_whole_image_gives_way_to_a_closer_look(self):
        mask = mask_in(self.crops.whole(), 200, 150, 1000, 800)
        region = self.crops.first(clicked((500, 500)), known(mask), 0.5)
        assert region != self.crops.whole()

    def test_keep_above_one_follows_every_change(self):
        follow = Crops(ZOOM.model_copy(update={"keep_above": 1.0}), WIDTH, HEIGHT, SIZE)
        mask = mask_in(self.close, 410, 390, 720, 700)
        assert follow.first(clicked((500, 500)), known(mask), 0.5) != self.close


def test_a_published_margin_is_counted_from_the_pixels_that_the_points_lie_in():
    policy = MarginCrop(policy="margin", pixels=50, keep_margin=False, resampling=Resampling.CUBIC)
    for shift in (0, 0.5, 0.99):
        points = [Point(x + shift, y + shift, Label.EXTREME) for x, y in ((120, 90), (330, 160), (200, 260), (90, 170))]
        region = Crops(policy, WIDTH, HEIGHT, (512, 512)).first(Prompt("model", 1, "", tuple(points)), None, 0.8)
        assert region == Region(40, 40, 341, 271, (512, 512), Resampling.CUBIC, margin=50)


def test_a_margin_is_not_cut_from_a_network_that_averages():
    with pytest.raises(ValueError, match="keep_margin"):
        MarginCrop(policy="margin", pixels=50, keep_margin=False)


class TestRegionsOfInterest:
    """As RITM and f-BRS choose them; expected numbers are by hand from their papers' code."""

    policy = RoiCrop(policy="roi")
    crops = Crops(policy, WIDTH, HEIGHT, None)

    def seen(self, region: Region, x0: int, y0: int, x1: int, y1: int) -> Estimate:
        """What is known after the network looked at a region: a rectangle of pixels, at the image's resolution."""
        plain = Region(region.left, region.top, region.width, region.height, (region.height, region.width))
        mask = mask_in(plain, x0, y0, x1, y1)
        return Estimate(ProbabilityMap(plain, mask.values, region))

    def test_the_first_click_sees_the_whole_image_of_limited_size(self):
        whole = Region(0, 0, WIDTH, HEIGHT, (600, 800), Resampling.CORNERS)
        assert self.crops.first(clicked((100, 100)), None, 0.49) == whole
        small = Crops(self.policy, 300, 200, None).first(clicked((100, 100)), None, 0.49)
        assert small.size == (200, 300)  # never enlarged

    def test_the_second_click_sees_the_masks_surroundings_enlarged_or_reduced_to_the_target(self):
        before = self.seen(self.crops.whole(), 400, 300, 900, 600)
        region = self.crops.first(clicked((500, 500), (600, 400)), before, 0.49)
        # 500 pixels by 300, 1.4 times around 649.5 and 449.5: 299.5 to 999.5 and 239.5 to 659.5, rounded to even.
        assert edges(region) == (300, 240, 1001, 661)
        assert (region.size, region.resampling) == ((240, 400), Resampling.CORNERS)

    def test_a_region_has_a_smallest_side_and_ends_at_the_image(self):
        before = self.seen(self.crops.whole(), 0, 0, 20, 20)
        region = self.crops.first(clicked((5, 5), (6, 6)), before, 0.49)
        assert edges(region) == (0, 0, 111, 111)  # 200 around 9.5: -90.5 to 109.5, rounded to even, inclusive
        assert region.size == (400, 400)

    def test_a_region_holds_every_positive_click_and_ignores_negative_ones(self):
        before = self.seen(self.crops.whole(), 400, 400, 600, 600)
        points = (Point(500, 500, Label.POSITIVE), Point(1000.7, 500, Label.POSITIVE), Point(5, 5, Label.NEGATIVE))
        region = self.crops.first(Prompt("model", 1, "", points), before, 0.49)
        assert region.left > 200
        assert edges(region)[2] > 1000

    def test_it_stays_while_it_overlaps_along_both_axes_enough(self):
        seen = Region(300, 300, 400, 400, (400, 400), Resampling.CORNERS)
        prompt = clicked((500, 500), (450, 450))
        assert self.crops.first(prompt, self.seen(seen, 360, 360, 640, 640), 0.49) == seen
        assert self.crops.first(prompt, self.seen(seen, 340, 340, 560, 560), 0.49) == seen
        assert self.crops.first(prompt, self.seen(seen, 400, 400, 510, 510), 0.49) != seen

    def test_a_positive_click_outside_moves_it_and_a_negative_one_does_not(self):
        seen = Region(300, 300, 400, 400, (400, 400), Resampling.CORNERS)
        before = self.seen(seen, 360, 360, 640, 640)
        assert self.crops.first(clicked((500, 500), (750, 500)), before, 0.49) != seen
        points = (Point(500, 500, Label.POSITIVE), Point(750, 500, Label.NEGATIVE))
        assert self.crops.first(Prompt("model", 1, "", points), before, 0.49) == seen

    def test_nothing_found_leads_back_to_the_whole_image(self):
        seen = Region(300, 300, 400, 400, (400, 400), Resampling.CORNERS)
        assert (
            self.crops.first(clicked((500, 500), (400, 400)), self.seen(seen, 0, 0, 0, 0), 0.49) == self.crops.whole()
        )

    def test_a_seeds_own_region_never_stays(self):
        seed = Region(380, 380, 240, 240, (240, 240))
        before = known(mask_in(seed, 400, 400, 600, 600), is_seed=True)
        region = self.crops.first(clicked((500, 500), (450, 450)), before, 0.49)
        assert (region.width, region.resampling) == (281, Resampling.CORNERS)
