"""How much of a head is its mean pattern: attention replaced by what does not see the prompt.

The mean pattern of a head, for a prompt, is that over the other prompts; queries i >= 1 count,
since query 0 sees only itself. By group of heads (all, sink heads, others):

    overlap     mean over queries of sum_k min(A_ik, B_ik): the share of attention that stays where
                it is if B is written for A. B is the mean; null: uniform attention; beside it
                another prompt's pattern
    explained   1 - |A - B|^2 / |A - U|^2, summed over the heads of the group, with U uniform
                attention: another definition of the same, which large weights decide

and then the pattern of the group is replaced, loss and KL beside another prompt's pattern, which is
as sharp as the head's own:

    mean        by the mean over the other prompts
    sink_only   by all weight on key 0, in the rows of queries that see it
    uniform     by the same weight on every key that the query sees

Every row keeps its sum, which a learned sink leaves below 1. A mean is closer to a pattern than one
other pattern is, if only because it averages: the first two rows are not tested against that. A
head is a sink head by its sink mass (above 0.3).

The question is that of Xue et al. 2025 (2510.11602), who train models whose attention does not
depend on the input, in all layers or some, and find that token mixing is needed and dependence on
the input can be relaxed. Here a trained model is intervened on: what it loses is what it has
learned to use. No number of theirs can be computed on such a model.

Takes as long as 63 plain forwards of the batch (SmolLM2-135M, 16 prompts of 64 tokens, one core).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...core.errors import SinklensError
from ...core.labels import Head
from ...core.seeds import seeded
from ...engine import default_memory
from ...hooks.intervention import Intervention
from ...hooks.matching import derangement
from ...metrics import SINK_MASS
from ...models.capabilities import Capabilities
from ...models.random_weights import RANDOM_WEIGHTS, random_twin
from ...results.effect_sentences import Compared
from ...results.estimates import NOT_TESTED, Measure, Reference, Sample
from ...results.figures import Forest, Heatmap, Stack
from ...results.record import Record
from ...runner.compare import Comparison, Control
from ...runner.config import ExperimentConfig
from ...runner.needs import EQUAL_LENGTHS, WITH_ATTENTION, at_least_prompts, at_least_tokens
from ...runner.registry import experiment
from ...runner.run import Run
from ._patterns import ANOTHER, ByLayer, Patterns, Written, distance, overlap

KINDS, GROUPS = ("mean", "sink_only", "uniform"), ("all", "sink", "others")
CONDITIONS = tuple(f"{kind}:{group}" for group in GROUPS for kind in KINDS)
NO_HEADS = {
    "sink": f"no head has a sink mass above {SINK_MASS}",
    "others": f"every head has a sink mass above {SINK_MASS}",
}
UNIFORM = "their attention is uniform within rounding error"
ROUNDINGS = 10  # of a weight: a tenth of what is told apart is then rounding, a hundredth squared
COPIES = 4
"""Of all patterns: how many are held, the head's own and what is made of them."""


@dataclass(frozen=True)
class InputDependenceConfig(ExperimentConfig):
    """Settings; a condition is what is written and the group of heads: `mean:sink`.

    Attributes:
        random_weights: Whether to read a model with random weights; None does for models of up to a
            billion parameters.
    """

    random_weights: bool | None = None


def replaced_in_words(result: Record) -> Iterator[str]:
    """What replacing costs: all three for all heads, the mean for each group."""
    metric = "loss" if any(row.metric == "loss" for row in result.effects) else "kl"
    names = (*(f"{kind}:all" for kind in KINDS), "mean:sink", "mean:others")
    yield from Compared("Attention replaced by", metric, names)(result)


@experiment(
    paper="Xue et al. 2025 (2510.11602)",
    question="How much of a head's attention depends on the prompt, and does the model need that?",
    needs=(
        WITH_ATTENTION,
        EQUAL_LENGTHS,
        at_least_tokens(3),
        at_least_prompts(2, "since a mean is that of the other prompts"),
    ),
    conditions=CONDITIONS,
    metrics=("loss", "kl"),
    measures={
        "overlap": Measure("share of attention", "uniform attention", ".1%"),
        "explained": Measure("of the squared distance", "uniform attention", ".3f"),
    },
    says=(
        "A head's attention and its mean over the other prompts have in common, by heads: "
        "{overlap/*}.",
        "The mean explains, by heads: {explained/*}.",
        replaced_in_words,
    ),
    figure=Stack(
        (
            Forest(("loss|kl",)),
            Heatmap("overlap", "Attention that a head's mean pattern shares", "overlap"),
        ),
        "What heads lose with the prompt's own attention",
    ),
)
def input_dependence(run: Run[InputDependenceConfig]) -> None:
    """Compare patterns with their mean over other prompts, and replace them.

    Raises:
        SinklensError: Patterns cannot be read, their mask is unknown, or they take too much memory.
    """
    _require_room(run)
    if reason := run.capabilities.lacking("pattern"):
        raise SinklensError(
            f"input_dependence reads every pattern; on {run.capabilities.architecture} {reason}"
        )
    (patterns,) = run.read(Patterns(run.capabilities))
    written = Written(run, patterns)
    mass = torch.stack([patterns[la][:, :, 1:, 0].mean((0, 2)) for la in sorted(patterns)])
    run.keep("sink_mass", mass, "layer head")
    groups = _groups(mass, run.capabilities)
    run.facts(heads={name: len(heads) for name, heads in groups.items()})
    _add_measurements(run, patterns, groups)
    run.refuse(_refusals(run, groups), none_is_fine=True)
    if not run.conditions:
        return

    def replacements(twin: Run[Any]) -> list[Comparison]:
        made = written
        if twin is not run:
            # A mean of fewer prompts would be another thing: all of them, as in the run.
            (own,) = twin.read(Patterns(run.capabilities), prompts=run.prompts)
            made = Written(run, own)

        def intervention(kind: str, group: str, order: Tensor | None = None) -> Intervention:
            return made.intervention(kind, groups[group], order).among(twin.prompt_numbers)

        controls = {
            group: Control(ANOTHER, [intervention("", group, order) for order in _orders(run)])
            for group in groups
        }
        return [
            Comparison(name, [intervention(kind, group)], (controls[group],), "")
            for name in twin.conditions
            for kind, group in (name.split(":"),)
        ]

    run.compare(replacements, twin_reads=run.batches())


def _require_room(run: Run[InputDependenceConfig]) -> None:
    """Refuse prompts whose patterns do not fit.

    Raises:
        SinklensError: They do not.
    """
    heads = len(run.capabilities.attention) * run.capabilities.n_heads
    needed = COPIES * 4 * len(run.prompts) * heads * run.prompts.length**2
    allowed = run.config.memory or default_memory(run.model)
    if needed > allowed:
        raise SinklensError(
            f"input_dependence holds the patterns of all {len(run.prompts)} prompts, which take "
            f"{needed / 2**30:.1f} GiB here and may take {allowed / 2**30:.1f}; use fewer or "
            "shorter prompts (--n-prompts, --length), or give memory="
        )


def _groups(mass: Float[Tensor, "layer head"], capabilities: Capabilities) -> dict[str, list[Head]]:
    """Heads by group; groups without a head are left out."""
    masses = capabilities.by_head(mass)
    groups = {
        "all": list(masses),
        "sink": [head for head, one in masses.items() if one > SINK_MASS],
        "others": [head for head, one in masses.items() if one <= SINK_MASS],
    }
    return {name: heads for name, heads in groups.items() if heads}


def _refusals(
    run: Run[InputDependenceConfig], groups: Mapping[str, Sequence[Head]]
) -> dict[str, str]:
    """The conditions that cannot act here, with reasons."""
    reasons = {}
    for name in run.conditions:
        group = name.partition(":")[2]
        reason = run.capabilities.refusal("pattern", name)
        if group not in groups:
            reason = NO_HEADS[group]
        if reason:
            reasons[name] = reason
    return reasons


def _add_measurements(
    run: Run[InputDependenceConfig], patterns: ByLayer, groups: Mapping[str, Sequence[Head]]
) -> None:
    """Overlap and explained share of each group, beside another prompt's and random weights."""
    weights = int(seeded(run.config.seed, RANDOM_WEIGHTS).integers(2**31))
    twin, made = random_twin(run.model, run.config.random_weights, weights)
    if twin is None:
        run.left_out(RANDOM_WEIGHTS, made or "random_weights is false")
    own = _compared(run, Written(run, patterns), patterns, _orders(run))
    run.keep("overlap", own["mean"][0].mean(0), "layer head")
    beside = {}
    if twin is not None:
        (untrained,) = run.read(Patterns(run.capabilities), model=twin)
        beside = _compared(run, Written(run, untrained), untrained, [])
    for group, heads in groups.items():
        places = [(run.capabilities.attention.index(layer), head) for layer, head in heads]
        at = tuple(torch.tensor(places).T)

        def common(part: tuple[Tensor, Tensor], at: Any = at) -> Tensor:
            return part[0][:, at[0], at[1]].mean(1)

        def apart(part: tuple[Tensor, Tensor], at: Any = at) -> Tensor:
            return part[1][:, at[0], at[1]].sum(1)

        null = common(own["uniform"])
        others = [part for name, part in own.items() if name.startswith(ANOTHER)]
        references = _references([common(part) for part in others], null)
        whole, rounding = apart(own["uniform"]), _rounding(run, len(heads))
        explained = _references([1 - apart(part) / whole for part in others], 0.0)
        if beside:
            of_twin = Sample(common(beside["mean"]), common(beside["uniform"]))
            references.append(_untested(of_twin, RANDOM_WEIGHTS))
        run.add("overlap", group, Sample(common(own["mean"]), null), *references)
        if not bool((whole > rounding).all()):
            run.left_out(f"explained of {group}", UNIFORM)
            continue
        if beside and bool((apart(beside["uniform"]) > rounding).all()):
            share = 1 - apart(beside["mean"]) / apart(beside["uniform"])
            explained.append(_untested(Sample(share), RANDOM_WEIGHTS))
        elif beside:
            run.left_out(f"explained of {group} in {RANDOM_WEIGHTS}", UNIFORM)
        run.add("explained", group, Sample(1 - apart(own["mean"]) / whole), *explained)


def _rounding(run: Run[Any], heads: int) -> float:
    """The squared distance from uniform attention beside which rounding of weights counts."""
    squares = sum(1 / (query + 1) for query in range(1, run.prompts.length))
    return heads * squares * (ROUNDINGS * torch.finfo(run.model.cfg.dtype).eps) ** 2


def _orders(run: Run[InputDependenceConfig]) -> list[Int[Tensor, " prompt"]]:
    """For each draw, for each prompt the number of another."""
    draws, seed = range(run.config.draws), run.config.seed
    return [derangement(run.prompts.tokens, seed, draw) for draw in draws]


def _references(values: Sequence[Tensor], null: Any) -> list[Reference]:
    """Another prompt's pattern, mean over draws, if there are any."""
    if not values:
        return []
    sample = Sample(torch.stack([*values]), null, len(values))
    return [_untested(sample, ANOTHER)]


def _untested(sample: Sample, name: str) -> Reference:
    return Reference(sample, name, "null", models=NOT_TESTED)


def _compared(
    run: Run[Any], written: Written, patterns: ByLayer, orders: Sequence[Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Overlap with and squared distance from what would be written, `[prompt, layer, head]`."""
    everyone = torch.arange(len(run.prompts))
    asked: dict[str, tuple[str, Tensor | None]] = {name: (name, None) for name in KINDS}
    asked |= {f"{ANOTHER} {draw}": ("", order) for draw, order in enumerate(orders)}
    found = {}
    for name, (kind, order) in asked.items():
        parts = [
            (overlap(every, other), distance(every, other))
            for layer, every in sorted(patterns.items())
            for other in (written.pattern(kind, layer, everyone, order),)
        ]
        common, apart = (torch.stack([*side], 1).double() for side in zip(*parts, strict=True))
        found[name] = common, apart
    return found
