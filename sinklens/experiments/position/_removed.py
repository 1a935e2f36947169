"""What edits of position 0 remove of the residual-stream component.

An edit at position 0 is read at queries after it, and so is the same edit at a later position p: at
queries i > p, against the clean run at these queries. The contrast reads both on the same pairs.

    removed = 1 - component after the edit / component before it

It is negative where the component grows. A ratio with a denominator that may as well be 0 is a
large number or 1, and means nothing. So `removed` is read only on pairs where the clean component
is above its null: where its interval lies above 0 and above the component of the shifted logits.
The difference in nats^2 is read anyway. Both are means over the layers whose logits the edit can
change by way of the residual stream: those behind a patched layer, which itself counts where key 0
is read and its own key was patched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...results.effect_sentences import beside_control
from ...results.estimates import Effect, Reference, Sample
from ...results.record import Record
from ...results.wording import (
    control_verdict,
    describe,
    interval_of,
    null_verdict,
    probability,
    written,
)
from ...runner.run import Run
from ...stats.effects import EffectSize, interval, is_significant
from ._components import CleanRun, Components, by_prompt
from ._edits import Edit
from ._pairs import KEYS

ROUNDING = 1e-9  # nats^2 a pair
NO_LAYER = "no layer behind the patched one is left that could change"
NOT_ABOVE = (
    "the component is not distinguishable from its null, so that a share of it has no meaning"
)
NO_CHANGE = "no replacement changes this component significantly"
REPORTED = 0.40
Versions = Float[Tensor, " n"]
Change = Callable[[Versions, Versions], Versions]


@dataclass(frozen=True)
class Removal:
    """An edit beside the clean run, at one range of queries and with one reading of the keys."""

    edit: Edit
    clean: CleanRun
    queries: str
    keys: str

    def lacking(self) -> str:
        """Why there is no share to remove; empty where there is one."""
        if self.edit.first_layer(self.keys) >= self.clean.components.layers:
            return NO_LAYER
        return "" if self._has_component() else NOT_ABOVE

    def share(self) -> Versions | None:
        """The share that is removed; None where there is nothing to remove."""
        before = self.before()
        return _share_removed(before, self.after()) if bool((before > ROUNDING).all()) else None

    def add_share(self, run: Run[Any]) -> None:
        """The row of `removed`, and its control where its pairs have a component too."""
        share = _share_removed(self.before(), self.after())
        effect = Effect(by_prompt(share), draws=len(self.edit.treatment))
        readable = all(self._has_component(place) for place, _ in self.edit.control)
        self._add(run, "removed", effect, _share_removed if readable else None)

    def add_difference(self, run: Run[Any]) -> None:
        """The row of `component` in nats^2, and its control."""
        before, after = by_prompt(self.before()), by_prompt(self.after())
        effect = Effect(after, before, len(self.edit.treatment))
        self._add(run, "component", effect, _difference)

    def after(self, place: int = 0) -> Versions:
        """The component under the treatment, mean over draws, on pairs after a place."""
        return self.edit.mean(partial(self._component, place=place))

    def before(self, place: int = 0) -> Versions:
        """The component in the clean run, on pairs after a place."""
        return self._component(self.clean.components, place)

    def _component(self, read: Components, place: int) -> Versions:
        number = self.clean.pairs.number(self.queries, self.keys, place)
        return read.component(number, self.edit.first_layer(self.keys))

    def _has_component(self, place: int = 0) -> bool:
        """Whether the pairs after a place have a component above its null."""
        before = self.before(place)
        null = self._component(self.clean.shifted[self.keys], place)
        return above_null(before, null) and bool((before > ROUNDING).all())

    def _add(self, run: Run[Any], metric: str, effect: Effect, change: Change | None) -> None:
        """A row, set against the change under the control where there is one, on its pairs."""
        references = []
        if self.edit.control and change:
            own, control = (
                Sample(np.stack([*map(by_prompt, changes)]), draws=len(changes))
                for changes in (
                    [change(self.before(p), self.after(p)) for p, _ in self.edit.control],
                    [change(self.before(p), self._component(c, p)) for p, c in self.edit.control],
                )
            )
            references = [Reference(control, "later_position", own=own)]
        run.add(
            f"{metric}_{self.keys}",
            self.edit.comparison.condition,
            effect,
            *references,
            layer=self.edit.layer,
            queries=self.queries,
        )


def _share_removed(before: Versions, after: Versions) -> Versions:
    return 1 - after / before


def _difference(before: Versions, after: Versions) -> Versions:
    return after - before


def above_null(component: Versions, shifted: Versions) -> bool:
    """Whether a component is above 0 and above that of the shifted logits."""
    values = by_prompt(component)
    above, beyond = interval(values)[0], interval(values - by_prompt(shifted))[0]
    return above is not None and beyond is not None and above > ROUNDING and beyond > 0


def add_removed(run: Run[Any], clean: CleanRun, edits: Sequence[Edit]) -> None:
    """The rows and arrays of what each edit removes.

    BOS: at every range without key 0, at the shortest and the longest with all keys, and the
    component itself at the shortest. Patches: at the shortest range, the component itself where
    there is no share to remove. The rest is in the arrays.
    """
    pairs = clean.pairs
    lacking: dict[tuple[str, str], dict[str, list[str]]] = {}
    for edit in edits:
        patch = edit.layer is not None
        for keys, without in KEYS.items():
            labels = pairs.labels if without else [pairs.first, pairs.last]
            for queries in dict.fromkeys([pairs.first] if patch else labels):
                removal = Removal(edit, clean, queries, keys)
                reason = removal.lacking()
                lacking.setdefault((keys, queries), {}).setdefault(reason, []).append(edit.name)
                if not reason:
                    removal.add_share(run)
                if reason != NO_LAYER and queries == pairs.first and not (patch and not reason):
                    removal.add_difference(run)
    for (keys, queries), reasons in lacking.items():
        for reason, names in reasons.items():
            which = f" ({', '.join(names)})" if len(reasons) > 1 else ""
            if reason:
                run.left_out(f"removed_{keys} at {queries}{which}", reason)
    _keep_arrays(run, clean, edits)


def _keep_arrays(run: Run[Any], clean: CleanRun, edits: Sequence[Edit]) -> None:
    """Curves and removed shares under every edit; a share is NaN where there is no component."""
    pairs, components = clean.pairs, clean.components
    curves = torch.stack([edit.mean(lambda read: read.curve[0].T) for edit in edits])
    shares = torch.full((len(edits), len(KEYS), len(pairs.labels)), torch.nan, dtype=torch.float64)
    layers = torch.zeros(len(edits), len(KEYS), components.layers, dtype=torch.float64)
    for place, edit in enumerate(edits):
        for row, keys in enumerate(KEYS):
            for column, queries in enumerate(pairs.labels):
                share = Removal(edit, clean, queries, keys).share()
                if share is not None:
                    shares[place, row, column] = share[0]
            number = pairs.number(pairs.first, keys)
            after = edit.mean(partial(Components.by_layer, number=number))[0]
            layers[place, row] = 1 - after / components.by_layer(number)[0]
    axes = {"edit": [edit.name for edit in edits], "keys": [*KEYS]}
    run.keep("curve_after", curves, "edit keys query", **axes)
    run.keep("removed", shares, "edit keys queries", queries=pairs.labels, **axes)
    by_layer = torch.nan_to_num(layers, posinf=0, neginf=0)
    run.keep("removed_by_layer", by_layer, "edit keys layer", **axes)
    shown = [place for place, edit in enumerate(edits) if edit.layer is None] or range(len(edits))
    without_key0 = {"clean": components.curve[0, :, 1]}
    without_key0 |= {edits[place].name: curves[place, 1] for place in shown}
    _keep_bands(run, without_key0)


def _keep_bands(run: Run[Any], curves: Mapping[str, Float[Tensor, " query"]]) -> None:
    """Curves averaged over ranges of queries that double, for the figure.

    A single query's estimate is mostly noise.
    """
    length = len(curves["clean"])
    bands = [(2**k, min(2 ** (k + 1), length)) for k in range((length - 1).bit_length())]
    values = [[curve[start:end].mean() for curve in curves.values()] for start, end in bands]
    run.keep(
        "component_by_band",
        torch.tensor(values),
        "band condition",
        band=[f"{start}:{end}" for start, end in bands],
        condition=[*curves],
    )


def replacing_bos(result: Record) -> Iterator[str]:
    """What replacing BOS removes at early and at all queries, beside what was reported."""
    ranges = result.arrays["removed"].labels("queries")
    first, last = ranges[0], ranges[-1]
    rows = {
        (row.metric, row.condition, row.queries): row
        for row in result.effects
        if row.kind == "treatment" and row.layer is None
    }
    early: list[str] = []
    shown: set[str] = set()
    for condition in dict.fromkeys(condition for _, condition, _ in rows):
        parts = []
        for keys, queries in (
            *(("without_key0", label) for label in dict.fromkeys((first, last))),
            ("all_keys", first),
        ):
            words = "without key 0" if KEYS[keys] else "with key 0"
            row = rows.get((f"removed_{keys}", condition, queries))
            if row is None:
                continue
            parts.append(f"{words}, {_removal(result, row)}")
            if queries == first:
                shown.add(keys)
            if (keys, queries) == ("without_key0", first):
                contained = "contains" if contains(row, REPORTED) else "excludes"
                early.append(
                    f"{written(row.value, '.0%')}{interval_of(row, '.0%')} ({condition}; the "
                    f"interval {contained} {REPORTED:.0%})"
                )
        if parts:
            yield f"Replacing BOS by {condition}: {'; '.join(parts)}."
    lacking = [keys for keys in ("without_key0", "all_keys") if rows and keys not in shown]
    said = [_no_share(result, rows.values(), first, lacking)] if lacking else []
    if shown:
        here = f"removed here at queries {first}, without key 0: {', '.join(early)}"
        if not early:
            here = (
                "it cannot be set against the shares above, which are with key 0, whose own "
                "attention replacing BOS changes in any case"
            )
        said.append(
            f"Ruscio et al. 2026 (2606.06160) report {REPORTED:.0%} removed at early queries, for "
            f"a replacement and a range that their abstract does not name; {here}."
        )
    if said:
        yield " ".join(said)


def _no_share(
    result: Record, rows: Iterable[EffectSize], queries: str, lacking: Sequence[str]
) -> str:
    """That there is no share to remove, and which replacements change the component itself."""
    words = {"without_key0": "without key 0", "all_keys": "with key 0"}
    changed = []
    for row in rows:
        keys = row.metric.removeprefix("component_")
        if keys in lacking and is_significant(row):
            pairs = result.references(row)
            against = "".join(f"; {beside_control(result, row, *pair)}" for pair in pairs)
            goes = "rises" if row.effect > 0 else "falls"
            changed.append(
                f"under {row.condition}, {words[keys]}, it {goes} from {row.baseline:.3g} to "
                f"{row.value:.3g} {row.unit} ({describe(row)}, q = "
                f"{probability(row.q_value or 1)}{against})"
            )
    changes = "; ".join(changed) or NO_CHANGE
    return (
        f"Replacing BOS: {' and '.join(words[keys] for keys in lacking)} the component at queries "
        f"{queries} is not distinguishable from its null with "
        f"{result.provenance['prompts']['n']} prompts, so that nothing can be said of a share that "
        f"is removed; {changes}."
    )


def contains(row: EffectSize, value: float) -> bool:
    """Whether the interval of a row's value contains a number."""
    if row.ci_low is None or row.ci_high is None:
        return False
    return row.ci_low <= value - row.baseline <= row.ci_high


def _removal(result: Record, row: EffectSize) -> str:
    """What an edit removes, against the clean run and then against its control."""
    against = [
        f"{control_verdict(contrast)} its later-position control "
        f"({written(control.value, '.0%')}; difference {written(contrast.effect, '+.0%')}"
        f"{interval_of(contrast, '.0%')})"
        for control, contrast in result.references(row)
    ]
    return (
        f"{written(row.value, '.0%')}{interval_of(row, '.0%')} of the component at queries "
        f"{row.queries} is removed ({null_verdict(row)} 0), "
        f"{''.join(against) or 'without a control'}"
    )


def patching(result: Record) -> Iterator[str]:
    """What patches of position 0 remove, in one sentence; without key 0 if there is something."""
    for keys, words in (("without_key0", "without key 0"), ("all_keys", "with key 0")):
        rows = [
            row
            for row in result.effects
            if (row.metric, row.kind) == (f"removed_{keys}", "treatment") and row.layer is not None
        ][:6]
        parts = []
        for row in rows:
            different = any(is_significant(contrast) for _, contrast in result.references(row))
            parts.append(
                f"{row.condition} at L{row.layer} {written(row.value, '.0%')}"
                f"{interval_of(row, '.0%')}"
                f"{'' if different else ' (n.s.)'}"
            )
        if parts:
            note = " (n.s.: not significantly different from its control, or without one)"
            yield (
                f"Patching position 0 removes, {words} at queries {rows[0].queries} and in the "
                f"layers that it can change: {', '.join(parts)}"
                f"{note if '(n.s.)' in ''.join(parts) else ''}."
            )
            return
    if any("@L" in name for name in result.arrays["removed"].labels("edit")):
        yield (
            "Patching position 0: with and without key 0, nothing can be said of what it removes "
            f"of the component at queries {result.arrays['removed'].labels('queries')[0]} with "
            f"{result.provenance['prompts']['n']} prompts (see what is left out)."
        )
