"""The rows of `absolute_position`: every figure beside its null."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...probes.log_split import SinkReadoutValues
from ...runner.old_comparison import constant_row, with_control
from ...stats.effects import Row, Values, paired_row
from ...stats.nulls import uniform_sink_mass
from ._components import CausalMask, Components, by_prompt, depth_trend
from ._edits import KEYS, EditedRuns, PairSets, above_null, edit_rows
from ._fingerprint import Carried, Fingerprint

SINK_WEIGHTS = (0.1, 0.2, 0.3, 0.5)
SHOWN_WEIGHT = 0.3
COSINES = ("stream", "normed")
Figure = Callable[[CausalMask], Tensor]


def name(runs: EditedRuns) -> str:
    """The name of an edit: its condition, and for a patch its layer."""
    layer = runs.comparison.treatment[0].layer
    return runs.comparison.condition + ("" if layer is None else f"@L{layer}")


def footnotes(conditions: Sequence[str]) -> dict[str, str]:
    """What a reader of a condition's rows has to know."""
    if "zero" not in conditions:
        return {}
    return {
        "zero": "with norms without bias the stream at position 0 then stays at 0 in every layer, "
        "which is no token's trajectory"
    }


def _measured(
    metric: str,
    condition: str,
    versions: Tensor,
    null: float,
    unit: str,
    queries: str | None = None,
    kind: str = "measurement",
) -> Row:
    """A figure by version, beside the value of its null."""
    values = by_prompt(versions)
    nulls = np.full_like(values, null)
    return paired_row(metric, condition, kind, values, nulls, unit=unit, queries=queries)


def shares(
    sets: PairSets, clean: Components, moved: Mapping[str, Components], seed: int
) -> Iterator[Row]:
    """The residual-stream component by range of queries, with its empirical null; depth trend.

    A layer's component is not below 0, so that the mean of many lies above it by noise alone: only
    the moved logits tell how far.
    """
    unit, longest = "share of the variance", sets.labels[-1]
    wanted = [("residual_share", "component", label) for label in sets.labels]
    wanted += [("visible_share", "visible", longest), ("linear_share", "linear", longest)]
    for keys in KEYS:
        for metric, form, label in wanted:
            number, named = sets.number(label, keys), (metric, f"{keys}:moved")
            share, null = clean.share(number, form), moved[keys].share(number, form)
            yield _measured(metric, keys, share, 0.0, unit, label)
            yield _measured(*named, null, 0.0, unit, label, kind="null")
            how: dict[str, Any] = {"unit": unit, "queries": label, "tested": True, "seed": seed}
            yield paired_row(*named, "contrast", by_prompt(share), by_prompt(null), **how)
        trend = depth_trend(clean.shares(sets.number(longest, keys)))
        yield _measured("depth_trend", keys, trend, 0.0, "share, first to last", longest)


def mask(
    masks: Mapping[str, CausalMask],
    shuffled: Mapping[str, Sequence[CausalMask]],
    clean: Components,
    sets: PairSets,
    window: int,
    seed: int,
) -> Iterator[Row]:
    """The causal-mask component, beside flat logits (uniform attention) and shuffled offsets."""
    longest = sets.labels[-1]
    for keys, one in masks.items():
        number, others = sets.number(longest, keys), shuffled[keys]

        def slope(of: CausalMask) -> Tensor:
            return _over_heads(of.slope())

        def extra(of: CausalMask) -> Tensor:
            return _over_heads(of.extra_r2())

        def cost(of: CausalMask) -> Tensor:
            return _over_heads(of.window_kl(window))

        def share(of: CausalMask, number: int = number) -> Tensor:
            return causal_share(of, clean, number)[:, 1:].mean(1)

        flat = one.flat()
        figures: list[tuple[str, str, Figure, float]] = [
            ("causal_slope", "nats by log(i + 1)", slope, float(slope(flat)[0])),
            ("causal_r2", "share of the variance", extra, float(extra(flat)[0])),
            (f"window_kl:{window}", "nats", cost, float(cost(flat)[0])),
            # Flat logits have no other component.
            ("causal_share", "share of both components", share, 1.0),
        ]
        for metric, unit, figure, null in figures:
            control = None
            if others:
                control = by_prompt(torch.stack([figure(other) for other in others]).mean(0))
            measured = _measured(metric, keys, figure(one), null, unit, longest)
            yield from with_control(measured, control, null, seed, len(others))


def causal_share(one: CausalMask, clean: Components, number: int) -> Tensor:
    """Variance of log Z over it plus the residual-stream component, by version and layer."""
    variance = one.variance().mean(2)
    both = variance + clean.by_layer(number)
    return torch.where(both > 0, variance / both.clamp_min(1e-300), 0.0)


def _over_heads(values: Tensor) -> Tensor:
    """The mean over heads, then over layers without layer 0."""
    return values[:, 1:].mean((1, 2))


def heads(
    readouts: SinkReadoutValues,
    pairs: Sequence[tuple[int, SinkReadoutValues, SinkReadoutValues]],
    length: int,
    windows: Sequence[int],
    seed: int,
) -> Iterator[Row]:
    """How many heads read position 0, by weight and by what it brings in, beside a later key.

    Nulls: uniform attention, whose heads all have the same weight; and for the readout uniform
    attention over values of the same norm that have nothing to do with each other
    (`_even_readout`).

    Args:
        readouts: What heads read at position 0.
        pairs: For each draw of the control its position, and what the queries after it read there
            and at position 0.
        length: Positions in each prompt.
        windows: By layer, how many keys a query sees.
        seed: Decides the resamples of the tests.
    """
    unit = "share of heads"
    nulls: dict[str, Callable[[int], float]] = {
        "weight": lambda key: float(
            np.mean([uniform_sink_mass(length, window=w, key=key) for w in windows])
        ),
        "readout": lambda key: float(np.mean([_even_readout(length, w, key) for w in windows])),
    }
    for field, null in nulls.items():

        def share(of: SinkReadoutValues, field: str = field) -> Values:
            reading: Tensor = getattr(of, field) > SHOWN_WEIGHT
            return np.asarray(reading.double().mean((1, 2)))

        named = ("sink_reading_heads", f"{field}>{SHOWN_WEIGHT}")
        mine = share(readouts)
        even = np.full_like(mine, float(null(0) > SHOWN_WEIGHT))
        yield paired_row(*named, "measurement", mine, even, unit=unit)
        if pairs:
            there = np.mean([share(read) for _, read, _ in pairs], 0)
            here = np.mean([share(read) for _, _, read in pairs], 0)
            even = np.full_like(
                mine, np.mean([null(place) > SHOWN_WEIGHT for place, _, _ in pairs])
            )
            how: dict[str, Any] = {"unit": unit, "n_draws": len(pairs)}
            yield paired_row(*named, "control", there, even, **how)
            yield paired_row(*named, "contrast", here, there, tested=True, seed=seed, **how)


def _even_readout(length: int, window: int, key: int) -> float:
    """The mean over queries after a key of 1 / sqrt(keys that a query sees), 0 where it is hidden.

    Of uniform attention over values of the same norm that have nothing to do with each other.
    """
    queries = np.arange(key + 1, length)
    seen = np.minimum(queries + 1, window)
    return float(np.mean(np.where(queries - key < window, 1 / np.sqrt(seen), 0.0)))


def first_token(told: Fingerprint, seed: int) -> Iterator[Row]:
    """What later queries carry of the first token, mean over the layers that were read."""
    chance = 1 / len(told.tokens)
    for number, query in enumerate(told.queries):
        label = f"{query}:{query + 1}"

        def ratio(of: Carried, number: int = number) -> Tensor:
            return of.ratio[..., number].mean(1)

        def right(of: Carried, number: int = number) -> Values:
            return np.asarray(of.accuracy[..., number].mean(1))

        control = None if told.control is None else by_prompt(ratio(told.control))
        measured = _measured(
            "fingerprint", "between_over_within", ratio(told.carried), 0.0, "ratio", label
        )
        yield from with_control(measured, control, 0.0, seed, 1)
        mine = right(told.carried)
        measured = paired_row(
            "fingerprint",
            "nearest_centroid",
            "measurement",
            mine,
            np.full_like(mine, chance),
            unit="share of tokens",
            queries=label,
        )
        control = None if told.control is None else right(told.control)
        yield from with_control(measured, control, chance, seed, 1)
    last = {"layer": told.layers[-1], "prompts": len(told.carried.accuracy)}
    for number, name in enumerate(COSINES[: told.cosine.shape[1]]):
        cosine, null = (float(of[-1, number]) for of in (told.cosine, told.later_cosine))
        yield constant_row("position0_cosine", name, cosine, null, "cosine", **last)


def edits(
    runs: Iterable[EditedRuns],
    sets: PairSets,
    clean: Components,
    moved: Mapping[str, Components],
    seed: int,
) -> Iterator[Row]:
    """What each edit removes.

    BOS: at every range without key 0, at the shortest and the longest with all keys, and the
    component itself at the shortest. Patches: at the shortest range, the component itself where
    there is no share to remove. The rest is in the arrays.
    """
    for one, keys, label in _wanted(runs, sets):
        rows = edit_rows(one, sets, clean, moved[keys], label, keys, seed)
        yield from rows.get("removed", [])
        patch = one.comparison.treatment[0].layer is not None
        if label == sets.labels[0] and (not patch or "removed" not in rows):
            yield from rows.get("component", [])


def nothing_to_remove(
    runs: Sequence[EditedRuns],
    sets: PairSets,
    clean: Components,
    moved: Mapping[str, Components],
) -> dict[str, str]:
    """Where `removed` has no rows, and why: by keys and range, and by edit where they differ."""
    lacking: dict[tuple[str, str, str], list[str]] = {}
    asked: Counter[tuple[str, str]] = Counter()
    for one, keys, label in _wanted(runs, sets):
        asked[keys, label] += 1
        first, number = one.first_layer(keys), sets.number(label, keys)
        if first >= clean.layers:
            reason = "no layer behind the patched one is left that could change"
        elif not above_null(clean, moved[keys], number, first):
            reason = "the component is not above its null, and a share of nothing says nothing"
        else:
            continue
        lacking.setdefault((keys, label, reason), []).append(name(one))
    found = {}
    for (keys, label, reason), named in lacking.items():
        some = f" ({', '.join(named)})" if len(named) < asked[keys, label] else ""
        found[f"removed_{keys} at {label}{some}"] = reason
    return found


def _wanted(runs: Iterable[EditedRuns], sets: PairSets) -> Iterator[tuple[EditedRuns, str, str]]:
    """Each edit with the keys and ranges at which the table asks what it removes."""
    first, last = sets.labels[0], sets.labels[-1]
    for one in runs:
        patch = one.comparison.treatment[0].layer is not None
        for keys, without in KEYS.items():
            labels = sets.labels if without else (first, last)
            for label in dict.fromkeys([first] if patch else labels):
                yield one, keys, label
