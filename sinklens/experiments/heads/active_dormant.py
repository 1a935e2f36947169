"""Active and dormant heads: what position 0 is to heads, and which heads can be removed.

    sink_logit       logit of key 0 less the mean of the other keys, mean over queries, layers and
                     heads, in nats
    value_drain      |W_O v_0| over the mean |W_O v_j| of later positions j, mean over heads
    residual_peak    norm of the residual stream at position 0 over the mean of later positions, the
                     largest over layers
    dormant          share of heads with a first-token weight above `weight_above` (0.89 in the code
                     of Guo et al.), or an output norm below `norm_below` of the layer's mean (0.457
                     marked 15 % of the heads of OLMo-2-7B-Instruct, Sandoval-Segura et al.)
    overlap          of the least active heads by first-token weight, the share that is so by output
                     norm over the layer's mean too; null: sets of that size drawn at random

Then heads are removed together in the order of a score (`_scores` has thirteen), an increasing
share of them, beside random orders and the gradient's (`_removal`): loss and KL. `removable` is the
share that an order removes before the loss has risen by 1 %, read off the curve. One head is
removed on two texts (`_texts`), and the models of the Bigram-Backcopy task are held against its
optimum (`_backcopy`).

Follows Guo et al. 2024 (2410.13835) and Sandoval-Segura et al. 2025 (2504.03889). The latter zero
heads that pass a threshold in each input and count MMLU accuracy; here the order is the same for
all prompts, as few as the share says, and what is read is the loss: their 4.61 % by first-token
weight and 12.18 % by the best score (mean of 14 models of 0.5 to 14 billion parameters, accuracy
within 1 %) stand beside ours for orientation. `edit=mean` writes the head's mean output instead.
Position 0 differs from others in any model, so that the first three are not tested against theirs.

A set of heads costs about one forward pass of all prompts: by default 9 in the order of a score, 9
at random, 18 at random within layers, and as many on two prompts in models with random weights. On
SmolLM2-135M, 8 prompts of 32 tokens, 18 take 17.7 s of one core, a plain pass 1.0 s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...core.errors import SinklensError
from ...core.protocol import HookedModel
from ...core.seeds import seeded
from ...hooks.matching import control_positions
from ...models.capabilities import check
from ...models.random_weights import RANDOM_WEIGHTS, random_twin
from ...probes import LogitGaps, Probe
from ...probes.base import LayerProbe, stream_hook
from ...results.effect_sentences import Compared
from ...results.estimates import NOT_TESTED, Measure, Reference, Sample
from ...results.figures import Lines, Stack
from ...results.record import Record
from ...results.wording import number
from ...runner.compare import Comparison
from ...runner.config import ExperimentConfig, setting
from ...runner.needs import EQUAL_LENGTHS, WITH_ATTENTION, at_least_tokens
from ...runner.registry import experiment
from ...runner.run import Run
from ._backcopy import (
    TASK_MEASURES,
    add_task,
    forwards_of_task,
    is_of_the_task,
    weights_in_words,
)
from ._removal import GRADIENT, Removals, add_curves
from ._scores import (
    BY_LAYER,
    SCORES,
    OutputParts,
    PatternParts,
    ValueParts,
    overlap,
    with_relative,
)
from ._texts import add_two_texts, forwards_of_two_texts, two_texts_in_words

WEIGHT, NORM = "first_token_weight", f"output_norm{BY_LAYER}"
PUBLISHED = {WEIGHT: 0.0461, "best_score": 0.1218}
LATER = "later_position"
MOST = 0.3
"""Of the heads, the share whose overlap is read, as far as the published curves go."""


@dataclass(frozen=True)
class ActiveDormantConfig(ExperimentConfig):
    """Settings; a condition is the score in whose order heads are removed.

    Attributes:
        removed: The shares of heads that are removed.
        edit: What is written for the output of a head that is removed: `zero`, or its `mean`.
        weight_above: From which first-token weight on a head counts as dormant.
        norm_below: Below which share of the layer's mean output norm.
        other_text: A text or the name of a file to set beside the prompts; by default Python code.
        random_weights: Whether to read a model with random weights; None does for models of up to a
            billion parameters.
        draws: Random orders, of all heads and within layers: most of what the curves cost.
    """

    draws: int = setting(3, least=0)
    removed: tuple[float, ...] = setting((0.1, 0.2, 0.3), above=0, below=1)
    edit: str = setting("zero", choices=("zero", "mean"))
    weight_above: float = setting(0.89, least=0, most=1)
    norm_below: float = setting(0.457, above=0)
    other_text: str | None = None
    random_weights: bool | None = None


class StreamNorms(LayerProbe[Tensor]):
    """The norm of the residual stream at every position, entering each block and leaving the last.

    `compute` gives `[prompt, site, pos]`.
    """

    def __init__(self, model: HookedModel) -> None:
        """Read the residual stream of `model`."""
        super().__init__(partial(stream_hook, model), range(int(model.cfg.n_layers) + 1))

    def reduce(
        self, stream: Float[Tensor, "batch pos d_model"], layer: Any, /
    ) -> Float[Tensor, "batch pos"]:
        """The norms of one site."""
        norms: Tensor = stream.float().norm(dim=-1)
        return norms


MEASURES = {
    "sink_logit": Measure("nats", "equal logits"),
    "value_drain": Measure("times later positions", "equal norms"),
    "residual_peak": Measure("times later positions", "equal norms"),
    f"dormant/{WEIGHT}": Measure("share of heads", "uniform attention", ".1%", lowest=0.0),
    f"dormant/{NORM}": Measure("share of heads", "equal norms", ".1%", lowest=0.0),
    "overlap": Measure("share of heads", "random sets", ".0%"),
    "removable": Measure("share of heads", "a random order", ".1%"),
    **{f"removable/published:{name}": Measure("share of heads", form=".1%") for name in PUBLISHED},
    "loss_without_head": Measure("nats", "the clean run"),
    **TASK_MEASURES,
}


def removals_in_words(result: Record) -> Iterator[str]:
    """What each order costs at the largest share."""
    metrics = {row.metric for row in result.effects}
    metric = "loss" if "loss" in metrics else "kl"
    rows = [row for row in result.effects if (row.metric, row.kind) == (metric, "treatment")]
    if rows:
        share = rows[-1].condition.partition("@")[2]
        names = tuple(row.condition for row in rows if row.condition.endswith(f"@{share}"))
        yield from Compared("Heads removed by", metric, names)(result)


def removable_in_words(result: Record) -> Iterator[str]:
    """What share of heads each order removes within 1 % of the loss, beside published shares."""
    rows = [row for row in result.effects if row.metric == "removable"]
    if not rows:
        return
    measure = result.measure("removable")
    own = [row for row in rows if not row.condition.startswith("published")]
    said = [f"{row.condition} {number(measure, row.value)}" for row in own]
    said.append(f"a random order {number(measure, own[0].baseline)}")
    most = f"{100 * max(result.settings['removed']):g}%"
    yield (
        f"Removed before the loss rises by 1% (at most {most} were tried): {', '.join(said)} of "
        "heads; published for accuracy within 1% in larger models: "
        f"{PUBLISHED[WEIGHT]:.1%} by first-token weight, {PUBLISHED['best_score']:.1%} by the best "
        "score (2504.03889)."
    )


@experiment(
    paper="Guo et al. 2024 (2410.13835), Sandoval-Segura et al. 2025 (2504.03889)",
    question="Which heads are dormant, and which can be removed?",
    needs=(WITH_ATTENTION, EQUAL_LENGTHS, at_least_tokens(4)),
    conditions=(*SCORES, GRADIENT),
    defaults=(WEIGHT, NORM, GRADIENT),
    metrics=("loss", "kl"),
    measures=MEASURES,
    says=(
        "Position 0: sink logit {sink_logit/position0}.",
        "Value behind W_O {value_drain/position0}; residual norm {residual_peak/position0}.",
        "Dormant heads, by {dormant/*}.",
        "Least active by first-token weight and by output norm too: {overlap/least_active}.",
        removals_in_words,
        removable_in_words,
        two_texts_in_words,
        "Loss {task_loss/*}.",
        weights_in_words,
        Compared("Head zeroed, the loss", "task_ablation"),
    ),
    figure=Stack(
        tuple(
            Lines(
                (f"{metric}_rise", f"{metric}_rise:*"),
                f"{words} as heads are removed in the order of a score",
                "heads removed",
                "nats",
            )
            for metric, words in (("loss", "Loss rise"), ("kl", "KL"))
        ),
        "Heads removed together, the least active first",
    ),
    smallest={"removed": (0.2, 0.4)},
)
def active_dormant(run: Run[ActiveDormantConfig]) -> None:
    """Score heads, remove them in the order of each score, and one of them on two texts.

    Raises:
        SinklensError: Attention, values or outputs of heads cannot be read here.
        UsageError: Another text was given and is too short.
    """
    for site in ("pattern", "value", "z"):
        if reason := run.capabilities.lacking(site):
            raise SinklensError(
                f"active_dormant reads the {site} of every layer; on "
                f"{run.capabilities.architecture} {reason}"
            )
    run.refuse(_refusals(run), none_is_fine=True)
    scores = _add_measurements(run)

    def removals(twin: Run[Any]) -> list[Comparison]:
        own = scores if twin is run else _scores_of(twin)
        return Removals(twin, own).comparisons()

    if run.conditions:
        later = forwards_of_two_texts(run) + forwards_of_task(run)
        run.compare(removals, later=later, twin_reads=run.batches(run.few))
        add_curves(run, PUBLISHED)
        run.note(
            "Each order is that of the mean score over the prompts on which heads are removed; "
            "the gradient's order knows the loss of these prompts."
        )
    add_two_texts(run, scores)
    if is_of_the_task(run):
        add_task(run)


def _refusals(run: Run[ActiveDormantConfig]) -> dict[str, str]:
    """The orders that there are not, with reasons."""
    capabilities, reasons = run.capabilities, {}
    for name in run.conditions:
        reason = capabilities.refusal("z", f"removing heads by {name}")
        if len(capabilities.attention) * capabilities.n_heads == 1:
            reason = "the model has a single head, which leaves no order"
        elif name.endswith(BY_LAYER) and capabilities.n_heads == 1:
            reason = "a layer has a single head, which is its own mean"
        elif name == GRADIENT and not capabilities.causal:
            reason = "it takes the gradient of a next-token loss"
        if reason:
            reasons[name] = reason
    return reasons


def _scores_of(
    run: Run[Any], model: HookedModel | None = None
) -> dict[str, Float[Tensor, "prompt layer head"]]:
    """The thirteen scores, and what is read beside them."""
    return _read(run, model or run.model)[0]


def _read(run: Run[Any], model: HookedModel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The scores of a model; `behind_output`, `stream`, and `gap` where the mask is known."""
    capabilities = check(model)
    probes: list[Probe] = [
        PatternParts(capabilities),
        ValueParts(model, capabilities),
        OutputParts(capabilities),
        StreamNorms(model),
        *([] if capabilities.unknown_mask(run.prompts.length) else [LogitGaps(model)]),
    ]
    pattern, value, output, stream, *gaps = run.read(*probes, model=model)
    beside = {"behind": value["behind_output"].double(), "stream": stream.double()}
    if gaps:
        beside["gap"] = gaps[0].gap.double()
    return with_relative({**pattern, **value, **output}), beside


def _add_measurements(run: Run[ActiveDormantConfig]) -> dict[str, Tensor]:
    """Rows of position 0, of dormant heads and of their overlap, beside random weights."""
    config, size = run.config, len(run.capabilities.attention) * run.capabilities.n_heads
    scores, beside = _read(run, run.model)
    for name in (WEIGHT, NORM):
        run.keep(name.replace(BY_LAYER, "_over_layer"), scores[name].mean(0), "layer head")
    table = torch.stack([scores[name].mean(0) for name in SCORES])
    run.keep("scores", table, "score layer head", score=SCORES)
    weights = int(seeded(config.seed, RANDOM_WEIGHTS).integers(2**31))
    twin, made = random_twin(run.model, config.random_weights, weights)
    if twin is None:
        run.left_out(RANDOM_WEIGHTS, made or "random_weights is false")
    count = max(1, round(MOST * size))
    own = _measured(scores, beside, config, count)
    if reason := run.capabilities.unknown_mask(run.prompts.length):
        run.left_out("sink_logit", reason)
    untrained = {} if twin is None else _measured(*_read(run, twin), config, count)
    places = control_positions(run.prompts.length, config.draws, config.seed)
    run.drawn(control_positions=places)
    later = {
        "value_drain": [drain(beside["behind"], place) for place in places],
        "residual_peak": [peak(beside["stream"], place) for place in places],
    }
    for (metric, condition), (values, null) in own.items():
        if not bool(torch.isfinite(values).all()):
            run.left_out(f"{metric} of {condition}", "it is 0 over 0 here")
            continue
        references = []
        if places and metric in later:
            drawn = torch.stack(later[metric])
            control = Sample(drawn, null, len(places))
            references.append(Reference(control, LATER, models=NOT_TESTED))
        if (metric, condition) in untrained:
            random = Sample(*untrained[metric, condition])
            references.append(Reference(random, RANDOM_WEIGHTS, "null", models=NOT_TESTED))
        run.add(metric, condition, Sample(values, null), *references)
    return scores


def _measured(
    scores: dict[str, Tensor], beside: dict[str, Tensor], config: ActiveDormantConfig, count: int
) -> dict[tuple[str, str], tuple[Float[Tensor, " prompt"], float]]:
    """By metric and condition the values of each prompt, and their null."""
    size = scores[WEIGHT][0].numel()
    measured: dict[tuple[str, str], tuple[Tensor, float]] = {}
    if "gap" in beside:
        measured["sink_logit", "position0"] = (beside["gap"].flatten(1).mean(1), 0.0)
    measured |= {
        ("value_drain", "position0"): (drain(beside["behind"], 0), 1.0),
        ("residual_peak", "position0"): (peak(beside["stream"], 0), 1.0),
        ("dormant", WEIGHT): (_share(scores[WEIGHT] > config.weight_above), 0.0),
    }
    if scores[WEIGHT].shape[2] > 1:
        measured["dormant", NORM] = (_share(scores[NORM] < config.norm_below), 0.0)
        if count < size:
            values = overlap(scores[WEIGHT], scores[NORM], count)
            measured["overlap", "least_active"] = (values, count / size)
    return measured


def drain(behind: Float[Tensor, "prompt layer head pos"], place: int) -> Float[Tensor, " prompt"]:
    """|W_O v| at a position over its mean at positions >= 1, mean over layers and heads."""
    return (behind[..., place] / behind[..., 1:].mean(-1)).flatten(1).mean(1)


def peak(stream: Float[Tensor, "prompt site pos"], place: int) -> Float[Tensor, " prompt"]:
    """The norm at a position over its mean at positions >= 1, the largest over sites."""
    return (stream[..., place] / stream[..., 1:].mean(-1)).amax(1)


def _share(chosen: Tensor) -> Float[Tensor, " prompt"]:
    return chosen.double().flatten(1).mean(1)
