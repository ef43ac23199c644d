"""How long refused requests rest: longer from time to time, apart from each other, and never past what is of use."""

import random
import time
from itertools import pairwise

import pytest

from polywand.backoff import FIRST_DELAY_S, MAX_DELAY_S, MAX_JITTER, Backoff, system_uniform

LONG_S = 10_000.0


def backoff(left_s: float = LONG_S, seed: int | None = None, first_s: float = FIRST_DELAY_S) -> Backoff:
    """Backoff of a request that has so many seconds left. seed: of its chance; None is none."""
    uniform = (lambda low, high: low) if seed is None else random.Random(seed).uniform
    return Backoff(time.monotonic() + left_s, first_s, uniform)


def test_delays_double_up_to_the_longest() -> None:
    ours = backoff()
    assert [ours.next_s(None) for _ in range(10)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 8.0, 8.0]


def test_chance_stretches_rests_by_half_at_most_and_does_not_add_up() -> None:
    plain, ours = backoff(), backoff(seed=1)
    stretches = [ours.next_s(None) / plain.next_s(None) for _ in range(200)]
    assert 1 <= min(stretches) < 1.1
    assert MAX_JITTER - 0.1 < max(stretches) <= MAX_JITTER


def test_two_clients_rest_differently_by_the_systems_own_chance() -> None:
    random.seed(1)
    one = Backoff(time.monotonic() + LONG_S, FIRST_DELAY_S, system_uniform())
    random.seed(1)
    other = Backoff(time.monotonic() + LONG_S, FIRST_DELAY_S, system_uniform())
    assert not {one.next_s(None) for _ in range(10)} & {other.next_s(None) for _ in range(10)}


def test_a_rest_is_never_shorter_than_the_server_says_and_grows_from_there() -> None:
    ours = backoff()
    assert [ours.next_s(0.25) for _ in range(7)] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert ours.next_s(60.0) == 60.0
    assert ours.next_s(None) == MAX_DELAY_S
    stretched = backoff(seed=2)
    assert all(stretched.next_s(20.0) >= 20.0 for _ in range(100))


@pytest.mark.parametrize("seed", range(20))
def test_delays_shorten_before_the_deadline_so_that_the_last_tries_have_time(seed: int) -> None:
    ours, last_s = backoff(left_s=20.0, seed=seed), 0.0
    started = time.monotonic()
    for _ in range(20):
        left_s = ours.deadline - time.monotonic()
        last_s = ours.next_s(0.25)
        if last_s >= left_s:
            break
        assert last_s <= max(MAX_JITTER * left_s / 2, MAX_JITTER * 0.25)
        ours.deadline -= last_s  # as if it had rested
    assert last_s <= MAX_JITTER * 0.25  # only what the server says no longer fits
    assert time.monotonic() - started < 1


def test_what_the_server_says_reaches_past_the_deadline_only_by_itself() -> None:
    assert all(backoff(left_s=4.0, seed=seed).next_s(3.5) <= 4.0 for seed in range(100))
    assert backoff(left_s=4.0).next_s(5.0) == 5.0


def test_delays_of_many_clients_spread() -> None:
    times = sorted(backoff(seed=seed).next_s(0.25) for seed in range(100))
    assert times[0] >= 0.25
    assert max(later - earlier for earlier, later in pairwise(times)) < 0.03
