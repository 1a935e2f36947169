"""What holds whatever the model: of edits, of runs, and of the caller's state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sinklens
from sinklens import SinklensError
from sinklens.hooks import (
    Intervention,
    ablate_heads,
    drop_edge,
    drop_edge_unnormalised,
    patch_position0,
    replace_bos_embedding,
)
from sinklens.models.prompts import corpus
from tests import families

pytestmark = pytest.mark.slow

CAUSAL = [name for name in families.FAMILIES if name != "bert"]
LENGTH, N_PROMPTS, PLACE = 12, 6, 3
HEADS = [(0, 0), (0, 3), (1, 1)]
# Tokenising the whole shipped corpus takes seconds, one token a character.
TEXT = corpus()[:2000]
SETTINGS: dict[str, dict[str, Any]] = {
    "sink_profile": {},
    "bos_replacement": {},
    "position0_patching": {"layers": [1]},
    "sink_head_ablation": {"heads": "L0H0,L1H3"},
    "massive_activations": {"scale_free": 4.0},
    "spike_sink_decoupling": {"scale_free": 3.0},
}
NEED_CAUSAL = ("position0_patching", "massive_activations", "spike_sink_decoupling")
Boot = Callable[[str], Any]


@pytest.fixture(params=CAUSAL)
def model(request: pytest.FixtureRequest, boot_family: Boot) -> Any:
    return boot_family(request.param)


@pytest.fixture(
    params=[
        pytest.param(name, marks=[] if name in ("llama", "gpt2") else pytest.mark.heavy)
        for name in CAUSAL
    ]
)
def run_on(request: pytest.FixtureRequest, boot_family: Boot) -> Any:
    """For whole experiments, which `test_every_experiment` runs too: grouped keys, and none."""
    return boot_family(request.param)


def make_prompts(model: Any) -> sinklens.Prompts:
    return sinklens.prompts(model, TEXT, n=N_PROMPTS, length=LENGTH, bos=True)


def run(name: str, model: Any, prompts: sinklens.Prompts, **settings: Any) -> Any:
    return sinklens.run(
        name, model, prompts, progress=False, **{"draws": 2, "null_models": 0, **settings}
    )


def logits_of(model: Any, tokens: Tensor, hooks: Any = ()) -> Tensor:
    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=list(hooks))


def read(model: Any, tokens: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Activations by hook name, read with hooks of the test's own."""
    kept: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any, name: str) -> None:
        kept[name] = activation.clone()

    logits_of(model, tokens, [(name, partial(keep, name=name)) for name in names])
    return kept


def own_output(model: Any, tokens: Tensor, layer: int, place: int) -> Tensor:
    name = f"blocks.{layer}.attn.hook_z"
    return read(model, tokens, [name])[name][:, place]


def position_edits(model: Any, tokens: Tensor, place: int) -> Iterator[Intervention]:
    """Everything that edits one position, at `place`."""
    for with_ in ("mean", "zero", "random_token", "gaussian", "token:q"):
        yield replace_bos_embedding(model, with_, position=place)
    for layer in range(2):
        patch = partial(patch_position0, model, layer, position=place)
        yield patch("rescaled", values=torch.tensor(2.5))
        yield patch("redirected", draw=1)
        own = own_output(model, tokens, layer, place)
        for with_ in ("other_token", "mean_token", "zero"):
            yield patch(with_)
            yield patch(with_, part="key", own_output=own)
            yield patch(with_, part="value", own_output=own)


def edge_edits(model: Any, tokens: Tensor, place: int) -> Iterator[Intervention]:
    """Everything that drops the edge to one key."""
    if sinklens.check(model).edits["pattern"]:
        for with_ in ("drop_edge", "drop_edge_unnormalised"):
            yield ablate_heads(model, HEADS, with_, position=place)
    from sinklens.probes import SinkReads

    reads = {}
    for layer in range(2):
        probe = SinkReads(model, layer, place)
        logits_of(model, tokens, probe.fwd_hooks)
        reads[layer] = probe.compute()
    yield ablate_heads(model, HEADS, "drop_edge_unnormalised", values=reads, position=place)


def output_edits(model: Any, tokens: Tensor) -> Iterator[Intervention]:
    """Everything that writes head outputs."""
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(2)]
    z = dict(enumerate(read(model, tokens, names).values()))
    means = {i: torch.stack([v[:, 0].mean(0), v[:, 1:].mean((0, 1))]) for i, v in z.items()}
    yield ablate_heads(model, HEADS, "zero")
    yield ablate_heads(model, HEADS, "mean", values=means)
    yield ablate_heads(model, HEADS, "resample", values={i: v.roll(1, 0) for i, v in z.items()})


def label(edit: Intervention) -> str:
    return f"{edit.name} at layer {edit.layer}, site {edit.site}"


# --- Edits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, PLACE])
def test_position_edits_change_nothing_before(model: Any, place: int) -> None:
    tokens = make_prompts(model).tokens
    clean = logits_of(model, tokens)
    for edit in position_edits(model, tokens, place):
        edited = logits_of(model, tokens, edit.fwd_hooks)
        # The edited position's own output stays where only its key or value is written.
        untouched = place + (edit.site in ("key", "value"))
        assert torch.allclose(edited[:, :untouched], clean[:, :untouched], atol=1e-5), label(edit)
        if edit.name == "rescaled:residual" and edit.layer == model.cfg.n_layers - 1:
            continue  # the norm before attention divides a new length away
        assert (edited - clean)[:, place + 1 :].abs().max() > 1e-4, label(edit)


@pytest.mark.parametrize("place", [0, PLACE])
def test_edge_edits_spare_their_own_row(model: Any, place: int) -> None:
    tokens = make_prompts(model).tokens
    clean = logits_of(model, tokens)
    for edit in edge_edits(model, tokens, place):
        edited = logits_of(model, tokens, edit.fwd_hooks)
        before, after = slice(0, place + 1), slice(place + 1, None)
        assert torch.allclose(edited[:, before], clean[:, before], atol=1e-5), label(edit)
        assert (edited - clean)[:, after].abs().max() > 1e-4, label(edit)


@pytest.mark.parametrize("function", [drop_edge, drop_edge_unnormalised])
@pytest.mark.parametrize("place", [0, 2])
def test_edge_edits_on_a_plain_pattern(function: Callable[..., Tensor], place: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 4, 6, 6, generator=generator)
    pattern = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf).softmax(-1)
    before = pattern.clone()
    edited = function(pattern, None, heads=[1, 3], position=place)
    assert torch.equal(pattern, before)  # a new tensor
    assert torch.equal(edited[:, [0, 2]], before[:, [0, 2]])
    assert torch.equal(edited[:, :, : place + 1], before[:, :, : place + 1])
    for query in range(place + 1, 6):
        row, new = before[:, [1, 3], query], edited[:, [1, 3], query]
        assert bool((new[..., place] == 0).all())
        rest = [key for key in range(6) if key != place]
        scale = 1 / (1 - row[..., place, None]) if function is drop_edge else 1
        torch.testing.assert_close(new[..., rest], row[..., rest] * scale)


def test_no_edit_lets_the_future_in(model: Any) -> None:
    tokens = make_prompts(model).tokens
    changed = tokens.clone()
    changed[:, -1] = torch.where(tokens[:, -1] == 10, 11, 10)
    count = 0
    for place in (0, PLACE):
        edits = [
            *position_edits(model, tokens, place),
            *edge_edits(model, tokens, place),
            *output_edits(model, tokens),
        ]
        for edit in edits:
            one = logits_of(model, tokens, edit.fwd_hooks)
            other = logits_of(model, changed, edit.fwd_hooks)
            assert torch.allclose(one[:, :-1], other[:, :-1], atol=1e-5), label(edit)
            assert not torch.allclose(one[:, -1], other[:, -1], atol=1e-2)
            count += 1
    assert count > 50


def unchanged(activation: Tensor, hook: Any) -> Tensor:
    return activation.clone()


@pytest.mark.parametrize(
    "name",
    ["hook_embed", "blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.0.attn.hook_k"],
)
def test_identity_edits(model: Any, name: str) -> None:
    prompts = make_prompts(model)
    edit = Intervention("same", "residual", 0, [(name, unchanged)])
    with pytest.raises(SinklensError, match="did not happen"):
        sinklens.evaluate(model, prompts, [edit], ["loss"], progress=False)
    found = sinklens.evaluate(
        model, prompts, [replace(edit, identity=True)], ["loss", "kl", "sink_mass"], progress=False
    )
    assert largest_change(found) == 0
    assert found.fired == [1]


def largest_change(found: Any) -> float:
    """Over what the intervention can reach; what it cannot is NaN."""
    assert torch.equal(found.values.isnan(), found.baselines.isnan())
    assert not found.values[:, :2].isnan().any()
    return float((found.values - found.baselines).nan_to_num().abs().max())


def edit_in_place(activation: Tensor, hook: Any) -> None:
    """Changes what it was given and returns nothing, as no intervention here may."""
    activation.mul_(1.0)


def test_hooks_that_do_nothing_are_errors(model: Any) -> None:
    prompts = make_prompts(model)
    for function in (edit_in_place, lambda activation, hook: None):
        edit = Intervention("nothing", "residual", 0, [("blocks.0.hook_resid_pre", function)])
        with pytest.raises(SinklensError, match="did not happen"):
            sinklens.evaluate(model, prompts, [edit], ["loss"], progress=False)


def test_hooks_that_never_fire_are_errors(model: Any) -> None:
    prompts = make_prompts(model)
    silent = sorted(_listed(model) - _firing(model, prompts.tokens))
    if not silent:
        assert model.cfg.model_name in ("tiny-gpt2", "tiny-opt")  # the others list some
    for name in silent:
        act = (name, lambda activation, hook: activation + 1)
        does = ("blocks.0.hook_resid_pre", lambda activation, hook: activation + 1)
        for hooks in ([act], [does, act]):
            edit = Intervention("silent", "residual", 0, list(hooks))
            with pytest.raises(SinklensError, match="never fired"):
                sinklens.evaluate(model, prompts, [edit], ["loss"], progress=False)
            with pytest.raises(SinklensError, match="never fired"):
                silenced = replace(edit, identity=True)
                sinklens.evaluate(model, prompts, [silenced], ["loss"], progress=False)


def _listed(model: Any) -> set[str]:
    """Some hook names that only part of the families use, as far as this one lists them."""
    wanted = ("hook_pos_embed", "blocks.0.attn.hook_rot_q", "blocks.0.attn.hook_rot_k")
    return {name for name in wanted if name in model.hook_dict}


def _firing(model: Any, tokens: Tensor) -> set[str]:
    return set(read(model, tokens, sorted(_listed(model))))


def test_unknown_hook_names_are_errors(model: Any) -> None:
    prompts = make_prompts(model)
    for name in ("hook_nothing", "blocks.9.hook_resid_pre"):
        edit = Intervention("odd", "residual", 0, [(name, lambda activation, hook: activation + 1)])
        with pytest.raises(SinklensError, match=name):
            sinklens.evaluate(model, prompts, [edit], ["loss"], progress=False)


@pytest.mark.parametrize("part", ["residual", "key", "value"])
@pytest.mark.parametrize("layer", [0, 1])
def test_patching_a_run_into_itself(model: Any, layer: int, part: str) -> None:
    """The values that the run has, and those that its own first token gives alone."""
    from sinklens.probes.positions import first_token_values

    prompts = make_prompts(model)
    site = {"residual": "hook_resid_pre", "key": "attn.hook_k", "value": "attn.hook_v"}[part]
    name = f"blocks.{layer}.{site}"
    own = own_output(model, prompts.tokens, layer, 0)
    alone = first_token_values(model, prompts.tokens[:, 0], [part], [layer])[part, layer]
    for values in (read(model, prompts.tokens, [name])[name][:, 0], alone):
        patch = patch_position0(
            model, layer, "other_token", part=part, values=values, own_output=own
        )
        edit = replace(patch, identity=True)
        found = sinklens.evaluate(
            model, prompts, [edit], ["loss", "kl", "sink_mass"], progress=False, batch_size=4
        )
        assert largest_change(found) <= 1e-6


def test_replacing_bos_by_bos(model: Any) -> None:
    prompts = make_prompts(model)
    edit = replace(replace_bos_embedding(model, "token:q"), identity=True)
    replaced = replace(prompts, tokens=prompts.tokens.clone(), bos=False)
    replaced.tokens[:, 0] = model.tokenizer.convert_tokens_to_ids("q")
    found = sinklens.evaluate(model, replaced, [edit], ["loss", "kl"], progress=False)
    assert float((found.values - found.baselines).abs().max()) <= 1e-6


# --- Runs --------------------------------------------------------------------------------------

ORDER = torch.tensor([3, 0, 5, 1, 4, 2])


@pytest.mark.parametrize(
    ("experiment", "settings"),
    [
        ("sink_profile", {"conditions": ["natural", "no_bos"]}),
        ("bos_replacement", {}),
        (
            "position0_patching",
            {"conditions": ["mean_token", "zero", "rescaled", "redirected"], "draws": 0},
        ),
        ("position0_patching", {"conditions": ["other_token"]}),
        (
            "sink_head_ablation",
            {"conditions": ["zero", "mean", "drop_edge_unnormalised"], "heads": "L0H0,L1H3"},
        ),
        ("sink_head_ablation", {"conditions": ["resample"], "heads": "L0H0,L1H3"}),
        ("massive_activations", {"scale_free": 4.0}),
    ],
    ids=["profile", "bos", "position0", "position0-other_token", "heads", "resample", "massive"],
)
def test_order_of_prompts(experiment: str, settings: dict[str, Any], run_on: Any) -> None:
    prompts = make_prompts(run_on)
    shuffled = replace(prompts, tokens=prompts.tokens[ORDER])
    one = run(experiment, run_on, prompts, **settings)
    other = run(experiment, run_on, shuffled, **settings)
    for name, values in one.per_prompt.items():
        same = torch.allclose(
            values[:, ORDER], other.per_prompt[name], atol=1e-5, rtol=0, equal_nan=True
        )
        assert same
    for row, shuffled_row in zip(one.effects, other.effects, strict=True):
        if row.resampled == "run_on":  # run on a few of the prompts, whatever their order
            assert row.effect == pytest.approx(shuffled_row.effect, abs=1e-5, rel=1e-3)
    spread = one.per_prompt["value"].std(1).nan_to_num()
    assert float(spread.max()) > 1e-3  # prompts differ, so that their order could matter


@pytest.mark.parametrize("experiment", SETTINGS)
def test_batch_size(experiment: str, run_on: Any) -> None:
    prompts = make_prompts(run_on)
    whole = run(experiment, run_on, prompts, **SETTINGS[experiment])
    for size in (1, 4):
        batched = run(experiment, run_on, prompts, batch_size=size, **SETTINGS[experiment])
        for name, values in whole.per_prompt.items():
            difference = values - batched.per_prompt[name]
            assert float(difference.nan_to_num().abs().max()) <= 1e-5
        for name, array in whole.arrays.items():
            mine, theirs = array.values.nan_to_num(), batched.arrays[name].values.nan_to_num()
            # The largest arrays hold norms of some tens.
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("experiment", "name"),
    [
        (experiment, name)
        for experiment in SETTINGS
        for name in ("llama", "opt", "bert")
        if not (experiment in NEED_CAUSAL and name == "bert")
    ],
)
def test_every_forward_keeps_to_the_batch_size(
    experiment: str, name: str, boot_family: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that only read values, and none builds a graph."""
    model = boot_family(name)
    prompts = make_prompts(model)
    sinklens.check(model)
    rows: list[int] = []
    graphs: list[bool] = []

    embedding = _embedding(model)
    embed = type(embedding).forward

    def watch(module: Any, *inputs: Any, **named: Any) -> Tensor:
        output: Tensor = embed(module, *inputs, **named)
        if module is embedding and output.shape[1] == LENGTH:
            rows.append(output.shape[0])
        graphs.append(output.requires_grad)
        return output

    # A hook would be the caller's own, under which every intervention runs alone.
    monkeypatch.setattr(type(embedding), "forward", watch)
    run(experiment, model, prompts, batch_size=2, **SETTINGS[experiment])
    assert max(rows) == 2
    assert not any(graphs)


def _embedding(model: Any) -> torch.nn.Module:
    return next(m for m in model.original_model.modules() if isinstance(m, torch.nn.Embedding))


@pytest.mark.parametrize("name", ["llama", "opt"])
@pytest.mark.parametrize("experiment", SETTINGS)
def test_seed(experiment: str, name: str, boot_family: Boot, tmp_path: Path) -> None:
    def saved(model: Any, folder: str, seed: int, **settings: Any) -> Path:
        result = run(experiment, model, make_prompts(model), seed=seed, **settings)
        return result.save(tmp_path / folder)

    settings = SETTINGS[experiment]
    first = saved(boot_family(name), "first", 7, **settings)
    torch.rand(3)  # the global state is no part of it
    again = saved(families.boot(name), "again", 7, **settings)
    for file in ("result.json", "values.safetensors"):
        assert (first / file).read_bytes() == (again / file).read_bytes()
    other = saved(boot_family(name), "other", 8, **settings)
    one, two = (sinklens.ExperimentResult.load(folder) for folder in (first, other))
    assert one.effects != two.effects


# --- The caller's state ------------------------------------------------------------------------


def snapshot(model: Any) -> dict[str, Any]:
    modules = [*model.modules(), *model.original_model.modules()]
    points = list(dict(model.hook_dict).values())
    numpy_state = np.random.get_state()
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": (numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]),  # type: ignore[index, union-attr]
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "training": [module.training for module in modules],
        "hooks": [
            (len(point.fwd_hooks), len(point.bwd_hooks), len(point._forward_hooks))
            for point in points
        ],
        "module hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in modules
        ],
        "captured": [getattr(b.attn, "_captured_pre_ln_residual", None) for b in model.blocks],
        "cache": getattr(model.original_model.config, "use_cache", None),
        "requires_grad": [p.requires_grad for p in model.original_model.parameters()],
        "grads": [p.grad is None for p in model.original_model.parameters()],
        "weights": [float(p.detach().double().sum()) for p in model.original_model.parameters()],
        "threads": torch.get_num_threads(),
    }


@contextmanager
def state_kept(model: Any) -> Iterator[None]:
    with torch.no_grad():  # TransformerLens adds hooks of its own in a model's first forward
        model(torch.arange(4, 12)[None])
    before = snapshot(model)
    yield
    after = snapshot(model)
    assert {key for key in before if before[key] != after[key]} == set()


@pytest.mark.parametrize("grad", [True, False])
def test_callers_state(run_on: Any, grad: bool) -> None:
    prompts = make_prompts(run_on)
    with torch.set_grad_enabled(grad):
        for name, settings in SETTINGS.items():
            with state_kept(run_on):
                run(name, run_on, prompts, **settings)


def test_callers_state_after_the_rest(run_on: Any) -> None:
    with state_kept(run_on):
        prompts = make_prompts(run_on)
        sinklens.random_prompts(run_on, n=2, length=8)
        sinklens.repeated_prompts(run_on, n=2, length=8)
        sinklens.sink_scores(run_on, prompts.tokens)
        sinklens.diagnose(run_on, prompts, progress=False)
        list(position_edits(run_on, prompts.tokens, 0))


def test_callers_state_after_check() -> None:
    model = families.boot("llama")
    with state_kept(model):
        sinklens.check(model)


@pytest.mark.parametrize("name", ["gpt2", "neox"])
def test_loading_keeps_the_random_state(name: str) -> None:
    plain = families.FAMILIES[name]()
    before = torch.get_rng_state()
    sinklens.load(plain, tokenizer=families.tiny_tokenizer())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_callers_state_after_an_exception(model: Any, error: type[BaseException]) -> None:
    prompts = make_prompts(model)

    def fail(activation: Tensor, hook: Any) -> Tensor:
        raise error("on purpose")

    hooks = [("hook_embed", unchanged), ("blocks.1.hook_resid_pre", fail)]
    edit = Intervention("failing", "residual", 0, hooks)  # type: ignore[arg-type]
    # An error of a hook comes in one line of ours; an interruption as it is.
    raised = sinklens.SinklensError if issubclass(error, Exception) else error
    with state_kept(model), pytest.raises(raised, match="on purpose"):
        sinklens.evaluate(model, prompts, [edit], ["loss", "sink_mass"], progress=False)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_callers_state_after_an_exception_in_an_experiment(
    name: str, boot_family: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a run, by way of a metric of the user's own."""
    model = boot_family(name)
    prompts = make_prompts(model)
    calls = []

    def failing(logits: Tensor, tokens: Tensor, **_: Any) -> Tensor:
        calls.append(len(calls))
        if len(calls) > 2:
            raise RuntimeError("on purpose")
        return logits[:, -1, 0]

    with state_kept(model), pytest.raises(sinklens.SinklensError, match="on purpose"):
        run("bos_replacement", model, prompts, metrics=[failing])


def test_prompts_are_left_alone(run_on: Any) -> None:
    prompts = make_prompts(run_on)
    before = prompts.tokens.clone()
    for name, settings in SETTINGS.items():
        run(name, run_on, prompts, **settings)
    assert torch.equal(prompts.tokens, before)


# --- Grouped keys ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral"])
def test_heads_are_query_heads(name: str, boot_family: Boot) -> None:
    model = boot_family(name)
    prompts = make_prompts(model)
    assert model.cfg.n_key_value_heads == 2
    profile = run("sink_profile", model, prompts)
    assert profile.arrays["sink_mass"].values.shape == (model.cfg.n_layers, 4)
    assert profile.arrays["sink_mass"].dims == ("layer", "head")
    assert sinklens.sink_scores(model, prompts.tokens).shape == (model.cfg.n_layers, 4)
    each = run(
        "sink_head_ablation", model, prompts, heads="L0H0,L0H1,L1H3", each=True, conditions=["zero"]
    )
    rows = {
        (e.layer, e.head): e for e in each.effects if (e.metric, e.kind) == ("loss", "treatment")
    }
    assert set(rows) == {(0, 0), (0, 1), (1, 3)}
    assert "L1H3" in str(each)
    tokens = prompts.tokens
    for (layer, head), row in rows.items():
        plain = families.FAMILIES[name]()
        projection = plain.model.layers[layer].self_attn.o_proj

        def zero(module: Any, inputs: Any, head: int = head) -> Any:
            output = inputs[0].clone()
            output[..., head * families.D_HEAD : (head + 1) * families.D_HEAD] = 0
            return (output,)

        projection.register_forward_pre_hook(zero)
        with torch.no_grad():
            logits = plain(tokens, use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(logits[:, 1:-1].transpose(1, 2), tokens[:, 2:])
        assert row.value == pytest.approx(float(losses), abs=1e-5)
