"""Do token states synchronise with depth, and does the sink keep them apart?

Of the residual stream entering each block and leaving the last, with all positions and without
sinks (position 0; in bidirectional models also the last), whose one large state else decides:

    cosine      mean cosine between the states of different positions
    collapse    |V - mean| / |V|, the distance from the state that all would have after a collapse,
                over the norm of all; `published` is |V - mean| itself (Barbero et al. 2025, eq. 1),
                which grows with the norm of the stream

and of what leaves each block behind a changed token (one in the middle of the prompt, replaced by a
random one, at later positions):

    spread      mean |h' - h| / |h|; `absolute` is the mean of |h' - h|

Rows are means over what leaves each block; by depth they are arrays. Null: random states of the
same norms, with a cosine of 0 and an expected collapse of the root of 1 - 1 / n (n positions); for
the spread 0, no change. Beside them a model with random weights, in which states are alike and
changes spread without anything learned.

Interventions, the first two with their cost in loss and KL:

    drop_edge     in all heads the weight on key 0 is set to 0 and the rest renormalised.
                  Control: the same of a later key
    bos_mean      the embedding of BOS replaced by the vocabulary's mean. Control: a later position
    without_bos   the prompts without BOS, as Barbero et al. do. Control: the prompts without a
                  later token. What a model does that never saw such a prompt is part of it; where
                  positions are relative it is the same act as drop_edge, state by state

Liu et al. 2026 (2602.11534) hold that softmax attention synchronises tokens and so makes sinks,
Barbero et al. 2025 (2504.02732) that sinks keep tokens from mixing, since a changed word spreads
further in Gemma 7B without BOS: a figure, no number of either could be found to compare with.
Position 0 differs from later ones in any model, so that differences of spread are not tested.

Takes as long as 51 plain forwards of the batch (SmolLM2-135M, 16 prompts of 64 tokens, one core).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...comparisons.bos import starts_with_bos
from ...core.errors import SinklensError
from ...core.seeds import seeded
from ...engine import default_memory
from ...metrics import ProbeMetric
from ...models.random_weights import RANDOM_WEIGHTS, random_twin
from ...results.effect_sentences import Compared
from ...results.estimates import NOT_TESTED, Effect, Measure, Reference, Sample
from ...results.figures import Forest, Lines, Stack
from ...results.null_sentences import already_of_nulls
from ...results.record import Record
from ...results.wording import describe, effect_of, interval_of, quantity
from ...runner.compare import Comparison, Control
from ...runner.config import ExperimentConfig, setting
from ...runner.needs import EQUAL_LENGTHS, WITH_ATTENTION, at_least_tokens
from ...runner.registry import experiment
from ...runner.run import Run
from ._spread import (
    CONTROLS,
    DROP,
    MEAN,
    ONE_WORD,
    WITHOUT,
    changed,
    edit,
    places,
    readings,
    spreads,
)
from ._states import Alike, AlikeValues

ABSOLUTE = "absolute"
NO_BOS = "the prompts do not begin with BOS"
SHARE = "share of the state's norm"


@dataclass(frozen=True)
class TokenSynchronisationConfig(ExperimentConfig):
    """Settings.

    Attributes:
        words: How many changed tokens there are for each prompt, and places of a control.
        random_weights: Whether to read a model with random weights; None does for models of up to a
            billion parameters.
    """

    words: int = setting(2, least=1)
    random_weights: bool | None = None


def spread_in_words(result: Record) -> Iterator[str]:
    """How far a changed token spreads under each condition, beside control and random weights."""
    for row in result.effects:
        if (row.metric, row.kind) != ("spread", "treatment"):
            continue
        beside = [
            f"{'one model with' if one.against == RANDOM_WEIGHTS else 'its'} "
            f"{f'{one.against}'.replace('_', ' ')} {effect_of(one)}{interval_of(one)}"
            for one, _ in result.references(row)
        ]
        value = quantity(result.measure("spread"), row.value)
        yield (
            f"With {row.condition} a changed token moves later states by {value}, "
            f"{describe(row)} against the clean run"
            + (f" (not tested; {', '.join(beside)})." if beside else ".")
        )


RANDOM = "random states of the same norms"


@experiment(
    paper="Liu et al. 2026 (2602.11534), Barbero et al. 2025 (2504.02732)",
    question="Do token states synchronise with depth, and does the sink keep them apart?",
    needs=(EQUAL_LENGTHS, WITH_ATTENTION, at_least_tokens(6)),
    conditions=tuple(CONTROLS),
    metrics=("loss", "kl"),
    measures={
        "cosine": Measure("", RANDOM, ".3f", lowest=-1.0, highest=1.0),
        "collapse": Measure("", RANDOM, ".3f", lowest=0.0, highest=1.0),
        "collapse_distance": Measure("norm", RANDOM, lowest=0.0),
        "spread": Measure(SHARE, "no change", ".1%", lowest=0.0),
        "spread_distance": Measure("norm", "no change", lowest=0.0),
    },
    says=(
        "Mean cosine between states: {cosine/all}; without sinks {cosine/without_sinks}.",
        "Distance from their mean over the norm of states (0 after a collapse): {collapse/all}; "
        "without sinks {collapse/without_sinks}.",
        "A changed token moves later states by {spread/one_word}.",
        spread_in_words,
        Compared("With", "loss"),
        Compared("Of states without sinks, with", "cosine"),
        already_of_nulls,
    ),
    figure=Stack(
        (
            Forest(("spread", "loss|kl")),
            Lines(
                ("cosine", "cosine:random_weights"),
                "Mean cosine between token states",
                "entering layer",
                "cosine",
                names=("", "random weights"),
            ),
        ),
        "Token states by depth, and how far a change spreads",
    ),
    smallest={"words": 1},
)
def token_synchronisation(run: Run[TokenSynchronisationConfig]) -> None:
    """Read how alike states are, change a token, and intervene on the sink.

    Raises:
        SinklensError: The residual stream cannot be read, or its states take too much memory.
    """
    _require_readable(run)
    config, capabilities, length = run.config, run.capabilities, run.prompts.length
    sinks = (0,) if capabilities.causal else (0, length - 1)
    run.facts(sinks=list(sinks), changed_position=length // 2)
    alike = partial(Alike, sinks=sinks)
    (own,) = run.read(alike(run.model))
    weights = int(seeded(config.seed, RANDOM_WEIGHTS).integers(2**31))
    twin, made = random_twin(run.model, config.random_weights, weights)
    if twin is None:
        run.left_out(RANDOM_WEIGHTS, made or "random_weights is false")
    beside = None if twin is None else run.read(alike(twin), model=twin)[0]
    _add_alike(run, own, beside, len(sinks))
    run.refuse(_refusals(run), none_is_fine=True)
    edited = [name for name in run.conditions if name != WITHOUT]
    later = run.batches() * readings(run, twin is not None)
    if edited:
        metrics = [
            ProbeMetric(name, alike, reduce, lowest=low, highest=1.0, reads="residual")
            for name, reduce, low in (
                ("cosine", _cosine, -1.0),
                ("collapse", _collapse, 0.0),
            )
        ]
        run.compare(
            lambda other: [_comparison(other, name) for name in edited],
            [*run.metrics, *metrics],
            later=later,
        )
    else:
        run.announce(later)
    draws = range(config.words)
    tokens = [changed(run, length // 2, draw).tokens[:, length // 2].tolist() for draw in draws]
    run.drawn(changed_tokens=tokens)
    found = spreads(run, run.model, draws, controls=config.draws > 0)
    random = {} if twin is None else spreads(run, twin, range(1), controls=False)
    _add_spreads(run, found, random)


def _cosine(values: AlikeValues) -> Tensor:
    return values.cosine


def _collapse(values: AlikeValues) -> Tensor:
    return values.collapse


def _require_readable(run: Run[Any]) -> None:
    """Refuse a model whose stream cannot be read, and prompts whose states do not fit.

    Raises:
        SinklensError: It cannot, or they do not.
    """
    if reason := run.capabilities.lacking("residual"):
        architecture = run.capabilities.architecture
        raise SinklensError(f"token_synchronisation, on {architecture}: {reason}")
    shape = len(run.prompts), run.capabilities.n_layers + 1, run.prompts.length // 2
    needed = 2 * 4 * int(np.prod(shape)) * int(run.model.cfg.d_model)
    allowed = run.config.memory or default_memory(run.model)
    if needed > allowed:
        raise SinklensError(
            f"token_synchronisation holds half of the states of all {len(run.prompts)} prompts, "
            f"which take {needed / 2**30:.1f} GiB here and may take {allowed / 2**30:.1f}; use "
            "fewer or shorter prompts (--n-prompts, --length), or give memory="
        )


def _refusals(run: Run[Any]) -> dict[str, str]:
    """The conditions that cannot act here, with reasons."""
    bos = "" if starts_with_bos(run.model, run.prompts) else NO_BOS
    reasons = {
        DROP: run.capabilities.refusal("pattern", DROP),
        MEAN: bos or run.capabilities.refusal("embedding", MEAN),
        WITHOUT: bos,
    }
    return {name: reason for name, reason in reasons.items() if reason}


def _comparison(run: Run[Any], name: str) -> Comparison:
    """A condition with its control."""
    chosen = places(run)
    run.drawn(control_positions=chosen)
    own, *others = (edit(run, run.model, name, place) for place in (0, *chosen))
    assert own is not None
    control = Control(CONTROLS[name], [one for one in others if one is not None])
    return Comparison(name, [own], (control,))


def _add_alike(run: Run[Any], own: AlikeValues, beside: AlikeValues | None, sinks: int) -> None:
    """Cosine and collapse of what leaves each block, and their curves."""
    length = run.prompts.length
    counts = {"all": length, "without_sinks": length - sinks}
    for name, count in counts.items():
        end, collapsed = "_all" if name == "all" else "", (1 - 1 / count) ** 0.5
        nulls = {"cosine": 0.0, "collapse": collapsed}
        for metric, null in nulls.items():
            values, random = (
                None if one is None else getattr(one, f"{metric}{end}")[:, 1:].double().mean(1)
                for one in (own, beside)
            )
            run.add(metric, name, Sample(values, null), *_random(random, null))
    norms = own.norm_all[:, 1:].double().mean(1) * (1 - 1 / length) ** 0.5
    distance = own.distance_all[:, 1:].double().mean(1)
    run.add("collapse_distance", "published", Sample(distance, norms))
    for end, one in (("", own), (f":{RANDOM_WEIGHTS}", beside)):
        for metric in ("cosine", "collapse"):
            if one is not None:
                both = [getattr(one, f"{metric}{part}").mean(0) for part in ("_all", "")]
                run.keep(
                    f"{metric}{end}", torch.stack(both, -1), "site positions", positions=[*counts]
                )


def _random(values: Any, null: float) -> list[Reference]:
    """The same of a model with random weights, if there is one."""
    if values is None:
        return []
    return [Reference(Sample(values, null), RANDOM_WEIGHTS, "null", models=NOT_TESTED)]


def _add_spreads(run: Run[Any], found: dict[str, Tensor], random: dict[str, Tensor]) -> None:
    """The spread of a change, clean and under each condition."""
    own, its = (
        {name: values[:, :, 1:].double().mean(2) for name, values in one.items()}
        for one in (found, random)
    )
    clean = own[ONE_WORD]
    beside = _random(its[ONE_WORD][..., 0], 0.0) if its else []
    run.add("spread", ONE_WORD, Sample(clean[..., 0], draws=len(clean)), *beside)
    run.add("spread_distance", ABSOLUTE, Sample(clean[..., 1], draws=len(clean)))
    for name in run.conditions:
        references = []
        if CONTROLS[name] in own:
            control = Effect(own[CONTROLS[name]][..., 0], clean[..., 0], len(clean))
            references.append(Reference(control, CONTROLS[name], models=NOT_TESTED))
        if its:
            one = Effect(its[name][..., 0], its[ONE_WORD][..., 0])
            references.append(Reference(one, RANDOM_WEIGHTS, "null", models=NOT_TESTED))
        run.add("spread", name, Effect(own[name][..., 0], clean[..., 0], len(clean)), *references)
    curves = {name: values[..., 0].mean((0, 1)) for name, values in found.items()}
    run.keep("spread", torch.stack([*curves.values()], -1), "site condition", condition=[*curves])
    if random:
        same = [random[name][..., 0].mean((0, 1)) for name in random]
        run.keep(
            f"spread:{RANDOM_WEIGHTS}",
            torch.stack(same, -1),
            "site condition",
            condition=[*random],
        )
