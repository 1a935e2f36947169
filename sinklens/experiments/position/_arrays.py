"""The arrays of `absolute_position`: curves over queries, layers and heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...probes.log_split import SinkReadoutValues
from ...results.record import Array
from ._components import CausalMask, Components
from ._edits import KEYS, EditedRuns, PairSets, removed
from ._fingerprint import Fingerprint
from ._rows import SINK_WEIGHTS, causal_share


def arrays(
    sets: PairSets,
    clean: Components,
    runs: Sequence[EditedRuns],
    masks: Mapping[str, CausalMask],
    readouts: SinkReadoutValues,
    told: Fingerprint | None,
) -> dict[str, Array]:
    """Curves, layers and heads; keys are `all_keys`, then `without_key0`."""
    numbers = [[sets.number(label, keys) for label in sets.labels] for keys in KEYS]
    by_layer = ("keys", "queries", "layer")
    weights = torch.stack([readouts.weight.mean(0), readouts.readout.mean(0)])
    reading = [(weights > least).double().mean((1, 2)) for least in SINK_WEIGHTS]
    longest = [row[-1] for row in numbers]
    found = {
        "residual_share": Array(_each(numbers, lambda n: clean.shares(n)[0]), by_layer),
        "component": Array(_each(numbers, lambda n: clean.by_layer(n)[0]), by_layer),
        "component_by_head": Array(
            clean.by_head["component"][..., longest].permute(2, 0, 1), ("keys", "layer", "head")
        ),
        "total_by_head": Array(
            clean.by_head["total"][..., longest].permute(2, 0, 1), ("keys", "layer", "head")
        ),
        "causal_share": Array(
            torch.stack(
                [causal_share(masks[k], clean, n)[0] for k, n in zip(KEYS, longest, strict=True)]
            ),
            ("keys", "layer"),
        ),
        "causal_slope": Array(
            torch.stack([masks[keys].slope()[0] for keys in KEYS]), ("keys", "layer", "head")
        ),
        "causal_variance": Array(
            torch.stack([masks[keys].variance()[0] for keys in KEYS]), ("keys", "layer", "head")
        ),
        "log_z": Array(masks["all_keys"].log_z[0].mean(1), ("layer", "query")),
        "toeplitz": Array(masks["all_keys"].offsets[0], ("layer", "head", "offset")),
        "curve": Array(clean.curve[0].T, ("keys", "query")),
        "sink_weight": Array(readouts.weight.mean(0), ("layer", "head")),
        "sink_readout": Array(readouts.readout.mean(0), ("layer", "head")),
        "sink_reading_heads": Array(torch.stack(reading, 1), ("criterion", "threshold")),
    }
    if runs:
        found |= _edited(numbers, clean, runs)
    if told is not None:
        found["fingerprint_ratio"] = Array(told.carried.ratio[0], ("layer_read", "query_read"))
        found["fingerprint_accuracy"] = Array(
            told.carried.accuracy.mean(0), ("layer_read", "query_read")
        )
        found["position0_cosine"] = Array(told.cosine, ("layer_read", "norm"))
    return found


def _edited(
    numbers: Sequence[Sequence[int]], clean: Components, runs: Sequence[EditedRuns]
) -> dict[str, Array]:
    """Curves and removed shares under every edit, in the order of `settings["compared"]`."""
    curves = [torch.stack([run.curve[0].T for run in one.treatment]).mean(0) for one in runs]
    shares = [
        torch.stack(
            [
                torch.stack([_removed(clean, one, n, keys) for n in row])
                for keys, row in zip(KEYS, numbers, strict=True)
            ]
        )
        for one in runs
    ]
    first = [row[0] for row in numbers]
    layers = [
        torch.stack([1 - _after(one, n) / clean.by_layer(n)[0] for n in first]) for one in runs
    ]
    return {
        "curve_after": Array(torch.stack(curves), ("edit", "keys", "query")),
        "removed": Array(torch.stack(shares), ("edit", "keys", "queries")),
        "removed_by_layer": Array(
            torch.nan_to_num(torch.stack(layers), posinf=0, neginf=0), ("edit", "keys", "layer")
        ),
    }


def _removed(clean: Components, one: EditedRuns, number: int, keys: str) -> Tensor:
    """The removed share of an edit; NaN where there is nothing to remove."""
    share = removed(clean.component(number, one.first_layer(keys)), one.after(number, keys))
    return torch.tensor(torch.nan, dtype=torch.float64) if share is None else share[0]


def _after(one: EditedRuns, number: int) -> Tensor:
    """The component by layer under an edit, mean over draws."""
    return torch.stack([run.by_layer(number)[0] for run in one.treatment]).mean(0)


def _each(numbers: Sequence[Sequence[int]], read: object) -> Tensor:
    """A figure of every pair set, keys by queries."""
    assert callable(read)
    return torch.stack([torch.stack([read(number) for number in row]) for row in numbers])
