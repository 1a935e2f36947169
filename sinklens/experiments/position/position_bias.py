"""Position bias by attention rollout: is it the model's, or that of the causal mask?

Rollout (`_rollout`) multiplies the attention of all layers: from which positions has the state of
the last query come? Wu et al. 2025 (2502.01951) prove that under a causal mask the product ends on
the first token, whatever the attention; Herasimchyk et al. 2026 (2602.16837) argue that the
residual keeps it from that. Rows, beside the same of uniform attention under the mask (the mask
alone) and of row-permuted attention:

    share   position 0, and the `first`, `middle` and `last` third of the positions
    gap     the first, or the last, third less the middle one; `without_key0` of what is not on
            position 0 at the end; `edge_dropped` of the same in a run in which no later query sees
            key 0, beside uniform attention that does not either

The weight of the residual is a choice: here its share of the norms, at each layer and query
(`residual=norms`). Beside it stand the value with 1/2, and that with none, as in the first paper.
Averaged are all heads alike; norms and the MLP are left out of a rollout, which is bookkeeping of
weights, not of influence. The query is the last one, which sees all positions.

Then the edge to key 0 is dropped in all heads, rows rescaled (`drop_edge`). Position 0 gets 0 of
the rollout by construction, so that `early_gap` is first third less middle third of what is on
neither position 0 nor the later keys whose edges are dropped as control. The papers' numbers are
gaps in accuracy of networks trained on a synthetic task (Wu et al.: +0.059 to +0.091 without
positional encoding); none can be computed on a trained language model.

Takes as long as 21 plain forwards of the batch (SmolLM2-135M, 16 prompts of 64 tokens, one core).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...core.errors import SinklensError
from ...engine import forwards_bar, read_under
from ...hooks.heads import ablate_heads
from ...hooks.intervention import Intervention
from ...hooks.matching import control_positions
from ...metrics import ProbeMetric
from ...models.capabilities import hook_name
from ...probes.patterns import ATTENTION, ROW_PERMUTED, UNIFORM, PatternReader
from ...results.effect_sentences import Compared
from ...results.estimates import NOT_TESTED, Measure, Reference, Sample, proportion
from ...results.figures import Lines, Stack
from ...results.record import Record
from ...results.wording import null_verdict, number, quantity
from ...runner.compare import Comparison, Control
from ...runner.config import ExperimentConfig, setting
from ...runner.needs import ATTENTION_EVERYWHERE, CAUSAL, EQUAL_LENGTHS, at_least_tokens
from ...runner.registry import experiment
from ...runner.run import Run
from ._rollout import (
    NORMS,
    POSITION0,
    PROFILE,
    WEIGHTINGS,
    Rolled,
    Rollouts,
    gap,
    thirds,
)

DROP, EARLY, LATER = "drop_edge", "early_gap", "later_key"
MASK, OF_ROLLOUT = "the mask alone", "share of the rollout"
THIRDS = ("first", "middle", "last")
IN_WORDS = {
    "norms": "by its share of the norms",
    "half": "with 1/2",
    "no_residual": "with 0 (as in Wu et al. 2025)",
}
NOTHING_LEFT = "in some prompts all of the rollout is on position 0"
CROWDED = "the control positions leave none in the first third; use longer prompts or fewer draws"
MEASURES = {
    "share": proportion(OF_ROLLOUT, MASK, ".1%"),
    "gap": Measure(OF_ROLLOUT, MASK, ".1%", lowest=-1.0, highest=1.0),
    "gap/first_middle:edge_dropped": Measure(
        OF_ROLLOUT, "the mask alone without key 0", ".1%", lowest=-1.0, highest=1.0
    ),
}


@dataclass(frozen=True)
class PositionBiasConfig(ExperimentConfig):
    """Settings; `draws` are row-permuted patterns and control positions.

    Attributes:
        residual: How the residual is weighted in the rows without a suffix: `norms`, `half` or
            `no_residual`; the others stand beside it.
    """

    residual: str = setting(NORMS, choices=WEIGHTINGS)


def what_the_mask_gives(result: Record) -> Iterator[str]:
    """Of the headline, how much the mask alone gives, under each weight of the residual."""
    parts = []
    for row in result.effects:
        if (row.metric, row.against) != ("share", None) or not row.condition.startswith(POSITION0):
            continue
        _, _, weighting = row.condition.partition(":")
        measure = result.measure(row.metric, row.condition)
        said = "all of it" if row.baseline >= row.value else f"{row.baseline / row.value:.0%} of it"
        words = IN_WORDS[weighting or result.findings["residual"]]
        parts.append(f"{words} {quantity(measure, row.value)}, and the mask alone gives {said}")
    yield f"Position 0, the residual weighted {'; '.join(parts)}."


def what_dropping_leaves(result: Record) -> Iterator[str]:
    """Whether the bias for early positions goes with the edge to position 0."""
    rows = [
        row
        for row in result.effects
        if (row.metric, row.against) == ("gap", None)
        and row.condition.partition(":")[2] in ("without_key0", "edge_dropped")
    ]
    if len(rows) < 2:
        return
    before, after = rows
    measure = result.measure(after.metric, after.condition)
    side = null_verdict(after)
    verdicts = {
        "above": "more bias for early positions is left than the mask gives",
        "below": "less bias for early positions is left than the mask gives",
        "not distinguishable from": "the bias for early positions that is left is the mask's",
    }
    verdict = verdicts.get(side, "with a single prompt there is no verdict")
    yield (
        "With the edge to key 0 dropped in all heads, first third less middle third: "
        f"{quantity(measure, after.value)} ({measure.null} {number(measure, after.baseline)}; "
        f"before, of what is not on position 0, {number(measure, before.value)}): {verdict}."
    )


@experiment(
    paper="Wu et al. 2025 (2502.01951)",
    question="Is the bias for early positions the model's, or the causal mask's?",
    needs=(
        ATTENTION_EVERYWHERE,
        CAUSAL.otherwise("Without a causal mask there is no bias to predict; see sink_profile."),
        EQUAL_LENGTHS,
        at_least_tokens(6),
    ),
    conditions=(DROP,),
    metrics=("loss", "kl"),
    measures=MEASURES,
    says=(
        "Of the last query's rollout, position 0 holds {share/position0}.",
        what_the_mask_gives,
        "First third less middle third: {gap/first_middle}; last less middle: {gap/last_middle}.",
        "Of what is not on position 0, first third less middle third: "
        "{gap/first_middle:without_key0}.",
        what_dropping_leaves,
        Compared("Later queries' edge to key 0 removed in all heads by", EARLY),
        Compared("Later queries' edge to key 0 removed in all heads by", "loss"),
    ),
    figure=Stack(
        (
            Lines(
                ("position0", "position0:*"),
                "Share of position 0, by depth, beside the mask alone and permuted rows",
                "layers",
                OF_ROLLOUT,
                from_zero=True,
                names=("this model", ""),
            ),
            Lines(
                ("profile", "profile:*"),
                "Share of each position after the last layer",
                "position",
                OF_ROLLOUT,
                log=True,
                names=("this model", ""),
            ),
        ),
        "Position bias of attention rollout",
    ),
)
def position_bias(run: Run[PositionBiasConfig]) -> None:
    """Roll attention out, beside the mask alone, and drop the edge to key 0.

    Raises:
        SinklensError: Patterns cannot be read, or the norms were asked for and cannot.
    """
    config, capabilities = run.config, run.capabilities
    weightings = _weightings(run)
    reader = PatternReader(
        run.model, capabilities, run.prompts.tokens, draws=config.draws, seed=config.seed
    )
    reason = capabilities.refusal("pattern", DROP)
    run.refuse({DROP: reason} if reason else {}, none_is_fine=True)
    if not run.conditions:
        run.announce(run.batches())
    (rolled,) = run.read(Rollouts(run.model, weightings, reader))
    run.facts(residual=weightings[0])
    _add_rollouts(run, rolled, weightings)
    if run.conditions:
        _drop_edge(run, rolled, weightings[0])


def _weightings(run: Run[PositionBiasConfig]) -> list[str]:
    """How the residual can be weighted here, that of the rows without a suffix first.

    Raises:
        SinklensError: Patterns cannot be read.
    """
    capabilities, known = run.capabilities, run.model.hook_dict
    if reason := capabilities.lacking("pattern"):
        raise SinklensError(
            f"position_bias reads every pattern; on {capabilities.architecture} {reason}"
        )
    asked = run.config.residual
    possible = [asked, *(one for one in WEIGHTINGS if one != asked)]
    sites = ("residual", "attn_out", "resid_post")
    names = [hook_name(site, layer) for site in sites for layer in capabilities.attention]
    lacking = [name for name in names if name not in known or name in capabilities.unreadable]
    if lacking:
        run.left_out(NORMS, f"on {capabilities.architecture} {lacking[0]} cannot be read")
        possible.remove(NORMS)
    return possible


def _add_rollouts(run: Run[Any], rolled: Rolled, weightings: Sequence[str]) -> None:
    """The rows of the clean run, and the curves."""
    lead = weightings[0]
    for weighting in weightings:
        suffix = "" if weighting == lead else f":{weighting}"
        _add(run, "share", f"{POSITION0}{suffix}", rolled, weighting, lambda p: p[..., 0])
        if weighting == lead:
            which = thirds(run.prompts.length)
            for name, mask in zip(THIRDS, which, strict=True):
                _add(run, "share", name, rolled, lead, lambda p, mask=mask: p @ mask)
            others = partial(gap, less=0, excluded=[0])
            _add(run, "gap", "first_middle:without_key0", rolled, lead, others)
        _add(run, "gap", f"first_middle{suffix}", rolled, weighting, partial(gap, less=0))
        _add(run, "gap", f"last_middle{suffix}", rolled, weighting, partial(gap, less=2))
    for source, end in ((ATTENTION, ""), (UNIFORM, ":mask_alone"), (ROW_PERMUTED, ":row_permuted")):
        if (source, lead, POSITION0) in rolled:
            by_layer = rolled[source, lead, POSITION0].mean((0, 2))
            run.keep(f"position0{end}", by_layer, "layer")
            run.keep(f"profile{end}", rolled[source, lead, PROFILE][:, 0].mean((0, 1)), "key")


def _add(
    run: Run[Any], metric: str, condition: str, rolled: Rolled, weighting: str, reduce: Any
) -> None:
    """A row of the last layer's shares, beside the mask alone and permuted rows."""
    values = {
        source: reduce(rolled[source, weighting, PROFILE][:, 0]).double()
        for source in (ATTENTION, UNIFORM, ROW_PERMUTED)
        if (source, weighting, PROFILE) in rolled
    }
    if not all(bool(torch.isfinite(one).all()) for one in values.values()):
        run.left_out(f"{metric} of {condition}", NOTHING_LEFT)
        return
    null = values[UNIFORM][:, 0]
    references = []
    if ROW_PERMUTED in values:
        permuted = values[ROW_PERMUTED]
        sample = Sample(permuted.T, null, permuted.shape[1])
        references.append(Reference(sample, ROW_PERMUTED, "null", models=NOT_TESTED))
    run.add(metric, condition, Sample(values[ATTENTION][:, 0], null), *references)


def _drop_edge(run: Run[PositionBiasConfig], rolled: Rolled, weighting: str) -> None:
    """Drop the edge to key 0, and to later keys as control; what the rollout is then."""
    config, prompts = run.config, run.prompts
    places = control_positions(prompts.length, config.draws, config.seed, config.positions)
    run.drawn(control_positions=places)
    excluded = sorted({0, *places})
    metrics = list(run.metrics)
    if thirds(prompts.length)[0].nonzero().flatten().tolist() == excluded:
        run.left_out(EARLY, CROWDED)
    elif not bool(torch.isfinite(gap(rolled[ATTENTION, weighting, PROFILE], 0, excluded)).all()):
        run.left_out(EARLY, NOTHING_LEFT)
    else:
        metrics.append(_early_gap(weighting, excluded))
    edge = _edge(run, 0)
    later = {place: _edge(run, place) for place in places}

    def edges(twin: Run[Any]) -> list[Comparison]:
        control = Control(LATER, [later[place] for place in places])
        return [Comparison(DROP, [edge], (control,))]

    run.compare(edges, metrics, later=run.batches())
    reader = PatternReader(run.model, run.capabilities, prompts.tokens)
    with forwards_bar(run.batches(), config.progress) as advance:
        found = read_under(
            run.model,
            prompts,
            edge,
            Rollouts(run.model, (weighting,), reader, without_key0=True),
            last_layer=run.capabilities.n_layers - 1,
            batch_size=config.batch_size,
            memory=config.memory,
        )
        advance(run.batches())
    run.count(run.batches(), {DROP: found.fired})
    reduce = partial(gap, less=0, excluded=[0])
    _add(run, "gap", "first_middle:edge_dropped", found.values, weighting, reduce)


def _early_gap(weighting: str, excluded: Sequence[int]) -> ProbeMetric:
    """First third less middle third of the positions whose edges stay."""

    def reduce(rolled: Rolled) -> Tensor:
        return gap(rolled[ATTENTION, weighting, PROFILE][:, 0, 0], 0, excluded)

    return ProbeMetric(
        EARLY,
        lambda model: Rollouts(model, (weighting,)),
        reduce,
        OF_ROLLOUT,
        lowest=-1.0,
        highest=1.0,
    )


def _edge(run: Run[Any], place: int) -> Intervention:
    """The edge from later queries to one key, dropped in every head."""
    capabilities = run.capabilities
    heads = [(la, head) for la in capabilities.attention for head in range(capabilities.n_heads)]
    return ablate_heads(run.model, heads, DROP, position=place)
