"""Which layers an intervention can reach: layers that it cannot are those of the clean run."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import sinklens
from sinklens.engine.evaluate import evaluate
from sinklens.hooks import Intervention
from sinklens.hooks.reach import named_layers, reach_of
from sinklens.models.prompts import random_prompts
from sinklens.runner.compare import UNREACHED, Compared, Comparison, Control, in_order

# A hook in layer l, and the first layer, counted from l, whose stream and pattern it changes.
PARTS = {
    "hook_resid_pre": (0, 0),
    "ln1.hook_out": (1, 0),
    "attn.hook_q": (1, 0),
    "attn.hook_k": (1, 0),
    "attn.hook_attn_scores": (1, 0),
    "attn.hook_pattern": (1, 0),
    "attn.hook_v": (1, 1),
    "attn.hook_z": (1, 1),
    "hook_attn_out": (1, 1),
    "hook_mlp_out": (1, 1),
    "hook_resid_post": (1, 1),
}


def tilt(activation: Tensor, hook: Any) -> Tensor:
    """Something else at every place that is finite, and different for each key."""
    steps = torch.linspace(0.1, 0.9, activation.shape[-1])
    return torch.where(torch.isfinite(activation), activation * (1 - 0.5 * steps), activation)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("layer", [0, 2, 5])
def test_what_is_not_reached_is_the_clean_run(part: str, layer: int) -> None:
    model = sinklens.load("rope")
    tokens = sinklens.prompts(model, n=2, length=8).tokens
    names = [
        f"blocks.{at}.{kind}" for at in range(6) for kind in ("attn.hook_pattern", "hook_resid_pre")
    ]
    names.append("blocks.5.hook_resid_post")
    hook = f"blocks.{layer}.{part}"

    def read(edits: list[tuple[str, Any]]) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}

        def keep(activation: Tensor, hook: Any, *, name: str) -> None:
            seen[name] = activation.clone()

        reads = [(name, partial(keep, name=name)) for name in names]
        with torch.no_grad():
            model.run_with_hooks(tokens, fwd_hooks=[*edits, *reads])
        return seen

    clean, edited = read([]), read([(hook, tilt)])
    same = {name: torch.equal(clean[name], edited[name]) for name in names}
    reach = reach_of([hook], 6)
    stream, pattern = (layer + more for more in PARTS[part])
    assert reach.first("residual", range(7)) == stream
    assert reach.first("pattern", range(6)) == min(pattern, 6)
    for at in range(6):
        assert same[f"blocks.{at}.attn.hook_pattern"] == (at < pattern)
        assert same[f"blocks.{at}.hook_resid_pre"] == (at < stream)
    assert not same["blocks.5.hook_resid_post"]


def test_outside_the_blocks() -> None:
    assert reach_of(["hook_embed", "blocks.3.hook_z"], 6).first("pattern", range(6)) == 0
    assert reach_of(["ln_final.hook_out"], 6).first("residual", range(7)) == 7
    both = reach_of(["blocks.4.attn.hook_z", "blocks.2.attn.hook_pattern"], 6)
    assert both.first("pattern", range(6)) == 2
    assert both.first("pattern", (1, 4)) == 1
    assert reach_of(["blocks.4.attn.hook_pattern"], 6).first("scores", range(6)) == 5


def test_layers_in_words() -> None:
    assert named_layers(0, range(30), "pattern") is None
    assert named_layers(12, range(30), "pattern") == "L12-L29"
    assert named_layers(29, range(30), "pattern") == "L29"
    assert named_layers(12, range(31), "residual") == "L12-out"
    assert named_layers(30, range(31), "residual") == "out"
    assert named_layers(1, (3, 7, 11), "pattern") == "L7-L11"


def zero_output(layer: int) -> Intervention:
    return Intervention(
        "zero", "z", layer, [(f"blocks.{layer}.attn.hook_z", lambda z, hook: z * 0)], layer=layer
    )


def test_metrics_average_the_layers_that_are_reached() -> None:
    """Against a plain mean over the heads and queries of each layer's pattern."""
    model = sinklens.load("rope")
    prompts = sinklens.prompts(model, n=3, length=10)
    edits = [zero_output(layer) for layer in (1, 4, 5)]
    found = evaluate(model, prompts, edits, ["sink_mass", "position0_norm", "loss"], progress=False)
    for number, edit in enumerate(edits):
        mass, norm = torch.zeros(6, 3), torch.zeros(7, 3)
        with torch.no_grad(), model.hooks(fwd_hooks=edit.fwd_hooks):
            _, cache = model.run_with_cache(prompts.tokens)
        for layer in range(6):
            mass[layer] = cache[f"blocks.{layer}.attn.hook_pattern"][:, :, 1:, 0].mean((1, 2))
            norm[layer] = cache[f"blocks.{layer}.hook_resid_pre"][:, 0].norm(dim=-1)
        norm[6] = cache["blocks.5.hook_resid_post"][:, 0].norm(dim=-1)
        first = edit.first_layer + 1
        torch.testing.assert_close(
            found.values[number, 1], norm[first:].amax(0), atol=1e-4, rtol=1e-5
        )
        torch.testing.assert_close(found.by_layer[0].values[number], mass, atol=1e-6, rtol=1e-5)
        if first == 6:
            assert bool(found.values[number, 0].isnan().all())
        else:
            torch.testing.assert_close(
                found.values[number, 0], mass[first:].mean(0), atol=1e-6, rtol=1e-5
            )
        below = found.by_layer[0]
        torch.testing.assert_close(below.values[number, :first], below.baselines[number, :first])
    assert bool(torch.isfinite(found.values[:, 2]).all())


def test_contrasts_are_over_the_layers_that_both_reach() -> None:
    model = sinklens.load("rope")
    prompts = sinklens.prompts(model, n=3, length=10)
    treated, higher, last = (zero_output(layer) for layer in (1, 3, 5))
    comparison = Comparison("zero", [treated], (Control("other_heads", [higher, last]),))
    found = evaluate(model, prompts, in_order([comparison]), ["sink_mass"], progress=False)
    compared = Compared(found, [comparison])
    rows = {row.effect.kind: row.effect for row in compared.rows(seed=0)}
    change = (found.by_layer[0].values - found.by_layer[0].baselines).mean(-1)
    # The last layer's output reaches no pattern, so that it is no draw of the control.
    assert rows["treatment"].effect == pytest.approx(float(change[0, 2:].mean()), abs=1e-6)
    assert rows["treatment"].layers == "L2-L5"
    assert rows["control"].effect == pytest.approx(float(change[1, 4:].mean()), abs=1e-6)
    assert rows["contrast"].value == pytest.approx(float(change[0, 4:].mean()), abs=1e-6)
    assert rows["contrast"].baseline == pytest.approx(rows["control"].effect)
    assert rows["contrast"].layers == rows["control"].layers == "L4-L5"
    # Models with random weights are compared over the same layers.
    assert list(compared.contrasts().values()) == [pytest.approx(rows["contrast"].effect)]
    assert not compared.unreached()


def test_rows_of_no_layer_are_left_out_with_the_reason() -> None:
    model = sinklens.load("rope")
    prompts = sinklens.prompts(model, n=3, length=10)
    treated, last = (zero_output(layer) for layer in (1, 5))
    comparisons = [
        Comparison("zero", [last], (Control("other_heads", [treated]),)),
        Comparison("zero", [treated], (Control("other_heads", [last]),)),
    ]
    metrics = ["sink_mass", "position0_norm"]
    found = evaluate(model, prompts, in_order(comparisons), metrics, progress=False)
    compared = Compared(found, comparisons)
    rows = [row.effect for row in compared.rows(seed=0)]
    assert [(r.kind, r.layer) for r in rows if r.metric == "sink_mass"] == [("treatment", 1)]
    assert {r.layers for r in rows if r.metric == "position0_norm"} == {"L2-out", "out"}
    assert len(compared.contrasts()) == 2
    assert compared.unreached() == {"sink_mass of zero L5, zero L1 against other_heads": UNREACHED}


@pytest.mark.slow
def test_rows_say_their_layers(boot_family: Any) -> None:
    model = boot_family("gemma2")
    prompts = random_prompts(model, n=3, length=12)
    settings = {"layers": (0, 2), "metrics": ("sink_mass",), "draws": 2, "progress": False}
    result = sinklens.run("position0_patching", model, prompts, **settings)
    layers = {(row.layer, row.kind): row.layers for row in result.effects}
    assert layers[0, "treatment"] is None and layers[2, "treatment"] == "L2"
    by_layer = result.arrays["sink_mass_by_layer"]
    place = by_layer.labels("run").index("other_token:residual L2")
    torch.testing.assert_close(by_layer.values[0, :2], by_layer.values[place, :2])
    row = result.find(condition="other_token:residual", layer=2, kind="treatment")
    assert row.value == pytest.approx(float(by_layer.values[place, 2]), abs=1e-6)
    assert "layers" in result.table().columns
