"""What `absolute_position` says in words: at most 12 sentences, and the notes under its table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ...models.capabilities import Capabilities
from ...models.prompts import Prompts
from ...results.result import ExperimentResult
from ...runner.old_comparison import beside_null
from ...stats.effects import EffectSize, is_significant
from ._fingerprint import SHIFT_ERROR

REPORTED = 0.40
Rows = dict[tuple[str, str, str, str | None], EffectSize]


def summary(result: ExperimentResult) -> list[str]:
    """Both components, what edits of position 0 remove, and who reads it."""
    rows: Rows = {
        (row.metric, row.condition, row.kind, row.queries): row
        for row in result.effects
        if row.layer is None
    }
    lines = [*_components(result, rows), *_replacements(result, rows), *_patches(result)]
    return [*lines, *_reading(result, rows), *_checks(result)][:12]


def _components(result: ExperimentResult, rows: Rows) -> Iterator[str]:
    """The shares, the mask and the depth."""
    ranges = result.settings["ranges"]
    first, last = ranges[0], ranges[-1]
    for label in dict.fromkeys((first, last)):
        said = []
        for keys, words in (("without_key0", "without key 0"), ("all_keys", "with it")):
            row = rows["residual_share", keys, "measurement", label]
            null = rows["residual_share", f"{keys}:moved", "null", label]
            contrast = rows["residual_share", f"{keys}:moved", "contrast", label]
            said.append(f"{row.value:.0%} {words} ({_moved(row, null, contrast)})")
        yield (
            f"Queries {label}: of the variance of mean logits, {' and '.join(said)} is no function "
            "of the offset."
        )
    window = result.settings["mask_window"]
    slope = rows["causal_slope", "without_key0", "measurement", last]
    cost = rows[f"window_kl:{window}", "without_key0", "measurement", last]
    share = rows["causal_share", "without_key0", "measurement", last]
    mixed = _beside_control(rows, cost, "with offsets shuffled", "{:.2f}")
    grows = _beside_control(rows, slope, "shuffled", "{:.2f}")
    shares = _beside_control(rows, share, "with offsets shuffled", "{:.0%}")
    yield (
        f"Causal mask (without key 0): log Z grows by {slope.value:.2f} log(i + 1) (flat logits "
        f"{slope.baseline:.2f}{grows}) and costs {cost.value:.2f} nats against a window of "
        f"{window}, {beside_null(cost)} flat logits ({cost.baseline:.2f}){mixed}; it is "
        f"{share.value:.0%} of both components{shares}."
    )
    trend = rows["depth_trend", "without_key0", "measurement", last]
    told = "" if _apart(trend) else ", not told apart from 0"
    rank = result.settings["rank_correlation"]["without_key0"]
    yield (
        f"From layer 1 to the last the share without key 0 changes by {_described(trend)}{told} "
        f"(rank correlation with depth {rank:+.2f})."
    )


def _beside_control(rows: Rows, row: EffectSize, what: str, digits: str) -> str:
    """Whether a figure is more than its control, where there is one."""
    control, contrast = (
        rows.get((row.metric, row.condition, kind, row.queries)) for kind in ("control", "contrast")
    )
    if control is None or contrast is None:
        return ""
    side = "more than" if contrast.effect > 0 else "less than"
    told = side if is_significant(contrast) else "not told apart from that"
    return f", {told} {what} ({digits.format(control.value)})"


def _moved(row: EffectSize, null: EffectSize, contrast: EffectSize) -> str:
    """A share beside what is left of it when logits are moved along their diagonals."""
    ends = (row.ci_low, contrast.ci_low)
    above = all(end is not None and end > 0 for end in ends)
    return f"{'above' if above else 'not above'} the null, {null.value:.0%}"


def _replacements(result: ExperimentResult, rows: Rows) -> Iterator[str]:
    """What replacing BOS removes, at early and at all queries."""
    ranges = result.settings["ranges"]
    conditions = dict.fromkeys(
        row.condition
        for row in result.effects
        if row.metric.startswith("component") and row.layer is None
    )
    early, early_with = [], []
    for condition in conditions:

        def at(queries: str, kind: str, keys: str, named: str = condition) -> EffectSize | None:
            return rows.get((f"removed_{keys}", named, kind, queries))

        row, every = (at(one, "treatment", "without_key0") for one in (ranges[0], ranges[-1]))
        said = f"there is no component to remove at {ranges[0]} (not above its null)"
        if row is not None:
            early.append(f"{row.value:.0%} ({condition})")
            against = _against(result, at(ranges[0], "contrast", "without_key0"))
            said = f"{_removal(row)} at {ranges[0]}, {against}"
        if every is not None and ranges[0] != ranges[-1]:
            said += f"; {_removal(every)} at {ranges[-1]}"
        whole = at(ranges[0], "treatment", "all_keys")
        if whole is not None:
            early_with.append(f"{whole.value:.0%} ({condition})")
            said += f"; with key 0 {_removal(whole)} at {ranges[0]}"
            if row is None:
                said += f", {_against(result, at(ranges[0], 'contrast', 'all_keys'))}"
        yield f"Replacing BOS by {condition}, without key 0: {said}."
    if early or early_with:
        words = "" if early else " with key 0, since without it there is nothing to remove"
        yield (
            f"2606.06160 reports {REPORTED:.0%} at early queries, for a replacement and a range "
            f"that its abstract does not name; removed here{words}: "
            f"{', '.join(early or early_with)}."
        )


def _removal(row: EffectSize) -> str:
    """What an edit removes; where the component grows, that."""
    interval = "" if row.ci_low is None else f" [{row.ci_low:.0%}, {row.ci_high:.0%}]"
    told = "" if _apart(row) else ", not told apart from 0"
    if row.value < -1:
        grown = f"the component grows {1 - row.value:.2g}-fold"
        return f"{grown} (removed {row.value:.0%}{interval}{told})"
    return f"{row.value:.0%} removed{interval}{told}"


def _against(result: ExperimentResult, contrast: EffectSize | None) -> str:
    """More than the control?"""
    if contrast is None:
        drawn = result.settings["draws_made"]["control_positions"]
        after = f" (no component above its null after position {max(drawn)})" if drawn else ""
        return f"no control{after}"
    told = "" if is_significant(contrast) else " (not told apart)"
    return f"{contrast.effect:+.0%} against its control{told}"


def _patches(result: ExperimentResult) -> Iterator[str]:
    """What patches of position 0 remove, in one sentence; without key 0 if there is something."""
    for keys, words in (("without_key0", ""), ("all_keys", " with key 0")):
        rows = [
            row
            for row in result.effects
            if row.metric == f"removed_{keys}" and row.layer is not None
        ]
        contrasts = {(row.condition, row.layer): row for row in rows if row.kind == "contrast"}
        found = [row for row in rows if row.kind == "treatment"][:6]
        said = []
        for row in found:
            contrast = contrasts.get((row.condition, row.layer))
            star = "" if contrast is not None and is_significant(contrast) else "*"
            said.append(f"{row.condition} at L{row.layer} {row.value:.0%}{star}")
        if found:
            note = " (*: no control, or not told apart from it)" if "*" in "".join(said) else ""
            where = f"{words} at {found[0].queries}, in the layers that it can change"
            yield f"Patching position 0 removes{where}: {', '.join(said)}{note}."
            return
    if any("@L" in name for name in result.settings["compared"]):
        yield (
            "Patching position 0: there is nothing to remove at "
            f"{result.settings['ranges'][0]}, with or without key 0 (the table says why)."
        )


def _reading(result: ExperimentResult, rows: Rows) -> Iterator[str]:
    """Heads that read position 0, and the fingerprint."""
    weight = rows["sink_reading_heads", "weight>0.3", "measurement", None]
    readout = rows["sink_reading_heads", "readout>0.3", "measurement", None]

    def later(row: EffectSize, what: str) -> str:
        return _beside_control(rows, row, what, "{:.0%}")

    def later_key(row: EffectSize) -> str:
        contrast = rows.get((row.metric, row.condition, "contrast", row.queries))
        if contrast is None:
            return ""
        return later(row, f"at a later key, where position 0 has {contrast.value:.0%}")

    yield (
        f"{weight.value:.0%} of heads give position 0 a weight above 0.3 ({beside_null(weight)} "
        f"uniform attention, {weight.baseline:.0%}{later_key(weight)}); in {readout.value:.0%} "
        f"what it brings in is more than 0.3 of what the head writes ({beside_null(readout)} "
        f"values that have nothing to do with each other, {readout.baseline:.0%}"
        f"{later_key(readout)})."
    )
    named = ("fingerprint", "nearest_centroid", "measurement")
    told = [row for key, row in rows.items() if key[:3] == named]
    if told:
        said = " and ".join(
            f"{row.value:.0%} at query {str(row.queries).split(':')[0]} "
            f"({beside_null(row)} chance, {row.baseline:.0%}"
            f"{later(row, 'for a token at a later position')})"
            for row in told
        )
        cosines = " and ".join(
            f"{row.value:.2f} {'after' if row.condition == 'normed' else 'before'} the norm "
            f"(prompts at the last query {row.baseline:.2f})"
            for row in result.effects
            if row.metric == "position0_cosine"
        )
        yield (
            f"The stream names the first token in {said}; entering the last layer, different "
            f"tokens at position 0 have a cosine of {cosines}, without intervals."
        )


def _checks(result: ExperimentResult) -> Iterator[str]:
    """The checks inside the run, if there is room; they are in the notes as well."""
    yield f"Checks: {checked(result.settings['checks'])}"


def checked(checks: dict[str, Any]) -> str:
    """What the checks inside a run found."""
    shifted = checks["shifted_positions"]
    if shifted["change"] is None:
        moved = f"position ids could not be shifted ({shifted['why']})"
    else:
        what = "so they know absolute positions"
        if shifted["change"] < shifted["rounding"]:
            what = "no more than they are rounded, so no absolute position is told"
        if shifted["change"] < SHIFT_ERROR:
            what = "so they know differences only"
        moved = (
            f"{shifted['step']} added to all position ids changes logits by at most "
            f"{shifted['change']:.1g}, {what}"
        )
    later = checks["position0_change"]
    first = "" if later is None else f"; later tokens move position 0 by {later:.1g} of its norm"
    return (
        f"log A = s - log Z to {checks['split_error']:.1g}; Toeplitz logits have a share of "
        f"{checks['toeplitz_share']:.1g}; {moved}{first}."
    )


def notes(
    capabilities: Capabilities,
    windows: Sequence[int],
    prompts: Prompts,
    draws: int,
    positions: Sequence[int],
    checks: dict[str, Any],
) -> list[str]:
    """The sentences at the foot of the table."""
    said = [f"Checks: {checked(checks)}"]
    short = sorted({window for window in windows if window < prompts.length})
    if short:
        layers = [layer for layer, window in enumerate(windows) if window < prompts.length]
        said.append(
            f"Layers {', '.join(map(str, layers))} see a window of "
            f"{', '.join(map(str, short))} keys; beyond it key 0 is hidden and log Z stops growing."
        )
    else:
        said.append(
            f"No window is shorter than the prompts ({prompts.length} tokens), so window and "
            "causal mask are the same here."
        )
    if capabilities.learned_sinks:
        said.append("This model has learned sinks: their logit is part of log Z.")
    said.append(
        "Rows named :moved are the null: each prompt's logits moved along their diagonals. "
        "All shares are averages over layers, without layer 0, and what patches remove over those "
        "that they can change."
    )
    if not draws:
        said.append("No controls, and contrasts with the null alone: draws is 0.")
    elif positions:
        said.append(
            "Controls: of edits the same at a later position, read at queries after it, and their "
            "contrasts read the treatment on the same pairs; of heads a later key at queries after "
            "it; of the fingerprint a token at a later position; of the mask the same mean logits "
            "with their offsets shuffled."
        )
    else:
        said.append(
            "No later position is left for controls; that of the mask has its offsets shuffled."
        )
    said.append(
        "The estimators are a reconstruction: 2606.06160 names the components, and its formulas "
        "were not at hand."
    )
    return said


def _described(row: EffectSize) -> str:
    """A value with its interval."""
    if row.unit.startswith("share"):
        ends = "" if row.ci_low is None else f" [{row.ci_low:.0%}, {row.ci_high:.0%}]"
        return f"{row.effect:.0%}{ends}"
    ends = "" if row.ci_low is None else f" [{row.ci_low:.2f}, {row.ci_high:.2f}]"
    return f"{row.effect:.2f}{ends}"


def _apart(row: EffectSize) -> bool:
    """Whether an interval leaves out 0."""
    return row.ci_low is not None and row.ci_high is not None and row.ci_low * row.ci_high > 0
