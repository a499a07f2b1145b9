"""Intervals by resampling groups: by hand, against theory, and how often they hold the truth."""

import numpy as np
import pytest

from pm.intervals import MOST_UNITS, RESAMPLES, means, ratio_interval, resampled_sums, widening


def mean_interval(values: np.ndarray, groups: np.ndarray) -> tuple[float | None, list[float] | None]:
    """Of one share, all of whose rows count."""
    every = np.ones(len(values), dtype=bool)
    return means({"": (values, every)}, np.unique(groups, return_inverse=True)[1], ("",))[""]


def test_no_mean_of_no_values():
    assert mean_interval(np.array([]), np.array([])) == (None, None)


def test_no_interval_for_a_single_group():
    assert mean_interval(np.array([1.0, 0.0, 1.0, 1.0]), np.array(list("aaaa"))) == (0.75, None)


def test_wilson_where_all_are_right_or_all_wrong():
    # z^2 = 3.841459: n / (n + z^2) of n = 10
    groups = np.array(list("abcdefghij"))
    mean, interval = mean_interval(np.ones(10), groups)
    assert (mean, interval) == (1.0, pytest.approx([0.7224672, 1.0]))
    mean, interval = mean_interval(np.zeros(10), groups)
    assert (mean, interval) == (0.0, pytest.approx([0.0, 0.2775328]))


def test_wilson_counts_groups_and_not_rows():
    _, interval = mean_interval(np.ones(20), np.array(list("abcdefghij") * 2))
    assert interval == pytest.approx([0.7224672, 1.0])


def test_interval_of_independent_rows_is_near_the_normal_one():
    values = np.array([1.0, 0.0] * 200)
    mean, (low, high) = mean_interval(values, np.arange(400))
    assert mean == 0.5
    assert (low, high) == pytest.approx((0.5 - 0.049, 0.5 + 0.049), abs=0.006)


def test_interval_is_wider_where_rows_are_clustered():
    values = np.array([1.0] * 50 + [0.0] * 50)
    _, alone = mean_interval(values, np.arange(100))
    _, clustered = mean_interval(values, np.arange(100) // 10)  # ten groups, each all right or all wrong
    assert clustered[1] - clustered[0] > 2 * (alone[1] - alone[0])


def test_a_mean_weighs_rows_and_not_groups():
    mean, (low, high) = mean_interval(np.array([1.0, 1.0, 1.0, 0.0]), np.array(list("aaab")))
    assert mean == 0.75
    assert (low, high) == (0.0, 1.0)  # one group drawn twice: 1/4 of the resamplings each


# Several metrics at once


def clustered(groups: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of 0 and 1 and their groups, of 1 to 9 rows, each of which has a probability of its own: that of a 1 is
    1/2 all in all."""
    random_state = np.random.default_rng(seed)
    sizes = random_state.integers(1, 10, groups)
    group_N = np.repeat(np.arange(groups), sizes)
    return (random_state.random(len(group_N)) < random_state.beta(0.3, 0.3, groups)[group_N]).astype(float), group_N


def test_rows_that_do_not_count_change_nothing():
    values, groups = clustered(30, 0)
    counted = np.arange(len(values)) % 3 > 0
    spoilt = np.where(counted, values, np.nan)
    found = means({"some": (values, counted), "spoilt": (spoilt, counted)}, groups, ())
    assert found["some"] == found["spoilt"]
    assert found["some"][0] == values[counted].mean()


def test_each_metric_has_its_own_rows():
    groups = np.array([0, 0, 1, 1, 2])
    values = np.array([1.0, 0.0, 1.0, 0.0, 1.0])
    found = means({"all": (values, np.ones(5, dtype=bool)), "first group": (values, groups == 0),
                   "ones": (values, values == 1), "none": (values, np.zeros(5, dtype=bool))}, groups, ("all", "ones"))
    assert found["all"] == mean_interval(values, groups)
    assert found["first group"] == (0.5, None)
    assert found["ones"] == (1.0, pytest.approx([3 / (3 + 3.841459), 1.0]))  # Wilson's, of three groups
    assert found["none"] == (None, None)


def test_resamplings_without_a_row_that_counts_are_left_out():
    """Two of ten groups have one: a tenth of the resamplings draw neither."""
    values, counted = np.array([1.0, 0.0] * 5), np.arange(10) < 2
    assert means({"": (values, counted)}, np.arange(10), ("",))[""] == (0.5, [0.0, 1.0])
    assert ratio_interval(values * counted, counted.astype(float)) == (0.5, [0.0, 1.0])


def test_metrics_of_no_rows_have_no_mean():
    nothing = np.array([]), np.array([], dtype=bool)
    assert means({"one": nothing, "other": nothing}, np.array([], dtype=int), ()) == {
        "one": (None, None), "other": (None, None)}


# Resampled sums


def sums_by_group(groups: int, seed: int = 0) -> np.ndarray:
    """Ones and rows of each group, (G, 2)."""
    values, group_N = clustered(groups, seed)
    return np.stack([np.bincount(group_N, values), np.bincount(group_N)], axis=1)


@pytest.mark.parametrize("groups", [2, 50, MOST_UNITS + 1])
def test_resampled_sums_are_the_same_each_time(groups):
    sums_GK = sums_by_group(groups)
    np.random.seed(1)
    once = resampled_sums(sums_GK)
    np.random.seed(2)
    for others in range(3, 13):  # more than are kept
        resampled_sums(sums_by_group(others))
    assert once.shape == (RESAMPLES, 2)
    assert np.array_equal(resampled_sums(sums_GK), once)


def test_resampled_sums_have_the_mean_and_the_covariance_of_theory():
    """G draws with replacement: G times the mean of a group, G times the covariance of groups."""
    sums_GK = sums_by_group(80)
    totals_RK = resampled_sums(sums_GK)
    wanted = 80 * np.cov(sums_GK.T, bias=True)
    assert np.abs((totals_RK.mean(0) - sums_GK.sum(0)) / np.sqrt(wanted.diagonal())).max() < 0.1
    assert np.cov(totals_RK.T) == pytest.approx(wanted, rel=0.15)


def test_sums_over_groups_vary_as_groups_do_and_not_as_rows_do():
    """Forty groups of ten equal rows: the variance is ten times that of 400 rows."""
    together = resampled_sums(np.array([[10.0], [0.0]] * 20)).var()
    alone = resampled_sums(np.array([[1.0]] * 200 + [[0.0]] * 200)).var()
    assert together / alone == pytest.approx(10, rel=0.15)


@pytest.mark.parametrize("groups", [2, 77, MOST_UNITS, 2 * MOST_UNITS])
def test_as_many_groups_are_drawn_as_there_are(groups):
    assert set(resampled_sums(np.ones((groups, 1))).ravel()) == {groups}


def test_each_resampling_draws_anew():
    assert len(np.unique(resampled_sums(2.0 ** np.arange(20)[:, None]))) > 0.99 * RESAMPLES


# Many groups


def plain_bootstrap(sums_GK: np.ndarray, resamples: int = 3000) -> np.ndarray:
    """The interval of the ratio of the first sum to the second."""
    random_state = np.random.default_rng(7)
    totals = np.array([sums_GK[random_state.integers(len(sums_GK), size=len(sums_GK))].sum(0)
                       for _ in range(resamples)])
    return np.percentile(totals[:, 0] / totals[:, 1], (2.5, 97.5))


@pytest.mark.parametrize("groups", [300, MOST_UNITS + 1, MOST_UNITS * 3 // 2, 7000])
def test_the_interval_is_that_of_a_plain_bootstrap(groups):
    values, group_N = clustered(groups, 1)
    low, high = plain_bootstrap(sums_by_group(groups, 1))
    _, found = mean_interval(values, group_N)
    assert found == pytest.approx([low, high], abs=0.07 * (high - low))


# Coverage


def test_of_twenty_intervals_nineteen_hold_the_truth():
    """Simulated 400 times over: of 0.95, the standard error is 0.011. Rows taken one by one would hold it far less
    often, for their intervals are too narrow."""
    samples = [clustered(60, seed) for seed in range(400)]
    by_group = [mean_interval(values, groups)[1] for values, groups in samples]
    by_row = [mean_interval(values, np.arange(len(values)))[1] for values, _ in samples]
    assert 0.91 < np.mean([low <= 0.5 <= high for low, high in by_group]) < 0.98
    assert np.mean([low <= 0.5 <= high for low, high in by_row]) < 0.75


# Ratios


def test_the_ratio_of_nothing_is_none():
    assert ratio_interval(np.zeros(3), np.zeros(3)) == (None, None)
    assert ratio_interval(np.array([]), np.array([])) == (None, None)


def test_no_interval_of_a_ratio_in_a_single_group():
    assert ratio_interval(np.array([1.0, 0.0]), np.array([4.0, 0.0])) == (0.25, None)


def test_a_ratio_is_of_sums_and_no_mean_of_ratios():
    ratio, (low, high) = ratio_interval(np.array([1.0, 0.0]), np.array([1.0, 3.0]))
    assert (ratio, low, high) == (0.25, 0.0, 1.0)


def test_a_ratio_that_all_groups_share_is_certain():
    whole_G = np.array([4.0, 8.0, 2.0, 16.0])
    assert ratio_interval(whole_G / 4, whole_G) == (0.25, [0.25, 0.25])


def test_a_mean_is_a_ratio():
    values, groups = clustered(40, 2)
    ratio, interval = ratio_interval(np.bincount(groups, values), np.bincount(groups).astype(float))
    mean, wanted = mean_interval(values, groups)
    assert (ratio, interval) == (pytest.approx(mean), pytest.approx(wanted))


@pytest.mark.parametrize(("groups", "wanted"), [(3, 2.6889), (5, 1.5837), (11, 1.1923), (41, 1.0440), (1001, 1.0017)])
def test_an_interval_of_few_groups_is_wider_by_students_t(groups, wanted):
    # t of 2, 4, 10, 40 and 1,000 degrees of freedom: 4.3027, 2.7764, 2.2281, 2.0211 and 1.9623
    assert widening(groups) == pytest.approx(wanted, rel=0.035 if groups == 3 else 0.003)


@pytest.mark.parametrize("groups", [4, 8, 20])
def test_an_interval_of_few_groups_holds_the_mean_about_as_often_as_it_says(groups):
    held = 0
    for seed in range(400):
        random_state = np.random.default_rng(seed)
        values = np.repeat(random_state.normal(size=groups), 10) + random_state.normal(size=groups * 10)
        every = np.ones(len(values), dtype=bool)
        low, high = means({"": (values, every)}, np.repeat(np.arange(groups), 10), ())[""][1]
        held += low <= 0 <= high
    assert 0.9 <= held / 400 <= 0.99
