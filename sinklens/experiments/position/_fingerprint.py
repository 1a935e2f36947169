"""What later queries know of the first token, and checks that a position measure has to pass.

Fingerprint: every prompt is run behind each of M ordinary first tokens in place of its own. With
h(m, p) the stream at a later query behind first token m in prompt p,

    between  covariance over m of h(., p) and h(., q), mean over prompts p != q
    within   variance over p of h(m, .), mean over m
    ratio    between / within; 0 if nothing of the first token is left
    accuracy how often the nearest of M centroids, made of one half of the prompts, is the right
             one for a prompt of the other half; chance is 1 / M

The control puts the same tokens at a later position instead, and reads the same queries. It is one
position, and nearer to them: a token that is told better there may owe that to the distance.

How far the vectors at position 0 themselves point the same way for different first tokens (cosine,
before the norm of a block and after it) stands beside it, and beside that the same for the last
query in different prompts: 2603.05498 finds those at position 0 nearly parallel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...core.protocol import HookedModel
from ...core.seeds import seeded
from ...engine import evaluate
from ...models import ordinary_tokens
from ...models.capabilities import check, hook_name
from ...models.prompts import Prompts
from ...probes import PositionValues
from ...probes.logits import FORMS, LogitForms
from ...runner.config import ExperimentConfig
from ._components import Components, versions_of_products
from ._edits import PairSets

MOST_LAYERS = 5
SHIFT = 5
SHIFT_ERROR = 1e-2  # nats; sines of other angles are rounded otherwise
HALF_PRECISION_STEPS = 8  # a logit is a sum of many rounded products
NORM = "ln1.hook_out"
Streams = dict[tuple[int, str], Float[Tensor, "token prompt layer d_model"]]


class Carried(NamedTuple):
    """What later queries carry of a token.

    Attributes:
        ratio: Between over within variance, by version (`position_components`).
        accuracy: Of the nearest centroid, by prompt.
    """

    ratio: Float[Tensor, "n layer query"]
    accuracy: Float[Tensor, "prompt layer query"]


@dataclass(frozen=True)
class Fingerprint:
    """How much of the first token later queries carry.

    Attributes:
        tokens: The first tokens.
        layers: The blocks whose input was read.
        queries: The queries.
        carried: What they carry of it.
        control: The same of tokens at a later position; None where there is none.
        cosine: Of the vectors at position 0 of different first tokens, mean over pairs: before the
            norm of the block, and after it (empty where a block has no norm before it).
        later_cosine: The same of the vectors at the last query in different prompts.
        position0_change: The largest change at position 0 when later tokens change, over its norm.
        forwards: How many forwards of the batch it took.
    """

    tokens: list[int]
    layers: list[int]
    queries: list[int]
    carried: Carried
    control: Carried | None
    cosine: Float[Tensor, "layer norm"]
    later_cosine: Float[Tensor, "layer norm"]
    position0_change: float
    forwards: int


def fingerprint(
    model: HookedModel,
    prompts: Prompts,
    config: ExperimentConfig,
    count: int,
    queries: Sequence[int],
    control: int | None = None,
) -> Fingerprint:
    """Run the prompts behind `count` first tokens, and with these at the position `control`."""
    n_layers = check(model).n_layers
    layers = np.unique(np.linspace(1, n_layers - 1, MOST_LAYERS).round().astype(int)).tolist()
    ordinary = ordinary_tokens(model).numpy()
    chosen = seeded(config.seed, "fingerprint").choice(
        ordinary, min(count, len(ordinary)), replace=False
    )
    sites = ["residual", NORM] if hook_name(NORM, layers[0]) in model.hook_dict else ["residual"]
    read = partial(_streams, model, prompts, config, chosen, layers)
    streams, forwards = read(0, [0, *queries], sites)
    later = None
    if control is not None:
        others, more = read(control, queries, ["residual"])
        later, forwards = _carried(prompts, others, queries), forwards + more
    first = streams[0, "residual"]
    change = (first - first[:, :1]).norm(dim=-1) / first[:, :1].norm(dim=-1).clamp_min(1e-30)
    return Fingerprint(
        tokens=[int(token) for token in chosen],
        layers=layers,
        queries=list(queries),
        carried=_carried(prompts, streams, queries),
        control=later,
        cosine=torch.stack([_mean_cosine(streams[0, site][:, 0]) for site in sites], -1),
        later_cosine=torch.stack([_over_prompts(streams[queries[-1], site]) for site in sites], -1),
        position0_change=float(change.max()),
        forwards=forwards,
    )


def _streams(
    model: HookedModel,
    prompts: Prompts,
    config: ExperimentConfig,
    chosen: np.ndarray,
    layers: Sequence[int],
    place: int,
    read: Sequence[int],
    sites: Sequence[str],
) -> tuple[Streams, int]:
    """Some positions of every prompt with each chosen token at a place, and the forwards."""
    tokens = prompts.tokens[:, : max(read) + 1].repeat(len(chosen), 1)
    tokens[:, place] = torch.from_numpy(chosen).repeat_interleave(len(prompts)).to(tokens)
    inputs = Prompts(tokens, bos=False, source="fingerprint")
    probes = {at: PositionValues(model, sites, layers, at) for at in read}
    found = evaluate(
        model,
        inputs,
        [],
        [],
        probes=list(probes.values()),
        batch_size=config.batch_size,
        memory=config.memory,
        progress=config.progress,
    )
    streams = {}
    for at, values in zip(probes, found.probes, strict=True):
        for site in {site for site, _ in values}:
            stacked = torch.stack([values[site, layer] for layer in layers], 1)
            streams[at, site] = stacked.unflatten(0, (len(chosen), len(prompts))).double()
    return streams, -(-len(inputs) // len(prompts))


def _carried(prompts: Prompts, streams: Streams, queries: Sequence[int]) -> Carried:
    """Ratio and accuracy at every query."""
    # Halves follow from what prompts say, not from where they stand.
    order = torch.from_numpy(np.lexsort(prompts.tokens.cpu().numpy().T[::-1]).copy())
    half = torch.empty(len(prompts), dtype=torch.long)
    half[order] = torch.arange(len(prompts)) % 2
    read = [streams[query, "residual"] for query in queries]
    return Carried(
        torch.stack([variance_ratio(stream) for stream in read], -1),
        torch.stack([centroid_accuracy(stream, half) for stream in read], -1),
    )


def variance_ratio(stream: Float[Tensor, "token prompt layer d_model"]) -> Float[Tensor, "n layer"]:
    """Between over within variance of all prompts and without each."""
    tokens, prompts = stream.shape[:2]
    apart = stream - stream.mean(0)
    others = apart.sum(1, keepdim=True) - apart
    products = (apart * others).sum((0, 3)) / max(1, tokens - 1)
    between = versions_of_products(products)
    sums, squares = stream.sum(1), (stream**2).sum((0, 3))
    kept = [(sums, squares.sum(0), prompts)]
    kept += [
        (sums - stream[:, p], squares.sum(0) - squares[p], prompts - 1) for p in range(prompts)
    ]
    within = torch.stack(
        [(square - (total**2).sum((0, 2)) / n) / (tokens * (n - 1)) for total, square, n in kept]
    )
    return torch.where(within > 0, between / within.clamp_min(1e-300), 0.0)


def centroid_accuracy(
    stream: Float[Tensor, "token prompt layer d_model"], half: Float[Tensor, " prompt"] | Tensor
) -> Float[Tensor, "prompt layer"]:
    """How often the nearest centroid of the other half is the right token's, by prompt."""
    tokens, prompts, layers, _ = stream.shape
    right = torch.arange(tokens)[:, None, None]
    accuracy = torch.zeros(prompts, layers, dtype=torch.float64)
    for tested in (0, 1):
        centroids = stream[:, half != tested].mean(1).transpose(0, 1)
        mine = stream[:, half == tested].permute(2, 0, 1, 3)
        distance = torch.cdist(mine.flatten(1, 2), centroids)
        nearest = distance.argmin(-1).unflatten(1, mine.shape[1:3]).permute(1, 2, 0)
        accuracy[half == tested] = (nearest == right).double().mean(0)
    return accuracy


def _mean_cosine(vectors: Float[Tensor, "token layer d_model"]) -> Float[Tensor, " layer"]:
    """Mean cosine between the vectors of different tokens; 1 for a single one."""
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    tokens = len(unit)
    total = (unit.sum(0) ** 2).sum(-1)
    return (total - tokens) / max(1, tokens * (tokens - 1)) if tokens > 1 else total


def _over_prompts(stream: Float[Tensor, "token prompt layer d_model"]) -> Float[Tensor, " layer"]:
    """The mean cosine between prompts with the same first token, mean over these."""
    return torch.stack([_mean_cosine(one) for one in stream]).mean(0)


def shifted_positions(
    model: HookedModel, prompts: Prompts, windows: Sequence[int]
) -> dict[str, Any]:
    """The largest change of any logit when a constant is added to all position ids.

    Nothing may change where logits know positions by their differences only, but for `rounding` of
    the largest logit; learned positions have to. `change` is None, with the reason in `why`, where
    the model takes no position ids.
    """
    room = int(getattr(model.cfg, "n_ctx", 0) or 0) - prompts.length
    step = min(SHIFT, room) if room > 0 else SHIFT
    tokens = prompts.tokens[:2]
    seen: list[dict[str, Tensor]] = [{}, {}]
    try:
        for number in (0, 1):
            hooks = [
                (hook_name("scores", layer), partial(_keep_scores, kept=seen[number]))
                for layer in range(len(windows))
            ]
            ids = torch.arange(prompts.length, device=tokens.device) + number * step
            with torch.no_grad():
                model.run_with_hooks(
                    tokens, fwd_hooks=hooks, position_ids=ids.expand(len(tokens), -1)
                )
    except Exception as error:  # whatever a family raises for an argument that it does not know
        return {"change": None, "step": step, "why": str(error).splitlines()[0][:200]}
    change = largest = 0.0
    for window, before, after in zip(windows, seen[0].values(), seen[1].values(), strict=True):
        visible = torch.ones_like(before[0, 0], dtype=torch.bool).tril().triu(1 - window)
        change = max(change, float((after - before)[..., visible].abs().max()))
        largest = max(largest, float(before[..., visible].abs().max()))
    rounding = max(SHIFT_ERROR, HALF_PRECISION_STEPS * torch.finfo(model.cfg.dtype).eps * largest)
    return {"change": change, "step": step, "rounding": rounding}


def _keep_scores(scores: Tensor, hook: Any, *, kept: dict[str, Tensor]) -> None:
    """Keep the scores of a layer."""
    kept[hook.name] = scores.float()


def toeplitz_share(sets: PairSets, offsets: Float[Tensor, "layer head offset"]) -> float:
    """The largest residual share that the measure finds in logits of the offset alone.

    Args:
        sets: The pair sets of the run.
        offsets: The fitted mean logit at every offset.
    """
    layers, size = len(offsets), offsets.shape[-1]
    basis = sets.basis([size] * layers, FORMS)
    probe = LogitForms(basis)
    query = torch.arange(size)
    distance = (query[:, None] - query).clamp_min(0)
    for layer, (name, read) in enumerate(probe.fwd_hooks):
        assert name == hook_name("scores", layer)
        read(offsets[layer][:, distance].expand(3, -1, -1, -1), hook=None)
    found = Components(probe.compute(), FORMS)
    numbers = range(found.by_head["component"].shape[-1])
    return max(float(found.shares(number)[0].max()) for number in numbers)
