"""The eigenvalues of W_QK, and whether heads whose eigenvalues are concentrated have sinks.

For each query head the bilinear form of its logits, W = W_Q W_K^T in the residual stream (d by d,
of rank d_head at most; query heads that share keys share W_K), read from the weights alone, raw,
without biases and the norm before it. Of the eigenvalues of its symmetric part, all d of them:

    eigen_mean           tr(W) / d
    eigen_variance       (tr(W^2) + |W|^2) / 2d - eigen_mean^2
    eigen_concentration  eigen_mean^2 over the mean of their squares, between 0 and 1: mean and
                         variance without the scale of the weights

Bao, Hataya and Karakida 2024 (2402.02098): attention localises where the mean is not 0 and the
variance is small. Eigenvalues of W itself are complex, and tr(W^2) / d - mean^2 can be negative;
the symmetric part has the same mean and real eigenvalues. That is a choice, and
`eigen_variance_full` is the other reading. What rotary positions do to W is left open by the paper:
here W is that of a query and a key at the same position; `eigen_concentration_rotary` averages the
rotation over the offsets 0 to T - 1.

Nulls: the entries of W_Q and W_K permuted (norms of heads are kept, directions are not), and random
orthogonal frames of the same norms. Beside them the rank correlation of each with sink mass over
all heads, with a jackknife interval over layers, since heads of one layer are alike. Nothing is
intervened on: a correlation over heads does not say that the spectrum makes the sink. No published
value for a pretrained model was found.

Takes as long as 7 plain forwards of the batch (SmolLM2-135M, 16 prompts of 64 tokens, one core).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from ...core.errors import SinklensError
from ...core.seeds import seeded
from ...models.weights import projection
from ...probes import SinkWeights
from ...probes.base import LayerProbe
from ...results.estimates import NOT_TESTED, Measure, Reference, Sample, rows_of
from ...results.figures import Heatmap, Stack
from ...results.record import Record
from ...results.wording import phrase
from ...runner.config import ExperimentConfig
from ...runner.needs import EQUAL_LENGTHS, WITH_ATTENTION, at_least_tokens
from ...runner.registry import experiment
from ...runner.run import Run
from ...stats.jackknife import pseudo_values

STATISTICS = ("eigen_mean", "eigen_variance", "eigen_concentration")
FULL, ROTARY = "eigen_variance_full", "eigen_concentration_rotary"
PERMUTED, ORTHOGONAL = "permuted_weights", "random_orthogonal"
CORRELATION = "rank_correlation"
NORMALISED = (
    "the logits of {} are no bilinear form of the stream: queries and keys are normalised in each "
    "head; sink_profile does without"
)
Factors = Float[Tensor, "layer head d_model d_head"]
MEASURES = {
    "eigen_mean": Measure("", "permuted weights"),
    "eigen_variance": Measure("", "permuted weights"),
    FULL: Measure("", "permuted weights"),
    "eigen_concentration": Measure("", "permuted weights"),
    ROTARY: Measure("", "permuted weights"),
    CORRELATION: Measure("rho", "unrelated heads", ".2f"),
}


@dataclass(frozen=True)
class QKEigenspectrumConfig(ExperimentConfig):
    """Settings; a condition is a statistic, `draws` are permutations and random frames."""


class Rotations(LayerProbe[Tensor]):
    """Cosines and sines of rotary positions, by layer, mean over positions."""

    def reduce(
        self, activation: Float[Tensor, "batch pos plane"], site: str, /
    ) -> Float[Tensor, "batch plane"]:
        """The mean over the offsets 0 to T - 1."""
        return activation.float().mean(1)


def eigen_statistics(queries: Factors, keys: Factors) -> dict[str, Float[Tensor, "layer head"]]:
    """Mean, variance and concentration of each head's eigenvalues, from traces."""
    width = queries.shape[-2]
    inner = keys.mT @ queries  # its trace and that of its square are those of W
    mean = inner.diagonal(dim1=-2, dim2=-1).sum(-1) / width
    squares = (inner @ inner).diagonal(dim1=-2, dim2=-1).sum(-1) / width
    norm = ((queries.mT @ queries) * (keys.mT @ keys)).sum((-2, -1)) / width
    symmetric = (squares + norm) / 2
    return {
        "eigen_mean": mean,
        "eigen_variance": symmetric - mean**2,
        "eigen_concentration": mean**2 / symmetric.clamp_min(torch.finfo(mean.dtype).tiny),
        FULL: squares - mean**2,
    }


def correlations_in_words(result: Record) -> Iterator[str]:
    """How each statistic goes with sink mass over heads."""
    rows = [row for row in result.effects if (row.metric, row.against) == (CORRELATION, None)]
    if rows:
        said = (f"{row.condition} {phrase(result, row)}" for row in rows)
        yield f"Rank correlation with sink mass over heads: {'; '.join(said)}."


@experiment(
    paper="Bao et al. 2024 (2402.02098)",
    question="Are the eigenvalues of W_QK concentrated, and have such heads sinks?",
    needs=(WITH_ATTENTION, EQUAL_LENGTHS, at_least_tokens(2)),
    conditions=STATISTICS,
    measures=MEASURES,
    says=(
        "Mean eigenvalue of W_QK, over heads: {eigen_mean/heads}.",
        "Variance of eigenvalues: {eigen_variance/heads}; of W itself instead of its symmetric "
        "part {eigen_variance_full/heads|value}.",
        "Concentration: {eigen_concentration/heads}.",
        "Concentration with rotary positions averaged over offsets: "
        "{eigen_concentration_rotary/heads}.",
        correlations_in_words,
    ),
    figure=Stack(
        (
            Heatmap("eigen_concentration", "Concentration of eigenvalues", "share", most=None),
            Heatmap("sink_mass", "Sink mass", "share of attention"),
        ),
        "Eigenvalues of W_QK and sinks, by head",
    ),
)
def qk_eigenspectrum(run: Run[QKEigenspectrumConfig]) -> None:
    """Read eigenvalues from the weights and correlate them with sink mass.

    Raises:
        SinklensError: The model has no query and key matrices, or normalises queries and keys.
    """
    queries, keys = _factors(run)
    run.announce(run.batches() * (2 if _rotary_sites(run) else 1))
    (sinks,) = run.read(SinkWeights(run.model))
    mass = sinks.mass.double().mean(0)
    own = eigen_statistics(queries, keys)
    random = np.random.default_rng(seeded(run.config.seed, "weights").integers(2**31))
    nulls: dict[str, list[dict[str, Tensor]]] = {PERMUTED: [], ORTHOGONAL: []}
    for _ in range(run.config.draws):
        for name, make in ((PERMUTED, permuted), (ORTHOGONAL, orthogonal)):
            nulls[name].append(eigen_statistics(make(queries, random), make(keys, random)))
    if rotations := _rotations(run):
        turned = rotated(keys, *rotations)
        own[ROTARY] = eigen_statistics(queries, turned)["eigen_concentration"]
        for drawn in nulls.values():
            for one in drawn:
                one[ROTARY] = one["eigen_concentration"]
    for name in (*STATISTICS, FULL, ROTARY):
        if not any(name.startswith(asked) for asked in run.conditions):
            continue
        if name not in own:
            run.left_out(name, "no rotary positions can be read")
            continue
        run.keep(name, own[name], "layer head")
        means = {
            null: float(np.mean([float(one[name].mean()) for one in drawn]))
            for null, drawn in nulls.items()
            if drawn
        }
        null = means.get(PERMUTED, 0.0)
        references = [
            Reference(Sample(means[ORTHOGONAL], null), ORTHOGONAL, "null", models=NOT_TESTED)
            for _ in range(ORTHOGONAL in means)
        ]
        run.add(name, "heads", Sample(float(own[name].mean()), null), *references)
    run.keep("sink_mass", mass, "layer head")
    for name in run.conditions:
        found = [spearman(one[name], mass) for one in nulls[PERMUTED]]
        known = [rho for rho in found if rho is not None]
        _add_correlation(run, name, own[name], mass, [float(np.mean(known))] if known else [])


def _add_correlation(
    run: Run[Any], name: str, values: Tensor, mass: Tensor, nulls: Sequence[float]
) -> None:
    """Spearman's rho over heads, with a jackknife over layers."""
    rho = spearman(values, mass)
    if rho is None:
        run.left_out(f"rank_correlation of {name}", "all heads are alike in it, or in sink mass")
        return
    layers = range(len(values))
    without = [
        spearman(values[kept], mass[kept])
        for layer in layers
        for kept in ([other for other in layers if other != layer],)
    ]
    known = len(layers) > 2 and None not in without
    pseudo = pseudo_values(rho, np.array(without, float)) if known else np.array([rho])
    beside = [Reference(Sample(one), PERMUTED, "null", models=NOT_TESTED) for one in nulls]
    size = len(pseudo)
    for row in rows_of(
        CORRELATION,
        MEASURES[CORRELATION],
        name,
        Sample(pseudo),
        *beside,
        prompts=size,
        seed=run.config.seed,
    ):
        run.rows.append(replace(row, effect=replace(row.effect, resampled="layer")))


def spearman(values: Tensor, mass: Tensor) -> float | None:
    """Spearman's rho over all heads; None where one side does not vary."""
    first, second = values.flatten().numpy(), mass.flatten().numpy()
    if min(len(first), len(np.unique(first)), len(np.unique(second))) < 2:
        return None
    return float(stats.spearmanr(first, second).statistic)


def permuted(factors: Factors, random: np.random.Generator) -> Factors:
    """The entries of each head's matrix in random order."""
    flat = torch.from_numpy(random.permuted(factors.flatten(2).numpy(), axis=-1))
    return flat.reshape(factors.shape)


def orthogonal(factors: Factors, random: np.random.Generator) -> Factors:
    """Random orthogonal columns in place of each head's matrix, of the same norm."""
    drawn = torch.from_numpy(random.standard_normal(factors.shape))
    frame: Tensor = torch.linalg.qr(drawn).Q
    norm: Tensor = factors.norm(dim=(-2, -1), keepdim=True)
    scaled: Tensor = frame * norm / factors.shape[-1] ** 0.5
    return scaled


def rotated(
    keys: Factors, cosine: Float[Tensor, "layer plane"], sine: Float[Tensor, "layer plane"]
) -> Factors:
    """Keys turned by rotary positions, on average over offsets; plane i has entries i and i + n."""
    turned, half = keys.clone(), cosine.shape[1]
    first, second = keys[..., :half], keys[..., half : 2 * half]
    cos, sin = (part[:, None, None] for part in (cosine, sine))
    turned[..., :half] = first * cos + second * sin
    turned[..., half : 2 * half] = second * cos - first * sin
    return turned


def _factors(run: Run[Any]) -> tuple[Factors, Factors]:
    """W_Q and W_K of every query head in float64.

    Raises:
        SinklensError: There are none, or they are not all of the logits.
    """
    capabilities = run.capabilities
    blocks = [run.model.blocks[layer] for layer in capabilities.attention]
    if any(getattr(block.attn, "q_norm", None) is not None for block in blocks):
        raise SinklensError(NORMALISED.format(capabilities.architecture))
    if reason := capabilities.lacking("pattern") or capabilities.lacking("key"):
        raise SinklensError(
            f"qk_eigenspectrum reads W_Q and W_K; on {capabilities.architecture} {reason}"
        )
    shared = [capabilities.key_value_head(head) for head in range(capabilities.n_heads)]
    layers = capabilities.attention
    queries = [projection(run.model, layer, "W_Q").cpu().double() for layer in layers]
    keys = [projection(run.model, layer, "W_K").cpu().double()[shared] for layer in layers]
    return torch.stack(queries), torch.stack(keys)


def _rotary_sites(run: Run[Any]) -> list[str]:
    """Where cosine and sine of all layers are; none where there are no rotary positions."""
    layers = run.capabilities.attention
    sites = [f"blocks.{layer}.attn.hook_{part}" for part in ("cos", "sin") for layer in layers]
    return sites if all(site in run.model.hook_dict for site in sites) else []


def _rotations(run: Run[Any]) -> tuple[Tensor, Tensor] | None:
    """Mean cosine and sine over offsets, by layer; None where there are no rotary positions."""
    sites = _rotary_sites(run)
    if not sites:
        return None
    probe = Rotations(str, sites)
    try:
        run.read(probe)
    except SinklensError:
        return None
    both = probe.compute()[0].double().unflatten(0, (2, len(sites) // 2))
    half = both.shape[-1] // 2
    if torch.equal(both[..., :half], both[..., half:]):  # once for each entry of a plane
        both = both[..., :half]
    return (both[0], both[1]) if 2 * both.shape[-1] <= int(run.model.cfg.d_head) else None
