"""Clean and corrupted prompts: values of one run written into the other.

    pairs = sinklens.Prompts.pairs(model, clean, corrupted, answers=[(" right", " wrong"), ...])
    result = sinklens.compare_pairs(
        model,
        pairs,
        treatment={"position 0": sinklens.patch_position(model, pairs, layer=2)},
        control={"later_position": sinklens.patch_position(model, pairs, layer=2, position=4)},
    )

The rows are those of `compare_interventions`. Where `logit_diff` D is measured, a row more says how
much of it is recovered,

    (D_patched - D_corrupted) / (D_clean - D_corrupted),

each D a mean over prompts: the ratio of means. It is 0 in the corrupted run and 1 in the clean run,
whichever is patched. The mean of the pairs' own fractions is not reported: a pair whose two runs
hardly differ has a denominator near 0, and one such pair decides that mean; in the ratio of means a
pair counts as much as its two runs differ. The pairs' own fractions are in
`arrays["recovered_by_pair"]`. The interval is the jackknife's over pairs (`stats.jackknife`). Where
the 95 % interval of D_clean - D_corrupted holds 0, so may the denominator, and no interval of the
ratio would be bounded (Fieller 1954): there is no such row, and a note.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UsageError
from ..core.labels import Head
from ..core.protocol import HookedModel
from ..engine import evaluate
from ..hooks.heads import HeadValues, ablate_heads
from ..hooks.intervention import Intervention
from ..hooks.position0 import patch_position0, require_patch
from ..models.prompts import Pairs, Prompts
from ..probes import HeadOutputs, PositionValues
from ..results.effect_sentences import every_row
from ..results.estimates import Measure, Reference, Sample
from ..results.record import Record
from ..results.result import ExperimentResult
from ..runner.compare import Compared
from ..runner.config import ExperimentConfig
from ..runner.registry import run
from ..runner.run import Run
from ..stats.effects import Draws, Values, interval
from ..stats.jackknife import pseudo_values
from .own import compare_given, own_experiment

NAME = "compare_pairs"
LOGIT_DIFF, RECOVERED = "logit_diff", "recovered_fraction"
MEASURES = {RECOVERED: Measure("of clean - corrupted", "the run without the patch", ".3g")}


def patch_position(
    model: HookedModel, pairs: Pairs, layer: int, *, part: str = "residual", position: int = 0
) -> Intervention:
    """What one position of the other run holds at a layer, written into the patched run.

    Args:
        model: A causal model.
        pairs: The pairs; `pairs.into` names the run that is patched.
        layer: The block whose input, keys or values are patched.
        part: `residual`, `key` or `value`; the last two leave the position's own output as it is.
        position: The position, 0 or a later one (a control).

    Raises:
        UsageError: These are no pairs, there is no such layer, part or position, or the two of a
            pair are the same up to there, and with them what a causal model holds.
        SinklensError: The model is not causal.
    """
    _require_pairs(pairs)
    require_patch(model, layer, "other_token", part)
    _require_different(pairs, position)
    values = PositionValues(model, [part], [layer], position)
    evaluate(model, pairs.written, [], [], probes=[values], progress=False)
    output = None
    if part != "residual":
        own = PositionValues(model, ["z"], [layer], position)
        evaluate(model, pairs.patched, [], [], probes=[own], progress=False)
        output = own.compute()["z", layer]
    edit = patch_position0(
        model,
        layer,
        part=part,
        values=values.compute()[part, layer],
        own_output=output,
        position=position,
    )
    return replace(edit, name=f"position{position}:{part}")


def patch_heads(model: HookedModel, pairs: Pairs, heads: Iterable[Head]) -> Intervention:
    """The outputs of heads in the other run, at all positions, written into the patched run.

    Args:
        model: The model.
        pairs: The pairs; `pairs.into` names the run that is patched.
        heads: Pairs of layer and query head, patched together.

    Raises:
        UsageError: These are no pairs, or there is no such head, or none at all.
    """
    _require_pairs(pairs)
    heads = list(heads)
    ablate_heads(model, heads, "zero")  # refuses heads that do not exist
    outputs = _head_outputs(model, pairs.written, sorted({layer for layer, _ in heads}))
    return replace(ablate_heads(model, heads, "resample", values=outputs), name="heads")


def compare_pairs(
    model: HookedModel,
    pairs: Pairs,
    *,
    treatment: Any,
    control: Any = None,
    metrics: Any = (),
    null_models: int = ExperimentConfig.null_models,
    seed: int = 0,
    batch_size: int | None = None,
    memory: int | None = None,
    progress: bool | None = None,
) -> ExperimentResult:
    """The effect of patches between clean and corrupted runs, and how much they recover.

    The recovered fraction is a ratio of means over pairs, for the reasons given in this module.

    Args:
        model: As in `sinklens.run`; it is left unchanged.
        pairs: The pairs (`Prompts.pairs`); the run that `pairs.into` names is patched.
        treatment: What is patched (`patch_position`, `patch_heads`, or hooks of any other form), as
            in `compare_interventions`.
        control: The same for the control.
        metrics: Names, functions or `Metric`s; by default `logit_diff`.
        null_models: As in `compare_interventions`.
        seed: Seed of the resamples of the tests.
        batch_size: Prompts in a forward pass.
        memory: Bytes that a forward pass may hold.
        progress: Whether to show progress; None shows it in a terminal or a notebook.

    Raises:
        SinklensError: An intervention did not happen, or cannot be made on this model.
        UsageError: These are no pairs, or an argument is none of these forms.
    """
    _require_pairs(pairs)

    def function(run: Run[Any]) -> None:
        compared = compare_given(run, treatment, control)
        run.facts(patched=pairs.into, other_prompts=pairs.written.hash)
        if any(metric.name == LOGIT_DIFF for metric in compared.metrics):
            _add_recovered(run, pairs, compared)

    declared = own_experiment(
        NAME,
        "What do these patches between clean and corrupted runs do, and how much do they recover?",
        function,
        metrics=(LOGIT_DIFF,),
        measures=MEASURES,
        says=(_sentences,),
    )
    return run(
        declared,
        model,
        pairs.patched,
        seed=seed,
        progress=progress,
        metrics=metrics,
        null_models=null_models,
        batch_size=batch_size,
        memory=memory,
    )


def _sentences(result: Record) -> Iterator[str]:
    """A sentence for every row; an effect is one against the run that is patched."""
    for line in every_row(result):
        yield line.replace(
            "against the clean run", f"against the unpatched {result.findings['patched']} run"
        )


def recovered(patched: Draws, clean: Values, corrupted: Values) -> Draws:
    """The ratio of means, by draw, as one number a pair: the jackknife's pseudo-values.

    Args:
        patched: `logit_diff` of the patched run, by draw and pair.
        clean: That of the clean run.
        corrupted: That of the corrupted run.

    Returns:
        By draw and pair; the mean over pairs is the ratio of means. One pair has it as it is.
    """
    gained, gap = patched - corrupted, clean - corrupted
    whole = np.asarray(gained.mean(1) / gap.mean())
    if len(gap) == 1:
        return whole[:, None]
    without = (gained.sum(1, keepdims=True) - gained) / (gap.sum() - gap)
    return np.stack([pseudo_values(*one) for one in zip(whole, without, strict=True)])


def _add_recovered(run: Run[Any], pairs: Pairs, compared: Compared) -> None:
    """The rows of the recovered fraction: of treatments, controls, and their difference."""
    axis = [metric.name for metric in compared.metrics].index(LOGIT_DIFF)
    first = compared.comparisons[0].treatment[0]
    (unpatched,) = _effects(compared, [(first,)], axis)
    mine = unpatched.sides(len(pairs))[1][0]
    other = run.evaluate([], metrics=[LOGIT_DIFF], prompts=pairs.written).clean[0].double().numpy()
    clean, corrupted = (mine, other) if pairs.into == "clean" else (other, mine)
    gap = clean - corrupted
    low, high = interval(gap)
    if not gap.mean() or (low is not None and high is not None and low <= 0 <= high):
        said = "" if low is None else f" [{low:.3g}, {high:.3g}]"
        run.note(
            f"No recovered fraction: logit_diff of the clean and the corrupted run differ by "
            f"{gap.mean():.3g}{said}, which cannot be told from 0 as a denominator."
        )
        return
    null, own = float(pairs.into == "clean"), []

    def sample(effect: Sample) -> Sample:
        patched = np.atleast_2d(effect.sides(len(pairs))[0])
        return Sample(recovered(patched, clean, corrupted), null, effect.draws)

    for one in compared.comparisons:
        (effect,) = _effects(compared, [(edit,) for edit in one.treatment], axis)
        references = []
        for control in one.made:
            beside, its = _effects(compared, one.pairs(control), axis)
            references.append(Reference(sample(its), control.name, own=sample(beside)))
        _, layer, head = one.place
        run.add(RECOVERED, one.condition, sample(effect), *references, layer=layer, head=head)
        by_draw = np.atleast_2d(effect.sides(len(pairs))[0])
        own.append((by_draw.mean(0) - corrupted) / np.where(gap == 0, np.nan, gap))
    run.keep(
        "recovered_by_pair",
        torch.from_numpy(np.stack(own)).float(),
        "condition prompt",
        condition=[one.condition for one in compared.comparisons],
    )


def _effects(
    compared: Compared, groups: Sequence[tuple[Intervention, ...]], axis: int
) -> list[Any]:
    """The effects of interventions; logits are read, which every intervention can reach."""
    found = compared.beside(groups, axis)
    assert found is not None
    return list(found.effects)


def _head_outputs(model: HookedModel, prompts: Prompts, layers: Sequence[int]) -> HeadValues:
    """Every output of heads by layer, 0 behind the end of shorter prompts."""
    shape = (len(prompts), prompts.longest, int(model.cfg.n_heads), int(model.cfg.d_head))
    found: dict[int, Tensor] = {layer: torch.zeros(shape) for layer in layers}
    for same in prompts.batches(len(prompts), prompts.by_length()):
        probe = HeadOutputs(model, layers)
        evaluate(model, prompts.take(same), [], [], probes=[probe], progress=False)
        for layer, outputs in probe.compute().items():
            found[layer][same, : outputs.shape[1]] = outputs
    return found


def _require_pairs(pairs: Pairs) -> None:
    """Refuse what are no pairs.

    Raises:
        UsageError: They are something else.
    """
    if not isinstance(pairs, Pairs):
        raise UsageError(
            f"pairs are made by Prompts.pairs(model, clean, corrupted), and these are a "
            f"{type(pairs).__name__}; compare_interventions takes other prompts"
        )


def _require_different(pairs: Pairs, position: int) -> None:
    """Refuse a position at which a causal model holds the same in both runs of a pair.

    Raises:
        UsageError: There is none, or what stands up to it is the same in the two of a pair.
    """
    if not 0 <= position < pairs.clean.length:
        raise UsageError(
            f"there is no position {position} in all of these: {pairs.clean.size}; positions count "
            "from 0"
        )
    upto = pairs.clean.tokens[:, : position + 1] == pairs.corrupted.tokens[:, : position + 1]
    same = upto.all(1).nonzero().flatten().tolist()
    if same:
        bos = " (BOS)" if pairs.clean.bos and position == 0 else ""
        raise UsageError(
            f"in {len(same)} of {len(pairs)} pairs (the first: pair {same[0]}) both prompts have "
            f"the same tokens up to position {position}{bos}, and with them all that a causal "
            "model holds there; patch a later position, or make pairs that differ from the first "
            "token on with Prompts.pairs(..., bos=False)"
        )
