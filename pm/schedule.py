"""The learning rate as a pure function of the step."""

import math


def learning_rate(step: int, total_steps: int, peak: float, warmup_fraction: float, floor_fraction: float) -> float:
    """Rate of update number `step` (from 0): linear warm-up, then cosine down to `floor_fraction * peak`.

    The first update's rate is above zero: a warm-up that starts at 0 wastes a whole batch.
    """
    warmup = max(1, round(warmup_fraction * total_steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup + 1) / max(1, total_steps - warmup))
    floor = floor_fraction * peak
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))
