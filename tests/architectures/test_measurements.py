"""Every architecture: what experiments read and edit is what plain Hugging Face code gives.

Each test writes an experiment's definitions out once more, on the attention, values and residual
streams of a plain model (`tests.reference`). Experiments that the page refuses are passed over.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sinklens.models.capabilities import check
from tests.architectures.beside import attention, bridge, of_every, plain, run, works
from tests.architectures.cells import TOKENS
from tests.architectures.models import ARCHITECTURES
from tests.architectures.test_architectures import compare
from tests.reference import plain_families as reference
from tests.reference.plain_attention import Attention, edited, without_key0, written

every = of_every("Llama 3")
LENGTH = TOKENS.shape[1]
SINK = 0.3
CLOSE = {"rel": 1e-4, "abs": 1e-4}


def outputs(one: Attention) -> Tensor:
    """What heads read, A v, `[prompt, head, pos, d]`."""
    return one.weights @ one.values


def sink_mass(name: str) -> Tensor:
    """`[prompt, layer, head]`."""
    return torch.stack([a.weights[:, :, 1:, 0].mean(-1) for a in attention(name).values()], 1)


def value_of(result: Any, metric: str, condition: str, **more: Any) -> float:
    return float(result.find(metric=metric, condition=condition, against=None, **more).value)


def has(result: Any, metric: str, condition: str) -> bool:
    return any((row.metric, row.condition) == (metric, condition) for row in result.effects)


def logit_gap(one: Attention) -> Tensor:
    """Score of key 0 less the mean of the other keys that a query sees, `[prompt, head]`."""
    others = one.seen.clone()
    others[:, 0] = False
    queries = one.seen[:, 0] & others.any(1)
    queries[0] = False
    gaps = [
        one.scores[:, :, i, 0] - one.scores[:, :, i, others[i]].mean(-1)
        for i in queries.nonzero()[:, 0].tolist()
    ]
    return torch.stack(gaps, -1).mean(-1)


@every
def test_active_dormant(name: str) -> None:
    if not works(name, "active_dormant"):
        return
    layers, settings = attention(name), {"removed": (0.3,), "random_weights": False}
    result = run("active_dormant", name, conditions="first_token_weight", **settings)
    gaps = torch.stack([logit_gap(one) for one in layers.values()])
    if "sink_logit" not in result.settings["left_out"]:
        found = value_of(result, "sink_logit", "position0")
        assert found == pytest.approx(float(gaps.mean()), **CLOSE)
    behind = [written(plain(name), at, one.values).norm(dim=-1) for at, one in layers.items()]
    drain = torch.stack([one[..., 0] / one[..., 1:].mean(-1) for one in behind]).mean()
    assert value_of(result, "value_drain", "position0") == pytest.approx(float(drain), **CLOSE)
    norms = [one.norm(dim=-1) for one in reference.streams(plain(name), TOKENS)]
    peak = torch.stack([one[:, 0] / one[:, 1:].mean(1) for one in norms]).amax(0).mean()
    assert value_of(result, "residual_peak", "position0") == pytest.approx(float(peak), **CLOSE)

    weight = torch.stack([one.weights[..., 0].mean((0, 2)) for one in layers.values()])
    entropy = [torch.special.entr(one.weights).sum(-1).mean((0, 2)) for one in layers.values()]
    value = [one.values.norm(dim=-1) for one in layers.values()]
    wanted = {
        "first_token_weight": weight,
        "entropy": torch.stack(entropy),
        "first_value_norm": torch.stack([one[..., 0].mean(0) for one in value]),
        "value_norm": torch.stack([one.mean((0, 2)) for one in value]),
    }
    if not check(bridge(name)).gated:
        norm = [outputs(one).norm(dim=-1) for one in layers.values()]
        wanted["last_output_norm"] = torch.stack([one[..., -1].mean(0) for one in norm])
        wanted["output_norm"] = torch.stack([one.mean((0, 2)) for one in norm])
    scores = result.arrays["scores"]
    for score, values in wanted.items():
        found = scores.values[scores.labels("score").index(score)]
        torch.testing.assert_close(found.float(), values, atol=1e-4, rtol=1e-4, msg=score)

    gone: dict[int, list[int]] = {}
    for number in weight.flatten().argsort(descending=True)[: round(0.3 * weight.numel())].tolist():
        place, head = divmod(number, weight.shape[1])
        gone.setdefault([*layers][place], []).append(head)
    clean = reference.logits(plain(name), TOKENS)
    without = reference.without_heads(plain(name), TOKENS, gone, weight.shape[1])
    compare(result, clean, without)


@every
def test_bias_constancy(name: str) -> None:
    if not works(name, "bias_constancy"):
        return
    layers, first, head = attention(name), 4, 2
    place = min(1, len(layers) - 1)
    layer = [*layers][place]
    label = {"burn_in": first, "heads": (f"L{layer}H{head}",)}
    result = run("bias_constancy", name, **label)
    groups = {"sink_heads": sink_mass(name).mean(0) > SINK}
    groups["other_heads"] = ~groups["sink_heads"]
    inconstancy, tag = [], []
    for at, one in layers.items():
        bias = written(plain(name), at, one.values[:, :, :1])  # of key 0, [prompt, head, 1, model]
        read = one.weights[:, :, first:, :1] * bias
        mean = read.mean((0, 2), keepdim=True)
        inconstancy.append((read - mean).norm(dim=-1).mean(-1) / mean[:, :, 0].norm(dim=-1))
        z, unit = (
            outputs(one)[:, :, first:],
            torch.nn.functional.normalize(one.values[:, :, 0], dim=-1),
        )
        centred = z - z.mean(2, keepdim=True)
        along = (centred * unit[:, :, None]).sum(-1)
        tag.append((along**2).sum(-1) / (centred**2).sum((-2, -1)))
    for metric, values in (("inconstancy", inconstancy), ("tag_share", tag)):
        for group, which in groups.items():
            if has(result, metric, group):
                wanted = float(torch.stack(values, 1)[:, which].nanmean(1).mean())
                assert value_of(result, metric, group) == pytest.approx(wanted, **CLOSE)

    one, n = layers[layer], sink_mass(name).shape[2]
    mean = (one.weights[:, head, 1:, :1].mean(1) * one.values[:, head, 0]).mean(0)
    unit = torch.nn.functional.normalize(one.values[:, head, 0].mean(0), dim=-1)

    def with_bias(z: Tensor) -> Tensor:
        by_head = z.clone().unflatten(-1, (n, -1))
        by_head[:, 1:, head] += mean
        return by_head.flatten(-2)

    def without_direction(z: Tensor) -> Tensor:
        by_head = z.clone().unflatten(-1, (n, -1))
        part = by_head[:, 1:, head]
        by_head[:, 1:, head] = part - (part @ unit)[..., None] * unit
        return by_head.flatten(-2)

    clean = reference.logits(plain(name), TOKENS)
    projection = reference.output_projection(plain(name), layer)
    drop = without_key0({place: [head]}, normalised=False)
    for condition, change in (("constant", with_bias), ("no_direction", without_direction)):
        if condition in result.settings["left_out"]:
            continue
        with ExitStack() as edits:
            edits.enter_context(reference._before(projection, change))
            if condition == "constant":
                edits.enter_context(edited(TOKENS, drop))
            after = reference.logits(plain(name), TOKENS)
        compare(run("bias_constancy", name, conditions=condition, **label), clean, after)


@every
def test_input_dependence(name: str) -> None:
    if not works(name, "input_dependence"):
        return
    result = run("input_dependence", name, random_weights=False)
    layers = [*attention(name).values()]
    means = [(a.weights.sum(0) - a.weights) / (len(TOKENS) - 1) for a in layers]
    even = [
        a.weights.sum(-1, keepdim=True) * (a.seen / a.seen.sum(-1, keepdim=True)) for a in layers
    ]
    pairs = zip(layers, means, strict=True)
    common = [torch.minimum(a.weights, b)[:, :, 1:].sum(-1).mean(-1) for a, b in pairs]
    overlap = float(torch.stack(common).mean())
    assert value_of(result, "overlap", "all") == pytest.approx(overlap, **CLOSE)

    def apart(others: list[Tensor]) -> Tensor:
        pairs = zip(layers, others, strict=True)
        squares = [((a.weights - b) ** 2)[:, :, 1:].sum((1, 2, 3)) for a, b in pairs]
        return torch.stack(squares).sum(0)

    explained = float((1 - apart(means) / apart(even)).mean())
    assert value_of(result, "explained", "all") == pytest.approx(explained, **CLOSE)
    clean = reference.logits(plain(name), TOKENS)
    for condition, written_there in (("mean:all", means), ("uniform:all", even)):
        if condition in result.settings["left_out"]:
            continue

        def change(layer: int, weights: Tensor, new: list[Tensor] = written_there) -> Tensor:
            return torch.cat([weights[:, :, :1], new[layer][:, :, 1:].to(weights)], 2)

        with edited(TOKENS, change):
            after = reference.logits(plain(name), TOKENS)
        compare(run("input_dependence", name, conditions=condition), clean, after)


@every
def test_massive_activations(name: str) -> None:
    """Sizes where blocks begin and end, and massive entries set to zero."""
    if not works(name, "massive_activations"):
        return
    layer, times = 1, 3.0
    settings = {"criterion": "scale_free", "scale_free": times, "layer": layer}
    result = run("massive_activations", name, conditions="zero", **settings)
    streams = reference.streams(plain(name), TOKENS)
    largest = torch.stack([one.abs().flatten(1).amax(1).mean() for one in streams])
    medians = [one.abs().flatten(1).median(1).values for one in streams]
    found = {n: result.arrays[n].values[::2] for n in ("top_magnitude", "layer_median")}
    torch.testing.assert_close(found["top_magnitude"][:, 0], largest, atol=1e-4, rtol=1e-4)
    wanted = torch.stack([one.mean() for one in medians])
    torch.testing.assert_close(found["layer_median"], wanted, atol=1e-4, rtol=1e-4)

    massive = streams[layer].abs() >= times * medians[layer][:, None, None]
    clean = reference.logits(plain(name), TOKENS)
    block = reference.blocks(plain(name))[layer]
    with reference._before(block, lambda stream: stream.masked_fill(massive, 0)):
        after = reference.logits(plain(name), TOKENS)
    compare(result, clean, after)


@every
def test_outlier_dimensions(name: str) -> None:
    """Sizes of channels in the stream, and the gains of norms."""
    if not works(name, "outlier_dimensions"):
        return
    result = run("outlier_dimensions", name)
    sizes = [one[:, 1:].abs().mean((0, 1)) for one in reference.streams(plain(name), TOKENS)]
    found = result.arrays["size"].values
    torch.testing.assert_close(found.float(), torch.stack(sizes), atol=1e-4, rtol=1e-4)
    gains = result.arrays["gain"]
    for hook, gain in zip(gains.labels("norm"), gains.values, strict=True):
        block = reference.blocks(plain(name))[int(hook.split(".")[1])]
        norms = [m for m in block.modules() if "Norm" in type(m).__name__]
        kept = [getattr(norm, "weight", torch.ones(gain.shape)).detach() for norm in norms]
        alike = [w + plus for w in kept for plus in (0, 1) if w.shape == gain.shape]
        assert any(torch.allclose(gain.float(), one, atol=1e-4) for one in alike), hook


def query_and_key(model: Any, layer: int, heads: int, groups: int) -> tuple[Tensor, Tensor]:
    """W_Q and W_K of every query head, `[head, d_model, d_head]`, from the names of weights."""
    named = {n.rpartition(".")[2]: m for n, m in reference.blocks(model)[layer].named_modules()}
    width = model.config.get_text_config().hidden_size
    for query, key in (("q_proj", "k_proj"), ("query", "key")):
        if query in named:
            sides = [named[name].weight.detach().mT for name in (query, key)]
            break
    else:
        name = next(n for n in ("c_attn", "qkv_proj", "query_key_value", "Wqkv") if n in named)
        joined = named[name].weight.detach()
        joined = joined if type(named[name]).__name__ == "Conv1D" else joined.mT
        if name == "query_key_value" and heads == groups:  # by head query, key and value
            sides = [*joined.reshape(width, heads, 3, -1).unbind(2)][:2]
        elif type(model).__name__.startswith("CodeGen"):  # by head query, value and key
            sides = [*joined.reshape(width, heads, 3, -1).unbind(2)][::2]
        else:
            size = joined.shape[1] // (heads + 2 * groups)
            sides = [*joined.split([heads * size, groups * size, groups * size], 1)][:2]
    queries, keys = (
        one.reshape(width, n, -1).movedim(1, 0)
        for one, n in zip(sides, (heads, groups), strict=True)
    )
    return queries, keys.repeat_interleave(heads // groups, 0)


@every
def test_qk_eigenspectrum(name: str) -> None:
    """Eigenvalues by a general solver, of weights that are found by their names."""
    if not works(name, "qk_eigenspectrum"):
        return
    result, found = run("qk_eigenspectrum", name), check(bridge(name))
    for place, layer in enumerate(found.attention):
        queries, keys = query_and_key(plain(name), layer, found.n_heads, found.n_key_value_heads)
        for head, (query, key) in enumerate(zip(queries, keys, strict=True)):
            form = (query @ key.mT).double()
            values = torch.linalg.eigvalsh((form + form.mT) / 2)
            wanted = {
                "eigen_mean": values.mean(),
                "eigen_variance": values.var(correction=0),
                "eigen_concentration": values.mean() ** 2 / (values**2).mean(),
            }
            for statistic, number in wanted.items():
                mine = result.arrays[statistic].values[place, head]
                assert float(mine) == pytest.approx(float(number), rel=1e-4, abs=1e-6), statistic


@every
def test_reference_frame(name: str) -> None:
    if not works(name, "reference_frame"):
        return
    result = run("reference_frame", name, random_weights=False, column_sets=0)
    shares = "shares" not in result.settings["left_out"]
    layers, streams = attention(name), reference.streams(plain(name), TOKENS)
    numbers: dict[str, list[Tensor]] = {}
    for at, one in layers.items():
        mean = one.weights.mean(1)
        columns = mean.sum(1) / one.seen.sum(0)
        size = torch.linalg.matrix_norm(mean, 2)
        numbers.setdefault("largest_column", []).append(columns.amax(-1))
        numbers.setdefault("first_share", []).append(columns[:, 0] / columns.sum(-1))
        numbers.setdefault("last_share", []).append(columns[:, -1] / columns.sum(-1))
        numbers.setdefault("stable_rank", []).append((mean**2).sum((1, 2)) / size**2)
        for space, share in reference_shares(name, at, one, streams[at]).items() if shares else ():
            numbers.setdefault(space, []).append(share)
    for metric in ("largest_column", "first_share", "last_share", "stable_rank"):
        wanted = float(torch.stack(numbers[metric]).mean())
        assert value_of(result, metric, "attention") == pytest.approx(wanted, **CLOSE), metric
    for space in ("hidden_state", "value", "output") if shares else ():
        wanted = float(torch.stack(numbers[space]).mean())
        assert value_of(result, "reference_share", space) == pytest.approx(wanted, **CLOSE)


def reference_shares(name: str, layer: int, one: Attention, stream: Tensor) -> dict[str, Tensor]:
    """By space, of what queries read the share that comes from reference points, by prompt."""
    found: dict[str, list[Tensor]] = {"hidden_state": [], "value": [], "output": []}
    for prompt, weights in enumerate(one.weights):
        mean = weights.mean((0, 1))  # received by each key
        order = mean.argsort(descending=True, stable=True).tolist()
        points = [key for key in order if mean[key] > 0.1] or order[: max(1, LENGTH // 10)]
        points = points[: max(1, int(0.3 * LENGTH))]
        queries = [query for query in range(1, LENGTH) if query not in points]
        value = one.values[prompt]
        into = written(plain(name), layer, one.values[prompt : prompt + 1])[0]
        part, whole = torch.zeros_like(weights), weights
        part[..., points] = weights[..., points]
        spaces = {
            "hidden_state": [w.mean(0) @ stream[prompt] for w in (part, whole)],
            "value": [(w @ value).transpose(0, 1).flatten(1) for w in (part, whole)],
            "output": [(w @ into).sum(0) for w in (part, whole)],
        }
        for space, (of_points, of_all) in spaces.items():
            share = (of_points.norm(dim=-1) / of_all.norm(dim=-1)).clamp(max=1)
            found[space].append(share[queries].mean())
    return {space: torch.stack(shares) for space, shares in found.items()}


@every
def test_sink_emergence(name: str, tmp_path: Path) -> None:
    """At two checkpoints of one model."""
    if not works(name, "sink_emergence"):
        return
    steps = [tmp_path / step for step in ("step1", "step2")]
    for folder in steps:
        ARCHITECTURES[name]().save_pretrained(folder)
    settings = {"checkpoints": tuple(map(str, steps)), "random_weights": False}
    result = run("sink_emergence", name, **settings)
    layers = [*attention(name).values()]
    streams = [one.abs().flatten(1) for one in reference.streams(plain(name), TOKENS)]
    norms = [one.values.norm(dim=-1) for one in layers]
    scores = [a.weights.sum(2) / torch.arange(LENGTH, 0, -1) for a in layers]
    wanted = {
        "sink_mass": sink_mass(name).mean(),
        "value_drain": torch.stack([n[..., 0] / n[..., 1:].mean(-1) for n in norms]).mean(),
        "spike": torch.stack([one.amax(1) / one.median(1).values for one in streams])
        .amax(0)
        .mean(),
    }
    if check(bridge(name)).causal:
        early = [one.mean(1)[..., : LENGTH // 2 + 1].amax(-1).mean() for one in scores]
        wanted["largest_early_column"] = torch.stack(early).mean()
    for trait, number in wanted.items():
        for step in ("step1", "step2"):
            assert value_of(result, trait, step) == pytest.approx(float(number), **CLOSE), trait


@every
def test_spike_sink_decoupling(name: str) -> None:
    """Sink edges dropped, and massive entries clamped to the median's size."""
    if not works(name, "spike_sink_decoupling"):
        return
    times = 3.0
    result = run("spike_sink_decoupling", name, scale_free=times)
    clean = reference.logits(plain(name), TOKENS)
    if "drop_edge" not in result.settings["left_out"]:
        places = (sink_mass(name).mean(0) > SINK).nonzero().tolist()
        heads = {place: [h for at, h in places if at == place] for place, _ in places}
        with edited(TOKENS, without_key0(heads, normalised=True)):
            after = reference.logits(plain(name), TOKENS)
        alone = run("spike_sink_decoupling", name, scale_free=times, conditions="drop_edge")
        compare(alone, clean, after)
    if "clamp_spikes" not in result.settings["left_out"]:
        streams = reference.streams(plain(name), TOKENS)
        with ExitStack() as edits:
            for point in result.findings["entry_points"]:
                stream = streams[layer := int(point[1:])]
                median = stream.abs().flatten(1).median(1).values[:, None, None]
                massive, small = stream.abs() >= times * median, stream.sign() * median
                change = partial(clamped, massive=massive, small=small)
                edits.enter_context(reference.at_stage(plain(name), layer, change))
            after = reference.logits(plain(name), TOKENS)
        row = result.find(metric="loss", condition=result.findings["clamp"], kind="treatment")
        wanted = float(reference.loss(after, TOKENS).mean())
        assert row.value == pytest.approx(wanted, abs=1e-4)


def clamped(stream: Tensor, *, massive: Tensor, small: Tensor) -> Tensor:
    """Small values in place of massive ones."""
    return torch.where(massive, small, stream)


@every
def test_absolute_position(name: str) -> None:
    """The component that relative position does not explain, from the scores of a plain model."""
    if not works(name, "absolute_position"):
        return
    settings = {"queries": ("1:8",), "first_tokens": 0, "conditions": "zero"}
    result = run("absolute_position", name, **settings)
    array = result.arrays["component"]
    for number, without in enumerate(((), (0,))):
        keys = ("all_keys", "without_key0")[number]
        mine = array.values[array.labels("keys").index(keys), 0]
        for layer, one in attention(name).items():
            scores = one.scores
            if one.sink.numel():  # GPT-OSS takes the largest of each row away before the softmax
                block: Any = reference.blocks(plain(name))[layer]
                scores = scores - one.sink + block.self_attn.sinks.detach()[:, None, None]
            wanted = max(0.0, component(scores, one.seen, range(1, 8), without))
            assert float(mine[layer]) == pytest.approx(wanted, rel=1e-3, abs=1e-4), (keys, layer)


def component(scores: Tensor, seen: Tensor, queries: range, without: tuple[int, ...]) -> float:
    """Products of different prompts' scores without their mean at each offset, mean over heads."""
    pairs = [(i, j) for i in queries for j in range(i + 1) if j not in without and seen[i, j]]
    i, j = (np.array(part) for part in zip(*pairs, strict=True))
    vectors = scores.double().numpy()[..., i, j]
    for offset in np.unique(i - j):
        there = i - j == offset
        vectors[..., there] -= vectors[..., there].mean(-1, keepdims=True)
    n = len(vectors)
    products = [(vectors[p] * vectors[q]).sum(-1) for p in range(n) for q in range(n) if p != q]
    return float(np.mean(products) / len(pairs))
