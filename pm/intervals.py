"""95 % intervals by resampling whole groups (cluster bootstrap): rows of one prompt are not independent. Pure.

Everything that is resampled is a function of sums over groups. Shapes: N rows, G groups, K sums, R resamplings.
"""

from collections.abc import Collection
from functools import lru_cache

import numpy as np

RESAMPLES = 1000
Z = 1.959964  # of the normal distribution, for 95 %
MOST_UNITS = 2000  # that are resampled; more groups are dealt at random into as many heaps, which are


def resampled_sums(sums_GK: np.ndarray) -> np.ndarray:
    """Sums (R, K) over groups that are drawn with replacement, as many as there are, `RESAMPLES` times over.

    Above `MOST_UNITS` groups the time would grow and the result would not: heaps of independent groups are independent
    too, and as many of them are enough to tell how far a ratio of their sums varies.
    """
    if len(sums_GK) > MOST_UNITS:
        heap_G = np.random.default_rng(0).permutation(len(sums_GK)) % MOST_UNITS
        sums_GK = np.stack([np.bincount(heap_G, column) for column in sums_GK.T], axis=1)
    return _times_drawn(len(sums_GK)) @ sums_GK


@lru_cache(maxsize=4)
def _times_drawn(count: int) -> np.ndarray:
    """How often each of `count` groups is drawn in each resampling, (R, count): the same whenever it is asked for."""
    drawn = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    drawn += np.arange(RESAMPLES)[:, None] * count
    return np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)


def means(values: dict[str, tuple[np.ndarray, np.ndarray]], groups: np.ndarray, shares: Collection[str]
          ) -> dict[str, tuple[float | None, list[float] | None]]:
    """Of each metric the mean of the rows that count, and its 95 % interval. `values`: of each row the value (N,), and
    whether it counts (N,); `groups` (N,): whole numbers from 0.

    It spans from 2.5 to 97.5 % of the means of `RESAMPLES` resamplings, and is wider for few groups (`widening`). For
    those of `shares`, whose means are between 0 and 1, this gives no width where all values are 0 or all 1; then it is
    Wilson's, with each group counted once. None for no values; no interval for a single group.
    """
    if not len(groups):
        return dict.fromkeys(values, (None, None))
    count = groups.max() + 1
    sums_GK = np.stack([np.bincount(groups, column, count) for row, counted in values.values()
                        for column in (np.where(counted, row, 0.0), counted)], axis=1)
    totals_RK = resampled_sums(sums_GK) if count > 1 else None
    result = {}
    for place, (name, (row, counted)) in enumerate(values.items()):
        here = int((sums_GK[:, 2 * place + 1] > 0).sum())
        if not here:
            result[name] = (None, None)
            continue
        mean, interval = float(row[counted].mean()), None
        if here > 1 and name in shares and (np.all(row[counted] == 0) or np.all(row[counted] == 1)):
            interval = _wilson(mean, here)
        elif here > 1:
            interval = _percentiles(*totals_RK[:, 2 * place : 2 * place + 2].T, mean, here)
            interval = np.clip(interval, 0, 1).tolist() if name in shares else interval
        result[name] = (mean, interval)
    return result


def ratio_interval(part_G: np.ndarray, whole_G: np.ndarray) -> tuple[float | None, list[float] | None]:
    """The ratio, between 0 and 1, of two sums over groups, and its 95 % interval as in `means`."""
    if not whole_G.sum():
        return None, None
    ratio, here = float(part_G.sum() / whole_G.sum()), int((whole_G > 0).sum())
    if here < 2:
        return ratio, None
    if ratio in (0, 1):
        return ratio, _wilson(ratio, here)
    totals_RK = resampled_sums(np.stack([part_G, whole_G], axis=1))
    return ratio, np.clip(_percentiles(*totals_RK.T, ratio, here), 0, 1).tolist()


def widening(groups: int) -> float:
    """How much wider an interval is where its width is itself an estimate from few groups (at least 2): resampling
    makes the variance too small by (groups - 1) / groups, and Student's t takes the place of the normal distribution
    (its quantile by Abramowitz and Stegun 26.7.5). 1.6 for 5 groups, 1.05 for 40."""
    free = groups - 1
    quantile = (Z + (Z**3 + Z) / (4 * free) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * free**2)
                + (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / (384 * free**3))
    return quantile / Z * (groups / free) ** 0.5


def _percentiles(part_R: np.ndarray, whole_R: np.ndarray, mean: float, groups: int) -> list[float]:
    low, high = np.percentile(part_R[whole_R > 0] / whole_R[whole_R > 0], (2.5, 97.5))
    wider = widening(groups)
    return [float(mean - wider * (mean - low)), float(mean + wider * (high - mean))]


def _wilson(share: float, n: int) -> list[float]:
    """Wilson's score interval (1927) of a proportion that is 0 or 1."""
    far = Z * Z / (n + Z * Z)
    return [0.0, far] if share == 0 else [1 - far, 1.0]
