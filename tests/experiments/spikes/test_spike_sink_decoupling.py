"""The two-by-two table against plain Hugging Face, and its measures against closed forms."""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from typer.testing import CliRunner

import sinklens
from sinklens import SinklensError
from sinklens.cli import app
from sinklens.core.labels import stage_name
from sinklens.experiments.spikes._clamps import spike_metrics
from sinklens.experiments.spikes._interaction import ceiling_notes
from sinklens.experiments.spikes._mechanism import mean_cosine
from sinklens.functional.quadratic_form import (
    GatedWeights,
    channel_norms,
    leading_eigenpair,
    quadratic_form,
    symmetric_norm,
)
from sinklens.hooks import ablate_heads, patch_position0, together
from sinklens.metrics import ProbeMetric
from sinklens.models import weights_hash
from sinklens.models.prompts import Prompts, random_prompts
from sinklens.models.weights import gated_weights
from sinklens.probes import ChannelShares, LogitGaps, SinkScores
from sinklens.zoo import folder
from sinklens.zoo.constructed import ConstructedSink, constructed_sink
from tests import families
from tests.reference import plain_hf

pytestmark = pytest.mark.slow

CONDITIONS = ("clamp_spikes", "drop_edge", "both")


def run(model: Any, prompts: Prompts, **settings: Any) -> Any:
    settings = {"null_models": 0, "progress": False, **settings}
    return sinklens.run("spike_sink_decoupling", model, prompts, **settings)


@pytest.fixture(scope="module")
def rope() -> Any:
    return sinklens.load("rope")


@pytest.fixture(scope="module")
def result(rope: Any) -> Any:
    return run(rope, sinklens.prompts(rope, n=4, length=24), draws=2)


@pytest.fixture(scope="module")
def plain_rope() -> Any:
    with folder("rope") as path:
        return transformers.LlamaForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        ).eval()


def values(result: Any, **fields: Any) -> np.ndarray:
    row = result.find(**fields)
    return np.asarray(result.per_prompt["value"][result.effects.index(row)])


def check_table(result: Any, plain: Any, tokens: Tensor) -> None:
    """Loss, sink mass and sink rate under every edit and control, from the definitions.

    The sink is read in the layers from the first edited one on.
    """
    drawn, layers = result.draws, [int(name[1:]) for name in result.findings["entry_points"]]
    heads = plain_hf.sink_heads(plain, tokens)
    assert drawn["heads"] == [f"L{at}H{head}" for at, head in heads]
    with torch.no_grad():
        states = plain(tokens, output_hidden_states=True, use_cache=False).hidden_states
    stream = {layer: states[layer].numpy() for layer in layers}
    massive, clamped = {}, {}
    for layer, values_there in stream.items():
        size = np.abs(values_there)
        flat = size.reshape(len(size), -1)
        median = np.quantile(flat, 0.5, axis=1, method="lower")[:, None, None]
        massive[layer] = (size >= 100) & (size >= 1000 * median)
        if not massive[layer].any():
            massive[layer] = size >= 50 * median
        small = np.where(massive[layer], np.sign(values_there) * median, values_there)
        clamped[layer] = torch.from_numpy(small)

    def clamp(module: Any, arguments: Any, at: int) -> Any:
        # Whatever comes in, entries of the spike become what they become alone.
        own = torch.from_numpy(massive[at])
        return (torch.where(own, clamped[at], arguments[0]), *arguments[1:])

    def shift(module: Any, arguments: Any, at: int, draw: int) -> Any:
        moved, to = arguments[0].clone(), drawn["control_channels"][f"L{at}"][draw]
        for prompt, position, channel in zip(*massive[at].nonzero(), strict=True):
            here = prompt, position, channel
            change = clamped[at][here] - torch.tensor(stream[at][here])
            moved[prompt, position, to[str(channel)]] += change
        return (moved, *arguments[1:])

    def drop(at: int, pattern: Tensor, key: int = 0) -> Tensor:
        pattern = pattern.clone()
        for _, head in (one for one in heads if one[0] == at):
            rows = pattern[:, head, key + 1 :]
            rest = rows.clone()
            rest[..., key] = 0
            sums = rows.sum(-1, keepdim=True) / rest.sum(-1, keepdim=True)
            pattern[:, head, key + 1 :] = rest * sums
        return pattern

    def read(condition: str, at: list[int], stream_edit: Any, key: int) -> dict[str, Tensor]:
        handles = [
            plain.model.layers[layer].register_forward_pre_hook(partial(stream_edit, at=layer))
            for layer in at
        ]
        edited = plain_hf.Edit(pattern=partial(drop, key=key))
        clamps = condition.startswith("clamp")
        first = min([*at, *([] if clamps else [layer for layer, _ in heads])])
        record = plain_hf.run(plain, tokens, plain_hf.Edit() if clamps else edited)
        for handle in handles:
            handle.remove()
        return {
            "loss": plain_hf.loss(record.logits, tokens, 0 if clamps else key),
            "sink_mass": record.sink_mass()[:, first:].mean((1, 2)),
            "sink_rate": (record.sink_score(0)[:, first:] > 0.3).float().mean((1, 2)),
        }

    places: list[tuple[str, int | None, list[int]]]
    places = [("clamp_spikes", layer, [layer]) for layer in layers]
    if len(layers) > 1:
        places.append(("clamp_all", None, layers))
    places += [("drop_edge", None, []), ("both", None, layers)]
    for condition, layer, at in places:
        treated = read(condition, at, clamp, 0)
        controls = [
            read(condition, at, partial(shift, draw=draw), place)
            for draw, place in enumerate(drawn["control_positions"])
        ]
        named = {"condition": condition, "layer": layer}
        for metric, value in treated.items():
            found = values(result, metric=metric, kind="treatment", **named)
            close = {"atol": 1e-5, "rtol": 2e-6, "err_msg": f"{condition} {metric}"}
            np.testing.assert_allclose(found, value, **close)
            found = values(result, metric=metric, kind="control", **named)
            mean = torch.stack([one[metric] for one in controls]).mean(0)
            np.testing.assert_allclose(found, mean, **close)


def test_the_table_is_that_of_plain_hugging_face(rope: Any, result: Any, plain_rope: Any) -> None:
    check_table(result, plain_rope, sinklens.prompts(rope, n=4, length=24).tokens)


@pytest.mark.heavy
def test_smollm2_needs_its_spikes_and_one_edit_does_the_others_work(
    plain_smollm2: Any, smollm2_tokenizer: Any
) -> None:
    """Without the sinks that they make, clamped spikes cost a fraction of what they cost alone."""
    model = sinklens.load(copy.deepcopy(plain_smollm2), tokenizer=smollm2_tokenizer)
    prompts = sinklens.prompts(model, n=2, length=16, bos=True)
    found = run(model, prompts, draws=1, metrics=("loss", "sink_mass", "sink_rate"))
    check_table(found, plain_smollm2, prompts.tokens)
    table = ("clamp_all", "drop_edge", "both")
    loss = {c: found.find(metric="loss", condition=c, kind="treatment").effect for c in table}
    assert loss["clamp_all"] > loss["both"] > loss["drop_edge"] > 0
    interaction, control = (
        found.find(metric="loss", condition="interaction", kind=kind)
        for kind in ("treatment", "control")
    )
    assert interaction.effect < -1 and abs(control.effect) < 0.5
    # Channel 507's form is one direction, in which spike tokens lie and others do not.
    norm = found.find(metric="quadratic_norm", condition="channel 507")
    aligned = found.find(metric="alignment", condition="channel 507")
    assert norm.value > 5 * norm.baseline
    assert aligned.value > 0.3 and aligned.baseline < 0.05


@pytest.mark.heavy
def test_both_spikes_of_smollm2(plain_smollm2: Any, smollm2_tokenizer: Any) -> None:
    """Channel 507 is massive in layers 3 to 9 and again from 12; clamped early, early sinks fall.

    Loss and sink mass, the latter of layers 3 to 9 and of those from the first clamp on, are those
    of plain Hugging Face with forward hooks.
    """
    model = sinklens.load(copy.deepcopy(plain_smollm2), tokenizer=smollm2_tokenizer)
    prompts = sinklens.prompts(model, n=4, length=32, bos=True)
    early = ProbeMetric("early", SinkScores, lambda scores: scores.mass[:, 3:10].mean((1, 2)))
    found = run(
        model,
        prompts,
        draws=0,
        conditions=("clamp_spikes",),
        metrics=("loss", early, "sink_mass", *spike_metrics([3, 12])),
    )
    steps = found.findings["steps"]
    assert [(one["layer"], one["step_up"]) for one in steps] == [(3, "L2 MLP"), (12, "L11 MLP")]
    assert steps[0]["peak_size"] == pytest.approx(769, abs=2)
    with torch.no_grad():
        states = plain_smollm2(prompts.tokens, output_hidden_states=True).hidden_states
    rules = {3: (0.0, 50.0), 12: (100.0, 1000.0)}

    def clamp(module: Any, arguments: Any, at: int) -> Any:
        size = states[at].abs()
        median = size.flatten(1).median(1).values[:, None, None]
        least, times = rules[at]
        massive = (size >= least) & (size >= times * median)
        return (torch.where(massive, states[at].sign() * median, arguments[0]), *arguments[1:])

    def plain(layers: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        blocks = plain_smollm2.model.layers
        handles = [blocks[at].register_forward_pre_hook(partial(clamp, at=at)) for at in layers]
        with torch.no_grad():
            out = plain_smollm2(prompts.tokens, output_attentions=True)
        for handle in handles:
            handle.remove()
        mass = torch.stack([a[:, :, 1:, 0].mean((1, 2)) for a in out.attentions])
        return plain_hf.loss(out.logits, prompts.tokens, 0), mass[3:10].mean(0), mass

    before = plain([])
    for condition, layer, layers in (
        ("clamp_spikes", 3, [3]),
        ("clamp_spikes", 12, [12]),
        ("clamp_all", None, [3, 12]),
    ):
        after = plain(layers)
        for metric, clean, edited in (
            ("loss", before[0], after[0]),
            ("early", before[1], after[1]),
            ("sink_mass", before[2][layers[0] :], after[2][layers[0] :]),
        ):
            row = found.find(metric=metric, condition=condition, layer=layer, kind="treatment")
            assert row.baseline == pytest.approx(float(clean.mean()), abs=1e-4)
            assert row.value == pytest.approx(float(edited.mean()), abs=1e-4)
        assert row.layers == f"L{layers[0]}-L29"
    late = found.find(metric="sink_mass", condition="clamp_spikes", layer=12)
    assert late.baseline > 0.6 and late.value < 0.55
    fallen = found.find(metric="early", condition="clamp_spikes", layer=3)
    assert fallen.value < fallen.baseline / 2
    assert found.find(metric="loss", condition="clamp_spikes", layer=3).effect > 1
    # Layer 11's MLP writes the second spike all the same.
    again = found.find(metric="spike_L12", condition="clamp_spikes", layer=3)
    assert again.value > 1000


def effects(result: Any, metric: str, kind: str) -> dict[str, float]:
    """By condition, the effect; on sink mass that in the layers which all conditions reach."""
    if metric != "sink_mass":
        return {c: result.find(metric=metric, condition=c, kind=kind).effect for c in CONDITIONS}
    names = {"clamp_spikes": "other_channels", "drop_edge": "later_key", "both": "combined"}
    array, layer = result.arrays["sink_mass_by_layer"], result.findings["layer"]
    found = {}
    for condition, control in names.items():
        name = f"clamp_spikes L{layer}" if condition == "clamp_spikes" else condition
        name += f" {control}" if kind == "control" else ""
        change = array.values[array.labels("run").index(name)] - array.values[0]
        found[condition] = float(change[layer:].mean())
    assert result.find(metric=metric, condition="interaction", kind=kind).layers == f"L{layer}-L5"
    return found


def test_the_interaction_is_what_both_do_beyond_the_sum(result: Any) -> None:
    for metric in ("loss", "sink_mass", "spike"):
        row = result.find(metric=metric, condition="interaction", kind="treatment")
        effect, other = (effects(result, metric, kind) for kind in ("treatment", "control"))
        assert row.q_value is not None
        assert row.value == pytest.approx(effect["both"], abs=1e-6)
        sums = effect["clamp_spikes"] + effect["drop_edge"]
        assert row.effect == pytest.approx(effect["both"] - sums, abs=1e-5)
        control = result.find(metric=metric, condition="interaction", kind="control")
        beyond = result.find(metric=metric, condition="interaction", kind="contrast")
        assert control.value == pytest.approx(other["both"], abs=1e-6)
        assert (beyond.p_value is None) == (metric != "loss")
        if metric != "loss":  # whose contrast, and the table's own control, count other predictions
            assert beyond.effect == pytest.approx(row.effect - control.effect, abs=1e-5)
            added = other["clamp_spikes"] + other["drop_edge"]
            assert control.baseline == pytest.approx(added, abs=1e-5)


def test_the_interaction_of_controls_counts_the_same_predictions(rope: Any) -> None:
    """A change at the front alone costs less where only later predictions count."""
    prompts = sinklens.prompts(rope, n=3, length=24)
    found = run(rope, prompts, draws=1, metrics=("loss",))
    (place,) = found.draws["control_positions"]
    counted = range(place + 1, 24)
    late = run(rope, prompts, draws=1, metrics=("loss",), positions=tuple(counted))
    assert late.draws["control_positions"] == [place]
    whole, clamp = (
        one.find(metric="loss", condition=condition, kind="control")
        for one, condition in ((found, "interaction"), (late, "clamp_spikes"))
    )
    drop = found.find(metric="loss", condition="drop_edge", kind="control")
    assert whole.baseline == pytest.approx(clamp.effect + drop.effect, abs=1e-5)
    beyond = found.find(metric="loss", condition="interaction", kind="contrast")
    alone = late.find(metric="loss", condition="interaction", kind="treatment")
    assert beyond.value == pytest.approx(alone.effect, abs=1e-5)
    assert beyond.baseline == pytest.approx(whole.effect, abs=1e-5)
    own = found.find(metric="loss", condition="clamp_spikes", kind="control").effect
    assert abs(own - clamp.effect) > 1e-3


def test_spikes_at_position_0_are_said_to_be_out_of_reach_of_edges(result: Any) -> None:
    """Position 0 sees only itself: dropped edges move the median, never the largest entry."""
    assert result.findings["spikes_at_position0_only"]
    assert any("drop_edge cannot change it" in note for note in result.settings["notes"])
    assert not any(line.startswith("Spike size") for line in result.summary)


def test_figures_without_a_spread_over_prompts_have_no_interval(result: Any) -> None:
    for metric in ("constancy", "first_token_spikes", "quadratic_norm", "leading_eigenvalue"):
        rows = [row for row in result.effects if row.metric == metric]
        assert rows and all(row.ci_low is row.ci_high is None for row in rows)
    # rope was trained with BOS: other first tokens do not spike, so theirs says nothing of spikes.
    assert result.find(metric="first_token_spikes").value == 0


def said(result: Any, start: str) -> str:
    """The one entry of the summary that starts so."""
    (line,) = (line for line in result.summary if line.startswith(start))
    return line


def test_heads_that_were_chosen_for_the_gap_get_no_verdict(result: Any) -> None:
    chosen, _, others = said(result, "The logit of position 0").partition("; in other heads")
    row = result.find(metric="logit_gap", condition="sink_heads", kind="control")
    end = f"(heads chosen for it; a later key {row.value:.2f})"
    assert chosen.endswith(end) and "above" not in chosen and "more" not in chosen
    row = result.find(metric="logit_gap", condition="other_heads", kind="measurement")
    assert row.ci_low > 0 and "above uniform attention" in others


def test_sinks_that_weigh_as_much_but_are_fewer_are_said_to_be_fewer(result: Any) -> None:
    line = said(result, "Sinks under clamp_spikes")
    for metric in ("sink_mass", "sink_rate"):
        row = result.find(metric=metric, condition="clamp_spikes", kind="treatment")
        assert f"{metric} over {row.layers} {row.effect:+.3g} {row.unit} [" in line


def test_an_interaction_of_shares_that_have_no_room_below_0(result: Any) -> None:
    (note,) = (note for note in result.settings["notes"] if "floor effect" in note)
    for metric in ("sink_mass", "sink_rate"):
        row = result.find(metric=metric, condition="interaction", kind="treatment")
        clean = result.find(metric=metric, condition="clamp_spikes", kind="treatment").baseline
        stated = f"{row.baseline:.3g} of the clean run's {clean:.3g} ({metric})"
        assert (stated in note) == (row.baseline < -0.9 * clean)
    assert "sink_rate" in note and "spike " not in note
    assert any("sink_mass and sink_rate fall by construction" in n for n in result.notes())
    rise = result.find(metric="logit_gap", condition="drop_edge", kind="treatment")
    assert rise.effect > 0 and rise.layers


def test_the_form_of_weights_is_set_against_the_median_channel(result: Any) -> None:
    line = said(result, "Norm of the step-up block's quadratic form")
    norm = result.find(metric="quadratic_norm", condition="channel 125")
    assert f"{norm.value:.3g} in channel 125" in line
    assert f"against {norm.baseline:.3g} in the median channel." in line
    assert "without an interval" not in line


def test_one_prompt_has_no_likeness_over_prompts(rope: Any) -> None:
    found = run(rope, sinklens.prompts(rope, n=1, length=16), draws=1, null_models=0)
    assert not [row for row in found.effects if row.metric == "constancy"]
    assert "one prompt" in found.settings["left_out"]["constancy"]
    assert any(row.metric == "first_token_spikes" for row in found.effects)
    assert said(found, "Of the squared norm at spike tokens") and "cosine" not in str(found.summary)


def test_what_is_measured_is_said_where_nothing_is_massive() -> None:
    model = sinklens.load("learned-sink")
    found = run(model, sinklens.prompts(model, n=3, length=16), draws=1)
    assert "in other heads" in said(found, "The logit of position 0")
    assert "cosine" in said(found, "Mean similarity of position 0")
    assert "writes most of the leading entry" in found.settings["left_out"]["quadratic_form"]


def test_what_clamping_spikes_does_in_rope(result: Any) -> None:
    """Without spikes the loss rises; without their sinks as well hardly more than without these."""
    loss = {c: result.find(metric="loss", condition=c, kind="treatment").effect for c in CONDITIONS}
    assert loss["clamp_spikes"] > loss["both"] > 0
    found = {
        kind: result.find(metric="loss", condition="interaction", kind=kind)
        for kind in ("treatment", "control")
    }
    assert found["treatment"].effect < -0.1
    assert abs(found["control"].effect) < abs(found["treatment"].effect) / 2
    spike = result.find(metric="spike", condition="clamp_spikes", kind="treatment")
    assert spike.value < spike.baseline / 3


@pytest.fixture(scope="module")
def weights() -> GatedWeights:
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 10), (6, 10), (10, 6))
    return GatedWeights(*(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes))


def test_the_quadratic_form_is_that_of_its_matrix(weights: GatedWeights) -> None:
    """Every figure against U_k written out."""
    inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    norms = channel_norms(weights)
    for channel in range(6):
        matrix = sum(
            weights.down[i, channel] * torch.outer(weights.gate[:, i], weights.up[:, i])
            for i in range(10)
        )
        assert isinstance(matrix, Tensor)
        symmetric = (matrix + matrix.T) / 2
        assert float(norms[channel]) == pytest.approx(float(matrix.norm()))
        assert symmetric_norm(weights, channel) == pytest.approx(float(symmetric.norm()))
        eigenvalues, eigenvectors = torch.linalg.eigh(symmetric)
        leading = int(eigenvalues.abs().argmax())
        value, vector = leading_eigenpair(weights, channel)
        assert value == pytest.approx(float(eigenvalues[leading]))
        assert abs(float(vector @ eigenvectors[:, leading])) == pytest.approx(1)
        forms = torch.einsum("bi,ij,bj->b", inputs, matrix, inputs)
        torch.testing.assert_close(quadratic_form(weights, inputs, channel), forms)


def test_a_planted_eigenvector_is_found() -> None:
    """One hidden unit that gates itself makes U_k = w s s^T, so that F_k(h) = w (s . h)^2."""
    direction = torch.nn.functional.normalize(torch.arange(1.0, 9.0).double(), dim=0)
    down = torch.zeros(3, 8, dtype=torch.float64)
    down[1, 5] = 7.0
    shared = torch.zeros(8, 3, dtype=torch.float64)
    shared[:, 1] = direction
    planted = GatedWeights(shared, shared, down)
    value, vector = leading_eigenpair(planted, 5)
    assert value == pytest.approx(7) and symmetric_norm(planted, 5) == pytest.approx(7)
    assert abs(float(vector @ direction)) == pytest.approx(1)
    assert float(quadratic_form(planted, 2 * direction, 5)) == pytest.approx(28)


def test_gated_weights_are_those_of_hugging_face(rope: Any, plain_rope: Any) -> None:
    mine = gated_weights(rope, 1)
    mlp = plain_rope.model.layers[1].mlp
    assert mine is not None
    for part, linear in zip(mine, (mlp.gate_proj, mlp.up_proj, mlp.down_proj), strict=True):
        torch.testing.assert_close(part, linear.weight.T.double())
    assert gated_weights(families.boot("gpt2"), 0) is None


def test_logit_gaps_of_the_constructed_model() -> None:
    """The sink head of layer 0 has scores s for BOS and 0 for words, the other head 0 for all."""
    for logit in (2.0, 5.0):
        model = constructed_sink(ConstructedSink(sink_logit=logit))
        prompts = random_prompts(model, n=3, length=12)
        probe = LogitGaps(model)
        sinklens.evaluate(model, prompts, [], [], probes=[probe], progress=False)
        gap = probe.compute().gap[:, 0]
        torch.testing.assert_close(gap, torch.tensor([[logit, 0.0]] * 3), atol=1e-4, rtol=0)


def test_logit_gaps_leave_hidden_keys_out() -> None:
    """In a window of 4 only queries 1 .. 3 see key 0; their gap is that of plain scores."""
    model = families.boot("mistral")
    prompts = random_prompts(model, n=2, length=9)
    probe = LogitGaps(model)
    sinklens.evaluate(model, prompts, [], [], probes=[probe], progress=False)
    _, cache = model.run_with_cache(prompts.tokens)
    for layer in range(2):
        scores = cache[f"blocks.{layer}.attn.hook_attn_scores"]
        gaps = [scores[:, :, i, 0] - scores[:, :, i, 1 : i + 1].mean(-1) for i in (1, 2, 3)]
        wanted = torch.stack(gaps).mean(0)
        torch.testing.assert_close(probe.compute().gap[:, layer], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["alibi", "learned-sink", "sandwich", "gemma2", "neox"])
def test_logit_gaps_are_those_of_the_pattern(name: str) -> None:
    """The softmax's denominator cancels: clean logits and log patterns have the same gap."""
    tiny = name in families.FAMILIES
    model = families.boot(name) if tiny else sinklens.load(name)
    prompts = random_prompts(model, n=2, length=12)
    if any(window is not None for window in sinklens.check(model).windows):
        prompts = Prompts(prompts.tokens[:, :4], prompts.bos, "inside the window")
    probe = LogitGaps(model)
    sinklens.evaluate(model, prompts, [], [], probes=[probe], progress=False)
    _, cache = model.run_with_cache(prompts.tokens)
    for layer in range(model.cfg.n_layers):
        logs = cache["pattern", layer].log()
        queries = range(1, prompts.length)
        gaps = [logs[:, :, i, 0] - logs[:, :, i, 1 : i + 1].mean(-1) for i in queries]
        wanted = torch.stack(gaps).mean(0)
        torch.testing.assert_close(probe.compute().gap[:, layer], wanted, atol=1e-4, rtol=1e-4)


def test_a_dropped_edge_leaves_its_own_logits(rope: Any) -> None:
    """The pattern is edited, not the scores: the gap moves in later layers only, and not by 87."""
    prompts = sinklens.prompts(rope, n=2, length=12)
    gaps = ProbeMetric("gap", LogitGaps, lambda values: values.gap[:, 2].mean(1), "nats")
    later = ProbeMetric("later", LogitGaps, lambda values: values.gap[:, 3].mean(1), "nats")
    drop = ablate_heads(rope, [(2, head) for head in range(4)], "drop_edge")
    found = sinklens.evaluate(rope, prompts, [drop], [gaps, later], progress=False)
    effects = (found.values - found.baselines)[0]
    assert not bool(effects[0].any())
    assert 1e-3 < float(effects[1].abs().max()) < 10


def test_mean_cosine_and_channel_shares(rope: Any) -> None:
    vectors = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    pairs = [
        float(torch.cosine_similarity(vectors[i], vectors[j], dim=0))
        for i in range(7)
        for j in range(7)
        if i != j
    ]
    assert mean_cosine(vectors) == pytest.approx(float(np.mean(pairs)), abs=1e-6)
    prompts = sinklens.prompts(rope, n=2, length=8)
    probe = ChannelShares(rope, 6, [3, 5])
    sinklens.evaluate(rope, prompts, [], [], probes=[probe], progress=False)
    _, cache = rope.run_with_cache(prompts.tokens)
    stream = cache["blocks.5.hook_resid_post"]
    share = stream[..., [3, 5]].square().sum(-1) / stream.square().sum(-1)
    largest = stream.square().sort(-1).values[..., -2:].sum(-1) / stream.square().sum(-1)
    torch.testing.assert_close(probe.compute().share, share)
    torch.testing.assert_close(probe.compute().largest, largest)


def test_edits_together_are_one_after_the_other() -> None:
    model = families.boot("llama")
    tokens = random_prompts(model, n=2, length=10).tokens
    one = patch_position0(model, 1, "mean_token")
    other = ablate_heads(model, [(0, 1), (1, 2)], "drop_edge")
    both = together("both", one, other)
    assert (both.first_layer, both.position, both.name) == (0, 0, "both")
    with torch.no_grad():
        found = model.run_with_hooks(tokens, fwd_hooks=both.fwd_hooks)
        wanted = model.run_with_hooks(tokens, fwd_hooks=[*one.fwd_hooks, *other.fwd_hooks])
        single = model.run_with_hooks(tokens, fwd_hooks=one.fwd_hooks)
    assert torch.equal(found, wanted) and not torch.allclose(found, single)


def test_matched_models_stand_in_the_same_table(rope: Any) -> None:
    prompts = sinklens.prompts(rope, n=3, length=24)
    compared = run(rope, prompts, draws=1, compare=("postnorm", "rope", "nope"))
    named = compared.findings["compared"]
    assert next(iter(named)) == "rope" and "rope, seed 0" not in named
    assert {"postnorm, seed 1", "rope, seed 2", "nope"} <= set(named)
    nope = sinklens.load("nope")
    assert named["nope"] == weights_hash(nope) and named["rope"] == weights_hash(rope)
    other = sinklens.run("sink_profile", nope, prompts, progress=False)
    for metric, condition in (("sink_mass", "position0"), ("sink_rate", "gu")):
        mine = compared.find(metric=metric, condition="rope", kind="control", against="nope")
        theirs = other.find(metric=metric, condition=condition)
        assert (mine.value, mine.baseline) == pytest.approx((theirs.value, theirs.baseline))
        own = compared.find(metric=metric, condition="rope", kind="measurement")
        contrast = compared.find(metric=metric, kind="contrast", against="nope")
        assert contrast.effect == pytest.approx(own.effect - mine.effect)
        assert contrast.q_value is not None
    seeds = [r for r in compared.effects if r.kind == "contrast" and "postnorm" in f"{r.against}"]
    assert len(seeds) == 9
    (line,) = (line for line in compared.summary if line.startswith("rope: peak_ratio"))
    # Three prompts allow no verdict.
    assert "not significantly different from 3 of 3 seeds of postnorm (" in line
    assert "not significantly different from nope (" in line


def test_a_checkpoint_is_compared_with_the_end_of_its_own_training() -> None:
    early = sinklens.load("rope", step=512)
    prompts = sinklens.prompts(early, n=2, length=12)
    compared = run(early, prompts, draws=1, compare=("rope",))
    named = compared.findings["compared"]
    assert list(named) == ["rope, step 512", "rope, seed 0", "rope, seed 1", "rope, seed 2"]
    assert named["rope, step 512"] == weights_hash(early)
    assert named["rope, seed 0"] == weights_hash(sinklens.load("rope"))
    assert any(line.startswith("rope, step 512: peak_ratio") for line in compared.summary)


def test_spikes_are_read_as_plain_hugging_face_reads_them(
    rope: Any, result: Any, plain_rope: Any
) -> None:
    """Sparsity, alignment and the form's prediction, from the plain MLP's inputs and outputs."""
    channels, entered = result.findings["channels"], result.findings["layer"]
    layer = (list(map(stage_name, range(13))).index(result.findings["step_up"]) - 1) // 2
    mlp, kept = plain_rope.model.layers[layer].mlp, []
    handle = mlp.register_forward_hook(lambda module, inputs, out: kept.extend((inputs[0], out)))
    with torch.no_grad():
        tokens = sinklens.prompts(rope, n=4, length=24).tokens
        states = plain_rope(tokens, output_hidden_states=True).hidden_states
    handle.remove()
    inputs, written = (part.double() for part in kept)

    sizes = states[entered].abs()
    massive = sizes >= 50 * sizes.flatten(1).median(1).values[:, None, None]
    assert massive.any(-1)[:, 0].all() and not massive[:, 1:].any()
    squares = sizes.double() ** 2
    own = massive.flatten(0, 1).any(0)
    shares = squares[..., own].sum(-1) / squares.sum(-1)
    # Other tokens choose as many channels of their own.
    largest = squares.sort(-1).values[..., -int(own.sum()) :].sum(-1) / squares.sum(-1)
    row = result.find(metric="sparsity", condition="spike_tokens")
    wanted = (both_sides(shares)[0], both_sides(largest)[1])
    assert (row.value, row.baseline) == pytest.approx(wanted, rel=1e-5)

    channel = channels[0]
    gate, up, down = (
        linear.weight.detach().double() for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    )
    matrix = gate.T @ (down[channel][:, None] * up)
    eigenvalues, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    leading = vectors[:, eigenvalues.abs().argmax()]
    row = result.find(metric="alignment", condition=f"channel {channel}")
    aligned = (torch.nn.functional.normalize(inputs, dim=-1) @ leading) ** 2
    assert (row.value, row.baseline) == pytest.approx(both_sides(aligned), rel=1e-4)

    predicted = torch.einsum("bpd,de,bpe->bp", inputs, matrix, inputs)
    row = result.find(metric="quadratic_prediction", condition=f"channel {channel}")
    values = predicted / written[:, :1, channel]
    assert (row.value, row.baseline) == pytest.approx(both_sides(values), rel=1e-4)


def both_sides(values: Tensor) -> tuple[float, float]:
    """The mean at position 0, and over the later ones."""
    return float(values[:, 0].mean()), float(values[:, 1:].mean())


def test_a_control_that_cannot_be_made_is_said_to_be_missing(rope: Any) -> None:
    """With one prediction, at position 1, no later position is left; channels are."""
    prompts = sinklens.prompts(rope, n=3, length=16)
    result = run(rope, prompts, draws=2, positions=(1,))
    kinds = {
        condition: {row.kind for row in result.effects if row.condition == condition}
        for condition in ("clamp_spikes", "drop_edge", "both")
    }
    assert "control" in kinds["clamp_spikes"]
    assert kinds["drop_edge"] == kinds["both"] == {"treatment"}
    (note,) = (note for note in result.notes() if note.startswith("No control for"))
    assert note.startswith("No control for drop_edge, both: no later position")


def test_prompts_of_which_every_token_or_none_spikes(boot_family: Any) -> None:
    """There is no other token in a prompt to set its spikes against, and so no such row."""
    model = boot_family("gemma2")
    prompts = random_prompts(model, n=2, length=3, seed=1)
    for scale_free in (1.5, 2.0, 2.5, 3.0):
        result = run(model, prompts, draws=2, scale_free=scale_free)
        assert all(math.isfinite(row.value) for row in result.effects)
        assert not any("nan" in line for line in result.summary)


def test_the_gap_of_a_later_key(rope: Any) -> None:
    """From the scores of TransformerLens's cache, head by head."""
    prompts = sinklens.prompts(rope, n=3, length=16)
    result = run(rope, prompts, draws=2)
    places = result.draws["gap_positions"]
    with torch.no_grad():
        _, cache = rope.run_with_cache(prompts.tokens)
    heads = [tuple(map(int, one[1:].split("H"))) for one in result.draws["heads"]]

    def gap(key: int, place: int) -> Any:
        found = []
        for layer, head in heads:
            scores = cache[f"blocks.{layer}.attn.hook_attn_scores"][:, head]
            for i in range(place + 1, 16):
                others = [j for j in range(1, i + 1) if j != place]
                found.append((scores[:, i, key] - scores[:, i, others].mean(1)) / (15 - place))
        return torch.stack(found).sum(0) / len(heads)

    named = {"metric": "logit_gap", "condition": "sink_heads"}
    rows = {k: result.find(kind=k, **named) for k in ("measurement", "control", "contrast")}
    assert rows["measurement"].value == pytest.approx(float(gap(0, 0).mean()), abs=1e-4)
    later = float(np.mean([gap(p, p).mean() for p in places]))
    here = float(np.mean([gap(0, p).mean() for p in places]))
    assert rows["control"].value == pytest.approx(later, abs=1e-4)
    assert (rows["contrast"].value, rows["contrast"].baseline) == pytest.approx(
        (here, later), abs=1e-4
    )


def test_what_compare_refuses(rope: Any) -> None:
    prompts = random_prompts(families.boot("llama"), n=2, length=12)
    with pytest.raises(SinklensError, match="by where it came from"):
        run(families.boot("llama"), prompts, compare=("rope",))
    with pytest.raises(SinklensError, match="without BOS"):
        run(rope, sinklens.prompts(rope, n=2, length=12), compare=("no-bos",))


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_works_or_refuses(name: str) -> None:
    model = families.boot(name)
    prompts = random_prompts(model, n=3, length=12)
    if name == "bert":
        with pytest.raises(SinklensError, match="causal"):
            run(model, prompts)
        return
    found = run(model, prompts, scale_free=3.0, draws=1)
    conditions = {row.condition for row in found.effects if row.kind == "treatment"}
    assert conditions | set(found.settings["left_out"]) >= set(CONDITIONS)
    if name == "opt":
        assert "pattern" in found.settings["left_out"]["drop_edge"]
    gated = any(row.metric == "quadratic_norm" for row in found.effects)
    assert gated != ("quadratic_form" in found.settings["left_out"])
    up = found.findings["step_up"]
    assert gated == (name in ("llama", "gemma2", "mistral") and up.endswith("MLP"))
    assert all(math.isfinite(row.value) for row in found.effects)
    assert len(found.summary) <= 12 and found.plot().layout.title.text


def test_conditions_that_cannot_be_run(rope: Any) -> None:
    prompts = sinklens.prompts(rope, n=2, length=16)
    with pytest.raises(SinklensError, match="scale_free="):
        run(rope, prompts, scale_free=1e6, conditions=("both",))
    with pytest.raises(SinklensError, match="did you mean clamp_spikes"):
        run(rope, prompts, conditions=("clamp",))


def test_the_command(tmp_path: Path) -> None:
    command = "run spike_sink_decoupling rope --n-prompts 3 --length 16 --set draws=1 --quiet"
    done = CliRunner().invoke(app, [*command.split(), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert sinklens.ExperimentResult.load(tmp_path / "out").summary


def test_an_interaction_has_not_the_bounds_of_its_metric(result: Any) -> None:
    """The sum of two falls of a share can be more than all of it."""
    for metric in ("sink_mass", "sink_rate"):
        assert result.measure(metric, "interaction").lowest is None
        assert result.measure(metric, "drop_edge").lowest == 0
        row = result.find(metric=metric, condition="interaction", kind="treatment")
        assert row.ci_high - row.effect == pytest.approx(row.effect - row.ci_low)


@pytest.mark.parametrize(
    ("effects", "said"),
    [
        ((1.0, 0.5, 1.2), []),
        ((6.0, 5.0, 6.5), ["may be a ceiling effect alone"]),
        ((6.0, 5.0, 2.0), []),  # a ceiling leaves no loss below that of one alone
        ((9.0, 1.0, 3.0), ["clamp_spikes alone leaves a loss of 11 nats"]),
    ],
)
def test_a_ceiling_is_said_where_there_can_be_one(
    effects: tuple[float, ...], said: list[str]
) -> None:
    notes = [*ceiling_notes("clamp_spikes", 10.0, 2.0, effects)]
    assert len(notes) == len(said) and all(map(str.__contains__, notes, said))
