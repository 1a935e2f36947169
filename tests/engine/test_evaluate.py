"""The engine gives what whole forwards give, whatever it spares, on every family."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from tqdm import tqdm
from transformer_lens.model_bridge import TransformerBridge

import sinklens
from sinklens.engine import forward as forwards
from sinklens.engine import read_under, shortcuts
from sinklens.engine.sizes import choose_sizes
from sinklens.engine.user_hooks import has_own_hooks
from sinklens.hooks import ablate_heads
from sinklens.hooks.intervention import Intervention, replace_position, together
from sinklens.metrics import LogitMetric
from sinklens.models.capabilities import check, hook_name
from sinklens.probes import SinkScores
from tests.engine.helpers import LENGTH, random_prompts, shift
from tests.families import FAMILIES, VOCABULARY, boot
from tests.reference.plain_engine import plain_values

Boot = Callable[[str], TransformerBridge]
METRICS = ("loss", "kl", "sink_mass", "position0_norm")


def random_intervention(model: TransformerBridge, seed: int) -> Intervention:
    """An edit of a random kind, layer and place."""
    random = np.random.default_rng(seed)
    capabilities = check(model)
    layer = int(random.integers(model.cfg.n_layers))
    kinds = ["embedding", "residual", "z", "heads", "key", "value", "by prompt", "MLP", "both"]
    if capabilities.edits["pattern"]:
        kinds.append("edge")
    kind = kinds[random.integers(len(kinds))]
    heads = {(layer, int(random.integers(model.cfg.n_heads))) for _ in range(2)}
    if kind == "heads":
        upper = {(int(random.integers(layer, model.cfg.n_layers)), 0)}
        return ablate_heads(model, heads | upper, "zero")
    if kind == "edge":
        which = ("drop_edge", "drop_edge_unnormalised")[random.integers(2)]
        return ablate_heads(model, heads, which, position=int(random.integers(3)))
    if kind == "z":
        return ablate_heads(model, heads, "mean", values={layer: values(random, (2, 4, 8))})
    if kind == "by prompt":
        outputs = {layer: values(random, (3, LENGTH, 4, 8))}
        return ablate_heads(model, heads, "resample", values=outputs)
    if kind == "both":
        return together("both", *(random_intervention(model, 7 * seed + more) for more in (1, 2)))
    position = int(random.integers(4))
    if kind == "MLP":
        ramp = torch.linspace(-1, 1, 32)
        hook = (hook_name("mlp_out", layer), lambda written, hook: written + ramp.to(written))
        return Intervention("MLP", "mlp_out", layer, [hook])
    shape = (capabilities.n_key_value_heads, 8) if kind in ("key", "value") else (32,)
    function = partial(replace_position, values=values(random, shape), position=position)
    name = "hook_embed" if kind == "embedding" else hook_name(kind, layer)
    start = 0 if kind == "embedding" else layer
    return Intervention("edit", kind, start, [(name, function)], position=position)


def values(random: Any, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(random.standard_normal(shape)).float()


@pytest.mark.parametrize(
    "name",
    [name if name == "llama" else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seeds=st.lists(st.integers(0, 10_000), min_size=1, max_size=5),
    batch_size=st.sampled_from([None, 1, 2, 7]),
    memory=st.sampled_from([None, 1, 60_000]),
    positions=st.sampled_from([None, (5, 9), (11, 4, 8)]),
    metrics=st.sets(st.sampled_from(METRICS), min_size=1).map(sorted),
)
def test_equal_to_whole_forwards(
    name: str,
    seeds: list[int],
    batch_size: int | None,
    memory: int | None,
    positions: tuple[int, ...] | None,
    metrics: list[str],
    boot_family: Boot,
) -> None:
    model = boot_family(name)
    causal = check(model).causal
    prompts = random_prompts(3)
    edits = [random_intervention(model, seed) for seed in seeds]
    wanted = plain_values(model, prompts, [None, *edits], positions)
    wanted = {"sink_mass": wanted.pop("mass"), "position0_norm": wanted.pop("norm"), **wanted}
    metrics = [metric for metric in metrics if causal or metric != "loss"] or ["kl"]
    found = sinklens.evaluate(
        model,
        prompts,
        edits,
        metrics,
        batch_size=batch_size,
        memory=memory,
        positions=positions,
        progress=False,
    )
    for row, metric in enumerate(metrics):
        clean, *edited = wanted[metric]
        torch.testing.assert_close(found.clean[row], clean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            found.values[:, row], torch.stack(edited), rtol=1e-5, atol=1e-5, equal_nan=True
        )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["compatibility", "float64", "bfloat16", "autocast"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_equal_in_other_modes(name: str, how: str) -> None:
    """Folded weights, other dtypes and autocast: rounding is theirs, not the engine's."""
    model = boot(name)
    if how == "compatibility":
        model.enable_compatibility_mode()
    elif how != "autocast":
        model.to(getattr(torch, how))
    prompts = random_prompts(3)
    edits = [random_intervention(model, seed) for seed in range(8)]
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        wanted = plain_values(model, prompts, [None, *edits])["loss"]
        found = sinklens.evaluate(model, prompts, edits, ["loss"], progress=False)
    bound = 0.03 if how in ("bfloat16", "autocast") else 1e-5
    torch.testing.assert_close(
        found.values[:, 0].float(), wanted[1:].float(), rtol=bound, atol=bound
    )
    assert float((wanted[1:] - wanted[0]).abs().max()) > 0.1
    assert found.shortcuts["prefix"] and found.shortcuts["unembedding"]


def test_a_hook_that_runs_the_model_is_refused_where_it_would_get_another_stream(
    boot_family: Boot,
) -> None:
    """Inside a run from block 1, block 0 hands on what it put out for other tokens."""
    model = boot_family("llama")
    prompts = random_prompts(3)

    def run_inside(z: Tensor, hook: Any) -> Tensor:
        return z + model(prompts.tokens[:1])[..., :8].mean()

    edit = Intervention("inside", "z", 1, [(hook_name("z", 1), run_inside)])
    with pytest.raises(sinklens.SinklensError, match="called twice"):
        sinklens.evaluate(model, prompts, [edit], ["loss"], progress=False)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_reading_under_an_edit_makes_no_logits(
    boot_family: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = boot_family("llama")
    prompts = random_prompts(3)
    head = model.unembed.original_component
    unembed, rows = type(head).forward, []

    def count_rows(module: Any, hidden: Tensor) -> Any:
        if module is head:
            rows.append(hidden.shape[0] * hidden.shape[1])
        return unembed(module, hidden)

    shortcuts(model), check(model)
    monkeypatch.setattr(type(head), "forward", count_rows)
    shortcuts(model), check(model)
    rows.clear()
    edit = ablate_heads(model, [(0, 1)], "zero")
    read = read_under(model, prompts, edit, SinkScores(model), last_layer=1)
    assert sum(rows) == 0 and read.fired == 1
    with torch.no_grad(), model.hooks(fwd_hooks=edit.fwd_hooks):
        _, cache = model.run_with_cache(prompts.tokens)
    for layer in range(2):
        mass = cache[hook_name("pattern", layer)][:, :, 1:, 0].mean(-1)
        torch.testing.assert_close(read.values.mass[:, layer], mass)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_run_from_a_block_is_equal_to_the_last_bit(name: str, boot_family: Boot) -> None:
    model = boot_family(name)
    assert shortcuts(model).prefix and shortcuts(model).unembedding
    tokens = random_prompts(3).tokens
    last = model.cfg.n_layers
    hook = (hook_name("z", last - 1), shift)
    with torch.no_grad():
        whole = model.run_with_hooks(tokens, fwd_hooks=[hook])
        form = shortcuts(model).tuple_length
        by_row: dict[str, Any] = {"rows": True, "tuple_length": form}
        clean = forwards.forward(model, tokens, [], keep=range(last), **by_row)
        for start in range(1, last):
            below = clean.kept[start - 1]
            run = forwards.forward(model, tokens, [hook], start=start, below=below, **by_row)
            everywhere = torch.cartesian_prod(torch.arange(3), torch.arange(LENGTH))
            logits = run.logits(*everywhere.T).view_as(whole)
            torch.testing.assert_close(logits, whole, rtol=0, atol=2e-5)
        # The stream itself, before the logits are made in another shape: to the last bit.
        again = forwards.forward(model, tokens, [hook], **by_row)
        assert again.hidden is not None and run.hidden is not None
        assert torch.equal(run.hidden, again.hidden)


def test_what_is_spared_is_spared(boot_family: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks below the edit do not run, and logits are made only where they are read."""
    model = boot_family("llama")
    prompts = random_prompts(3)
    ran: list[int] = []
    rows: list[int] = []
    # Hooks on the modules would be the caller's own, for which nothing is spared.
    attention, head = model.blocks[0].attn.original_component, model.unembed.original_component
    attend, unembed = type(attention).forward, type(head).forward

    def count_run(module: Any, *inputs: Any, **named: Any) -> Any:
        if module is attention:
            ran.append(0)
        return attend(module, *inputs, **named)

    def count_rows(module: Any, hidden: Tensor) -> Any:
        if module is head:
            rows.append(hidden.shape[0] * hidden.shape[1])
        return unembed(module, hidden)

    monkeypatch.setattr(type(attention), "forward", count_run)
    monkeypatch.setattr(type(head), "forward", count_rows)
    shortcuts(model), check(model)
    ran.clear(), rows.clear()
    edits = [ablate_heads(model, [(1, head)], "zero") for head in range(4)]
    sinklens.evaluate(model, prompts, edits, ["loss"], positions=(4,), progress=False)
    assert len(ran) == 1  # the clean run
    # None in the forwards, which stop short; one a prompt for each of five readings.
    assert sum(rows) == 3 * 5


def test_interventions_share_a_forward_and_fire_once_each(boot_family: Boot) -> None:
    model = boot_family("llama")
    prompts = random_prompts(3)
    edits = [ablate_heads(model, [(1, head)], "zero") for head in range(4)]
    found = sinklens.evaluate(model, prompts, edits, ["loss"], progress=False)
    assert found.fired == [1] * 4
    assert found.shortcuts == dict.fromkeys(["prefix", "unembedding", "patterns"], True)
    # One of them does nothing: it is found, though it shares its forward with others.
    still = Intervention("still", "z", 1, [(hook_name("z", 1), lambda z, hook: z)])
    with pytest.raises(sinklens.SinklensError, match="still did not happen"):
        sinklens.evaluate(model, prompts, [*edits, still], ["loss"], progress=False)


def test_one_forward_is_read_at_several_positions(boot_family: Boot) -> None:
    """As two interventions of their own, one of which counts fewer predictions."""
    model, prompts = boot_family("llama"), random_prompts(3)
    edit = ablate_heads(model, [(0, 1)], "zero")
    metrics = ["loss", "kl", "sink_mass", own_metric]
    both = sinklens.evaluate(model, prompts, [edit, edit.read_after(3)], metrics, progress=False)
    late = range(4, LENGTH)
    alone = [
        sinklens.evaluate(model, prompts, [edit], metrics, positions=at, progress=False)
        for at in (None, late)
    ]
    assert both.forwards == alone[0].forwards
    for place, one in enumerate(alone):
        torch.testing.assert_close(both.values[place], one.values[0])
        torch.testing.assert_close(both.baselines[place], one.baselines[0])
    plain = plain_values(model, prompts, [None, edit], late)
    for axis, name in enumerate(("loss", "kl")):
        torch.testing.assert_close(both.values[1, axis], plain[name][1])
        torch.testing.assert_close(both.baselines[1, axis], plain[name][0])
    assert not torch.allclose(both.values[0, :2], both.values[1, :2])


def own_metric(logits: Tensor, tokens: Tensor, *, positions: Tensor, **_: Any) -> Tensor:
    return logits[:, positions].amax((1, 2))


def test_a_hook_below_the_first_layer_still_runs(boot_family: Boot) -> None:
    """An intervention that names its first layer wrongly is run from where its hooks are."""
    model = boot_family("llama")
    prompts = random_prompts(3)
    right = ablate_heads(model, [(0, 1)], "zero")
    wrong = Intervention("zero", "z", 1, list(right.fwd_hooks))
    found = sinklens.evaluate(model, prompts, [right, wrong], ["loss"], progress=False)
    assert torch.equal(found.values[0], found.values[1])


def test_a_metric_of_ones_own_gets_all_logits(boot_family: Boot) -> None:
    model = boot_family("gpt2")
    prompts = random_prompts(3)
    edits = [ablate_heads(model, [(1, 0)], "zero"), ablate_heads(model, [(1, 1)], "zero")]

    def largest(logits: Tensor, tokens: Tensor, *, clean_logits: Tensor, **_: Any) -> Tensor:
        assert logits.shape == clean_logits.shape == (*tokens.shape, VOCABULARY)
        return (logits - clean_logits).abs().amax((1, 2))

    metric = LogitMetric("largest", largest)
    found = sinklens.evaluate(model, prompts, edits, [metric], progress=False)
    with torch.no_grad():
        clean = model(prompts.tokens)
        for row, edit in zip(found.values[:, 0], edits, strict=True):
            logits = model.run_with_hooks(prompts.tokens, fwd_hooks=edit.fwd_hooks)
            torch.testing.assert_close(row, (logits - clean).abs().amax((1, 2)))


def test_the_model_is_left_as_it_was_also_after_an_error(boot_family: Boot) -> None:
    model = boot_family("llama")
    prompts = random_prompts(3)
    with torch.no_grad():
        before = model(prompts.tokens)

    def fail(z: Tensor, hook: Any) -> Tensor:
        raise KeyboardInterrupt

    edit = Intervention("fail", "z", 1, [(hook_name("z", 1), fail)])
    with pytest.raises(KeyboardInterrupt):
        sinklens.evaluate(model, prompts, [edit], ["loss"], progress=False)
    assert not any("forward" in module.__dict__ for module in model.modules())
    for block in model.blocks:
        assert not block._forward_hooks and block.attn._captured_pre_ln_residual is None
    config = model.original_model.config
    assert config._attn_implementation == "eager" and config.use_cache
    with torch.no_grad():
        assert torch.equal(model(prompts.tokens), before)


def test_sizes_follow_from_shapes_and_the_budget(boot_family: Boot) -> None:
    model = boot_family("llama")
    roomy = choose_sizes(model, 1000, 64, batch_size=None, memory=2**30, starts=2)
    tight = choose_sizes(model, 1000, 64, batch_size=None, memory=2**21, starts=2)
    asked = choose_sizes(model, 1000, 64, batch_size=6, memory=None, starts=2)
    assert roomy == choose_sizes(model, 1000, 64, batch_size=None, memory=2**30, starts=2)
    assert tight.prompts < roomy.prompts <= 1000
    assert (asked.prompts, asked.interventions) == (6, 1)
    few = choose_sizes(model, 4, 64, batch_size=None, memory=2**30, starts=2)
    assert few.prompts == 4 and few.interventions > 1


@pytest.mark.parametrize("name", ["unembed.hook_out", "hook_unembed"])
@pytest.mark.parametrize("alone", [True, False])
def test_an_edit_of_the_logits_is_not_lost(name: str, alone: bool, boot_family: Boot) -> None:
    """Under either of TransformerLens's names for the place, and beside another edit."""
    model = boot_family("llama")
    prompts = random_prompts(3)
    tilt = torch.linspace(-1, 1, VOCABULARY)
    edit = Intervention("tilt", "logits", 2, [(name, lambda logits, hook: logits + tilt)])
    if not alone:
        edit = together("both", edit, ablate_heads(model, [(0, 1)], "zero"))
    found = sinklens.evaluate(model, prompts, [edit], ["loss"], progress=False)
    wanted = plain_values(model, prompts, [edit])["loss"]
    torch.testing.assert_close(found.values[:, 0], wanted, rtol=1e-5, atol=1e-5)
    assert not found.shortcuts["unembedding"]


def test_hooks_that_do_not_hold_the_batch_first_run_alone(boot_family: Boot) -> None:
    """OPT's MLP flattens batch and positions."""
    model = boot_family("opt")
    prompts = random_prompts(3)
    name = "blocks.1.mlp.hook_out"
    edits = [
        Intervention(
            f"{i}", "mlp", 1, [(name, partial(lambda x, hook, by: x + by, by=float(i + 1)))]
        )
        for i in range(12)
    ]
    found = sinklens.evaluate(model, prompts, edits, ["loss"], progress=False)
    wanted = plain_values(model, prompts, edits)["loss"]
    torch.testing.assert_close(found.values[:, 0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "experiment",
    [
        "bos_replacement",
        "massive_activations",
        "position0_patching",
        "sink_head_ablation",
    ],
)
def test_every_experiment_that_counts_predictions_takes_positions(experiment: str) -> None:
    model = sinklens.load("rope")
    prompts = sinklens.prompts(model, n=2, length=16)
    settings: dict[str, Any] = {"positions": (5, 9, 15), "draws": 1, "null_models": 0}
    if experiment == "sink_head_ablation":
        settings["heads"] = ("L0H1",)
    result = sinklens.run(experiment, model, prompts, progress=False, **settings)
    assert result.effects


def test_hooks_of_the_callers_own_stay_in_force(boot_family: Boot) -> None:
    """Also on patterns, which a shortcut would pass by, and at one position of the whole prompt."""
    model = boot_family("llama")
    prompts = random_prompts(3)
    own = [
        (hook_name("pattern", 0), lambda pattern, hook: pattern * 0.5),
        (hook_name("residual", 0), partial(replace_position, values=torch.ones(32), position=7)),
    ]
    edits = [ablate_heads(model, [(1, head)], "zero") for head in range(3)]
    with model.hooks(fwd_hooks=own):
        found = sinklens.evaluate(model, prompts, edits, ["loss"], progress=False)
        wanted = plain_values(model, prompts, edits)["loss"]
    torch.testing.assert_close(found.values[:, 0], wanted, rtol=1e-5, atol=1e-5)
    assert not any(found.shortcuts.values())
    without = plain_values(model, prompts, edits)["loss"]
    assert (without - wanted).abs().max() > 0.01
    after = sinklens.evaluate(model, prompts, edits, ["loss"], progress=False)
    assert all(after.shortcuts.values())


@pytest.mark.parametrize("pre", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_pytorch_hooks_of_the_callers_own_act_once(
    wrapped: bool, pre: bool, boot_family: Boot
) -> None:
    """As of somebody who steers a block, behind which a run from the next block would start."""
    model = boot_family("gemma2")
    prompts = random_prompts(3)
    module = model.blocks[1].original_component if wrapped else model.blocks[1]
    steer = torch.linspace(-3, 3, 32)

    def steer_input(_: Any, inputs: tuple[Tensor, ...]) -> Any:
        return (inputs[0] + steer, *inputs[1:])

    def steer_output(_: Any, __: Any, output: Any) -> Any:
        return (output[0] + steer, *output[1:]) if isinstance(output, tuple) else output + steer

    edits = [ablate_heads(model, [(2, head)], "zero") for head in range(3)]
    sinklens.evaluate(model, prompts, edits, ["loss"], progress=False)
    without = plain_values(model, prompts, edits)["loss"]
    if pre:
        handle = module.register_forward_pre_hook(steer_input)
    else:
        handle = module.register_forward_hook(steer_output)
    try:
        found = sinklens.evaluate(model, prompts, edits, ["loss"], progress=False)
        wanted = plain_values(model, prompts, edits)["loss"]
    finally:
        handle.remove()
    torch.testing.assert_close(found.values[:, 0], wanted, rtol=1e-5, atol=1e-5)
    if not (pre and wrapped):  # TransformerLens may go around what it wraps
        assert (without - wanted).abs().max() > 0.01
    assert not any(found.shortcuts.values()) and not has_own_hooks(model)


def test_a_block_that_the_caller_replaced_stays_replaced(boot_family: Boot) -> None:
    model = boot_family("llama")
    prompts = random_prompts(3)
    block = model.blocks[0]
    original = block.forward

    def scaled(*inputs: Any, **named: Any) -> Any:
        output = original(*inputs, **named)
        return (output[0] * 2, *output[1:]) if isinstance(output, tuple) else output * 2

    edits = [ablate_heads(model, [(1, head)], "zero") for head in range(3)]
    block.__dict__["forward"] = scaled
    try:
        found = sinklens.evaluate(model, prompts, edits, ["loss"], progress=False)
        assert block.__dict__["forward"] is scaled
        wanted = plain_values(model, prompts, edits)["loss"]
    finally:
        del block.__dict__["forward"]
    torch.testing.assert_close(found.values[:, 0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("times", [1, 3])
def test_an_edit_in_place_stays_in_its_own_run(times: int, boot_family: Boot) -> None:
    """What a block put out in the clean run is the start of every other run from there."""
    model = boot_family("llama")
    prompts = random_prompts(3)

    def in_place(residual: Tensor, hook: Any) -> Tensor:
        residual[:, 0] += 5
        return residual + 1

    rude = Intervention("rude", "residual", 1, [(hook_name("residual", 1), in_place)])
    others = [ablate_heads(model, [(1, head)], "zero") for head in range(3)]
    edits = [rude, *others]
    batch_size = 3 * times
    found = sinklens.evaluate(
        model, prompts, edits, ["loss"], batch_size=batch_size, progress=False
    )
    alone = plain_values(model, prompts, others)["loss"]
    torch.testing.assert_close(found.values[1:, 0], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("setting", [{"memory": 0}, {"memory": -5}, {"batch_size": 0}])
def test_a_size_that_holds_nothing_is_refused(setting: Any, boot_family: Boot) -> None:
    model = boot_family("llama")
    with pytest.raises(sinklens.SinklensError, match="must be at least 1"):
        sinklens.evaluate(model, random_prompts(3), [], ["loss"], progress=False, **setting)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_hooks_that_transformer_lens_wires_are_not_the_callers(
    name: str, boot_family: Boot
) -> None:
    """OPT and BERT come with permanent ones; a permanent hook of the caller's still counts."""
    model = boot_family(name)
    assert not has_own_hooks(model)
    point = hook_name("residual", 0)
    model.add_perma_hook(point, lambda activation, hook: activation)
    try:
        assert has_own_hooks(model)
    finally:
        model.hook_dict[point].remove_hooks(including_permanent=True)
    assert not has_own_hooks(model)


def test_the_last_prediction_counts_where_no_next_token_is_needed(boot_family: Boot) -> None:
    model, prompts = boot_family("llama"), random_prompts(2)
    edit, last = ablate_heads(model, [(0, 1)], "zero"), (LENGTH - 1,)
    found = sinklens.evaluate(model, prompts, [edit], ["kl"], positions=last, progress=False)
    assert bool((found.values > 0).all())
    with pytest.raises(sinklens.SinklensError, match="none has a next token"):
        sinklens.evaluate(model, prompts, [edit], ["kl", "loss"], positions=last, progress=False)


def test_reading_under_an_edit_keeps_to_the_budget(boot_family: Boot) -> None:
    model, prompts = boot_family("llama"), random_prompts(5)
    edit, sizes = ablate_heads(model, [(0, 1)], "zero"), []
    found = []
    for memory in (None, 1):
        probe = SinkScores(model)
        probe.fwd_hooks.append(("hook_embed", lambda embedded, hook: sizes.append(len(embedded))))
        last = model.cfg.n_layers - 1
        found.append(
            read_under(model, prompts, edit, probe, last_layer=last, memory=memory).values.mass
        )
    assert sizes == [5, 1, 1, 1, 1, 1]
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_small_slices_of_the_unembedding_are_equal(
    name: str, boot_family: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven rows of logits at once, of which two are read at a time."""
    monkeypatch.setattr("sinklens.engine.sizes.FEWEST_ROWS", 7)
    monkeypatch.setattr("sinklens.engine.sizes.CPU_ROW_BYTES", 1)
    monkeypatch.setattr("sinklens.engine.metric_reader.CACHED_BYTES", 2 * 4 * VOCABULARY)
    model = boot_family(name)
    prompts = random_prompts(3)
    metrics = ["loss", "kl"] if check(model).causal else ["kl"]
    edits = [random_intervention(model, seed) for seed in (1, 2)]
    found = sinklens.evaluate(model, prompts, edits, metrics, progress=False)
    wanted = plain_values(model, prompts, edits)
    for row, metric in enumerate(metrics):
        torch.testing.assert_close(found.values[:, row], wanted[metric], rtol=1e-5, atol=1e-5)


def test_progress_shows_rate_and_time_left(
    boot_family: Boot, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = boot_family("llama")
    edits = [ablate_heads(model, [(1, head)], "zero") for head in range(3)]
    monkeypatch.setattr(
        "sinklens.engine.progress.tqdm", lambda **how: tqdm(**{**how, "delay": 0, "mininterval": 0})
    )
    sinklens.evaluate(
        model,
        random_prompts(3),
        edits,
        ["loss"],
        progress=True,
    )
    said = capsys.readouterr().err
    assert re.search(r"4/4 \[\d\d:\d\d<\d\d:\d\d, .*forward", said)
    sinklens.evaluate(
        model,
        random_prompts(3),
        edits,
        ["loss"],
        progress=False,
    )
    assert not capsys.readouterr().err
