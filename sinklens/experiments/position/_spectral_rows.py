"""Rows of spectra and wavelets: each number beside uniform, permuted and random attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...core.seeds import content_seed
from ...models.prompts import Prompts
from ...results.estimates import NOT_TESTED, Reference, Sample
from ...runner.run import Run
from ...stats.jackknife import pseudo_values
from ._signals import PERMUTED, RANDOM, UNIFORM, Extraction, Key, Spectra, extraction, mean_row
from ._spectra import (
    correlation,
    even_wavelet_entropies,
    flat_measures,
    frequencies,
    levels,
    scale_sensitivity,
)

CORRELATION, WITHOUT_MEAN = "entropy_correlation", "row:mean_removed"
SAMPLINGS = ("prefix", "strided", "random")
CASES = 4
"""The fewest prompts, or heads, or queries, over which anything is correlated."""
NO_ROWS = ("spectrum", "signal", "near", "far", "correlation")
NO_SPECTRUM = "there is no power to speak of, in attention or in what stands beside it"
Read = Mapping[Key, Float[Tensor, "prompt layer source head *more"]]
BySource = Float[Tensor, "prompt source"]


def add(run: Run[Any], metric: str, condition: str, values: BySource, null: Any = None) -> None:
    """Add the row of a value beside its nulls.

    Args:
        run: Takes the row.
        metric: What was measured.
        condition: Of what.
        values: Of attention, uniform attention, and the draws of both empirical nulls.
        null: The analytic null, if it is not uniform attention.
    """
    null, draws = values[:, 1] if null is None else null, run.config.draws
    if not bool(torch.isfinite(torch.as_tensor(null)).all() & torch.isfinite(values[:, 0]).all()):
        run.left_out(f"{metric} of {condition}", NO_SPECTRUM)
        return
    drawn = values[:, 2:].unflatten(1, (2, draws)).permute(1, 2, 0) if draws else []
    references = [
        Reference(Sample(one, null, draws), name, "null", models=NOT_TESTED)
        for name, one in zip((PERMUTED, RANDOM), drawn, strict=False)
        if bool(torch.isfinite(one).all())
    ]
    run.add(metric, condition, Sample(values[:, 0], null), *references)


def add_measures(run: Run[Any], read: Read, form: Extraction) -> None:
    """Everything that is a mean over heads and layers."""
    flat, even = flat_measures(form.length), even_of(form)
    for (metric, condition), values in read.items():
        if metric in NO_ROWS:
            continue
        null = flat[metric] if condition == WITHOUT_MEAN else None
        if metric == "wavelet_entropy":
            null = even[int(condition.removeprefix("scale"))]
        add(run, metric, condition, values.nanmean((1, 3)), null)
        if metric in ("spectral_entropy", "low_share") and condition == "row":
            _add_by_mask(run, metric, values)
    for name in ("every_key", "without_key0"):
        near, far = (read[side, name].mean((1, 3)) for side in ("near", "far"))
        if bool((far > 0).all()):
            add(run, "near_to_far", name, near / far)
        else:
            run.left_out(f"near_to_far of {name}", f"no key is more than {form.near} tokens away")
    _keep(run, read, form)


def even_of(form: Extraction) -> list[float]:
    """By scale, the largest wavelet entropy that there is."""
    return even_wavelet_entropies(form.lengths.tolist(), form.level) if form.wavelets else []


def _add_by_mask(run: Run[Any], metric: str, values: Tensor) -> None:
    """The same apart for layers with and without a window, where windows are short."""
    for kind, layers in run.capabilities.layer_groups(run.prompts.length):
        if kind:
            add(run, metric, f"row{kind}", values[:, layers].nanmean((1, 3)))


def _keep(run: Run[Any], read: Read, form: Extraction) -> None:
    """The mean spectrum beside its nulls, and by head what can be computed of every head."""
    at = [float(f"{one:.6g}") for one in frequencies(form.length)]
    spectra = read["spectrum", ""].nanmean((0, 1, 3))
    draws = run.config.draws
    groups = {"": slice(0, 1), f":{UNIFORM}": slice(1, 2), f":{PERMUTED}": slice(2, 2 + draws)}
    groups[f":{RANDOM}"] = slice(2 + draws, None)
    for name, which in groups.items():
        if len(spectra[which]) and bool(torch.isfinite(spectra[which]).all()):
            run.keep(f"spectrum{name}", spectra[which].mean(0), "frequency", frequency=at)
    for metric in ("spectral_entropy", "selectivity", "low_share"):
        by_head = read[metric, "row"][:, :, 0].nanmean(0)
        if bool(torch.isfinite(by_head).all()):
            run.keep(metric, by_head, "layer head")


def add_correlations(run: Run[Any], read: Read) -> None:
    """Of positional and spectral entropy: over prompts, heads of a layer, and queries."""
    for signal, over in (("row", "prompts"), ("mean_row", "prompts:mean_row")):
        sides = [read[name, signal] for name in ("positional_entropy", "spectral_entropy")]
        values = over_prompts(*sides) if len(run.prompts) >= CASES else None
        if values is None:
            run.left_out(
                f"{CORRELATION} of {over}",
                f"it takes at least {CASES} prompts, and heads whose entropies differ",
            )
        else:
            add(run, CORRELATION, over, values, 0.0)
    sides = [read[name, "row"] for name in ("positional_entropy", "spectral_entropy")]
    found = {"queries": read["correlation", "queries"].nanmean((1, 3))}
    if sides[0].shape[-1] >= CASES:
        found["heads"] = correlation(*sides).nanmean(1)
    else:
        run.left_out(f"{CORRELATION} of heads", f"it takes at least {CASES} heads in a layer")
    # Later queries have longer rows, so that both entropies grow under uniform attention as well.
    nulls: dict[str, Any] = {"queries": found["queries"][:, 1].nan_to_num(0.0), "heads": 0.0}
    for over, values in found.items():
        if bool(torch.isfinite(values[:, 0]).all()):
            add(run, CORRELATION, over, values, nulls[over])
        else:
            run.left_out(f"{CORRELATION} of {over}", "their entropies do not differ")


def over_prompts(
    positional: Float[Tensor, "prompt layer source head"],
    spectral: Float[Tensor, "prompt layer source head"],
) -> BySource | None:
    """Jackknife pseudo-values of the mean correlation over prompts; None where none varies."""

    def mean(kept: list[int]) -> Float[Tensor, " source"]:
        sides = [side[kept].movedim(0, -1) for side in (positional, spectral)]
        return correlation(*sides).nanmean((0, 2))

    everyone = list(range(len(positional)))
    whole = mean(everyone)
    without = torch.stack([mean([kept for kept in everyone if kept != one]) for one in everyone])
    if not bool(torch.isfinite(without[:, 0]).all()):
        return None
    columns = zip(whole.tolist(), without.T.numpy(), strict=True)
    return torch.from_numpy(np.stack([pseudo_values(one, part) for one, part in columns], 1))


def sampled_prompts(run: Run[Any]) -> dict[str, Prompts]:
    """Parts of the prompts by condition, such as `prefix:0.5`; position 0 is in all of them."""
    made, length = {}, run.prompts.length
    for share in run.config.scales if run.config.wavelets else ():
        size = int(share * length)
        if levels(size) < 1:
            run.left_out(
                f"scale_sensitivity at {share:g}",
                f"a level of db2 wavelets takes 6 tokens, and this leaves {size} of {length}",
            )
            continue
        for kind in SAMPLINGS:
            rows = [_chosen(row, size, kind, run.config.seed) for row in run.prompts.tokens]
            sampled = replace(run.prompts, tokens=torch.stack(rows), answers=None)
            made[f"{kind}:{share:g}"] = sampled
    return made


def _chosen(tokens: Tensor, size: int, kind: str, seed: int) -> Tensor:
    """Some tokens of a prompt, in their order."""
    length = len(tokens)
    if kind == "prefix":
        return tokens[:size]
    if kind == "strided":
        return tokens[torch.arange(size) * length // size]
    random = np.random.default_rng([content_seed(tokens, seed), size])
    later = np.sort(random.choice(np.arange(1, length), size - 1, replace=False))
    return tokens[torch.from_numpy(np.concatenate([[0], later]))]


def add_sensitivity(
    run: Run[Any], signal: Tensor, samples: Mapping[str, Prompts], form: Extraction
) -> None:
    """How much wavelet coefficients of the mean row change where tokens are left out."""
    for condition, prompts in samples.items():
        fewer = extraction(
            prompts.length,
            run.config.queries,
            form.causal,
            windows=(),
            near=form.near,
            wavelets=False,
        )
        probe = Spectra(run, prompts.tokens, fewer, mean_row)
        (read,) = run.read(probe, prompts=prompts)
        changed = scale_sensitivity(signal, read["signal", ""])
        add(run, "scale_sensitivity", condition, changed.mean((1, 3)))


def published(run: Run[Any], values: Mapping[str, Mapping[str, float]]) -> None:
    """Published numbers beside those of ours that were measured."""
    measured = {(row.effect.metric, row.effect.condition) for row in run.rows}
    for metric, by_condition in values.items():
        for condition, value in by_condition.items():
            if (metric, condition) in measured:
                run.add(metric, f"published:{condition}", Sample(value))
