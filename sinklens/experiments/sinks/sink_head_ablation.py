"""Ablate sink heads, or only their edge to the sink, and read loss, KL and the sink.

A sink head has a sink mass (mean over queries i >= 1 of A_i0, averaged over prompts) above 0.3.
What is written is in `sinklens.hooks.heads`. Controls: for the output conditions as many other
heads, from the same layers, then the nearest; for the edge conditions the same heads with the edge
to a later key dropped, predictions counted after it. Units: nats; sink mass is a share of
attention.

Dropping the edge with and without renormalisation are two experiments. In a model whose sink has
small values, the first hardly changes z's direction and the second hardly changes z at all.
Ablating a head says what the head is for in this model, not what its sink is for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...core.errors import SinklensError, UsageError, unknown_name
from ...core.labels import Head, head_label
from ...core.protocol import HookedModel
from ...core.seeds import seeded
from ...engine import evaluate, read_under
from ...hooks.heads import EDGE_CONDITIONS, HEAD_CONDITIONS, HeadValues, ablate_heads
from ...hooks.intervention import Intervention
from ...hooks.matching import control_positions, derangement, matched_heads
from ...models.capabilities import Capabilities, check
from ...models.prompts import Prompts
from ...probes import HeadMeans, HeadOutputs, SinkReads, SinkScores
from ...results.result import Array, ExperimentResult
from ...runner.compare import Comparison
from ...runner.comparison import run_comparisons, sentences
from ...runner.registry import ExperimentConfig, choose_conditions, choose_metrics, experiment

SINK_MASS = 0.3
ALL_SINKS = "every other head is a sink"
SATURATED = 0.999


@dataclass(frozen=True)
class SinkHeadAblationConfig(ExperimentConfig):
    """Settings.

    Attributes:
        heads: `sink` (sink mass above 0.3), `all`, or labels such as `L18H8`.
        each: One row a head instead of all heads together; the control is then pooled over `draws`
            other heads, each alone.
    """

    heads: tuple[str, ...] = ("sink",)
    each: bool = False


DEFAULT_METRICS = ("loss", "kl", "sink_mass")


def summary(result: ExperimentResult) -> list[str]:
    """How many heads, and what each condition does to loss and sink."""
    heads = result.settings["draws_made"]["heads"]
    total = result.arrays["sink_mass"].values.numel()
    lines = [
        f"{len(heads)} of {total} heads are ablated"
        + (f": {', '.join(heads)}." if len(heads) <= 12 else ".")
    ]
    return (lines + sentences(result, "Ablating by", ["loss", "sink_mass"]))[:12]


@experiment(
    paper="2410.10781",
    question="What does the model lose without its sink heads, or without their edge to the sink?",
    summary=summary,
)
def sink_head_ablation(
    model: HookedModel, prompts: Prompts, config: SinkHeadAblationConfig
) -> ExperimentResult:
    """Ablate heads under each condition, together or one by one, with matched controls.

    Raises:
        SinklensError: A condition cannot act on this model, or there is no sink head.
        UsageError: A head label is wrong.
    """
    capabilities = check(model)
    conditions, left_out = choose_conditions(
        config, HEAD_CONDITIONS, lambda condition: _refusal(capabilities, condition, prompts)
    )
    metrics, missing = choose_metrics(config, DEFAULT_METRICS, causal=capabilities.causal)
    labelled = None if config.heads in (("sink",), ("all",)) else _parse_heads(config, capabilities)
    sinks = SinkScores(model)
    layers = range(capabilities.n_layers)
    means = HeadMeans(model, layers) if "mean" in conditions else None
    outputs = HeadOutputs(model, layers) if "resample" in conditions else None
    probes = [probe for probe in (sinks, means, outputs) if probe is not None]
    first = evaluate(model, prompts, [], [], probes=probes, **config.for_engine())
    mass = sinks.compute().mass.mean(0)
    heads = labelled or _choose_heads(config, mass)
    edits = _Edits(
        model,
        prompts,
        config,
        capabilities,
        heads,
        {} if means is None else means.compute(),
        {} if outputs is None else outputs.compute(),
        # A control head is no sink head, and none that is ablated in the same run.
        [
            (layer, head)
            for layer, head in (mass <= SINK_MASS).nonzero().tolist()
            if config.each or (layer, head) not in heads
        ],
    )
    comparisons = [item for condition in conditions for item in edits.comparisons(condition)]
    edits.drawn["heads"] = [head_label(head) for head in heads]
    if set(EDGE_CONDITIONS) & set(conditions):
        edits.notes.append(
            "Under an edge condition sink_mass falls by construction: the dropped weight is gone."
            if capabilities.edits["pattern"]
            else "Under an edge condition sink_mass still counts the edge, which is removed in z."
        )
    saturated = sum(float(mass[head]) > SATURATED for head in heads)
    if "drop_edge" in conditions and saturated:
        edits.notes.append(
            f"{saturated} of the heads give more than {SATURATED:.1%} of their attention to "
            "position 0; drop_edge scales what is left of their rows more than a thousandfold."
        )
    return run_comparisons(
        "sink_head_ablation",
        model,
        prompts,
        config,
        comparisons,
        metrics,
        left_out={**left_out, **missing},
        notes=edits.notes,
        footnotes=edits.footnotes,
        draws=edits.drawn,
        arrays={"sink_mass": Array(mass, ("layer", "head"))},
        extra_forwards=first.forwards + edits.forwards,
    )


def _refusal(capabilities: Capabilities, condition: str, prompts: Prompts) -> str | None:
    """Why a condition cannot act on a model."""
    if condition not in HEAD_CONDITIONS:
        raise unknown_name("condition", condition, HEAD_CONDITIONS)
    if condition == "resample" and len(prompts) < 2:
        return "resample needs at least two prompts"
    site = "pattern" if condition == "drop_edge" else "z"
    try:
        capabilities.require(
            site,
            condition,
            "drop_edge_unnormalised works there, by way of hook_z."
            if condition == "drop_edge" and capabilities.edits["z"]
            else "",
        )
    except SinklensError as error:
        return str(error)
    return None


def _parse_heads(config: SinkHeadAblationConfig, capabilities: Capabilities) -> list[Head]:
    """Heads from labels such as `L18H8`."""
    heads = []
    for label in config.heads:
        match = re.fullmatch(r"[Ll](\d+)[Hh](\d+)", label.strip())
        head = (int(match[1]), int(match[2])) if match else None
        if head is None or head[0] >= capabilities.n_layers or head[1] >= capabilities.n_heads:
            raise UsageError(
                f"unknown head {label!r}; use sink, all, or labels from L0H0 to "
                f"{head_label((capabilities.n_layers - 1, capabilities.n_heads - 1))}"
            )
        heads.append(head)
    return sorted(set(heads))


def _choose_heads(config: SinkHeadAblationConfig, mass: Any) -> list[Head]:
    """All heads, or those with a sink."""
    chosen = mass > (-1 if config.heads == ("all",) else SINK_MASS)
    heads = [(layer, head) for layer, head in chosen.nonzero().tolist()]
    if not heads:
        raise SinklensError(
            f"no head has a sink mass above {SINK_MASS} on these prompts (the largest is "
            f"{float(mass.max()):.2f}); name heads with heads=L0H0,... or use heads=all"
        )
    return heads


class _Edits:
    """Makes the interventions of every condition and their controls."""

    def __init__(
        self,
        model: HookedModel,
        prompts: Prompts,
        config: SinkHeadAblationConfig,
        capabilities: Capabilities,
        heads: list[Head],
        means: HeadValues,
        outputs: HeadValues,
        others: list[Head],
    ) -> None:
        self._model, self._prompts, self._config = model, prompts, config
        self._capabilities, self._heads = capabilities, heads
        self._means, self._outputs, self._others = means, outputs, others
        self._positions = control_positions(
            prompts.length, config.draws, config.seed, config.positions
        )
        self.drawn: dict[str, Any] = {}
        self.notes: list[str] = []
        self.footnotes: dict[str, str] = {}
        self.forwards = 0

    def comparisons(self, condition: str) -> list[Comparison]:
        """One comparison for all heads together, or one a head."""
        if self._config.each:
            return self._each(condition)
        if condition in EDGE_CONDITIONS:
            self.drawn["control_positions"] = self._positions
            return [
                Comparison(
                    condition,
                    [self._edge(condition, self._heads, 0)],
                    [self._edge(condition, self._heads, place) for place in self._positions],
                )
            ]
        return [self._together(condition)]

    def _together(self, condition: str) -> Comparison:
        """All heads at once, against as many other heads a draw."""
        treatment = [self._output(condition, self._heads, draw) for draw in self._draws(condition)]
        matched = [
            matched_heads(self._heads, self._others, self._config.seed, draw)
            for draw in range(self._config.draws)
        ]
        if not matched or not matched[0].control:
            return Comparison(condition, treatment, no_control=ALL_SINKS)
        fewer = len(matched[0].control) < len(self._heads)
        # Where all other heads are the control, every draw has the same heads; unless the edit
        # itself is random, only the first is run.
        once = fewer and condition != "resample"
        pools = [one.control for one in (matched[:1] if once else matched)]
        self._record("control_heads", condition, pools)
        control = [self._output(condition, pool, draw) for draw, pool in enumerate(pools)]
        if not fewer:
            return Comparison(condition, treatment, control)
        self._record("treated_heads", condition, [one.treated for one in matched])
        self.footnotes[condition] = (
            f"{condition}: only {len(pools[0])} heads are neither ablated nor sinks, fewer than "
            f"the {len(self._heads)} ablated. The control edits all of them, and 'more than "
            "control' compares it with as many ablated heads drawn at random, not with the effect "
            "shown."
        )
        against = [self._output(condition, one.treated, draw) for draw, one in enumerate(matched)]
        return Comparison(condition, treatment, control, against)

    def _each(self, condition: str) -> list[Comparison]:
        """One head at a time, all against one pool of other heads, each alone."""
        others = self._others
        count = min(self._config.draws, len(others))
        chosen = seeded(self._config.seed, "pool").choice(len(others), count, replace=False)
        pool = [others[i] for i in sorted(chosen)]
        self._record("control_heads", condition, [[head] for head in pool])

        def alone(head: Head, draw: int) -> Intervention:
            if condition in EDGE_CONDITIONS:
                return self._edge(condition, [head], 0)
            return self._output(condition, [head], draw)

        control = [alone(head, draw) for draw, head in enumerate(pool)]
        return [
            Comparison(
                condition,
                [alone(head, draw) for draw in self._draws(condition)],
                control,
                no_control=ALL_SINKS,
            )
            for head in self._heads
        ]

    def _draws(self, condition: str) -> range:
        """The draws of a treatment: only `resample` is random."""
        return range(max(1, self._config.draws) if condition == "resample" else 1)

    def _output(self, condition: str, heads: Sequence[Head], draw: int) -> Intervention:
        """An edit of head outputs."""
        if condition == "resample":
            order = derangement(self._prompts.tokens, self._config.seed, draw)
            return ablate_heads(
                self._model, heads, condition, values=self._outputs, order=order, draw=draw
            )
        values = self._means if condition == "mean" else None
        return ablate_heads(self._model, heads, condition, values=values)

    def _edge(self, condition: str, heads: Sequence[Head], place: int) -> Intervention:
        """An edit of the edge from later queries to one key."""
        values = None
        if not self._capabilities.edits["pattern"]:
            values = self._reads(heads, place)
        return ablate_heads(self._model, heads, condition, values=values, position=place)

    def _reads(self, heads: Sequence[Head], place: int) -> HeadValues:
        """What heads read from a key once the edges of earlier layers are gone.

        A delegated pattern shows itself only after z was used, so it is read in a run before: one
        run for every layer, with the edits of the layers below in place.
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
                self._prompts,
                edit,
                SinkReads(self._model, layer, place),
                last_layer=layer,
                batch_size=self._config.batch_size,
                memory=self._config.memory,
            ).values
            self.forwards += 1
        return values

    def _record(self, what: str, condition: str, draws: list[list[Head]]) -> None:
        """Keep which heads a condition's draws took."""
        self.drawn.setdefault(what, {})[condition] = [list(map(head_label, one)) for one in draws]
