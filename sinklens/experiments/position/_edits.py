"""Read the position components in a run, clean and under edits of position 0.

What an edit at position 0 removes is read at queries after it, and so is what the same edit at a
later position p removes: at queries i > p, set against the clean run at these queries. Two readings
of the keys: all of them, or without key 0, which the edit changes directly, so that what is left
had to come by way of the stream. For a control the second reading leaves out key p too. The
contrast reads treatment and control on the same pairs.

    removed = 1 - component after the edit / component before it

A ratio with a denominator that may as well be 0 is a large number or 1, and says nothing. So
`removed` is read only on pairs where the clean component is above its null: where its interval
lies above 0 and above the component of the moved logits. The difference in nats^2 is read anyway.
Both are means over the layers whose logits the edit can change by way of the stream: those behind a
patched layer, which itself counts where key 0 is read and its own key was patched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...core.errors import SinklensError
from ...core.protocol import HookedModel
from ...core.seeds import seeded
from ...engine import Reading, default_memory, finished_or, progress_bar, read_under
from ...hooks.intervention import Intervention
from ...models import origin
from ...models.prompts import Prompts
from ...probes import Probe
from ...probes.logits import (
    DiagonalShift,
    LogitForms,
    LogitFormValues,
    LogitSums,
    PairBasis,
    PairSet,
)
from ...runner.config import ExperimentConfig
from ...runner.old_compare import Comparison
from ...stats.effects import Row, interval, paired_row
from ._components import Components, by_prompt

KEYS = {"all_keys": False, "without_key0": True}
EDIT_FORMS = ("component",)
ROUNDING = 1e-9  # nats^2 a pair
FORMS = ("component", "total", "linear", "visible")


class PairSets:
    """The sets of pairs of a run: by range of queries, reading of the keys and edited position."""

    def __init__(self, ranges: Sequence[tuple[int, int]], positions: Sequence[int]) -> None:
        """Make them; the last two are those of the longest range, for the curves.

        Args:
            ranges: Start and end of each range of queries.
            positions: Where controls edit.
        """
        self.ranges = sorted(ranges, key=lambda one: (one[1], -one[0]))
        self.labels = [f"{start}:{end}" for start, end in self.ranges]
        places = [*sorted({*positions}), 0]
        self._sets = [
            self._made(query_range, keys, place)
            for place in places
            for query_range in self.ranges
            for keys in KEYS
        ]
        self._number = {one: number for number, one in enumerate(self._sets)}

    @staticmethod
    def _made(query_range: tuple[int, int], keys: str, place: int) -> PairSet:
        start, end = query_range
        without = tuple(sorted({0, place})) if KEYS[keys] else ()
        return PairSet(max(start, place + 1), end, without)

    def number(self, label: str, keys: str, place: int = 0) -> int:
        """The number of a set."""
        query_range = self.ranges[self.labels.index(label)]
        return self._number[self._made(query_range, keys, place)]

    def basis(self, windows: Sequence[int], forms: Sequence[str]) -> dict[int, PairBasis]:
        """By layer, what `LogitForms` needs; layers with the same window share it."""
        made = {window: PairBasis(self._sets, forms, window) for window in set(windows)}
        return {layer: made[window] for layer, window in enumerate(windows)}


class Reader:
    """Runs the prompts, clean or edited, and reads the components."""

    def __init__(
        self,
        model: HookedModel,
        prompts: Prompts,
        config: ExperimentConfig,
        sets: PairSets,
        windows: Sequence[int],
    ) -> None:
        """Prepare the pairs.

        Args:
            model: The model.
            prompts: The prompts.
            config: For batch size and memory.
            sets: The pair sets.
            windows: By layer, how many keys a query sees.
        """
        self._model, self._prompts = model, prompts
        self._layers = len(windows)
        self._clean = sets.basis(windows, FORMS)
        self._edited = sets.basis(windows, EDIT_FORMS)
        self._batch = config.batch_size or _prompts_at_once(model, prompts, config.memory)
        batches = -(-len(prompts) // self._batch)
        self.each = batches * (1 if batches == 1 else 2)
        self.forwards = 0
        self.fired: Counter[str] = Counter()

    def clean(self, shift: DiagonalShift | None = None) -> tuple[LogitFormValues, Components]:
        """Without an edit."""
        self.forwards += self.each
        values: LogitFormValues = self._read(None, self._clean, shift).values
        if not bool(torch.isfinite(values.products).all()):
            raise SinklensError(
                f"{origin(self._model).name} gives NaN or infinite attention scores; its weights "
                "or its dtype cannot carry this"
            )
        return values, Components(values, FORMS)

    def edited(self, intervention: Intervention) -> Components:
        """Under an edit, which has to happen."""
        self.forwards += self.each
        kept = finished_or(self._model, intervention, partial(self._kept, intervention))
        self.fired[intervention.name] += int(kept.pop("fired"))
        components = Components(LogitFormValues(**kept), EDIT_FORMS)
        if not bool(torch.isfinite(components.curve).all()):
            raise SinklensError(f"{intervention.name} gives NaN or infinite attention scores")
        return components

    def _kept(self, intervention: Intervention) -> dict[str, Tensor]:
        """What is kept of an edit on disk."""
        values, fired = self._read(intervention, self._edited)
        return {**values._asdict(), "fired": torch.tensor(fired)}

    def _read(
        self,
        intervention: Intervention | None,
        basis: dict[int, PairBasis],
        shift: DiagonalShift | None = None,
    ) -> Reading:
        """One pass where all prompts fit into a forward, else one for the sums before it."""
        sums, before = None, 0
        if self._batch < len(self._prompts):
            sums, before = self._run(intervention, LogitSums(basis, shift))
        values, fired = self._run(intervention, LogitForms(basis, sums, shift))
        return Reading(values, before + fired)

    def _run(self, intervention: Intervention | None, probe: Probe) -> Reading:
        return read_under(
            self._model,
            self._prompts,
            intervention,
            probe,
            last_layer=self._layers - 1,
            batch_size=self._batch,
        )


def _prompts_at_once(model: HookedModel, prompts: Prompts, memory: int | None) -> int:
    """How many prompts a forward may hold; it follows from shapes and budget alone."""
    width, hidden = int(model.cfg.d_model), int(getattr(model.cfg, "d_mlp", 0) or 0)
    # A few patterns of one layer, in part in float64, and the activations of a block.
    each = (
        4
        * prompts.length
        * (4 * width + 3 * max(hidden, width) + 12 * int(model.cfg.n_heads) * prompts.length)
    )
    return max(1, min(len(prompts), (memory or default_memory(model)) // each))


def diagonal_shifts(prompts: Prompts, seed: int, size: int) -> Int[Tensor, " prompt"]:
    """How far the null moves each prompt's logits; follows from the prompt, not from its place."""
    steps = [
        int(seeded(seed, "diagonals", prompt).integers(1, max(2, size)))
        for prompt in prompts.tokens.tolist()
    ]
    return torch.tensor(steps)


@dataclass(frozen=True)
class EditedRuns:
    """A comparison with what was read under its edits."""

    comparison: Comparison
    treatment: list[Components]
    control: list[Components]

    def first_layer(self, keys: str) -> int:
        """The first layer whose logits, with these keys, the edit can change."""
        edit = self.comparison.treatment[0]
        if edit.layer is None:
            return 1
        own_key = not KEYS[keys] and edit.site != "value"
        return edit.layer if own_key else edit.layer + 1

    def after(self, number: int, keys: str) -> Float[Tensor, " n"]:
        """The component under the treatment, mean over draws."""
        first = self.first_layer(keys)
        return torch.stack([run.component(number, first) for run in self.treatment]).mean(0)


def removed(before: Float[Tensor, " n"], after: Float[Tensor, " n"]) -> Float[Tensor, " n"] | None:
    """1 - after / before; None where no component is above rounding in some version."""
    return 1 - after / before if bool((before > ROUNDING).all()) else None


def above_null(clean: Components, moved: Components, number: int, first_layer: int = 1) -> bool:
    """Whether the component of a pair set is above 0 and above that of the moved logits."""
    found, null = (by_prompt(one.component(number, first_layer)) for one in (clean, moved))
    above, beyond = interval(found)[0], interval(found - null)[0]
    return above is not None and beyond is not None and above > ROUNDING and beyond > 0


def read_edits(
    reader: Reader, comparisons: Sequence[Comparison], progress: bool | None = None
) -> list[EditedRuns]:
    """Read every intervention once."""
    order = {id(one): one for comparison in comparisons for one in comparison.interventions()}
    known: dict[int, Components] = {}
    with progress_bar(len(order), progress) as advance:
        for number, intervention in order.items():
            known[number] = reader.edited(intervention)
            advance(1)
    return [
        EditedRuns(one, [known[id(i)] for i in one.treatment], [known[id(i)] for i in one.control])
        for one in comparisons
    ]


def edit_rows(
    runs: EditedRuns,
    sets: PairSets,
    clean: Components,
    moved: Components,
    label: str,
    keys: str,
    seed: int,
) -> dict[str, list[Row]]:
    """By metric (`removed`, `component`): treatment, control and contrast.

    `removed` only where there is a component above its null, `moved`; nothing where no layer is
    left that could change.
    """
    first = runs.first_layer(keys)
    if first >= clean.layers:
        return {}

    def share(number: int, before: Tensor, after: Tensor) -> Tensor | None:
        above = above_null(clean, moved, number, first)
        return removed(before, after) if above else None

    def difference(number: int, before: Tensor, after: Tensor) -> Tensor | None:
        return after - before

    number = sets.number(label, keys)
    before, after = clean.component(number, first), runs.after(number, keys)
    zero = torch.zeros_like(before)
    rows: dict[str, list[Row]] = {}
    for metric, change in (("removed", share), ("component", difference)):
        value = share(number, before, after) if metric == "removed" else after
        if value is None:
            continue
        baseline = zero if metric == "removed" else before
        make = _RowMaker(f"{metric}_{keys}", runs.comparison, label, seed)
        made = [make("treatment", baseline, value, runs.treatment)]
        controls = _controls(runs, sets, clean, label, keys, change)
        if controls is not None:
            same_pairs, control = controls
            made.append(make("control", zero, control, runs.control))
            made.append(make("contrast", control, same_pairs, runs.control))
        rows[metric] = made
    return rows


def _controls(
    runs: EditedRuns,
    sets: PairSets,
    clean: Components,
    label: str,
    keys: str,
    change: Callable[[int, Tensor, Tensor], Tensor | None],
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]] | None:
    """The change under the treatment and under the control, on the same pairs; means over draws."""
    treated, controls, first = [], [], runs.first_layer(keys)
    for intervention, run in zip(runs.comparison.control, runs.control, strict=True):
        number = sets.number(label, keys, intervention.position)
        before = clean.component(number, first)
        mine = change(number, before, runs.after(number, keys))
        theirs = change(number, before, run.component(number, first))
        if mine is None or theirs is None:
            return None
        treated.append(mine)
        controls.append(theirs)
    if not controls:
        return None
    return torch.stack(treated).mean(0), torch.stack(controls).mean(0)


@dataclass(frozen=True)
class _RowMaker:
    """Makes the rows of one condition and metric."""

    metric: str
    comparison: Comparison
    label: str
    seed: int

    def __call__(
        self, kind: str, baseline: Tensor, value: Tensor, runs: Sequence[Components]
    ) -> Row:
        """A row of versions, as one number a prompt."""
        return paired_row(
            self.metric,
            self.comparison.condition,
            kind,
            np.asarray(by_prompt(value)),
            np.asarray(by_prompt(baseline)),
            unit="nats^2" if self.metric.startswith("component") else "share of the component",
            tested=kind != "control",
            seed=self.seed,
            layer=self.comparison.treatment[0].layer,
            queries=self.label,
            n_draws=len(runs),
        )
