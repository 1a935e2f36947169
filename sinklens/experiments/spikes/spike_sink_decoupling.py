"""Can a model have its sinks without its spikes, and its spikes without its sinks?

Two interventions, alone and together, in the trained model:

    clamp_spikes  every massive entry of the residual stream behind a step-up (`_steps`) gets the
                  size of a median entry and keeps its sign; where there are several steps, each
                  alone and all in one forward pass (`clamp_all`)
    drop_edge     the edge to position 0 is dropped in all sink heads (sink mass above 0.3) and the
                  rest of each row scaled up
    both          the two together, with all steps clamped

Each is read on spike size (largest entry over the median, from the first clamp on and by step:
later blocks can write it again, `_clamps`), sink mass and rate, logit gap (`sink_logit`) and loss;
`interaction` is the effect of both less the sum of the two effects (`_interaction`). Sink mass and
rate under drop_edge, and spike size under clamp_spikes, fall by construction. A spike at position 0
stays under drop_edge by construction too: that position sees only itself, so that no edge of a
later query reaches it, and what moves there is the median. The other cells are the findings.
Controls: the same change in random other channels, and the same heads' edge to a later key.

Beside them, what makes a spike a sink (Sun, Canziani, LeCun and Zhu 2026, 2603.05498): how much of
the normed stream the spike channels hold at spike tokens (`sparsity`, beside as many of the largest
channels at each other token), how alike position 0 is over 256 ordinary first tokens, behind the
step-up and before it (`constancy`, beside the likeness of a later position over prompts), how far
sink heads' logits for position 0 lie above the others (`_sink_logits`, beside those for a later
key), and for a gated step-up block its quadratic form (`functional.quadratic_form`), with the share
of what it writes that the form predicts (`quadratic_prediction`, beside what the inputs at ordinary
tokens would give). With `compare=`, other models on the same prompts as controls of this one
(`_matched_models`).

The paper trains models to separate the two; this asks what one trained model needs, which is weaker
evidence. Its definitions give no measure for sparsity and constancy; those here are ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...comparisons.spikes import CLAMP, SpikeEdits, at_all
from ...core.labels import Head, head_label
from ...metrics import METRICS, SINK_MASS, ProbeMetric
from ...probes import LogitGaps, SinkScores
from ...results.effect_sentences import Compared, beside_control, effect_sentence
from ...results.estimates import Measure, proportion
from ...results.figures import Interaction
from ...results.record import Record
from ...results.wording import control_verdict, describe, effect_of, number, phrase, say, written
from ...runner.config import ExperimentConfig, setting
from ...runner.needs import CAUSAL, EQUAL_LENGTHS, WITH_ATTENTION
from ...runner.registry import experiment
from ...runner.run import Run
from ...stats.effects import EffectSize
from ._clamps import effects_by_step, effects_on_sinks, idle, spike_metrics, written_again
from ._interaction import (
    BOTH,
    CONDITIONS,
    DROP,
    INTERACTION,
    Table,
    compare_with_interaction,
    two_by_two,
)
from ._matched_models import FIGURES, add_matched_models
from ._mechanism import add_mechanism, quadratic_norms
from ._search import criteria, find_spikes, read_entries
from ._sink_logits import SinkGaps, gaps_in_words

NO_SPIKE = "no entry is massive behind the step-up; a lower scale_free= asks for less"
FIGURE = "Spikes and sinks, without an intervention and under each"
OURS = (
    "Defined by sinklens: how sparsity and constancy are measured, for which Sun et al. 2026 "
    "(2603.05498) give no definition."
)
CONSTRUCTION = (
    "Under drop_edge sink_mass and sink_rate fall by construction, under clamp_spikes the spike. "
    "The interaction sets the effect of both against the sum of the two effects; its control does "
    "so with the effects of the controls, at the queries that theirs counts."
)
BOUND = (
    "The largest entry is at position 0 in every prompt, which sees only itself: drop_edge cannot "
    "change it, and in its spike rows only the median moves."
)


@dataclass(frozen=True)
class SpikeSinkDecouplingConfig(ExperimentConfig):
    """Settings.

    Attributes:
        scale_free: Least size over the median of a massive entry where none meets the absolute
            criterion (`massive_activations`); half of all entries are as large as the median.
        compare: Other models, by shipped name or as `load` takes them, to set beside this one.
    """

    scale_free: float = setting(50.0, above=1)
    compare: tuple[str, ...] = ()


def clamped(result: Record) -> Iterator[str]:
    """What clamping spikes does to sinks and to the loss, and what is left of the spikes."""
    yield from effects_on_sinks(result, "Sinks under", (CLAMP,))
    yield from effects_by_step(result, "Under", "loss", (CLAMP,))
    yield from written_again(result, CLAMP)


def spikes_without_edges(result: Record) -> Iterator[str]:
    """What dropping sink edges does to the spikes, if it can do anything to them."""
    for row in result.effects:
        reached = not result.findings["spikes_at_position0_only"]
        if reached and (row.metric, row.condition, row.kind) == ("spike", DROP, "treatment"):
            yield effect_sentence(result, "Spike size under", row)


def interaction(result: Record) -> Iterator[str]:
    """What clamping costs alone and once the edges are dropped, and whether these differ."""
    for row in result.effects:
        if (row.metric, row.condition, row.kind) == ("loss", INTERACTION, "treatment"):
            alone = result.find(metric="loss", condition=result.findings["clamp"], kind="treatment")
            controls = "".join(
                f"; it is {beside_control(result, row, *pair)}" for pair in result.references(row)
            )
            tested = "not tested" if row.p_value is None else f"{control_verdict(row)} alone"
            yield (
                f"{alone.condition} changes the loss by {effect_of(alone)} nats alone and by "
                f"{written(alone.effect + row.effect, '+.3g')} once the edges are dropped "
                f"({tested}). The interaction is {describe(row)}{controls}."
            )


def other_models(result: Record) -> Iterator[str]:
    """Spike and sinks of the run's model beside each other one, with the range over its seeds."""
    for row in result.effects:
        if row.kind == "measurement" and row.metric in FIGURES:
            own = [phrase(result, row, part) for part in ("value", "verdict")]
            sources: dict[str, list[tuple[EffectSize, EffectSize]]] = {}
            for control, contrast in result.references(row):
                source = f"{control.against}".partition(", seed")[0]
                sources.setdefault(source, []).append((control, contrast))
            beside = (_beside(result, source, pairs) for source, pairs in sources.items())
            yield f"{row.condition}: {row.metric} {'; '.join([', '.join(own), *beside])}."


def _beside(result: Record, source: str, pairs: Sequence[tuple[EffectSize, EffectSize]]) -> str:
    """The verdict on one other model, or on its seeds."""
    values = sorted({control.value for control, _ in pairs})
    measure = result.measure(pairs[0][0].metric)
    ends = " to ".join(number(measure, value) for value in dict.fromkeys((values[0], values[-1])))
    verdicts = Counter(control_verdict(contrast) for _, contrast in pairs)
    if len(pairs) == 1:
        return f"{next(iter(verdicts))} {source} ({ends})"
    counts = (f"{verdict} {count} of {len(pairs)}" for verdict, count in verdicts.items())
    return f"{' and '.join(counts)} seeds of {source} ({ends})"


def joined(*says: str | Callable[[Record], Iterable[str]]) -> Callable[[Record], Iterator[str]]:
    """One entry of the summary from several sentences, each of which may have nothing to say."""

    def entry(result: Record) -> Iterator[str]:
        if lines := say(result, says):
            yield " ".join(lines)

    return entry


MEASURES = {
    "logit_gap": Measure("nats", "uniform attention", ".2f"),
    "sparsity": proportion("share", "as many of the largest channels at other tokens", ".1%"),
    "constancy": Measure("cosine", "a later position over prompts", ".2f"),
    "first_token_spikes": proportion("share of tokens", "Gaussian entries", ".0%"),
    "quadratic_norm": Measure("norm", "the median channel"),
    "leading_eigenvalue": Measure("size", "the median of other channels"),
    "leading_share": proportion("share of the squared norm", "the median of other channels", ".0%"),
    "alignment": Measure("share", "other tokens", ".0%"),
    "quadratic_prediction": Measure("share of what is written", "inputs at ordinary tokens", ".0%"),
    "peak_ratio": Measure("times the median", "Gaussian entries", ",.1f"),
    "sink_mass": proportion("share of attention", "uniform attention", ".1%"),
    "sink_rate": proportion("share of heads", "uniform attention", ".1%"),
    # An interaction is no value of the metric, and has not its bounds.
    **{
        f"{metric.name}/{INTERACTION}": Measure(
            metric.unit, "the sum of the two effects", signed=metric.signed
        )
        for metric in METRICS.values()
    },
}
SAYS = (
    clamped,
    spikes_without_edges,
    Compared("Under", "loss", (DROP, BOTH)),
    interaction,
    other_models,
    joined(
        "Of the squared norm at spike tokens the spike channels hold {sparsity/spike_tokens}.",
        "Mean similarity of position 0 over ordinary first tokens (spiking: "
        "{first_token_spikes/position0|value}): {constancy/position0}; before the step-up "
        "{constancy/position0:before|value}.",
    ),
    gaps_in_words,
    joined(
        quadratic_norms,
        "Of the squared norm of the block's input at spike tokens the leading eigenvectors hold: "
        "{alignment/*}.",
    ),
)


@experiment(
    paper="Sun et al. 2026 (2603.05498)",
    question="Do sinks need spikes, and spikes sinks?",
    needs=(
        WITH_ATTENTION,
        EQUAL_LENGTHS,
        CAUSAL.otherwise("Use sink_profile and sink_head_ablation."),
    ),
    conditions=CONDITIONS,
    metrics=("loss", "sink_mass", "sink_rate"),
    measures=MEASURES,
    says=SAYS,
    figure=Interaction("spike", "sink_mass", (CLAMP, at_all(CLAMP), DROP, BOTH), FIGURE),
    smallest={"scale_free": 4.0},
)
def spike_sink_decoupling(run: Run[SpikeSinkDecouplingConfig]) -> None:
    """Clamp spikes, drop sink edges, and both.

    Raises:
        SinklensError: The model is not causal or norms the residual stream itself, or a condition
            was asked for and there is no spike or no sink to take away.
    """
    if run.config.compare:
        add_matched_models(run, run.config.compare)
    spikes = find_spikes(run, criteria(scale_free=run.config.scale_free))
    entries = read_entries(run, spikes, spikes.layers)
    massive = {layer: own for layer, own in entries.items() if len(own.massive.prompt)}
    sinks, gaps = SinkScores(run.model), SinkGaps(run)
    run.read(sinks, *gaps.probes)
    mass = sinks.compute().mass.mean(0)
    by_head = run.capabilities.by_head(mass)
    heads = [head for head, own in by_head.items() if own > SINK_MASS]
    run.refuse(_refusals(run, bool(massive), heads), none_is_fine=True)
    gaps.add_rows(heads)
    add_mechanism(run, spikes, entries[spikes.layer])
    at_position0 = bool(massive) and not bool(spikes.positions.any())
    run.drawn(heads=[head_label(head) for head in heads])
    run.facts(**spikes.described(), layer=spikes.layer, spikes_at_position0_only=at_position0)
    run.keep("sink_mass", mass, "layer head")
    run.note(OURS)
    if run.conditions:
        run.note(CONSTRUCTION)
    if DROP in run.conditions and at_position0:
        run.note(BOUND)
    metrics = list(run.metrics)
    if not run.config.metrics:
        metrics += [*spike_metrics(list(massive) or [spikes.layer]), _logit_gap(run)]
    run.facts(clamp=CLAMP if len(massive) < 2 else at_all(CLAMP))

    def table(run: Run[Any]) -> Table:
        made = two_by_two(run, SpikeEdits(run, massive) if massive else None, heads)
        run.facts(changes_nothing=idle(made.comparisons))
        return made

    compare_with_interaction(run, table, metrics)


def _refusals(
    run: Run[SpikeSinkDecouplingConfig], spiking: bool, heads: Sequence[Head]
) -> dict[str, str]:
    """The conditions that cannot be run, with reasons."""
    reasons = {}
    if not spiking:
        reasons[CLAMP] = NO_SPIKE
    pattern = run.capabilities.refusal("pattern", DROP, "massive_activations clamps spikes there.")
    if not heads:
        reasons[DROP] = f"no head has a sink mass above {SINK_MASS} on these prompts"
    elif pattern:
        reasons[DROP] = pattern
    if reasons:
        reasons[BOTH] = "; ".join(reasons.values())
    return reasons


def _logit_gap(run: Run[SpikeSinkDecouplingConfig]) -> ProbeMetric:
    """The logit gap, read where `LogitGaps` reads it."""
    site = "scores" if run.capabilities.edits["scores"] else "pattern"
    return ProbeMetric("logit_gap", LogitGaps, lambda gaps: gaps.gap.mean(2), "nats", reads=site)
