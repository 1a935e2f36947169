"""Outlier dimensions: channels that stand out everywhere, and whether they follow token frequency.

Two rules name outliers, each relative to the other channels of the same place:

    gain  the gain of the norm is more than 3 standard deviations from the mean gain, and so is its
          bias where it has one, in at least half of the blocks' norms (`ln1`, `ln2`). Null:
          Gaussian parameters; beside it, what is expected with each norm's channels shuffled
    size  mean |x| in the residual stream over positions >= 1 is as far above the mean channel's in
          at least half of the places (entering each block, leaving the last). Null: Gaussian sizes,
          the same in all places, since a residual stream keeps what it holds

Of both sets, beside as many random channels: `size_ratio`, that size over the median channel's
(above 1 by construction for the size rule), and `frequency_correlation`, |Spearman's rho| of a
channel's value with the token's count in the shipped corpus, over the ordinary tokens of one prompt
at positions >= 1, averaged over channels and places. For n permuted counts rho is nearly Gaussian
with variance 1 / (n - 1): the null is sqrt(2 / (pi (n - 1))), and the empirical null permutes.

Then the channels are ablated in the output of these norms at all positions: to `zero`, as if gain
and bias were, and to their `mean`, position 0 and later ones apart. A norm before a sub-block hides
them from it alone; a norm on the residual stream itself (BERT) takes them out of that.

Follows Puccetti et al. 2022 (2205.11380) on BERT, who take Kovaleva's rule for gain and bias of one
norm a layer (`norms=ln2` is a block's last), ask for damage on a task besides, and show Pearson
correlations with counts in the training text in figures only: no number here reproduces theirs. The
size rule, |rho| and its nulls are ours. Random channels are not matched for size. Ablation shows
what a trained model needs, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor
from torch.nn.functional import normalize

from ...core.seeds import content_seed, seeded
from ...hooks.intervention import FwdHooks, Intervention
from ...models import ordinary_tokens
from ...models.prompts import corpus_tokens
from ...probes.base import LayerProbe, stream_hook
from ...results.effect_sentences import Compared
from ...results.estimates import NOT_TESTED, Measure, Reference, Sample
from ...results.figures import Forest
from ...results.record import Record
from ...results.wording import number, phrase, probability, written
from ...runner.compare import Comparison, Control
from ...runner.config import ExperimentConfig, setting
from ...runner.needs import EQUAL_LENGTHS, at_least_tokens
from ...runner.registry import experiment
from ...runner.run import Run
from ._norms import NORMS, norm_hooks, norm_parameters

CONDITIONS = ("zero:gain", "mean:gain", "zero:size", "mean:size")
RANDOM, PERMUTED = "random_channels", "permuted_counts"
NONE = "no channel is an outlier by {}; lower deviations= or share= ask for less"
CROWDED = "fewer other channels are left than there are outliers"
NO_CORPUS = "without a tokenizer the corpus cannot be counted; load the model with tokenizer="
LEAST_TOKENS = 3
FEW_TOKENS = "a prompt has fewer than 3 ordinary tokens after position 0"
Groups = dict[str, Int[Tensor, "group channel"]]  # by rule its outliers, then each random draw


@dataclass(frozen=True)
class OutlierDimensionsConfig(ExperimentConfig):
    """Settings; a condition is an edit and the rule that names its channels.

    Attributes:
        deviations: How many standard deviations from the other channels make an outlier.
        share: In which share of the norms, or of the places of the residual stream.
        norms: The norms of a block that are read and ablated.
    """

    deviations: float = setting(3.0, above=0)
    share: float = setting(0.5, above=0, most=1)
    norms: tuple[str, ...] = setting(NORMS, choices=NORMS)


class SiteValues(LayerProbe[Tensor]):
    """One reduction of the activations at several hooks, `[prompt, hook, ...]`."""

    def __init__(self, names: Sequence[str], values: Callable[[Tensor], Tensor]) -> None:
        """Read the hooks of these names; `values` maps `[batch, pos, channel]` to `[batch, ..]`."""
        super().__init__(str, names)
        self._values = values

    def reduce(self, activation: Float[Tensor, "batch pos channel"], site: str, /) -> Tensor:
        """The values at one hook."""
        return self._values(activation.float())


def write_channels(
    activation: Float[Tensor, "batch pos channel"],
    hook: Any,
    *,
    channels: Sequence[int],
    values: Float[Tensor, "2 chosen"],
) -> Float[Tensor, "batch pos channel"]:
    """Give channels one value at position 0 and another at all later positions."""
    edited = activation.clone()
    edited[:, :1, list(channels)], edited[:, 1:, list(channels)] = values.to(activation)
    return edited


def outliers_by_rule(result: Record) -> Iterator[str]:
    """Which channels each rule names, and how many its null expects."""
    shuffled = f", shuffled channels {written(result.findings['gain_shuffled'], '.2g')}"
    for rule, places, more in (("gain", "norms", shuffled), ("size", "places", "")):
        row = result.find(metric=f"{rule}_outliers")
        channels = result.findings[f"{rule}_channels"]
        listed = ", ".join(map(str, channels[:8])) + (", ..." if len(channels) > 8 else "")
        measure = result.measure(row.metric)
        chance = probability(result.findings[f"{rule}_chance"])
        yield (
            f"Outliers by {rule} in at least {result.settings['share']:.0%} of {places}: "
            f"{len(channels)} of {result.findings['channels']} channels"
            f"{listed and f' ({listed})'}; {measure.null} would give "
            f"{number(measure, row.baseline)}"
            f"{listed and f' ({len(channels)} or more with probability {chance})'}{more}."
        )


def sizes_of_outliers(result: Record) -> Iterator[str]:
    """How large outliers are, with a verdict where they were not chosen for their size."""
    parts = []
    for row in result.effects:
        if (row.metric, row.kind) == ("size_ratio", "measurement"):
            said = phrase(result, row)
            if row.condition == "size":
                measure, pairs = result.measure(row.metric), result.references(row)
                others = [f"; random channels {number(measure, its.value)}" for its, _ in pairs]
                said = f"{phrase(result, row, 'value')} (chosen for it{''.join(others)})"
            parts.append(f"by {row.condition}: {said}")
    if parts:
        yield f"Size of outliers in the residual stream, {'; '.join(parts)}."


def ablated_outliers(result: Record) -> Iterator[str]:
    """What ablation does to the loss, or where there is none to the logits."""
    metrics = {row.metric for row in result.effects}
    yield from Compared("Outliers set to", "loss" if "loss" in metrics else "kl")(result)


MEASURES = {
    "gain_outliers": Measure("channels", "Gaussian parameters", ".2g"),
    "size_outliers": Measure("channels", "Gaussian sizes", ".2g"),
    "size_ratio": Measure("times the median channel", "channels of equal size", ",.3g"),
    "frequency_correlation": Measure("|rho|", "the expectation for permuted counts", ".3f"),
}
SAYS = (
    outliers_by_rule,
    sizes_of_outliers,
    "Rank correlation of outliers with token frequency, by {frequency_correlation/*}.",
    ablated_outliers,
    Compared("Outliers set to", "sink_mass", CONDITIONS),
)


@experiment(
    paper="Puccetti et al. 2022 (2205.11380)",
    question="Do a few channels stand out everywhere, follow token frequency, and matter?",
    needs=(
        EQUAL_LENGTHS,
        at_least_tokens(LEAST_TOKENS + 1),
    ),
    conditions=CONDITIONS,
    metrics=("loss", "kl", "sink_mass"),
    measures=MEASURES,
    says=SAYS,
    figure=Forest(
        ("size_ratio", "frequency_correlation", "loss|kl"),
        "Outlier channels: size, token frequency, use",
    ),
    smallest={"deviations": 1.5},
)
def outlier_dimensions(run: Run[OutlierDimensionsConfig]) -> None:
    """Find outliers, correlate them with token frequency, and ablate them.

    Raises:
        SinklensError: The blocks have none of the norms, or a condition was asked for and no
            channel is an outlier by its rule.
    """
    norms = norm_hooks(run.model, run.config.norms)
    places = [stream_hook(run.model, layer) for layer in range(run.capabilities.n_layers + 1)]
    sizes = SiteValues(places, lambda x: x[:, 1:].abs().mean(1))
    (size,) = run.read(sizes)
    size, parameters = size.double(), norm_parameters(run.model, norms)
    run.keep("gain", parameters[0], "norm channel", norm=norms)
    run.keep("size", size.mean(0), "layer_input channel")
    large = standard_scores(size.mean(0)) > run.config.deviations
    gaussian = size.shape[-1] * float(stats.norm.sf(run.config.deviations))
    by_gain, by_size = _by_gain(run, parameters), _named(run, "size", "places", large, gaussian)
    groups = _beside_random_channels(run, by_gain, by_size)
    ratio = size / size.median(-1, keepdim=True).values
    for rule, channels in groups.items():
        by_place = ratio[..., channels].mean(-1)
        _add_beside(run, "size_ratio", rule, 1.0, by_place[..., 0], by_place[..., 1:])
    if groups:
        add_frequency_correlation(run, groups, places)
    rules = {condition: condition.partition(":")[2] for condition in CONDITIONS}
    none = {name: NONE.format(rule) for name, rule in rules.items() if rule not in groups}
    run.refuse(none, none_is_fine=True)

    def ablations(run: Run[Any]) -> list[Comparison]:
        means = SiteValues(norms, lambda x: torch.stack([x[:, 0], x[:, 1:].mean(1)], 1))
        mean = run.read(means)[0].double().mean(0)
        return [_ablation(name, groups[rules[name]], norms, mean) for name in run.conditions]

    run.compare(ablations)


def standard_scores(values: Float[Tensor, "place channel"]) -> Float[Tensor, "place channel"]:
    """By how many standard deviations channels differ from the mean one; 0 where none does."""
    centred = values - values.mean(-1, keepdim=True)
    return centred / centred.std(-1, keepdim=True).clamp(min=1e-12)


def expected_channels(beyond: Sequence[float], share: float, width: int) -> float:
    """How many of `width` channels a share of independent places put beyond, by chance of each."""
    least = int(np.ceil(share * len(beyond) - 1e-9))
    return width * float(stats.poisson_binom.sf(least - 1, np.asarray(beyond)))


def rank_correlations(values: Tensor, counts: Tensor) -> Float[Tensor, "order place channel"]:
    """Spearman's rho of `[place, token, channel]` with `[token, order]`; 0 for a constant side."""
    ranks = [torch.from_numpy(stats.rankdata(part, axis=-2)) for part in (values, counts)]
    units = [normalize(rank - rank.mean(-2, keepdim=True), dim=-2) for rank in ranks]
    return torch.einsum("ptc,to->opc", *units)


def token_counts(run: Run[Any]) -> Float[Tensor, "prompt pos"]:
    """How often the shipped corpus has each token of the prompts; NaN for special tokens."""
    tokens = run.prompts.tokens.cpu()
    text = torch.tensor(corpus_tokens(run.model))
    counts = torch.bincount(text, minlength=int(run.model.cfg.d_vocab))[tokens].double()
    return counts.masked_fill(~torch.isin(tokens, ordinary_tokens(run.model)), torch.nan)


def add_frequency_correlation(run: Run[Any], groups: Groups, places: Sequence[str]) -> None:
    """How channels follow the frequency of tokens, beside random channels and permuted counts."""
    counts = None if run.model.tokenizer is None else token_counts(run)[:, 1:]
    if counts is None or int((~counts.isnan()).sum(1).min()) < LEAST_TOKENS:
        run.left_out("frequency_correlation", NO_CORPUS if counts is None else FEW_TOKENS)
        return
    orders, null = [], (2 / (torch.pi * ((~counts.isnan()).sum(1) - 1).double())).sqrt()
    for tokens, own in zip(run.prompts.tokens, counts, strict=True):
        random = np.random.default_rng(content_seed(tokens, run.config.seed))
        known = own[~own.isnan()].numpy()
        drawn = [known, *(random.permutation(known) for _ in range(run.config.draws))]
        orders.append(torch.from_numpy(np.stack(drawn, 1)))
    used = torch.cat([channels.flatten() for channels in groups.values()])
    reader = SiteValues(places, lambda x: x[:, 1:, used])
    run.read(reader)
    parts = [part.split([c.numel() for c in groups.values()], -1) for part in reader.compute()]
    curves: dict[str, Tensor] = {}
    for place, (rule, channels) in enumerate(groups.items()):
        values = [part[place][:, ~own.isnan()] for part, own in zip(parts, counts, strict=True)]
        by_prompt = [rank_correlations(x, order) for x, order in zip(values, orders, strict=True)]
        rho = torch.stack(by_prompt).unflatten(-1, channels.shape)
        by_place = rho.abs().mean(-1)  # [prompt, order, place, group]
        sides = [by_place[:, 0, :, 0], by_place[:, 0, :, 1:], by_place[:, 1:, :, 0].mean(1)]
        _add_beside(run, "frequency_correlation", rule, null, *sides)
        sides[1] = sides[1].mean(-1)
        names = (rule, f"{rule}: {RANDOM}", f"{rule}: {PERMUTED}")
        curves |= {n: s.mean(0) for n, s in zip(names, sides, strict=True) if not s.isnan().any()}
        signed = rho[:, 0, :, 0].mean(0)
        run.keep(f"rho_{rule}", signed, "layer_input channel", channel=channels[0].tolist())
    by_layer = torch.stack([*curves.values()], 1)
    run.keep("frequency_correlation", by_layer, "layer_input of", of=[*curves])


def _add_beside(run: Run[Any], metric: str, rule: str, null: Any, *sides: Tensor) -> None:
    """The row of `[prompt, place]`, beside random channels `[prompt, place, draw]` and a null.

    What channels were chosen for is not tested.

    Permutations differ from prompt to prompt, so that they come averaged within it. Without a draw
    the references are empty or NaN.
    """
    own, *others = (side.mean(1).movedim(-1, 0) for side in sides)
    references = [
        Reference(
            Sample(values, null, run.config.draws),
            name,
            "null" if number else "control",
            models=NOT_TESTED if (metric, rule) == ("size_ratio", "size") else None,
        )
        for number, (name, values) in enumerate(zip((RANDOM, PERMUTED), others, strict=False))
        if values.numel() and not values.isnan().any()
    ]
    run.add(metric, rule, Sample(own, null), *references)


def _ablation(condition: str, groups: Tensor, norms: Sequence[str], mean: Tensor) -> Comparison:
    """Outliers ablated in the output of all norms, beside as many random channels."""
    written = mean if condition.startswith("mean") else torch.zeros_like(mean)

    def ablated(channels: list[int], name: str, draw: int | None = None) -> Intervention:
        hooks: FwdHooks = [
            (hook, partial(write_channels, channels=channels, values=values[:, channels]))
            for hook, values in zip(norms, written, strict=True)
        ]
        return Intervention(name, "norm", first_layer=0, fwd_hooks=hooks, draw=draw)

    own, *random = groups.tolist()
    control = [ablated(c, f"{condition} of {RANDOM}", draw) for draw, c in enumerate(random)]
    return Comparison(condition, [ablated(own, condition)], (Control(RANDOM, control),), CROWDED)


def _by_gain(run: Run[Any], parameters: Float[Tensor, "2 norm channel"]) -> list[int]:
    """The outliers by gain, and by bias where the norm has one, with their row."""
    deviations, share = run.config.deviations, run.config.share
    gain, bias = (standard_scores(part).abs() > deviations for part in parameters)
    biased = parameters[1].any(-1, keepdim=True)
    beyond, tail = gain & (bias | ~biased), 2 * float(stats.norm.sf(deviations))
    width, gaussian = beyond.shape[-1], [tail ** (1 + has) for has in biased[:, 0].tolist()]
    shuffled = expected_channels(beyond.double().mean(-1).tolist(), share, width)
    run.facts(gain_shuffled=shuffled, channels=width)
    return _named(run, "gain", "norms", beyond, expected_channels(gaussian, share, width))


def _named(run: Run[Any], rule: str, where: str, beyond: Tensor, null: float) -> list[int]:
    """The channels that are beyond in a share of the places, and the row of their number."""
    shares = beyond.double().mean(0)
    channels: list[int] = (shares >= run.config.share - 1e-9).nonzero()[:, 0].tolist()
    run.add(f"{rule}_outliers", where, Sample(float(len(channels)), null))
    width = beyond.shape[-1]
    chance = float(stats.binom.sf(len(channels) - 1, width, null / width))
    run.facts(**{f"{rule}_channels": channels, f"{rule}_chance": chance})
    return channels


def _beside_random_channels(run: Run[Any], gain: list[int], size: list[int]) -> Groups:
    """The sets that are not empty, each beside as many channels that are in none."""
    others = np.setdiff1d(np.arange(run.model.cfg.d_model), [*gain, *size])
    groups = {}
    for rule, own in (("gain", gain), ("size", size)):
        fitting = range(run.config.draws if len(own) <= len(others) else 0)
        sources = (seeded(run.config.seed, "channels", rule, draw) for draw in fitting)
        drawn = [source.choice(others, len(own), replace=False).tolist() for source in sources]
        if own:
            groups[rule] = torch.tensor([own, *drawn])
    run.drawn(random_channels={rule: chosen[1:].tolist() for rule, chosen in groups.items()})
    return groups
