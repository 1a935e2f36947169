"""`preset=published` against the rules of the published notebooks, written out in numpy.

The rules are those of the code of Ruscio et al. 2025 (2508.02546), one prompt, layer and row at a
time, from the attention that plain Hugging Face returns. Persistence comes from a filtration whose
vertices are born at the diagonal of 1 - A, as ripser reads an unsymmetrised matrix.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy.stats import entropy

import sinklens
from sinklens.experiments.geometry._published import (
    published_reduction,
    reduction_layers,
    spread,
    topology_layers,
)
from sinklens.functional.graphs import visible_keys
from sinklens.models.prompts import random_prompts
from tests import families

pytestmark = pytest.mark.slow

THRESHOLDS = [0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2]
PERCENTILES = [0.8, 0.9, 0.95]


def plain_kl(heads: np.ndarray) -> float:
    """The mean KL of heads to their mean, over all rows or 20 spread ones."""
    n = heads.shape[1]
    rows = np.linspace(0, n - 1, 20, dtype=int) if n > 20 else range(n)
    mean = heads.mean(0)
    return float(np.mean([[entropy(head[i], mean[i]) for i in rows] for head in heads]))


def plain_reduction(heads: np.ndarray, percentile: float) -> float:
    """KL before less KL without the sink columns of a percentile."""
    incoming = heads.sum((0, 1))
    sinks = set(np.where(incoming >= np.percentile(incoming, percentile * 100))[0])
    others = [key for key in range(heads.shape[1]) if key not in sinks]
    emptied = heads.copy()
    for head in emptied:
        for row in head:
            for sink in sinks:
                row[sink] = 0
            total = row.sum()
            if total > 0:
                row /= total
            else:
                row[others] = 1 / len(others)
    return plain_kl(heads) - plain_kl(emptied)


def plain_graph(mean: np.ndarray, threshold: float) -> dict[str, float]:
    """The scores of a thresholded graph, self-loops on."""
    edges = (mean > np.float32(threshold)).astype(float)
    n = len(edges)
    density = edges.sum() / edges.size
    if edges.sum() < 2:
        nothing = ("star_likeness", "combined_star", "centralisation", "fiedler")
        return {"density": density, **dict.fromkeys(nothing, 0.0)}
    degrees = edges.sum(0)
    ascending = np.sort(degrees)
    ranks = np.arange(1, n + 1)
    gini = 2 * (ranks * ascending).sum() / (n * ascending.sum()) - (n + 1) / n
    star = degrees.max() / (n - 1)
    both = (edges + edges.T) / 2
    eigenvalues = np.linalg.eigvalsh(np.diag(both.sum(1)) - both)
    return {
        "density": density,
        "star_likeness": star,
        "combined_star": 0.3 * star + 0.7 * gini,
        "centralisation": sum(degrees.max() - degree for degree in degrees) / (n - 1) ** 2,
        "fiedler": eigenvalues[1],
    }


def plain_topology(mean: np.ndarray) -> dict[str, float]:
    """What ripser makes of 1 - A: the upper half is distances, the diagonal birth times."""
    gudhi = pytest.importorskip("gudhi")
    distance = 1 - mean.astype(float)
    if len(distance) > 30:
        kept = np.linspace(0, len(distance) - 1, 30, dtype=int)
        distance = distance[kept][:, kept]
    tree = gudhi.SimplexTree()
    for i in range(len(distance)):
        tree.insert([i], distance[i, i])
    for i in range(len(distance)):
        for j in range(i + 1, len(distance)):
            tree.insert([i, j], max(distance[i, j], distance[i, i], distance[j, j]))
    tree.expansion(2)
    tree.compute_persistence()
    components, loops = (tree.persistence_intervals_in_dimension(d) for d in (0, 1))
    lengths = [death - birth for birth, death in components if np.isfinite(death)]
    return {
        "betti0": len(components),
        "betti1": len(loops),
        "mean_persistence": float(np.mean(lengths)),
    }


def plain_published(attentions: list[np.ndarray]) -> dict[tuple[str, str], float]:
    """Every row of one prompt, from its attention `[head, query, key]` by layer."""
    n_layers = len(attentions)
    if n_layers <= 6:
        in_kl = list(range(n_layers))
    else:
        in_kl = [0, *range(1, n_layers - 1, 2), n_layers - 1]
    step, last = max(1, n_layers // 4), n_layers - 1
    in_topology = sorted({min(x, last) for x in (0, step, 2 * step, 3 * step, last)})
    rows: dict[tuple[str, str], float] = {}
    for percentile in PERCENTILES:
        found = [plain_reduction(attentions[layer].astype(float), percentile) for layer in in_kl]
        rows["kl_reduction", f"published:percentile_{percentile:g}"] = float(np.mean(found))
    topology = [plain_topology(attentions[layer][:, :48, :48].mean(0)) for layer in in_topology]
    for name in ("betti0", "betti1", "mean_persistence"):
        rows[name, "published"] = float(np.mean([one[name] for one in topology]))
    for threshold in THRESHOLDS:
        counted = []
        for layer, heads in enumerate(attentions):
            graph = plain_graph(heads.mean(0), threshold)
            if 0.05 <= graph["density"] <= 0.95 or layer % 4 == 0:
                counted.append(graph)
        for name in ("star_likeness", "combined_star", "centralisation", "fiedler"):
            value = float(np.mean([graph[name] for graph in counted]))
            rows[name, f"published:above_{threshold:g}"] = value
    gaps = []
    for heads in attentions:
        values = np.sort(np.abs(np.linalg.eigvals(heads.mean(0).astype(float))))[::-1]
        gaps.append((values[0] / values[1], values.sum() ** 2 / (values**2).sum()))
    ratio, participation = np.mean(gaps, 0)
    rows["eigenvalue_ratio", "published"] = float(ratio)
    rows["eigenvalue_participation", "published"] = float(participation)
    return rows


def check(model: Any, plain: Any, prompts: sinklens.Prompts) -> dict[tuple[str, str], np.ndarray]:
    """Hold every row and every prompt to the transcription, and return what it gives."""
    result = sinklens.run(
        "reference_frame",
        model,
        prompts,
        conditions=("spectrum",),
        preset="published",
        draws=0,
        random_weights=False,
        progress=False,
    )
    with torch.no_grad():
        attentions = plain(prompts.tokens, output_attentions=True).attentions
    by_prompt = [
        plain_published([layer[prompt].numpy() for layer in attentions])
        for prompt in range(len(prompts))
    ]
    expected = {key: np.array([rows[key] for rows in by_prompt]) for key in by_prompt[0]}
    published = {
        (row.metric, row.condition)
        for row in result.effects
        if row.condition.startswith("published")
    }
    assert published == set(expected)
    for (metric, condition), values in expected.items():
        row = result.find(metric=metric, condition=condition)
        mine = result.per_prompt["value"][result.effects.index(row)]
        np.testing.assert_allclose(mine, values, atol=1e-6, rtol=1e-6, err_msg=f"{row}")
    return expected


def tiny_llama(n_layers: int) -> transformers.LlamaForCausalLM:
    """A random model of many layers whose attention is far from uniform."""
    config = transformers.LlamaConfig(**families.ids(), **families._rotary(n_layers))
    return families.random_model(transformers.LlamaForCausalLM, config)


def test_six_layers() -> None:
    from sinklens.zoo import folder

    model = sinklens.load("rope")
    with folder("rope") as path:
        plain = transformers.LlamaForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    found = check(model, plain, sinklens.prompts(model, n=2, length=60))
    assert found["betti0", "published"].tolist() == [30, 30]
    check(model, plain, sinklens.prompts(model, n=2, length=16))


def test_thirty_layers() -> None:
    model = sinklens.load(tiny_llama(30), tokenizer=families.tiny_tokenizer())
    check(model, tiny_llama(30), random_prompts(model, n=2, length=40))


@pytest.mark.heavy
def test_smollm2(plain_smollm2: Any, smollm2_tokenizer: Any) -> None:
    model = sinklens.load(copy.deepcopy(plain_smollm2), tokenizer=smollm2_tokenizer)
    prompts = sinklens.prompts(model, n=2, length=32, bos=True)
    check(model, plain_smollm2, prompts)


def test_uniform_attention_is_saturated() -> None:
    model = sinklens.load("rope")
    prompts = sinklens.prompts(model, n=2, length=30)
    result = sinklens.run(
        "reference_frame",
        model,
        prompts,
        conditions=("spectrum",),
        preset="published",
        draws=0,
        progress=False,
    )
    low = {"condition": "published:above_0.02"}
    assert result.find(metric="star_likeness", **low).baseline == pytest.approx(30 / 29)
    assert result.find(metric="centralisation", **low).baseline == pytest.approx(435 / 29**2)
    assert result.find(metric="fiedler", **low).baseline == pytest.approx(15)
    assert "uniform attention at thresholds" in " ".join(result.summary)
    assert any("self-loops on" in note for note in result.notes())
    counted = result.arrays["published:counted"]
    assert counted.labels("threshold") == [f"{threshold:g}" for threshold in THRESHOLDS]
    assert bool((counted.values[[0, 4]] == 1).all())


def test_which_layers_and_tokens() -> None:
    assert reduction_layers(6) == [0, 1, 2, 3, 4, 5]
    assert reduction_layers(7) == [0, 1, 3, 5, 6]
    assert reduction_layers(8) == [0, 1, 3, 5, 7]
    assert topology_layers(30) == [0, 7, 14, 21, 29]
    assert topology_layers(6) == [0, 1, 2, 3, 5]
    assert topology_layers(2) == [0, 1]
    assert spread(48, 30) == np.linspace(0, 47, 30, dtype=int).tolist()
    assert spread(30, 30) == list(range(30))


def test_ripser_on_a_causal_pattern() -> None:
    """The closed form of betti0 and the mean persistence."""
    scores = torch.randn(7, 7, generator=torch.Generator().manual_seed(5))
    pattern = scores.masked_fill(~visible_keys(7), -torch.inf).softmax(-1)
    expected = plain_topology(pattern.numpy())
    found = published_reduction(pattern[None], visible_keys(7), 0, causal=True)
    assert expected["betti0"] == float(found["betti0"]) == 7
    assert expected["betti1"] == float(found["betti1"]) == 0
    persistence = float(found["mean_persistence"])
    assert persistence == pytest.approx(expected["mean_persistence"], abs=1e-6)
