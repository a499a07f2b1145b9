"""The learning rate: where it starts, peaks and ends."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pm.schedule import learning_rate

PEAK = 2e-3
TOTALS = st.integers(1, 400)
SHARES = st.floats(0.0, 1.0)


def rates(total: int, warmup: float, floor: float) -> list[float]:
    return [learning_rate(step, total, PEAK, warmup, floor) for step in range(total)]


def test_ten_steps_by_hand():
    # Two steps up, then 0.1 + 0.45 (1 + cos(pi k / 8)) of the peak for k = 1 ... 8.
    wanted = [0.5, 1.0, 0.9657458, 0.8681981, 0.7222075, 0.55, 0.3777925, 0.2318019, 0.1342542, 0.1]
    assert [rate / PEAK for rate in rates(10, 0.2, 0.1)] == pytest.approx(wanted, abs=1e-6)


@given(TOTALS, SHARES, SHARES)
def test_first_step_is_above_zero(total, warmup, floor):
    assert learning_rate(0, total, PEAK, warmup, floor) > 0


@given(TOTALS, SHARES, SHARES)
def test_peak_is_reached_and_not_passed(total, warmup, floor):
    assert max(rates(total, warmup, floor)) == pytest.approx(PEAK, rel=1e-12)


@given(st.integers(2, 400), st.floats(0.0, 0.5), SHARES)
def test_last_step_is_at_the_floor(total, warmup, floor):
    assert rates(total, warmup, floor)[-1] == pytest.approx(floor * PEAK, abs=1e-15)


@given(TOTALS, SHARES, SHARES)
def test_rises_to_the_peak_then_falls(total, warmup, floor):
    found = rates(total, warmup, floor)
    peak = found.index(max(found))
    assert all(one < later for one, later in pairwise(found[: peak + 1]))
    assert all(one >= later for one, later in pairwise(found[peak:]))


def test_without_warmup_the_first_step_is_the_peak():
    assert rates(5, 0.0, 0.0) == pytest.approx([PEAK, PEAK * 0.8535534, PEAK * 0.5, PEAK * 0.1464466, 0.0], abs=1e-9)


def test_a_single_step_is_at_the_peak():
    assert rates(1, 0.05, 0.1) == rates(1, 0.0, 0.0) == rates(1, 1.0, 0.1) == [PEAK]


def test_warmup_over_all_steps_rises_to_the_last():
    assert rates(4, 1.0, 0.1) == [PEAK * 0.25, PEAK * 0.5, PEAK * 0.75, PEAK]


def test_floor_of_one_keeps_the_peak():
    assert rates(4, 0.0, 1.0) == [PEAK] * 4


def test_steps_past_the_end_stay_at_the_floor():
    assert learning_rate(17, 10, PEAK, 0.2, 0.1) == pytest.approx(0.1 * PEAK)
