"""How much of the attention logits is not explained by relative position, and its intervals.

Every figure is a function of statistics that are linear in `LogitForms.products` (means over all
pairs of different prompts) or in the prompts' mean logits, so that leaving one prompt out needs no
other run; axis 0 of every tensor here holds the figure of all prompts, then those without each
(`functional.leave_one_out`), and the jackknife makes its interval of them. The obvious number for a
prompt, its own product with the others' mean, has the same mean, but its interval is half as wide
as it has to be: a prompt enters the estimate twice, once in each factor. `tests` show both by
simulation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from ...functional.causal_mask import NO_VARIANCE
from ...functional.leave_one_out import versions_of_mean, versions_of_products
from ...functional.logit_forms import FORMS
from ...probes.logits import LogitFormValues
from ...results.estimates import Reference, Sample
from ...results.record import Record
from ...results.wording import interval_of, null_verdict, phrase, written
from ...runner.run import Run
from ...stats.effects import Values
from ...stats.jackknife import pseudo_values
from ._pairs import KEYS, PairSets


def by_prompt(versions: Float[Tensor, " n"]) -> Values:
    """One number a prompt, whose mean is the figure and whose spread is the jackknife's."""
    return pseudo_values(float(versions[0]), versions[1:].numpy())


def sample(versions: Float[Tensor, " n"], null: float = 0.0, draws: int = 1) -> Sample:
    """A figure beside its null."""
    return Sample(by_prompt(versions), null, draws)


class Components:
    """What was read in one run, of all prompts and without each.

    Attributes:
        by_head: By form, mean over prompts, nats^2 a pair.
        curve: The component query by query, over the last two pair sets.
        offsets: The mean logit at every offset, over the last two pair sets.
        layers: How many layers there are.
    """

    def __init__(self, values: LogitFormValues, forms: Sequence[str] = FORMS) -> None:
        """Take what `LogitForms` computed of these forms."""
        by_head = versions_of_products(values.products)
        # Heads are pooled before ratios: that of a head with hardly any logits is noise.
        self._pooled = {form: by_head[..., number].mean(2) for number, form in enumerate(forms)}
        self.by_head = {form: by_head[0, ..., number] for number, form in enumerate(forms)}
        self.curve = versions_of_products(values.by_query)[:, 1:].mean(1)
        self.offsets = versions_of_mean(values.offsets)
        self.layers = by_head.shape[1]

    def by_layer(self, number: int, form: str = "component") -> Float[Tensor, "n layer"]:
        """A form over pair set `number`, mean over heads, nats^2 a pair; not below 0."""
        return self._pooled[form][..., number].clamp_min(0.0)

    def component(self, number: int, first_layer: int = 1) -> Float[Tensor, " n"]:
        """The residual-stream component: mean over layers from one on, never layer 0."""
        return self.by_layer(number)[:, max(1, first_layer) :].mean(1)

    def shares(self, number: int, form: str = "component") -> Float[Tensor, "n layer"]:
        """A form over the variance of the mean logits, by layer; 0 where there is none."""
        total = self.by_layer(number, "total")
        share = self.by_layer(number, form) / total.clamp_min(NO_VARIANCE)
        return torch.where(total > NO_VARIANCE, share, 0.0)

    def share(self, number: int, form: str = "component") -> Float[Tensor, " n"]:
        """The same, mean over layers without layer 0."""
        return self.shares(number, form)[:, 1:].mean(1)


def depth_trend(shares: Float[Tensor, "n layer"]) -> Float[Tensor, " n"]:
    """How much the share grows from layer 1 to the last, by the line of least squares.

    A rank correlation moves in steps, so that leaving out a prompt says nothing of its error; it
    stands among the findings, without an interval.
    """
    layers = torch.linspace(0, 1, shares.shape[1] - 1, dtype=torch.float64)
    centred = layers - layers.mean()
    return shares[:, 1:] @ centred / (centred @ centred).clamp_min(1e-300)


def rank_correlation(shares: Float[Tensor, "n layer"]) -> float:
    """Spearman's correlation of share and layer, without layer 0; 0 where all are equal."""
    row = shares[0, 1:].numpy()
    if np.ptp(row) == 0:
        return 0.0
    return float(stats.spearmanr(np.arange(len(row)), row).statistic)


@dataclass(frozen=True)
class CleanRun:
    """The run without an edit, which edits are set against.

    Attributes:
        pairs: The pair sets.
        components: What was read.
        shifted: The null, by reading of the keys: the same with logits shifted along diagonals.
    """

    pairs: PairSets
    components: Components
    shifted: Mapping[str, Components]


def add_shares(run: Run[Any], clean: CleanRun) -> None:
    """The rows and arrays of the residual-stream component, beside its empirical null.

    A layer's component is not below 0, so that the mean of many lies above it by noise alone: only
    the shifted logits tell how far.
    """
    pairs, components = clean.pairs, clean.components
    figures = [("residual_share", "component", label) for label in pairs.labels]
    figures += [("visible_share", "visible", pairs.last), ("linear_share", "linear", pairs.last)]
    longest = {keys: pairs.number(pairs.last, keys) for keys in KEYS}
    for keys in KEYS:
        for metric, form, queries in figures:
            share, null = (
                sample(read.share(pairs.number(queries, keys), form))
                for read in (components, clean.shifted[keys])
            )
            reference = Reference(null, "diagonal_shift", "null")
            run.add(metric, keys, share, reference, queries=queries)
        trend = depth_trend(components.shares(longest[keys]))
        run.add("depth_trend", keys, sample(trend), queries=pairs.last)
    run.facts(rank_correlation={k: rank_correlation(components.shares(longest[k])) for k in KEYS})
    for name, read in (("residual_share", components.shares), ("component", components.by_layer)):
        values = [torch.stack([read(pairs.number(q, k))[0] for q in pairs.labels]) for k in KEYS]
        axes = {"keys": [*KEYS], "queries": pairs.labels}
        run.keep(name, torch.stack(values), "keys queries layer", **axes)
    for form in ("component", "total"):
        by_head = components.by_head[form][..., [*longest.values()]].permute(2, 0, 1)
        run.keep(f"{form}_by_head", by_head, "keys layer head", keys=[*KEYS])
    run.keep("curve", components.curve[0].T, "keys query", keys=[*KEYS])


def not_explained(result: Record) -> Iterator[str]:
    """The share that relative position does not explain, at the shortest and the longest range."""
    ranges = result.arrays["residual_share"].labels("queries")
    for queries in dict.fromkeys((ranges[0], ranges[-1])):
        (without, its_null), (whole, whole_null) = (
            [phrase(result, row, part) for part in ("value", "against")]
            for row in (
                result.find(metric="residual_share", condition=keys, queries=queries, against=None)
                for keys in ("without_key0", "all_keys")
            )
        )
        yield (
            f"Queries {queries}: without key 0, {without} of prompt-averaged attention logits is "
            f"not explained by relative position, {its_null}; with key 0, {whole}, {whole_null}."
        )


def by_depth(result: Record) -> Iterator[str]:
    """How the share without key 0 changes over layers, where it is above its null."""
    keys = {"condition": "without_key0"}
    trend = result.find(metric="depth_trend", **keys)
    share = result.find(metric="residual_share", against=None, queries=trend.queries, **keys)
    if all(null_verdict(contrast) == "above" for _, contrast in result.references(share)):
        correlation = result.findings["rank_correlation"]["without_key0"]
        points = written(100 * trend.value, "+.0f")
        ends = interval_of(trend, ".0%").replace("%", "")
        yield (
            f"From layer 1 to the last, the share without key 0 changes by {points} percentage "
            f"points{ends} ({null_verdict(trend)} 0; rank correlation with depth "
            f"{written(correlation, '+.2f')})."
        )
