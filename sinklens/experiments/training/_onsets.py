"""When in training a trait appears: its onset with an interval, and the order of several.

The onset (`functional.onset`) is taken of the mean over prompts. There is none with fewer than
three checkpoints or prompts, where the last checkpoint does not differ from the first, or where it
does not lie beyond the null on the side to which it moved. The numbers of the prompts are jackknife
pseudo-values. Beside them stands the middle of log2(1 + step), the onset of a trait that grows
evenly over it. Two onsets between the same two checkpoints differ by the line drawn there alone,
and have no order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from ...functional.onset import onset
from ...results.estimates import Measure, Sample
from ...results.record import Record
from ...results.wording import describe, null_verdict, number, phrase
from ...runner.run import Run
from ...stats.effects import EffectSize, Values, interval
from ...stats.jackknife import pseudo_values

AFTER = " after "
ONSET_MEASURES = {
    "onset": Measure("log2(1 + step)", "even growth over log2(1 + step)"),
    "onset_order": Measure("log2(1 + step)", "the onset of the trait before it"),
}
Curve = Mapping[int, Sample]
"""By training step a trait, one number per prompt beside its null."""


def onset_values(curve: Curve, side: int) -> Values | None:
    """Jackknife pseudo-values around the onset, in log2(1 + step); None without an onset.

    Intervals of paired differences decide: of the last checkpoint from the first, and from the
    null.

    Args:
        curve: The trait.
        side: Where it lies once it has appeared: 1 above its null, -1 below, 0 either.
    """
    steps = np.array(sorted(curve), float)
    values = np.stack([np.asarray(curve[int(step)].values, float) for step in steps])
    count = values.shape[1]
    change = _side_of_zero(values[-1] - values[0])
    beyond = _side_of_zero(curve[int(steps[-1])].distance(count))
    appeared = change and change == beyond and side in (0, change)
    if min(count, len(steps)) < 3 or not appeared:
        return None
    without = [onset(steps, np.delete(values, prompt, 1).mean(1)) for prompt in range(count)]
    return pseudo_values(onset(steps, values.mean(1)), np.array(without))


def _side_of_zero(differences: Values) -> int:
    """1 or -1 where the interval of the mean lies above or below 0, else 0."""
    low, high = interval(differences)
    return 0 if low is None or high is None else int(low > 0) - int(high < 0)


def add_onsets(run: Run[Any], curves: Mapping[str, Curve], sides: Mapping[str, int]) -> list[str]:
    """Each onset beside that of even growth, and beside the onset of the trait before it.

    Args:
        run: The run; onsets as steps are kept among its findings.
        curves: By trait.
        sides: By trait where it lies once it has appeared; either side for those not named.

    Returns:
        The traits that have an onset, in their order.
    """
    values = {name: onset_values(curve, sides.get(name, 0)) for name, curve in curves.items()}
    known = {name: onsets for name, onsets in values.items() if onsets is not None}
    order = sorted(known, key=lambda name: (float(known[name].mean()), name))
    for name in order:
        ends = np.array([min(curves[name]), max(curves[name])])
        run.add("onset", name, Sample(known[name], np.log2(1 + ends).mean()))
    for first, second in itertools.pairwise(order):
        run.add("onset_order", f"{second}{AFTER}{first}", Sample(known[second], known[first]))
    run.facts(
        onsets={
            name: None if onsets is None else _in_steps(onsets, np.array(sorted(curves[name])))
            for name, onsets in values.items()
        }
    )
    return order


def _in_steps(onsets: Values, steps: Int[np.ndarray, " step"]) -> dict[str, Any]:
    """An onset as a step, with its interval and the checkpoints around it."""
    step = 2 ** float(onsets.mean()) - 1
    after = min(int(np.searchsorted(steps, step, side="right")), len(steps) - 1)
    # An onset lies between the first checkpoint and the last, whatever t says of few prompts.
    low, high = (
        None if end is None else float(np.clip(2**end - 1, steps[0], steps[-1]))
        for end in interval(onsets)
    )
    between = steps[[after - 1, after]].tolist()
    return {"step": step, "ci_low": low, "ci_high": high, "between": between}


def order_of_onsets(result: Record) -> Iterator[str]:
    """Which trait appears after which, as far as prompts and checkpoints can tell."""
    orders = []
    for row in (row for row in result.effects if row.metric == "onset_order"):
        second, first = row.condition.split(AFTER)
        ends = [result.findings["onsets"][name]["between"] for name in (first, second)]
        if max(low for low, _ in ends) < min(high for _, high in ends):
            orders.append(
                f"{second} and {first} not resolved, since their bracketing checkpoints overlap"
            )
        else:
            verdict = null_verdict(row).replace("above", "after")
            orders.append(f"{second} {verdict} {first} ({describe(row)})")
    if orders:
        yield f"Order of onsets: {'; '.join(orders)}."
        yield "One training run; another seed may order them otherwise."


def traits_over_training(result: Record) -> Iterator[str]:
    """For each trait its first and last value, what the last is set against, and its onset."""
    for name, onset_steps in result.findings["onsets"].items():
        rows = [row for row in result.effects if row.metric == name and row.against is None]
        start = number(result.measure(name), rows[0].value)
        step = rows[0].condition.removeprefix("step")
        change = f"{name} goes from {start} at step {step} to {phrase(result, rows[-1])}"
        yield f"{change}. {_when(rows, onset_steps)}."


def _when(rows: list[EffectSize], onset_steps: Mapping[str, Any] | None) -> str:
    """An onset in words, or why there is none."""
    if onset_steps is None:
        if min(len(rows), rows[-1].n_prompts) < 3:
            return f"No onset: too few {'checkpoints' if len(rows) < 3 else 'prompts'}"
        return "No onset: it does not appear"
    low, high = (onset_steps[end] for end in ("ci_low", "ci_high"))
    before, after = onset_steps["between"]
    return (
        f"Half-maximum reached at step {onset_steps['step']:.0f} (95 % CI {low:.0f}-{high:.0f}; "
        f"bracketing checkpoints {before}, {after})"
    )
