"""When in training a trait appears: its onset, an interval of it, and the order of several.

The onset is the step at which the mean over prompts is half way from the first checkpoint to the
last, on a line between the checkpoints around it in x = log2(1 + step). There is none with fewer
than three checkpoints, where the last does not differ from the first, or where it does not lie
beyond the null on the side to which it moved. The numbers of the prompts are jackknife
pseudo-values around the onset S of all n of them,

    S + (n - 1) (mean S_without - S_without_p)

so that Student's t interval of their mean is the jackknife interval of S. Beside it stands the
middle of x, the onset of a trait that grows evenly over x. The rule is ours: the papers show
curves. An onset is known no better than the checkpoints lie apart: two that lie between the same
two checkpoints differ by the line drawn there, and have no order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from ...stats.effects import Row, interval, paired_row
from ._traits import Trait, Values


def onset(steps: Float[np.ndarray, " step"], curve: Float[np.ndarray, " step"]) -> float:
    """Where a curve is first half way from its first to its last value, in log2(1 + step)."""
    share = (curve - curve[0]) / (curve[-1] - curve[0])
    after = int(np.argmax(share >= 0.5))  # the last share is 1
    ends = np.log2(1 + steps[[after - 1, after]])
    part = (0.5 - share[after - 1]) / (share[after] - share[after - 1])
    return float(ends[0] + part * (ends[1] - ends[0]))


def onset_values(curve: dict[int, Trait]) -> Values | None:
    """Jackknife pseudo-values around the onset; None where the trait does not appear.

    Intervals of paired differences decide: of the last checkpoint from the first, and from the
    null.
    """
    steps = np.array(sorted(curve), float)
    values = np.stack([curve[int(step)].values for step in steps])
    last = curve[int(steps[-1])]
    count = values.shape[1]
    change, beyond = side_of_zero(values[-1] - values[0]), side_of_zero(values[-1] - last.null)
    appeared = change and change == beyond and last.side in (0, change)
    if min(count, len(steps)) < 3 or not appeared:
        return None
    whole = onset(steps, values.mean(1))
    without = np.array([onset(steps, np.delete(values, p, 1).mean(1)) for p in range(count)])
    # Not corrected for bias, which could move an onset out of the checkpoints around it.
    return np.asarray(whole + (count - 1) * (without.mean() - without))


def side_of_zero(differences: Values) -> int:
    """1 or -1 where the interval of the mean lies above or below 0, else 0."""
    low, high = interval(differences)
    if low is None or high is None:
        return 0
    return int(low > 0) - int(high < 0)


def onset_rows(
    onsets: Mapping[str, Values | None], followed: Mapping[str, Mapping[int, Trait]]
) -> Iterator[Row]:
    """Each onset beside that of even growth, and beside the onset of the trait before it."""
    known = {name: values for name, values in onsets.items() if values is not None}
    order = sorted(known, key=lambda name: (float(known[name].mean()), name))
    unit = "log2(1 + step)"
    for name in order:
        steps = np.array([min(followed[name]), max(followed[name])])
        even = np.full_like(known[name], np.log2(1 + steps).mean())
        yield paired_row("onset", name, "measurement", known[name], even, unit=unit)
    for first, second in itertools.pairwise(order):
        condition = f"{second} after {first}"
        yield paired_row(
            "onset_order", condition, "measurement", known[second], known[first], unit=unit
        )


def described(
    onsets: Mapping[str, Values | None], followed: Mapping[str, Mapping[int, Trait]]
) -> dict[str, Any]:
    """The onset of each trait as a step, with its interval and the checkpoints around it."""
    found: dict[str, Any] = {}
    for name, values in onsets.items():
        if values is None:
            found[name] = None
            continue
        low, high = interval(values)
        step = 2 ** float(values.mean()) - 1
        steps = sorted(followed[name])
        after = next(number for number, s in enumerate(steps) if s > step or s == steps[-1])
        between = [steps[after - 1], steps[after]]
        # An onset lies between the first checkpoint and the last, whatever t says of few prompts.
        ends = [
            None if end is None else float(np.clip(2**end - 1, steps[0], steps[-1]))
            for end in (low, high)
        ]
        found[name] = {"step": step, "ci_low": ends[0], "ci_high": ends[1], "between": between}
    return found
