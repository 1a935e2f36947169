"""What later queries know of the first token.

Every prompt is run behind each of M ordinary first tokens in place of its own. With h(m, p) the
residual stream at a later query behind first token m in prompt p:

    ratio     covariance over m of h(., p) and h(., q), over p != q, over the variance over p;
              0 if nothing of the first token is left
    accuracy  how often the nearest of M centroids, made of one half of the prompts, is the right
              one for a prompt of the other half; chance is 1 / M

The control puts the same tokens at a later position instead, and reads the same queries. It is one
position, and nearer to them: a token that is identified better there may owe that to the distance.

How far the vectors at position 0 themselves point the same way for different first tokens (cosine,
before the norm of a block and after it) stands beside it, and as its null the same for the last
query in different prompts: Sun et al. 2026 (2603.05498) find those at position 0 nearly parallel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...core.seeds import seeded
from ...functional.similarity import centroid_accuracy, mean_cosine, variance_ratio
from ...models import ordinary_tokens
from ...models.capabilities import hook_name
from ...models.prompts import Prompts
from ...probes import PositionValues
from ...results.estimates import Reference, Sample
from ...results.record import Record
from ...results.wording import phrase, written
from ...runner.run import Run
from ._components import sample

MOST_LAYERS = 5
NORM = "ln1.hook_out"
Streams = dict[tuple[int, str], Float[Tensor, "token prompt layer d_model"]]


class Carried(NamedTuple):
    """What later queries carry of a token; the ratio of all prompts and without each."""

    ratio: Float[Tensor, "n layer query"]
    accuracy: Float[Tensor, "prompt layer query"]


def add_fingerprint(run: Run[Any], queries: Sequence[int], later: int | None) -> float:
    """The rows and arrays, means over the layers that were read.

    Args:
        run: The run.
        queries: The queries.
        later: The position of the control, if there is one.

    Returns:
        The largest change at position 0 when later tokens change, over its norm: a check.
    """
    n_layers, model = run.capabilities.n_layers, run.model
    layers = np.unique(np.linspace(1, n_layers - 1, MOST_LAYERS).round().astype(int)).tolist()
    ordinary = ordinary_tokens(model).numpy()
    count = min(run.config.first_tokens, len(ordinary))
    tokens = seeded(run.config.seed, "fingerprint").choice(ordinary, count, replace=False)
    run.drawn(first_tokens=tokens.tolist())
    sites = ["residual", NORM] if hook_name(NORM, layers[0]) in model.hook_dict else ["residual"]
    behind = partial(_streams, run, tokens, layers)
    streams = behind(0, [0, *queries], sites)
    carried = _carried(run.prompts, streams, queries)
    control = None
    if later is not None:
        control = _carried(run.prompts, behind(later, queries, ["residual"]), queries)
    for place, query in enumerate(queries):
        for condition, measured, null in (
            ("between_over_within", _ratio, 0.0),
            ("nearest_centroid", _accuracy, 1 / count),
        ):
            references = []
            if control is not None:
                references = [Reference(measured(control, place, null), "later_position")]
            value = measured(carried, place, null)
            run.add("fingerprint", condition, value, *references, queries=f"{query}:{query + 1}")
    cosines = torch.stack([mean_cosine(streams[0, site][:, 0]) for site in sites], -1)
    last = [torch.stack([mean_cosine(v) for v in streams[queries[-1], s]]).mean(0) for s in sites]
    names = ["stream", "normed"][: len(sites)]
    for site, condition in enumerate(names):
        alike = Sample(float(cosines[-1, site]), float(last[site][-1]))
        run.add("position0_cosine", condition, alike, layer=layers[-1])
    axes = {"layer_read": layers, "query_read": [*queries]}
    run.keep("fingerprint_ratio", carried.ratio[0], "layer_read query_read", **axes)
    run.keep("fingerprint_accuracy", carried.accuracy.mean(0), "layer_read query_read", **axes)
    run.keep("position0_cosine", cosines, "layer_read norm", layer_read=layers, norm=names)
    first = streams[0, "residual"]
    change = (first - first[:, :1]).norm(dim=-1) / first[:, :1].norm(dim=-1).clamp_min(1e-30)
    return float(change.max())


def fingerprint_forwards(run: Run[Any], queries: Sequence[int]) -> int:
    """How many forward passes the first tokens take at one position."""
    count = min(run.config.first_tokens, len(ordinary_tokens(run.model)))
    if not count:
        return 0
    words = run.prompts.tokens[:, : max(queries) + 1].repeat(count, 1)
    return run.batches(Prompts(words, bos=False, source="fingerprint"))


def _ratio(carried: Carried, place: int, null: float) -> Sample:
    return sample(carried.ratio[..., place].mean(1), null)


def _accuracy(carried: Carried, place: int, null: float) -> Sample:
    return Sample(carried.accuracy[..., place].mean(1), null)


def _streams(
    run: Run[Any],
    tokens: np.ndarray,
    layers: Sequence[int],
    place: int,
    read: Sequence[int],
    sites: Sequence[str],
) -> Streams:
    """Some positions of every prompt with each token at a place."""
    prompts = run.prompts
    words = prompts.tokens[:, : max(read) + 1].repeat(len(tokens), 1)
    words[:, place] = torch.from_numpy(tokens).repeat_interleave(len(prompts)).to(words)
    probes = [PositionValues(run.model, sites, layers, at) for at in read]
    values = run.read(*probes, prompts=Prompts(words, bos=False, source="fingerprint"))
    return {
        (at, site): torch.stack([of[site, layer] for layer in layers], 1)
        .unflatten(0, (len(tokens), len(prompts)))
        .double()
        for at, of in zip(read, values, strict=True)
        for site in sites
    }


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


def identified(result: Record) -> Iterator[str]:
    """In how many cases the first token can be told from later queries."""
    rows = [
        f"{row.value:.0%} of cases at query {str(row.queries).partition(':')[0]}, "
        f"{phrase(result, row, 'beside')}"
        for row in result.effects
        if (row.condition, row.against) == ("nearest_centroid", None)
    ]
    cosines = [
        f"{written(row.value, '.2f')} {where} its norm ({written(row.baseline, '.2f')} "
        "between prompts at the last query)"
        for condition, where in (("stream", "before"), ("normed", "after"))
        for row in result.effects
        if (row.metric, row.condition) == ("position0_cosine", condition)
    ]
    if rows:
        tokens, prompts = result.draws["first_tokens"], result.provenance["prompts"]["n"]
        layers = result.arrays["fingerprint_accuracy"].labels("layer_read")
        yield (
            "A nearest-centroid classifier on the residual stream identifies the first token in "
            f"{', and in '.join(rows)} ({len(tokens)} first tokens in each of {prompts} "
            f"prompts, mean over {len(layers)} layers). At position 0 of the last layer, different "
            f"first tokens have a mean cosine of {' and '.join(cosines)}, without intervals."
        )
