"""Whole runs: known answers, families, refusals, and what is said, drawn and kept."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from typer.testing import CliRunner

import sinklens
from sinklens import SinklensError
from sinklens.cli import app
from sinklens.hooks import replace_bos_embedding
from sinklens.models.prompts import Prompts, random_prompts
from sinklens.probes.log_split import LogSplit, SinkReadouts
from sinklens.results.result import ExperimentResult
from sinklens.zoo.constructed import ConstructedSink, constructed_sink
from tests import families
from tests.experiments.position.helpers import alike, run

pytestmark = pytest.mark.slow

# --- whole runs with a known answer


def test_the_constructed_sink() -> None:
    """Without key 0 its logits are 0; with it, the formulas give the column of the sink head."""
    formulas = ConstructedSink()
    model = constructed_sink(formulas)
    prompts = random_prompts(model, n=4, length=12, bos=True)
    result = run(model, prompts, draws=1, conditions="mean", queries="1:8,1:12", first_tokens=3)
    for label in ("1:8", "1:12"):
        named = {"metric": "residual_share", "condition": "without_key0", "against": None}
        row = result.find(**named, queries=label)
        assert (row.value, row.ci_low, row.ci_high) == (0.0, 0.0, 0.0)
    assert not [e for e in result.effects if e.metric.startswith("removed_without_key0")]
    said = " ".join(result.summary)
    assert "without key 0 the component at queries 1:8 is not distinguishable from its null" in said
    slope = result.find(metric="causal_slope", condition="without_key0", kind="measurement")
    assert slope.value == pytest.approx(1.0, abs=1e-6)

    def component(end: int, **edit: Any) -> float:
        # In every head the words of a prompt have one logit, 0; BOS has log of its odds over them.
        columns = []
        for prompt in prompts.tokens.tolist():
            pattern = formulas.run(prompt, **edit).pattern[1]
            i = np.arange(1, end)
            columns.append(np.log(pattern[:, i, 0] / pattern[:, i, i]))
        pairs = [(i, j) for i in range(1, end) for j in range(i + 1)]
        counts = np.bincount([i - j for i, j in pairs])
        total = 0.0
        for p, q in itertools.permutations(range(len(columns)), 2):
            # One pair an offset: its logit less a share 1 / n_d of itself.
            shrink = 1 - 1 / counts[1:end]
            total += float((columns[p] * columns[q] * shrink).sum() / len(pairs))
        return total / (len(columns) * (len(columns) - 1)) / columns[0].shape[0]

    mean = formulas.embedding.mean(0)
    before, after = component(8), component(8, residual={(0, 0): mean})
    row = result.find(metric="removed_all_keys", condition="mean", kind="treatment", queries="1:8")
    assert row.value == pytest.approx(1 - after / before, abs=1e-5)
    row = result.find(metric="component_all_keys", condition="mean", kind="treatment")
    assert (row.baseline, row.value) == pytest.approx((before, after), rel=1e-5)


# --- probes on real attention


def test_a_learned_sink_is_part_of_log_z() -> None:
    model = sinklens.load("learned-sink")
    prompts = sinklens.prompts(model, n=2, length=12)
    probe = LogSplit(model)
    with torch.no_grad():
        model.run_with_hooks(prompts.tokens, fwd_hooks=probe.fwd_hooks)
    found = probe.compute()
    assert float(found.error.max()) < 1e-4
    assert found.sink_logit is not None
    layers = model.original_model.model.layers
    written = torch.stack([layer.self_attn.sinks.detach().float() for layer in layers])
    assert torch.allclose(found.sink_logit, written, atol=1e-3)


def test_readouts(boot_family: Any) -> None:
    model = boot_family("llama")
    tokens = random_prompts(model, n=3, length=9, bos=True).tokens
    probe = SinkReadouts(model)
    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=probe.fwd_hooks)
        _, cache = model.run_with_cache(tokens)
    found = probe.compute()
    for layer, head in itertools.product(range(2), range(4)):
        written = model.original_model.model.layers[layer].self_attn.o_proj.weight.detach()
        w_o = written[:, head * 8 : (head + 1) * 8]
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][:, head, 1:, 0]
        value = cache[f"blocks.{layer}.attn.hook_v"][:, 0, head // 2]
        z = cache[f"blocks.{layer}.attn.hook_z"][:, 1:, head]
        brought = pattern * (value @ w_o.T).norm(dim=-1)[:, None]
        ratio = (brought / (z @ w_o.T).norm(dim=-1)).mean(1)
        assert torch.allclose(found.readout[:, layer, head], ratio, atol=1e-5)
        assert torch.allclose(found.weight[:, layer, head], pattern.mean(1), atol=1e-6)


# --- families, edges, surfaces

QUICK: dict[str, Any] = {"draws": 1, "first_tokens": 2, "conditions": ("mean", "zero:key")}


def has_nan(result: ExperimentResult) -> bool:
    try:
        json.dumps([vars(effect) for effect in result.effects], allow_nan=False)
    except ValueError:
        return True
    return False


@pytest.mark.usefixtures("everything_removed")  # four prompts tell little from nothing
def test_families(family: Any) -> None:
    name = family.cfg.model_name
    prompts = Prompts(alike(family, 4), bos=True, source="test")
    if name in ("tiny-opt", "tiny-bert"):
        with pytest.raises(SinklensError, match=r"hook_attn_scores|causal"):
            run(family, prompts, **QUICK)
        return
    result = run(family, prompts, **QUICK)
    assert not has_nan(result)
    assert not any(point.has_hooks() for point in family.hook_dict.values())
    checks = result.findings["checks"]
    assert checks["split_error"] < 1e-4
    assert checks["toeplitz_share"] < 1e-6
    assert checks["position0_change"] < 1e-4
    change = checks["shifted_positions"]["change"]
    assert change > 0.1 if name == "tiny-gpt2" else change < 1e-3
    notes = " ".join(result.notes())
    assert ("attention window shorter than the prompts" in notes) == (
        name not in ("tiny-mistral", "tiny-gemma2")
    )
    assert (
        result.find(
            metric="removed_all_keys", condition="mean", kind="treatment", queries="1:8"
        ).n_prompts
        == 4
    )


@pytest.fixture(scope="module")
def rope() -> Any:
    return sinklens.load("rope")


@pytest.fixture(scope="module")
def prompts(rope: Any) -> Prompts:
    return sinklens.prompts(rope, n=5, length=16)


def test_batches_and_order_do_not_matter(rope: Any, prompts: Prompts) -> None:
    settings = {**QUICK, "conditions": ("mean", "other_token:residual"), "layers": (2,)}
    whole = run(rope, prompts, **settings)
    single = run(rope, prompts, batch_size=1, **settings)
    order = [3, 0, 4, 1, 2]
    moved = run(rope, Prompts(prompts.tokens[order], True, "sotu"), **settings)
    for other in (single, moved):
        for one, two in zip(whole.effects, other.effects, strict=True):
            assert two.value == pytest.approx(one.value, abs=1e-4 * max(1, abs(one.value)))
    values = whole.per_prompt["value"][:, order]
    assert torch.allclose(values, moved.per_prompt["value"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"metrics": "loss"}, "takes no metrics"),
        ({"screen": True}, "takes no screen"),
        ({"positions": (3,)}, "takes no positions"),
        ({"queries": "0:8"}, "starts at 1"),
        ({"queries": "1:3"}, "at least 3 queries"),
        ({"queries": "early"}, "no range"),
        ({"queries": ()}, "at least one range"),
        ({"conditions": "meen"}, "did you mean mean"),
        ({"conditions": "rescaled:key"}, "rescaled:residual"),
        ({"layers": (99,)}, "no layer 99"),
        ({"first_tokens": -1}, "at least 0"),
    ],
)
def test_refused_settings(rope: Any, prompts: Prompts, settings: Any, reason: str) -> None:
    with pytest.raises(SinklensError, match=reason):
        run(rope, prompts, **settings)


def test_refused_inputs(rope: Any, prompts: Prompts) -> None:
    with pytest.raises(SinklensError, match="at least 3"):
        run(rope, Prompts(prompts.tokens[:2], True, "test"))
    with pytest.raises(SinklensError, match="no range of queries is left"):
        run(rope, Prompts(prompts.tokens[:, :3], True, "test"))
    with pytest.raises(SinklensError, match="replaces BOS"):
        run(rope, prompts.without_first(), conditions="mean")
    with pytest.raises(SinklensError, match="at least 2 layers"):
        model = sinklens.load("backcopy-1")
        run(model, sinklens.prompts(model, n=3, length=8))


def test_no_share_of_nothing(rope: Any, prompts: Prompts) -> None:
    """Over five prompts, attention to later keys is not above the null: no share of that."""
    result = run(rope, prompts, draws=1, first_tokens=0, conditions="mean")
    row = result.find(metric="component_without_key0", kind="treatment", queries="1:8")
    values = result.per_prompt["baseline"][result.effects.index(row)].numpy()
    assert stats.ttest_1samp(values, 0).confidence_interval().low < 0 < row.baseline
    assert not [e for e in result.effects if e.metric == "removed_without_key0"]
    assert any("removed_without_key0" in what for what in result.settings["left_out"])
    (line,) = (line for line in result.summary if line.startswith("Replacing BOS by mean"))
    assert "without key 0" not in line and "with key 0" in line
    missing = "without key 0 the component at queries 1:8 is not distinguishable from its null with"
    said = " ".join(result.summary)
    assert said.count(f"{missing} 5 prompts, so that nothing can be said of a share that is") == 1
    assert "no replacement changes this component significantly" in said
    assert not any(line.startswith("From layer 1 to the last") for line in result.summary)
    (checks,) = (note for note in result.notes() if note.startswith("Checks:"))
    assert "only through differences (content may still carry position)" in checks
    assert any("it cannot be set against the shares above" in line for line in result.summary)
    assert any("uniform attention (0%)" in line for line in result.summary)


def test_where_zeroing_bos_leaves_a_stream_and_raises_the_component() -> None:
    """Said by readings: the stream is not 0, and the component grows where no share is removed."""
    model = sinklens.load("learned-sink")
    prompts = sinklens.prompts(model, n=8, length=16)
    settings = {"draws": 1, "conditions": "zero", "queries": "1:8"}
    result = run(model, prompts, **settings, first_tokens=2)
    zeroed = replace_bos_embedding(model, with_="zero").fwd_hooks
    norms = []

    def keep(stream: torch.Tensor, hook: Any) -> None:
        norms.append(float(stream[:, 0].norm(dim=-1).max()))

    names = [f"blocks.{layer}.hook_resid_post" for layer in range(6)]
    with torch.no_grad():
        model.run_with_hooks(prompts.tokens, fwd_hooks=[*zeroed, *((n, keep) for n in names)])
    assert max(norms) > 0.1 and "zero" not in result.settings["footnotes"]
    row = result.find(metric="component_all_keys", condition="zero", kind="treatment")
    (line,) = (line for line in result.summary if line.startswith("Replacing BOS"))
    rise = f"under zero, with key 0, it rises from {row.baseline:.3g} to {row.value:.3g} nats^2 ("
    assert row.ci_low > 0 and rise in line
    (line,) = (line for line in result.summary if line.startswith("A nearest-centroid"))
    accuracy = result.find(
        metric="fingerprint", condition="nearest_centroid", kind="measurement", queries="7:8"
    )
    assert accuracy.unit == "share of first tokens"
    assert f"{accuracy.value:.0%} of cases at query 7" in line
    assert "(2 first tokens in each of 8 prompts, mean over 5 layers)" in line


def test_the_zeroed_stream_of_a_model_without_biases(rope: Any, prompts: Prompts) -> None:
    result = run(rope, prompts, draws=0, first_tokens=0, conditions="zero", queries="1:8")
    assert "stays at 0 in every layer" in result.settings["footnotes"]["zero"]


def test_without_bos_patches_are_left(rope: Any, prompts: Prompts) -> None:
    result = run(rope, prompts.without_first(), draws=1, first_tokens=0, layers=(1,))
    conditions = {what for what in result.settings["left_out"] if " at " not in what}
    assert conditions == {"mean", "zero", "random_token", "gaussian"}
    # Five prompts without BOS: nothing above the null to take a share of, so what is left in nats.
    said = " ".join(result.summary)
    assert "Patching position 0: with and without key 0, nothing can be said of what it" in said
    kinds = {e.kind for e in result.effects if e.metric == "component_without_key0"}
    assert kinds == {"treatment", "control", "contrast"}
    assert result.arrays["removed"].labels("edit") == [
        f"other_token:{p}@L1" for p in ("residual", "key", "value")
    ]
    result.plot()


def test_short_prompts_and_no_draws(rope: Any, prompts: Prompts) -> None:
    short = Prompts(prompts.tokens[:, :4], True, "test")
    result = run(rope, short, draws=0, first_tokens=2)
    assert result.arrays["removed"].labels("queries") == ["1:4"]
    kinds = {e.kind for e in result.effects if e.against != "diagonal_shift"}
    assert kinds == {"measurement", "treatment"}
    assert "draws is 0" in " ".join(result.notes())
    assert not has_nan(run(rope, short, draws=2, first_tokens=2))


def test_a_patch_of_the_last_layer_changes_one_logit_only() -> None:
    """That of its own key: nothing without key 0, and nothing at all where a value is patched."""
    model = families.boot("llama")
    prompts = random_prompts(model, n=4, length=12, bos=True)
    settings = {**QUICK, "layers": (1,), "first_tokens": 0}
    conditions = ("other_token:residual", "other_token:value")
    result = run(model, prompts, **{**settings, "conditions": conditions})
    patched = {(e.metric, e.condition) for e in result.effects if e.layer is not None}
    assert {metric for metric, _ in patched} <= {"removed_all_keys", "component_all_keys"}
    assert {condition for _, condition in patched} == {"other_token:residual"}
    assert not has_nan(result)
    reasons = [why for why in result.settings["left_out"].values() if "no layer behind" in why]
    assert reasons and any(line.startswith("Patching position 0") for line in result.summary)
    value = run(model, prompts, **{**settings, "conditions": conditions[1:]})
    assert any("nothing can be said of what it removes" in line for line in value.summary)


def test_half_precision() -> None:
    model = sinklens.load("rope", dtype="bfloat16")
    result = run(model, sinklens.prompts(model, n=4, length=16), **QUICK)
    assert not has_nan(result)
    checks = result.findings["checks"]
    assert 1e-5 < checks["split_error"] < 0.05
    # Rotary positions are known by differences in any precision.
    assert checks["shifted_positions"]["change"] > 1e-2
    assert any("within rounding error" in note for note in result.notes())


def test_broken_weights_are_refused() -> None:
    model = families.boot("llama")
    prompts = random_prompts(model, n=3, length=8, bos=True)
    sinklens.check(model)
    with torch.no_grad():
        model.original_model.model.layers[1].self_attn.q_proj.weight.fill_(math.nan)
    with pytest.raises(SinklensError, match="NaN"):
        run(model, prompts, **QUICK)


@pytest.mark.usefixtures("everything_removed")
def test_the_summary_and_the_figure(rope: Any, prompts: Prompts, tmp_path: Path) -> None:
    result = run(rope, prompts, draws=1, first_tokens=2, queries="1:8,1:16")
    assert len(result.summary) <= 12
    assert any("Ruscio et al. 2026 (2606.06160) report 40%" in line for line in result.summary)
    assert any("null" in line for line in result.summary)
    drawn = result.plot()
    # That its numbers are the result's is held for every experiment in test_drawing.
    assert {"analytic null", "null: shuffled offsets"} <= {trace.name for trace in drawn.data}
    bands = result.arrays["component_by_band"]
    assert bands.labels("condition") == ["clean", "mean", "zero", "random_token", "gaussian"]
    assert bands.labels("band") == ["1:2", "2:4", "4:8", "8:16"]
    curve = result.arrays["curve"].values[1]
    assert float(bands.values[2, 0]) == pytest.approx(float(curve[4:8].mean()))
    result.save(tmp_path / "out")
    again = ExperimentResult.load(tmp_path / "out")
    assert again.effects == result.effects
    assert again.summary == result.summary
    contrasts = {(e.metric, e.condition, e.queries) for e in result.effects if e.kind == "contrast"}
    treated = {(e.metric, e.condition, e.queries) for e in result.effects if e.kind == "treatment"}
    kinds = ("measurement", "null")
    read = {(e.metric, e.condition, e.queries) for e in result.effects if e.kind in kinds}
    assert treated <= contrasts <= treated | read
    assert any("its later-position control" in line for line in result.summary)
    assert any("its shuffled-offsets null" in line for line in result.summary)
    assert {("removed_all_keys", "mean", "1:8"), ("component_all_keys", "mean", "1:8")} <= contrasts


def test_command_line(tmp_path: Path) -> None:
    command = ["run", "absolute_position", "rope", "--n-prompts", "3", "--length", "10", "--quiet"]
    command += ["--set", "draws=1", "--set", "first_tokens=0", "--set", "conditions=mean"]
    command += ["--set", "queries=1:8", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "result.json").is_file()
    refused = CliRunner().invoke(
        app, ["run", "absolute_position", "encoder", "--n-prompts", "3", "--length", "10"]
    )
    assert refused.exit_code == 1
    assert "causal" in refused.output
