"""The reference frame: closed forms by hand, and rope against plain Hugging Face."""

from __future__ import annotations

import copy
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import Tensor
from typer.testing import CliRunner

import sinklens
from sinklens import SinklensError
from sinklens.cli import app
from sinklens.core.seeds import seeded
from sinklens.experiments.geometry.reference_frame import frame_label
from sinklens.functional.divergence import columns_nearby, head_divergence, sink_columns
from sinklens.functional.frames import frame_metrics
from sinklens.functional.graphs import (
    graph_metrics,
    permute_rows,
    singular_values,
    spectrum_metrics,
    threshold_graph,
    uniform_attention,
    visible_keys,
)
from sinklens.functional.persistence import persistence
from sinklens.functional.reference_points import reference_points
from sinklens.models.capabilities import hook_name
from sinklens.models.prompts import corpus, random_prompts
from sinklens.models.random_weights import random_weights
from sinklens.probes.patterns import PatternReader
from sinklens.runner.null_models import few_prompts
from tests import families

pytestmark = pytest.mark.slow


def run(model: Any, prompts: Any, **settings: Any) -> Any:
    settings = {"null_models": 0, "progress": False, **settings}
    return sinklens.run("reference_frame", model, prompts, **settings)


def test_in_star() -> None:
    edges = torch.zeros(8, 8, dtype=torch.bool)
    edges[1:, 0] = True
    found = graph_metrics(edges, visible_keys(8))
    assert float(found["star_likeness"]) == 1 and float(found["centralisation"]) == 1
    assert float(found["fiedler"]) == pytest.approx(0.5)
    assert float(found["gini"]) == pytest.approx(7 / 8)


def test_uniform_attention_with_self_loops() -> None:
    visible = visible_keys(30)
    edges = threshold_graph(
        uniform_attention(visible), torch.full((1, 30, 30), 0.02), self_loops=True
    )[0]
    found = graph_metrics(edges, visible, self_loops=True)
    assert float(found["star_likeness"]) == pytest.approx(30 / 29)
    assert float(found["centralisation"]) == pytest.approx((900 - 465) / 29**2)
    assert float(found["fiedler"]) == pytest.approx(15)
    assert float(found["density"]) == 1


def test_frames() -> None:
    n = 10
    even = torch.full((2, n), 0.1)
    one = torch.eye(n)[[0, 0]]
    ends = (one + torch.eye(n)[[9, 9]]) / 2
    nothing, single, both = (frame_metrics(columns, even) for columns in (even, one, ends))
    for name in ("centralised", "distributed", "bidirectional"):
        assert float(nothing[name]) == 0
    assert float(nothing["effective_anchors"]) == pytest.approx(10)
    assert float(single["centralised"]) == pytest.approx(0.9)
    assert float(single["effective_anchors"]) == 1 and float(single["stability"]) == 1
    assert float(both["bidirectional"]) == pytest.approx(0.8)
    assert float(both["centralised"]) == pytest.approx(0, abs=1e-6)
    assert float(both["effective_anchors"]) == pytest.approx(2)


def test_persistence() -> None:
    star = torch.zeros(1, 5, 5)
    star[0, 1:, 0] = 0.3
    cycle = torch.zeros(1, 4, 4)
    for i in range(4):
        cycle[0, i, (i + 1) % 4] = 0.4
    found = persistence(star)
    assert float(found["persistence0"]) == pytest.approx(4 * 0.7)
    assert float(found["persistence1"]) == 0
    assert found["betti0"][0, 5] == 5 and found["betti0"][0, 7] == 1
    assert float(persistence(cycle)["persistence1"]) == pytest.approx(0.4)


def test_identical_heads_do_not_diverge() -> None:
    visible = visible_keys(6)
    pattern = uniform_attention(visible).expand(1, 3, 6, 6)
    removed = torch.zeros(1, 2, 6, dtype=torch.bool)
    removed[0, 1, 0] = True
    found = head_divergence(pattern, removed, visible)
    torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-6, rtol=0)


def check_against_plain(result: Any, attentions: Any) -> None:
    """Columns, anchors, spectrum, star-likeness and head KL from the attention alone."""
    n = attentions[0].shape[-1]
    visible = torch.arange(n, 0, -1)
    columns = torch.stack([a.mean(1).sum(1) / visible for a in attentions], 1)
    torch.testing.assert_close(result.arrays["columns"].values, columns.mean(0), atol=1e-5, rtol=0)
    row = result.find(metric="largest_column", condition="attention", kind="measurement")
    assert row.value == pytest.approx(float(columns.amax(-1).mean()), abs=1e-5)
    anchors = (columns.sum(-1) ** 2 / (columns**2).sum(-1)).mean()
    row = result.find(metric="effective_anchors", condition="attention", kind="measurement")
    assert row.value == pytest.approx(float(anchors), abs=1e-4)
    kl = [(a * (a / a.mean(1, keepdim=True)).log().nan_to_num()).sum(-1).mean() for a in attentions]
    torch.testing.assert_close(result.arrays["head_kl"].values, torch.stack(kl), atol=1e-5, rtol=0)
    sizes = torch.stack([torch.linalg.svdvals(a.mean(1).double()) for a in attentions])
    spectrum = result.arrays["singular_values"].values
    torch.testing.assert_close(spectrum, sizes.mean(1).float(), atol=1e-5, rtol=0)
    row = result.find(metric="stable_rank", condition="attention", kind="measurement")
    rank = ((sizes**2).sum(-1) / sizes[..., 0] ** 2).mean()
    assert row.value == pytest.approx(float(rank), abs=1e-4)
    # A key's in-degree: later queries that give it more than twice what uniform attention would.
    edges = [(a.mean(1) > (2 / torch.arange(1, n + 1))[:, None]).tril(-1) for a in attentions]
    star = torch.stack([edge.sum(1).amax(-1) / (n - 1) for edge in edges]).mean()
    row = result.find(metric="star_likeness", condition="above_2x_uniform", kind="measurement")
    assert row.value == pytest.approx(float(star), abs=1e-5)


def test_smollm2_agrees_with_plain_hugging_face(plain_smollm2: Any, smollm2_tokenizer: Any) -> None:
    model = sinklens.load(copy.deepcopy(plain_smollm2), tokenizer=smollm2_tokenizer)
    prompts = sinklens.prompts(model, n=3, length=16, bos=True)
    result = run(model, prompts, draws=1, column_sets=2, random_weights=False)
    with torch.no_grad():
        attentions = plain_smollm2(prompts.tokens, output_attentions=True).attentions
    check_against_plain(result, attentions)


def test_rope_agrees_with_plain_hugging_face() -> None:
    from sinklens.zoo import folder

    model = sinklens.load("rope")
    prompts = sinklens.prompts(model, n=3, length=12)
    result = run(model, prompts, draws=2, topology=True, column_sets=3)
    with folder("rope") as path:
        plain = transformers.LlamaForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    with torch.no_grad():
        attentions = plain(prompts.tokens, output_attentions=True).attentions
    check_against_plain(result, attentions)
    kinds = {row.kind for row in result.effects}
    assert kinds == {"measurement", "null", "contrast", "treatment", "control"}
    assert len(result.summary) <= 12
    heat, *curves = result.plot().data
    torch.testing.assert_close(torch.tensor(heat.z), result.arrays["columns"].values)
    nulls = [f"null: {name}" for name in ("uniform", "row permuted", "random weights")]
    assert [curve.name for curve in curves] == [*nulls, "this model"]
    assert curves[-1].y == tuple(result.arrays["largest_column"].values.tolist())
    assert len(result.table()) <= 44
    for source in ("uniform", "row_permuted", "random_weights"):
        shape = result.arrays[f"singular_values:{source}"].values.shape
        assert shape == result.arrays["singular_values"].values.shape
    assert result.find(metric="persistence0", condition="symmetric", kind="null").n_draws == 2
    # Axes say what their places are.
    labels = result.arrays["star_likeness:row_permuted"].labels("threshold")
    assert labels[0] == "above_0.001" and labels[-1] == "above_10x_uniform"
    draws = result.arrays["control_draws"]
    place = draws.labels("null_row").index("largest_column attention")
    permuted = result.find(metric="largest_column", against="row_permuted", kind="null")
    assert float(draws.values[place].mean()) == pytest.approx(permuted.value)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_works_or_refuses(name: str) -> None:
    model = families.boot(name)
    prompts = random_prompts(model, n=1, length=4)
    result = run(model, prompts, draws=0, random_weights=False)
    assert len(result.summary) <= 12
    assert "null" not in {row.kind for row in result.effects}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conditions": ("nil",)}, "frame"),
        ({"lead": 3.0}, "lead"),
        ({"shown": (0.3,)}, "shown"),
        ({"percentiles": (1.0,)}, "percentiles"),
        ({"percentiles": ()}, "at least one"),
        ({"reference": 2.0}, "reference must be above 0 and below 1"),
        ({"metrics": ("loss",)}, "takes no metrics"),
        ({"column_sets": -1}, "column_sets"),
        ({"relative": (0.0, 2.0)}, "relative must be above 0"),
        ({"screen": True}, "takes no screen"),
        ({"positions": (3,)}, "takes no positions"),
        ({"preset": "publishd"}, "did you mean published"),
    ],
)
def test_bad_settings(settings: Any, message: str, boot_family: Any) -> None:
    model = boot_family("llama")
    with pytest.raises(SinklensError, match=message):
        run(model, random_prompts(model, n=2, length=8), **settings)


def test_short_prompts(boot_family: Any) -> None:
    model = boot_family("llama")
    with pytest.raises(SinklensError, match="at least 4"):
        run(model, random_prompts(model, n=2, length=3))


def test_the_command(tmp_path: Path) -> None:
    command = "run reference_frame rope --n-prompts 2 --length 12 --set draws=1 --quiet --out"
    done = CliRunner().invoke(app, [*command.split(), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    loaded = sinklens.ExperimentResult.load(tmp_path / "out")
    assert loaded.find(metric="largest_column", against="row_permuted", kind="null").n_draws == 1


def in_words(result: Any) -> str:
    return " ".join(result.summary)


def row_value(result: Any, **fields: Any) -> Tensor:
    effect = result.find(**fields)
    return result.per_prompt["value"][result.effects.index(effect)]


def test_permuted_rows_keep_their_weights_and_their_mask() -> None:
    visible = visible_keys(12, window=4)
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(2, 3, 12, 12, generator=generator).masked_fill(~visible, -torch.inf)
    pattern = scores.softmax(-1)
    permuted = permute_rows(
        pattern, torch.rand(2, 1, 12, 12, generator=generator).expand_as(pattern), visible
    )
    assert bool((permuted.masked_select(~visible) == 0).all())
    torch.testing.assert_close(permuted.sort(-1).values, pattern.sort(-1).values, atol=0, rtol=0)
    assert bool((permuted[:, :, 0] == pattern[:, :, 0]).all())
    # All heads of a prompt are permuted alike, so that their mean is permuted too.
    one_by_one = permute_rows(pattern.mean(1), torch.zeros(2, 12, 12), visible)
    torch.testing.assert_close(one_by_one, pattern.mean(1))
    assert float((permuted - pattern).abs().max()) > 0.1
    # Every visible key is as likely as any other to get the largest weight.
    row = torch.zeros(4000, 12, 12)
    row[:, 8, 5] = 1.0
    where = permute_rows(row, torch.rand(4000, 12, 12, generator=generator), visible)[:, 8].argmax(
        -1
    )
    counts = where.bincount(minlength=12)
    assert counts[[*range(5), 9, 10, 11]].sum() == 0
    assert bool(((counts[5:9] - 1000).abs() < 5 * 27).all())


def test_spectrum_of_known_matrices() -> None:
    identity, alike = torch.eye(6), torch.full((6, 6), 1 / 6)
    steps = torch.tensor([2.0, 1, 1, 0, 0, 0])
    values = singular_values(torch.stack([identity, alike, torch.diag(steps)]))
    torch.testing.assert_close(values[2].float(), steps)
    found = spectrum_metrics(values)
    assert found["participation_ratio"].tolist() == pytest.approx([6, 1, 16 / 6])
    assert found["stable_rank"].tolist() == pytest.approx([6, 1, 6 / 4])
    assert found["singular_gap"].tolist() == pytest.approx([0, 1, 0.5])


def plain_divergence(heads: Tensor, removed: Tensor, visible: Tensor) -> float:
    """Mean over heads and rows of KL(head || mean head) without some columns, entry by entry."""
    total = []
    for i in range(heads.shape[1]):
        rows = heads[:, i].double().clone()
        if bool((visible[i] & ~removed).any()):
            rows[:, removed] = 0
            rows = rows / rows.sum(-1, keepdim=True)
        mean = rows.mean(0)
        total.append(
            (torch.special.xlogy(rows, rows) - torch.special.xlogy(rows, mean)).sum(-1).mean()
        )
    return float(torch.stack(total).mean())


def test_head_divergence_agrees_with_its_definition() -> None:
    visible = visible_keys(9)
    scores = 3 * torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(1))
    pattern = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    removed = torch.zeros(2, 3, 9, dtype=torch.bool)
    removed[:, 1, [0, 1, 2]] = True
    removed[:, 2, [3, 8]] = True
    found = head_divergence(pattern, removed, visible).mean(-1)
    for prompt in range(2):
        for place in range(3):
            expected = plain_divergence(pattern[prompt], removed[prompt, place], visible)
            assert float(found[prompt, place]) == pytest.approx(expected, abs=1e-5)
    # Two heads that look at two different keys: ln 2 from their mean; without one of the keys both
    # look at nothing or at the other, and a head with nothing left is uniform over what it sees.
    split = torch.zeros(1, 2, 4, 4)
    split[0, :, :, 0] = 1
    split[0, 0, 3], split[0, 1, 3] = torch.eye(4)[0], torch.eye(4)[1]
    none = torch.zeros(1, 2, 4, dtype=torch.bool)
    none[0, 1, 0] = True
    rows = head_divergence(split, none, visible_keys(4))[0, :, 3]
    assert float(rows[0]) == pytest.approx(math.log(2), abs=1e-5)
    # Head 0 is (1/3, 1/3, 1/3) over keys 1 to 3, head 1 all on key 1; their mean (2/3, 1/6, 1/6).
    both = (math.log(3 / 2) + (math.log(1 / 2) + 2 * math.log(2)) / 3) / 2
    assert float(rows[1]) == pytest.approx(both, abs=1e-5)


def test_percentile_sinks() -> None:
    pattern = torch.zeros(1, 1, 10, 10)
    pattern[0, 0] = torch.diag(torch.arange(1.0, 11) / 10)
    assert sink_columns(pattern, 0.9)[0].nonzero().flatten().tolist() == [9]
    assert sink_columns(pattern, 0.75)[0].nonzero().flatten().tolist() == [7, 8, 9]


def test_columns_nearby() -> None:
    """As many, none of them a sink, and as early; without an order, the very neighbours."""
    sinks = torch.zeros(2, 40, dtype=torch.bool)
    sinks[0, [0, 1, 20]] = True
    sinks[1, 39] = True
    found = columns_nearby(sinks, torch.zeros(1, 40))
    assert found[0, 0].nonzero().flatten().tolist() == [2, 3, 19]
    assert found[1, 0].nonzero().flatten().tolist() == [38]
    found = columns_nearby(sinks, torch.rand(200, 40, generator=torch.Generator().manual_seed(0)))
    assert not bool((found & sinks[:, None]).any())
    assert bool((found.sum(-1) == torch.tensor([[3], [1]])).all())
    assert found[0].any(0).nonzero().flatten().max() < 30  # 20 and an eighth of the length
    assert int(found[1].any(0).sum()) > 2
    most = torch.ones(1, 5, dtype=torch.bool)
    most[0, 4] = False  # more sinks than others: what there is
    assert columns_nearby(most, torch.zeros(1, 5))[0, 0].tolist() == [False] * 4 + [True]


def test_reference_points() -> None:
    pattern = torch.zeros(3, 20, 20)
    pattern[0, :, 4] = 0.3  # the one above 0.1
    pattern[1] = 1 / 20  # none: the top tenth
    pattern[1, :, 17], pattern[1, :, 3] = 0.07, 0.08
    pattern[2, :, :9] = 0.105  # nine: at most three tenths
    chosen = reference_points(pattern)
    assert chosen[0].nonzero().flatten().tolist() == [4]
    assert chosen[1].nonzero().flatten().tolist() == [3, 17]
    assert chosen[2].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_betti_curves_agree_with_a_spanning_tree() -> None:
    """Bars of components end at the edges of a minimum spanning tree; scipy finds it."""
    pattern = torch.rand(2, 9, 9, generator=torch.Generator().manual_seed(3)).double().softmax(-1)
    found = persistence(pattern)
    for prompt, matrix in enumerate(pattern.numpy()):
        distance = 1 - np.maximum(matrix, matrix.T)
        tree = minimum_spanning_tree(np.triu(distance, 1)).data
        assert float(found["persistence0"][prompt]) == pytest.approx(tree.sum(), abs=1e-5)
        curve = [9 - int((tree <= scale).sum()) for scale in np.arange(1, 10) / 10]
        assert found["betti0"][prompt].tolist() == curve


@pytest.fixture(scope="module")
def plain_rope() -> Any:
    from sinklens.zoo import folder

    with folder("rope") as path:
        return transformers.LlamaForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        ).eval()


def test_shares_and_heads_agree_with_plain_hugging_face(plain_rope: Any) -> None:
    """Reference points, their shares in three spaces, KL without the sinks, from the weights."""
    model = sinklens.load("rope")
    prompts = sinklens.prompts(model, n=3, length=20)
    result = run(model, prompts, conditions=("shares", "head_kl"), draws=1, column_sets=4)
    with torch.no_grad():
        out = plain_rope(prompts.tokens, output_attentions=True, output_hidden_states=True)
    config = plain_rope.config
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    group = heads // config.num_key_value_heads
    shares, without = torch.zeros(3, 3), torch.zeros(3)
    visible = visible_keys(20)
    for layer, pattern in zip(plain_rope.model.layers, out.attentions, strict=True):
        hidden = out.hidden_states[layer.self_attn.layer_idx]
        with torch.no_grad():
            value = layer.self_attn.v_proj(layer.input_layernorm(hidden))
        value = value.view(3, 20, -1, width).repeat_interleave(group, 2)
        for prompt in range(3):
            mean = pattern[prompt].mean(0)
            got = mean.mean(0)
            points = (got > 0.1).nonzero().flatten().tolist()
            points = points or got.argsort(descending=True)[:2].tolist()
            points = sorted(points, key=lambda key: -float(got[key]))[:6]
            queries = [i for i in range(1, 20) if i not in points]
            mask = torch.zeros(20)
            mask[points] = 1
            for weights, space in ((mean, 0), (pattern[prompt], 1), (pattern[prompt], 2)):
                if space == 0:
                    part, whole = (weights * mask) @ hidden[prompt], weights @ hidden[prompt]
                else:
                    part, whole = (
                        torch.einsum("hqk,khd->qhd", w, value[prompt]).flatten(1)
                        for w in (weights * mask, weights)
                    )
                if space == 2:
                    part, whole = (x @ layer.self_attn.o_proj.weight.T for x in (part, whole))
                one = (part.norm(dim=-1) / whole.norm(dim=-1)).clamp(max=1)[queries].mean()
                shares[prompt, space] += one.detach() / config.num_hidden_layers
            incoming = pattern[prompt].sum((0, 1)).double().numpy()
            sinks = torch.from_numpy(incoming >= np.percentile(incoming, 90))
            without[prompt] += (
                plain_divergence(pattern[prompt], sinks, visible) / config.num_hidden_layers
            )
    for place, space in enumerate(("hidden_state", "value", "output")):
        mine = row_value(result, metric="reference_share", condition=space, kind="measurement")
        torch.testing.assert_close(mine.float(), shares[:, place], atol=1e-5, rtol=0)
    mine = row_value(result, condition="without_sinks:0.9", kind="treatment")
    torch.testing.assert_close(mine.float(), without, atol=1e-5, rtol=0)
    for against in ("random_columns", "nearby_columns"):
        where = {"condition": "without_sinks:0.9", "against": against}
        contrast = result.find(**where, kind="contrast")
        control = result.find(**where, kind="control")
        assert control.n_draws == 4
        assert contrast.effect == pytest.approx(float(mine.mean()) - control.value, abs=1e-6)


def test_no_name_without_its_null(boot_family: Any) -> None:
    """Scatter alone makes a distributed frame beside uniform attention, which has none."""
    model = sinklens.load("rope")
    prompts = sinklens.prompts(model, n=3, length=32)
    named, bare = (run(model, prompts, conditions=("frame",), draws=draws) for draws in (2, 0))
    assert named.summary[0].startswith("Frame: centralised")
    assert bare.summary[0].startswith("Frame: not classified, for lack of row-permuted")
    assert " and one model with random weights (" in named.summary[1]
    row = {"metric": "largest_column", "against": "random_weights"}
    value = row_value(named, metric="largest_column", condition="attention", kind="measurement")
    differences = value - row_value(named, **row, kind="null")
    assert named.find(**row, kind="contrast").effect == pytest.approx(float(differences.mean()))
    # A model that was never trained scatters, and no more.
    tiny = boot_family("llama")
    result = run(tiny, random_prompts(tiny, n=6, length=16), conditions=("frame",), draws=2)
    assert result.summary[0].startswith("Frame: none")
    assert "no score is far enough above its row-permuted null" in result.summary[0]


def test_a_causal_model_is_never_called_bidirectional() -> None:
    """Its last column is the last query's weight on itself."""
    model = sinklens.load("rope")
    result = run(model, sinklens.prompts(model, n=3, length=16), conditions=("frame",), draws=2)
    large = [
        replace(row, effect=0.5, ci_low=0.4, ci_high=0.6)
        if (row.metric, row.kind, row.against) == ("bidirectional", "contrast", "row_permuted")
        else row
        for row in result.effects
    ]
    assert result.findings["causal"] and frame_label(replace(result, effects=large)) != (
        "bidirectional"
    )
    encoder = replace(result, effects=large, findings={**result.findings, "causal": False})
    assert frame_label(encoder) == "bidirectional"
    assert any("gives no label here" in note for note in result.notes())


def test_a_single_prompt_tells_nothing_apart() -> None:
    model = sinklens.load("rope")
    result = run(model, sinklens.prompts(model, n=1, length=16), draws=1, preset="published")
    assert result.summary[0].startswith("Frame: not classified, since a single prompt")
    assert "without an interval beside uniform attention" in in_words(result)
    assert not re.search(r"(above|below) (its|uniform|keys|the)", in_words(result))
    assert "KL reduction" not in in_words(result)


def test_graph_agrees_with_numpy(plain_rope: Any) -> None:
    model = sinklens.load("rope")
    prompts = sinklens.prompts(model, n=2, length=16)
    result = run(model, prompts, conditions=("graph",), draws=0)
    with torch.no_grad():
        attentions = plain_rope(prompts.tokens, output_attentions=True).attentions
    star, fiedler = np.zeros(2), np.zeros(2)
    for pattern in attentions:
        for prompt in range(2):
            mean = pattern[prompt].mean(0).numpy()
            edges = (mean > 2 / np.arange(1, 17)[:, None]).astype(float)
            np.fill_diagonal(edges, 0)
            star[prompt] += edges.sum(0).max() / 15 / len(attentions)
            both = (edges + edges.T) / 2
            values = np.linalg.eigvalsh(np.diag(both.sum(1)) - both)
            fiedler[prompt] += values[1] / len(attentions)
    lead = {"condition": "above_2x_uniform", "kind": "measurement"}
    np.testing.assert_allclose(row_value(result, metric="star_likeness", **lead), star, atol=1e-6)
    np.testing.assert_allclose(row_value(result, metric="fiedler", **lead), fiedler, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox", "gemma2"])
def test_fisher_traces_agree_with_plain_hugging_face(name: str) -> None:
    model = families.boot(name)
    tokens = random_prompts(model, n=2, length=8).tokens
    first = next(iter(model.original_model.parameters()))
    first.requires_grad_(False)
    result = run(
        model, random_prompts(model, n=2, length=8), conditions=("spectrum",), fisher=True, draws=0
    )
    assert not first.requires_grad
    weights = list(model.original_model.parameters())
    assert all(w.requires_grad for w in weights[1:]) and all(w.grad is None for w in weights)
    plain = families.FAMILIES[name]()
    squares = torch.zeros(2, 2)
    for row, prompt in enumerate(tokens):
        plain.zero_grad()
        plain(prompt[None], labels=prompt[None], use_cache=False).loss.backward()
        for path, weight in plain.named_parameters():
            assert weight.grad is not None
            attention = ".attn." in path or ("attention" in path and "norm" not in path)
            attention = attention or "self_attn" in path
            squares[row, 0] += weight.grad.square().sum() * attention
            squares[row, 1] += weight.grad.square().sum()
    mine = row_value(result, metric="fisher_share", condition="attention")
    torch.testing.assert_close(mine.float(), squares[:, 0] / squares[:, 1], atol=1e-5, rtol=1e-4)
    shares = [e.value for e in result.effects if e.metric == "fisher_share"]
    null = [e.baseline for e in result.effects if e.metric == "fisher_share"]
    assert sum(shares) == pytest.approx(1) and sum(null) == pytest.approx(1)


def test_fisher_of_an_encoder_needs_a_mask_token(boot_family: Any) -> None:
    model = boot_family("bert")
    with pytest.raises(SinklensError, match="mask token"):
        run(model, random_prompts(model, n=2, length=8), fisher=True)
    encoder = sinklens.load("encoder")
    result = run(
        encoder,
        sinklens.prompts(encoder, n=2, length=16),
        conditions=("spectrum",),
        fisher=True,
        draws=0,
    )
    assert "Fisher trace" in in_words(result)


def test_windows_and_their_nulls(boot_family: Any) -> None:
    model = boot_family("gemma2")
    prompts = random_prompts(model, n=3, length=12)
    result = run(model, prompts, conditions=("frame",), draws=2)
    conditions = {row.condition for row in result.effects if row.metric == "largest_column"}
    assert conditions == {"attention", "attention:full", "attention:window"}
    with torch.no_grad():
        attentions = families.gemma2()(prompts.tokens, output_attentions=True).attentions
    seen = [(attentions[layer].mean((0, 1)) > 0).sum(0) for layer in (0, 1)]
    assert seen[0].tolist() == [4] * 9 + [3, 2, 1]
    assert seen[1].tolist() == list(range(12, 0, -1))
    columns = [attentions[i].mean(1).sum(1) / seen[i % 2] for i in range(3)]
    mine = result.arrays["columns"].values
    torch.testing.assert_close(mine, torch.stack(columns, 1).mean(0), atol=1e-5, rtol=0)
    # Uniform over at most four keys: (1 + 1/2 + 1/3 + 1/4) / 4 at key 0.
    uniform = result.arrays["columns:uniform"].values
    assert float(uniform[0, 0]) == pytest.approx(25 / 48)
    assert float(uniform[0, 5]) == pytest.approx(1 / 4)
    assert float(uniform[1, 11]) == pytest.approx(1 / 12)


def test_learned_sinks_leave_less_for_uniform_attention() -> None:
    model = sinklens.load("learned-sink")
    result = run(
        model,
        sinklens.prompts(model, n=2, length=16),
        conditions=("frame",),
        draws=1,
        random_weights=False,
    )
    even = result.arrays["columns:uniform"].values
    assert bool((even[:, -1] < 1 / 16 - 1e-4).all())
    assert any("learned sinks" in note for note in result.notes())


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_batches_and_order_change_nothing(name: str, boot_family: Any) -> None:
    model = boot_family(name)
    prompts = random_prompts(model, n=4, length=10)
    settings = {"draws": 2, "column_sets": 5, "random_weights": False, "topology": True}
    hooks = [len(point.fwd_hooks) for point in model.hook_dict.values()]
    whole = run(model, prompts, **settings)
    assert hooks == [len(point.fwd_hooks) for point in model.hook_dict.values()]
    single = run(model, prompts, batch_size=1, **settings)
    torch.testing.assert_close(single.per_prompt, whole.per_prompt, atol=1e-5, rtol=1e-5)
    order = torch.tensor([2, 0, 3, 1])
    other = run(model, replace(prompts, tokens=prompts.tokens[order]), **settings)
    for what, values in whole.per_prompt.items():
        torch.testing.assert_close(other.per_prompt[what], values[:, order], atol=1e-5, rtol=1e-5)


def test_half_precision() -> None:
    settings = {"draws": 1, "random_weights": False}
    model = sinklens.load("rope", dtype="bfloat16")
    result = run(model, sinklens.prompts(model, n=2, length=16), **settings)
    full = sinklens.load("rope")
    expected = run(full, sinklens.prompts(full, n=2, length=16), **settings)
    named = {"metric": "largest_column", "condition": "attention", "kind": "measurement"}
    assert result.find(**named).value == pytest.approx(expected.find(**named).value, abs=0.02)


def test_random_weights_leave_the_model_alone(boot_family: Any) -> None:
    model = boot_family("gpt2")
    before = {name: w.clone() for name, w in model.state_dict().items()}
    state = torch.get_rng_state()
    result = run(model, random_prompts(model, n=2, length=8), conditions=("frame",), draws=0)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], w) for name, w in model.state_dict().items())
    random = result.find(metric="effective_anchors", against="random_weights", kind="null")
    # Hugging Face draws small weights, so that attention is nearly uniform.
    assert random.value == pytest.approx(random.baseline, rel=0.05)
    assert "same configuration" in result.findings["random_weights"]


def test_a_random_twin_that_cannot_be_made(boot_family: Any, monkeypatch: Any) -> None:
    model = boot_family("llama")
    prompts = random_prompts(model, n=2, length=8)

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(type(model.original_model), "_from_config", refuse)
    result = run(model, prompts, conditions=("frame",), draws=0)
    assert "no memory" in result.settings["left_out"]["random_weights"]
    with pytest.raises(SinklensError, match="no memory"):
        run(model, prompts, conditions=("frame",), random_weights=True)


def test_what_is_no_pattern_is_refused(boot_family: Any) -> None:
    model = boot_family("llama")
    reader = PatternReader(model, sinklens.check(model), torch.zeros(1, 4, dtype=torch.long))
    scores = torch.full((1, 4, 4, 4), 2.0).tril()
    future = torch.full((1, 4, 4, 4), 0.25)
    for wrong in (scores, future, -scores):
        with pytest.raises(SinklensError, match="is not attention"):
            reader.checked(wrong, 0)
    with pytest.raises(SinklensError, match="NaN"):
        reader.checked(scores * torch.nan, 0)

    unreadable = {hook_name("pattern", 1): "it is hidden"}
    without = replace(sinklens.check(model), unreadable=unreadable)
    with pytest.raises(SinklensError, match=r"reads blocks.1.attn.hook_pattern; on .* hidden"):
        PatternReader(model, without, torch.zeros(1, 4, dtype=torch.long))


def test_topology_without_gudhi(boot_family: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "gudhi", None)
    model = boot_family("llama")
    prompts = random_prompts(model, n=2, length=8)
    with pytest.raises(SinklensError, match=r"pip install 'sinklens\[topology\]'"):
        run(model, prompts, topology=True)
    assert run(model, prompts, draws=1, random_weights=False).effects


def test_sink_columns_are_judged_by_models_with_random_weights() -> None:
    """What random weights give is what the experiment finds on each of them."""
    model = families.boot("llama")
    prompts = sinklens.prompts(model, corpus()[:2000], n=4, length=16, bos=True)
    settings = {"conditions": ("head_kl",), "percentiles": (0.8,), "column_sets": 5}
    result = run(model, prompts, null_models=2, **settings)
    few = prompts.take(few_prompts(prompts, 0))
    found = []
    for number in range(2):
        twin, _ = random_weights(model, int(seeded(0, "null_model", number).integers(2**31)))
        own = run(twin, few, **settings)
        found.append(own.find(metric="head_kl", kind="contrast", against="random_columns").effect)
    row = result.find(metric="head_kl", against="random_weights:random_columns")
    assert (row.kind, row.resampled, row.effect) == ("null", "model", pytest.approx(np.mean(found)))
    assert all(effect < 0 for effect in found)  # on weights that nothing was learned by


@pytest.mark.heavy
def test_smollm2_is_centralised_and_sinks_hold_heads_together(smollm2_gguf: Path) -> None:
    model = sinklens.load(smollm2_gguf)
    result = run(
        model,
        sinklens.prompts(model, n=3, length=32),
        draws=1,
        column_sets=20,
        random_weights=False,
        conditions=("frame", "head_kl"),
    )
    assert result.summary[0].startswith("Frame: centralised")
    contrast = result.find(metric="centralised", kind="contrast", against="row_permuted")
    assert contrast.ci_low > 0.1
    # Against the paper's direction: without the sink columns the heads are less alike.
    more = result.find(condition="without_sinks:0.9", against="random_columns", kind="contrast")
    assert more.ci_low > 0
    assert "there is no KL reduction" in in_words(result)
