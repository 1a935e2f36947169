"""Heads ablated, with matched controls: other heads, or the same heads' edge to a later key.

For the conditions on the output the control is as many other heads, from the same layers, then the
nearest. Where fewer exist, the whole ablation has no control; a row of its own, `zero:matched`,
ablates in each layer as many of the heads as there are others, drawn at random, against as many
others. For the conditions on the edge the control is the edge of the same heads to a later key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..core.labels import Head, head_label
from ..core.seeds import seeded
from ..engine import read_under
from ..hooks.heads import EDGE_CONDITIONS, HeadValues, ablate_heads
from ..hooks.intervention import Intervention
from ..hooks.matching import control_positions, derangement, matched_heads, matched_in_layers
from ..probes import HeadMeans, HeadOutputs, SinkReads
from ..runner.compare import Comparison, Control
from ..runner.run import Run

OTHER_HEADS, LATER_KEY = "other_heads", "later_key"
MATCHED = ":matched"
ALL_SINKS = "every other head is a sink"


class HeadAblations:
    """Makes the interventions of every condition and their controls."""

    def __init__(
        self,
        run: Run[Any],
        heads: Sequence[Head],
        others: Sequence[Head],
    ) -> None:
        """Read the values that are written, where a condition writes some.

        Args:
            run: The run, which records the drawn heads and positions.
            heads: The ablated heads.
            others: The heads that may be controls.
        """
        self._run, self._model = run, run.model
        self._heads, self._others = list(heads), list(others)
        layers = run.capabilities.attention
        self._values: dict[str, HeadValues] = {}
        for condition, probe in (("mean", HeadMeans), ("resample", HeadOutputs)):
            if condition in run.conditions:
                (self._values[condition],) = run.read(probe(run.model, layers))
        config = run.config
        self._draws, self._seed = config.draws, config.seed
        self._positions = control_positions(
            run.prompts.length, config.draws, config.seed, config.positions
        )
        self._taken: dict[str, dict[str, list[list[str]]]] = {}

    def together(self, condition: str) -> list[Comparison]:
        """All heads at once, and where too few others exist as many as can be matched."""
        if condition in EDGE_CONDITIONS:
            return [self.edges(condition)]
        treatment = [self._output(condition, self._heads, d) for d in self._random(condition)]
        if not self._others or not self._draws:
            return [Comparison(condition, treatment, no_control=ALL_SINKS)]
        if len(self._others) < len(self._heads):
            return self._matched(condition, treatment)
        pools = [
            matched_heads(self._heads, self._others, self._seed, draw)
            for draw in range(self._draws)
        ]
        self._keep("control_heads", condition, pools)
        control = self._outputs(condition, pools)
        return [Comparison(condition, treatment, (Control(OTHER_HEADS, control),))]

    def edges(self, condition: str) -> Comparison:
        """The edge of all heads to position 0, and to a later key as its control."""
        self._run.drawn(control_positions=self._positions)
        control = [self._edge(condition, self._heads, at) for at in self._positions]
        return Comparison(
            condition, [self._edge(condition, self._heads, 0)], (Control(LATER_KEY, control),)
        )

    def _matched(self, condition: str, treatment: Sequence[Intervention]) -> list[Comparison]:
        """All heads without a control, and matched parts of them with one."""
        name = f"{condition}{MATCHED}"
        drawn = [
            matched_in_layers(self._heads, self._others, self._seed, draw)
            for draw in range(self._draws)
        ]
        few = f"only {len(self._others)} heads are neither ablated nor sinks"
        size, layers = len(drawn[0].treated), sorted({layer for layer, _ in drawn[0].treated})
        if not size:
            why = f"{few}, none of them in a layer of the {len(self._heads)} ablated"
            return [Comparison(condition, treatment, no_control=why)]
        self._keep("control_heads", name, [one.control for one in drawn])
        self._keep("treated_heads", name, [one.treated for one in drawn])
        where = ", ".join(f"L{layer}" for layer in layers)
        why = f"{few}, fewer than the {len(self._heads)} ablated; see rows named {MATCHED}"
        self._run.note(
            f"Rows named {MATCHED} ablate, in each layer, as many heads as can be paired with "
            f"others there: {size} in all, over {where}, drawn anew in each draw, against as many "
            "others."
        )
        own, control = (
            self._outputs(condition, sets)
            for sets in ([one.treated for one in drawn], [one.control for one in drawn])
        )
        # A row of several draws is about no single head.
        own = [replace(one, layer=None, head=None) for one in own]
        return [
            Comparison(condition, treatment, no_control=why),
            Comparison(name, own, (Control(OTHER_HEADS, control),)),
        ]

    def each(self, condition: str) -> list[Comparison]:
        """One head at a time, each compared with a pool of other heads, ablated one at a time."""
        count = min(self._draws, len(self._others))
        chosen = seeded(self._seed, "pool").choice(len(self._others), count, replace=False)
        pool = [self._others[i] for i in sorted(chosen)]
        self._keep("control_heads", condition, [[head] for head in pool])

        def alone(head: Head, draw: int) -> Intervention:
            if condition in EDGE_CONDITIONS:
                return self._edge(condition, [head], 0)
            return self._output(condition, [head], draw)

        control = Control(OTHER_HEADS, [alone(head, draw) for draw, head in enumerate(pool)])
        return [
            Comparison(
                condition,
                [alone(head, draw) for draw in self._random(condition)],
                (control,),
                no_control=ALL_SINKS,
            )
            for head in self._heads
        ]

    def _random(self, condition: str) -> range:
        """The draws of a treatment: only `resample` is random."""
        return range(max(1, self._draws) if condition == "resample" else 1)

    def _outputs(self, condition: str, draws: Sequence[Sequence[Head]]) -> list[Intervention]:
        """An ablation for each draw of heads; draws of the same heads share one."""
        made: dict[tuple[Any, ...], Intervention] = {}
        return [
            made.setdefault(
                (draw if condition == "resample" else None, *heads),
                self._output(condition, heads, draw),
            )
            for draw, heads in enumerate(draws)
        ]

    def _output(self, condition: str, heads: Sequence[Head], draw: int) -> Intervention:
        """An ablation of head outputs."""
        if condition == "resample":
            order = derangement(self._run.prompts.tokens, self._seed, draw)
            outputs = self._values[condition]
            return ablate_heads(
                self._model, heads, condition, values=outputs, order=order, draw=draw
            )
        return ablate_heads(self._model, heads, condition, values=self._values.get(condition))

    def _edge(self, condition: str, heads: Sequence[Head], place: int) -> Intervention:
        """The edge from later queries to one key dropped."""
        values = None
        if not self._run.capabilities.edits["pattern"]:
            values = self._reads(heads, place)
        return ablate_heads(self._model, heads, condition, values=values, position=place)

    def _reads(self, heads: Sequence[Head], place: int) -> HeadValues:
        """What heads read from a key once the edges of earlier layers are dropped.

        A delegated pattern is available only after z was used, so it is read in a previous run: one
        run per layer, with the interventions on the layers below in place.
        """
        values: HeadValues = {}
        for layer in sorted({layer for layer, _ in heads}):
            below = [head for head in heads if head[0] < layer]
            edit = None
            if below:
                edit = ablate_heads(
                    self._model, below, "drop_edge_unnormalised", values=values, position=place
                )
            values[layer] = read_under(
                self._model,
                self._run.prompts,
                edit,
                SinkReads(self._model, layer, place),
                last_layer=layer,
                batch_size=self._run.config.batch_size,
                memory=self._run.config.memory,
            ).values
            self._run.count(1)
        return values

    def _keep(self, what: str, condition: str, draws: Sequence[Sequence[Head]]) -> None:
        """Record the heads drawn for a condition."""
        self._taken.setdefault(what, {})[condition] = [[*map(head_label, one)] for one in draws]
        self._run.drawn(**self._taken)
