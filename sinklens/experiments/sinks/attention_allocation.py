"""Where each query's attention goes: parked on a sink, on itself, or spread over other keys.

The sinks are key 0 and, in bidirectional models, the last key, where encoders have their second
special token. Of every query that is no sink itself, in every head:

    mass            what it gives to the sinks (`parked`), to itself (`diagonal`) and to all other
                    keys (`spread`); what a learned sink takes has a row of its own
    effective_keys  e to the entropy of its weights: n for n equal ones. `squares` is another
                    definition, one over the sum of squares
    rows            the share of rows that are parked (more than half on sinks, a learned one
                    included), focused (not parked, an effective number of at most half of the keys
                    that the query sees) or spread; `parked_above_0.3` takes the line of sink heads

Nulls: uniform attention under the same mask, in which a learned sink gets as much as a key, and
row-permuted attention. The latter has the effective number of the attention itself and on average
the masses of uniform attention, both by construction: what it tells is how often a row with a large
weight happens to be parked. Beside them a model with random weights.

Then mass is removed from the rows of all heads, the rest left as it is (what Fu et al. 2026 change
in training, where rows need not sum to 1):

    parked, diagonal, spread    all of one kind. They differ in size: no controls
    parked:spread, ...          of each row the lesser of both masses, from the first kind, and as
                                its control from the second, all its keys in proportion. Rows
                                are those of the run itself; `removed` says how equal the two are
    parked:renormalised         all that is parked, the rest scaled to the former sum: another
                                experiment, shown beside

Fu et al. 2026 (2601.00919): attention is overloaded (comparable weights on many tokens) or
underloaded (nothing is relevant, and weight is forced somewhere, as on a sink). They give no rule
that makes a row one of these; the thresholds are ours. Their 59.58 % sparsity is of models that
train with weights of exactly 0, which no softmax gives. Sukenik et al. 2026 (2605.08453): a sink
switches a head off, and attending to oneself would as well, at a higher cost. Only their abstracts
could be read, which give no number of a model. `first_share` is the first token's attention over
all queries, layers and heads; Qiu et al. 2025 (2505.06708) report it.

Takes as long as 31 plain forwards of the batch (SmolLM2-135M, 16 prompts of 64 tokens, one core).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ...core.seeds import seeded
from ...hooks.intervention import Intervention
from ...metrics import ProbeMetric
from ...models.random_weights import RANDOM_WEIGHTS, random_twin
from ...probes.patterns import ROW_PERMUTED, PatternReader
from ...results.effect_sentences import Compared
from ...results.estimates import NOT_TESTED, Measure, Reference, Sample, proportion
from ...results.figures import Forest, Lines, Stack
from ...results.null_sentences import already_of_nulls
from ...results.record import Record
from ...runner.compare import Comparison, Control
from ...runner.config import ExperimentConfig
from ...runner.needs import EQUAL_LENGTHS, WITH_ATTENTION, at_least_tokens
from ...runner.registry import experiment
from ...runner.run import Run
from ._allocation import (
    FIRST,
    KINDS,
    LEARNED,
    MASSES,
    NUMBERS,
    ROWS,
    Allocated,
    Allocation,
    RowSums,
    everywhere,
    kinds_of_keys,
    remove_and_rescale,
    remove_mass,
)

PAIRS = ("parked:spread", "diagonal:spread", "parked:diagonal")
RENORMALISED = "parked:renormalised"
CONDITIONS = (*KINDS, *PAIRS, RENORMALISED)
WHOLE = "it removes all of one kind, of which there is more or less than of another"
REMOVED = ProbeMetric(
    "removed",
    RowSums,
    lambda values: 1 - values.left,
    "share of attention",
    lowest=0.0,
    highest=1.0,
    reads="pattern",
)
"""How much attention is taken away in a run: what the rows of queries i >= 1 lack."""


@dataclass(frozen=True)
class AttentionAllocationConfig(ExperimentConfig):
    """Settings; a condition is what is removed, `draws` are orders of row-permuted attention.

    Attributes:
        random_weights: Whether to read a model with random weights; None does for models of up to a
            billion parameters.
    """

    random_weights: bool | None = None


def removed_in_words(result: Record) -> Iterator[str]:
    """What it costs to remove each kind of mass, and equal masses of two kinds."""
    metric = "loss" if any(row.metric == "loss" for row in result.effects) else "kl"
    yield from Compared("All attention removed that is", metric, (*KINDS, RENORMALISED))(result)
    yield from Compared("As much removed of both kinds,", metric, PAIRS)(result)


@experiment(
    paper="Fu et al. 2026 (2601.00919), Sukenik et al. 2026 (2605.08453)",
    question="Is attention parked, on itself, focused or spread, and which of it is needed?",
    needs=(WITH_ATTENTION, EQUAL_LENGTHS, at_least_tokens(4)),
    conditions=CONDITIONS,
    metrics=("loss", "kl"),
    measures={
        "mass": proportion("share of attention", "uniform attention", ".1%"),
        "rows": proportion("share of rows", "uniform attention", ".1%"),
        "effective_keys": Measure("keys", "uniform attention", ".3g", lowest=1.0),
        "first_share": proportion("share of attention", "uniform attention", ".1%"),
    },
    says=(
        "Of the attention of a query, by kind of key: {mass/*}.",
        "Of all rows, by kind: {rows/*}.",
        "Effective number of keys of a row: {effective_keys/entropy}; by the sum of squares "
        "{effective_keys/squares|value}. Row-permuted attention has the same by construction.",
        "Over all queries, the first token gets {first_share/published}. Qiu et al. 2025 "
        "(2505.06708) report 46.7% for a mixture of experts of 15 billion parameters.",
        removed_in_words,
        already_of_nulls,
    ),
    figure=Stack(
        (
            Forest(("loss|kl",)),
            Lines(
                ("rows", "rows:row_permuted"),
                "Kinds of rows",
                "layer",
                "share of rows",
                from_zero=True,
                names=("", "row-permuted"),
            ),
        ),
        "What attention is parked, and what its removal costs",
    ),
    smallest={"conditions": ("parked", "parked:spread", RENORMALISED)},
)
def attention_allocation(run: Run[AttentionAllocationConfig]) -> None:
    """Read what every query gives to which kind of key, and remove it.

    Raises:
        SinklensError: Patterns cannot be read, or their mask is unknown.
    """
    config, capabilities, length = run.config, run.capabilities, run.prompts.length
    sinks = (0,) if capabilities.causal else (0, length - 1)
    run.facts(sinks=list(sinks))
    tokens = run.prompts.tokens
    own = PatternReader(run.model, capabilities, tokens, draws=config.draws, seed=config.seed)
    (found,) = run.read(Allocation(own, sinks))
    weights = int(seeded(config.seed, RANDOM_WEIGHTS).integers(2**31))
    twin, made = random_twin(run.model, config.random_weights, weights)
    beside = None
    if twin is None:
        run.left_out(RANDOM_WEIGHTS, made or "random_weights is false")
    else:
        reader = PatternReader(twin, capabilities, tokens)
        (beside,) = run.read(Allocation(reader, sinks), model=twin)
    _add_measurements(run, found, beside)
    _keep(run, found)
    if not capabilities.causal:
        run.note(
            "Sinks are the first and the last key: in a bidirectional model both are seen by all "
            "queries. first_key counts the first alone."
        )
    refused = {name: capabilities.refusal("pattern", name) for name in run.conditions}
    run.refuse({name: why for name, why in refused.items() if why}, none_is_fine=True)
    if run.conditions:
        run.compare(lambda twin: _removals(twin, sinks), [*run.metrics, REMOVED])


def _add_measurements(run: Run[Any], found: Allocated, beside: Allocated | None) -> None:
    """Masses, kinds of rows, effective numbers and the published share, with their nulls."""
    absent = {FIRST} if run.capabilities.causal else set()
    absent |= set() if run.capabilities.learned_sinks else {LEARNED}
    parts: tuple[tuple[str, str, Sequence[str]], ...] = (
        ("mass", "mass", MASSES),
        ("rows", "rows", ROWS),
        ("effective_keys", "keys", NUMBERS),
    )
    for metric, field, names in parts:
        for place, name in enumerate(names):
            if name not in absent:
                values, random = (
                    None if one is None else getattr(one, field)[..., place].double().mean((1, 3))
                    for one in (found, beside)
                )
                _add(run, metric, name, values, random)
    first = None if beside is None else beside.first_share.double().mean(1)
    _add(run, "first_share", "published", found.first_share.double().mean(1), first)


def _add(run: Run[Any], metric: str, name: str, values: Any, random: Tensor | None) -> None:
    """A row with its nulls, from values by prompt and source."""
    nulls = []
    if values.shape[1] > 2:
        nulls.append((ROW_PERMUTED, Sample(values[:, 2], values[:, 1], run.config.draws)))
    if random is not None:
        nulls.append((RANDOM_WEIGHTS, Sample(random[:, 0], random[:, 1])))
    # Keys differ in any model, so that permuted rows differ from its attention.
    references = [Reference(one, null, "null", models=NOT_TESTED) for null, one in nulls]
    run.add(metric, name, Sample(values[:, 0], values[:, 1]), *references)


def _keep(run: Run[Any], found: Allocated) -> None:
    """Masses by head and by query, effective numbers, and kinds of rows by layer."""
    run.keep("mass", found.mass[:, :, 0].mean(0), "layer head mass", mass=MASSES)
    run.keep("effective_keys", found.keys[:, :, 0, :, 0].mean(0), "layer head")
    for place, end in ((0, ""), (1, ":uniform")):
        by_query = found.mass_by_query[:, :, place].mean((0, 1))
        run.keep(f"mass_by_query{end}", by_query, "query mass", mass=MASSES)
        run.keep(f"keys_by_query{end}", found.keys_by_query[:, :, place].mean((0, 1)), "query")
    rows = found.rows[..., : len(KINDS)].mean((0, 3))
    for place, end in enumerate(("", ":uniform", f":{ROW_PERMUTED}")[: rows.shape[1]]):
        run.keep(f"rows{end}", rows[:, place], "layer kind", kind=ROWS[: len(KINDS)])


def _removals(run: Run[Any], sinks: Sequence[int]) -> list[Comparison]:
    """The conditions that are asked for, with their controls."""
    layers, masks = run.capabilities.attention, kinds_of_keys(run.prompts.length, sinks)

    def removal(kind: str, beside: str | None = None) -> Intervention:
        other = None if beside is None else KINDS.index(beside)
        edit = partial(remove_mass, masks=masks, kind=KINDS.index(kind), beside=other)
        return everywhere(f"{kind} removed", layers, edit)

    made = []
    for name in run.conditions:
        kind, _, other = name.partition(":")
        if name == RENORMALISED:
            edit = partial(remove_and_rescale, masks=masks, kind=KINDS.index(kind))
            treatment = everywhere("parked removed, rest rescaled", layers, edit)
            made.append(Comparison(name, [treatment], no_control=WHOLE))
        elif not other:
            made.append(Comparison(name, [removal(kind)], no_control=WHOLE))
        else:
            control = [removal(other, kind)] if run.config.draws else []
            made.append(Comparison(name, [removal(kind, other)], (Control(other, control),), ""))
    return made
