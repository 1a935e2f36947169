"""Active and dormant heads: closed forms on weights set by hand, and plain Hugging Face.

The second computation reads values at `v_proj`, outputs before `o_proj` and attention from
`output_attentions`, and removes heads in a hook before `o_proj`; it shares nothing with sinklens
but what was drawn.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import sinklens
from sinklens import SinklensError
from sinklens.core.errors import UsageError
from sinklens.core.labels import head_label
from sinklens.experiments.heads._removal import counts, removable, same_layers
from sinklens.experiments.heads._scores import SCORES, least_active, overlap
from sinklens.models.prompts import Prompts, random_prompts
from tests import families
from tests.measuring import values_of, with_prompts
from tests.reference import plain_hf

pytestmark = pytest.mark.slow

ALONE: dict[str, Any] = {"null_models": 0, "random_weights": False, "progress": False}
LAYERS, HEADS = families.N_LAYERS, families.N_HEADS


def run(model: Any, prompts: Prompts, **settings: Any) -> Any:
    return sinklens.run("active_dormant", model, prompts, **{**ALONE, **settings})


def silent() -> Any:
    """A tiny Llama with uniform attention whose first key-value head of each layer has no value."""
    plain = families.uniform_llama()
    with torch.no_grad():
        for layer in plain.model.layers:
            layer.self_attn.v_proj.weight[: families.D_HEAD] = 0
    return plain


def test_silent_heads_are_found_and_cost_nothing() -> None:
    length = 10
    model, prompts = with_prompts(silent(), n=3, length=length)
    conditions = ("output_norm", "output_norm:layer", "last_output_norm:head")
    result = run(model, prompts, draws=2, removed=(0.5, 0.6), conditions=conditions)
    scores = dict(zip(SCORES, result.arrays["scores"].values, strict=True))
    rows = np.arange(1, length + 1)
    expected = {"first_token_weight": (1 / rows).mean(), "entropy": np.log(rows).mean()}
    for name, value in expected.items():
        torch.testing.assert_close(scores[name], torch.full((LAYERS, HEADS), value).double())
        torch.testing.assert_close(
            scores[f"{name}:layer"], torch.ones(LAYERS, HEADS).double(), atol=1e-6, rtol=0
        )
    # Two query heads share each key-value head.
    for name in ("value_norm", "first_value_norm", "output_norm", "last_output_norm:head"):
        assert not scores[name][:, :2].any() and bool((scores[name][:, 2:] > 0).all())
    torch.testing.assert_close(scores["output_norm:layer"].mean(1), torch.ones(LAYERS).double())
    # Half of the heads put out nothing, so that removing them changes nothing; a fifth does.
    for name in conditions:
        for metric in ("loss", "kl"):
            wanted = {"metric": metric, "kind": "treatment"}
            assert result.find(**wanted, condition=f"{name}@50%").effect == 0
            assert result.find(**wanted, condition=f"{name}@60%").effect != 0
        assert result.find(metric="removable", condition=name).value >= 0.5
    assert result.find(metric="sink_logit", kind="measurement").value == pytest.approx(0, abs=1e-6)
    assert result.find(metric="dormant", condition="output_norm:layer").value == 0.5
    # Where all weights are alike the order is that of the layers: half of the chosen are silent.
    assert "value_drain of position0" in result.settings["left_out"]  # 0 over 0
    assert result.find(metric="overlap", kind="measurement").baseline == 2 / 8


def test_orders_shares_and_sets() -> None:
    values = {(0, 0): 3.0, (0, 1): 1.0, (1, 0): 2.0, (1, 1): 1.0}
    assert least_active("output_norm", values) == [(0, 1), (1, 1), (1, 0), (0, 0)]
    assert least_active("first_token_weight", values) == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert list(counts((0.3, 0.1, 0.11), 10)) == [("10%", 1), ("30%", 3)]
    assert list(counts((0.5, 0.9), 1)) == []
    assert removable(["10%", "20%"], [0.0, 0.04], 0.02) == pytest.approx(0.15)
    assert removable(["10%", "20%"], [0.04, 0.0], 0.02) == pytest.approx(0.05)
    assert removable(["10%", "20%"], [-0.1, 0.01], 0.02) == pytest.approx(0.2)
    heads = [(layer, head) for layer in range(3) for head in range(4)]
    for draw in range(5):
        chosen = same_layers([(0, 1), (2, 0), (2, 3)], heads, 0, draw)
        assert [layer for layer, _ in chosen] == [0, 2, 2] and len(set(chosen)) == 3
    one = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert overlap(one, -one, 4).tolist() == [1, 1]
    assert overlap(one, one, 6).tolist() == [0, 0]


def test_the_task_is_held_against_its_optimum() -> None:
    """The head of the one-layer model is needed after triggers alone."""
    model = sinklens.load("backcopy-1")
    prompts = sinklens.prompts(model, n=6, length=48)
    result = run(model, prompts, draws=1)
    logits = model(prompts.tokens).detach()
    losses = torch.nn.functional.cross_entropy(
        logits[:, 1:-1].transpose(1, 2), prompts.tokens[:, 2:], reduction="none"
    )
    statistics = sinklens.models.shipped.backcopy.statistics()
    letters = model.tokenizer.convert_ids_to_tokens(prompts.tokens[:, 1:].flatten().tolist())
    letters = np.array(letters).reshape(6, -1)
    trigger = np.isin(letters[:, :-1], list(statistics.characters[:3]))
    for name, chosen in (("after_triggers", trigger), ("after_others", ~trigger)):
        expected = [row[c].mean() for row, c in zip(losses.numpy(), chosen, strict=True)]
        found = values_of(result, metric="task_loss", condition=name)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    ablation = result.find(metric="task_ablation", kind="contrast", layer=0, head=0)
    assert ablation.value > 1 > 0.1 > abs(ablation.baseline)
    assert result.find(metric="task_ablation", condition="published:after_triggers").value == 7.6865
    assert result.settings["left_out"].keys() == {
        *("first_token_weight", "output_norm:layer", "gradient", "two texts", "random_weights"),
    }
    short = run(model, sinklens.prompts(model, n=2, length=4), draws=0)
    assert "use longer ones" in short.settings["left_out"]["task"]


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_works(name: str, boot_family: Any) -> None:
    model = boot_family(name)
    result = run(model, random_prompts(model, n=3, length=8), draws=1, edit="mean")
    names = {row.condition.partition("@")[0] for row in result.effects if row.kind == "treatment"}
    assert {"first_token_weight", "output_norm:layer"} <= names
    assert ("gradient" in names) == ("loss" not in result.settings["left_out"]) == (name != "bert")
    assert len(result.summary) <= 12 and result.plot().data


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"removed": (1.5,)}, "below 1"),
        ({"edit": "median"}, "did you mean mean"),
        ({"conditions": ("output_nrm",)}, "output_norm"),
        ({"other_text": "too short"}, "windows"),
    ],
)
def test_bad_settings(settings: Any, message: str, boot_family: Any) -> None:
    model = boot_family("llama")
    with pytest.raises(UsageError, match=message):
        run(model, random_prompts(model, n=2, length=8), draws=0, **settings)


def test_small_input(boot_family: Any) -> None:
    """One prompt has no interval; without draws there are no controls; few tokens are refused."""
    model = boot_family("llama")
    result = run(model, random_prompts(model, n=1, length=8), draws=0)
    assert {row.kind for row in result.effects} == {"measurement", "treatment"}
    assert all(row.ci_low is None for row in result.effects)
    with pytest.raises(SinklensError, match="at least 4 tokens"):
        run(model, random_prompts(model, n=2, length=3))
    without = sinklens.load(families.llama())
    without.tokenizer = None
    result = run(without, Prompts(torch.randint(4, 64, (2, 8)), bos=False, source="test"), draws=0)
    assert "tokenizer=" in result.settings["left_out"]["two texts"]


class Plain:
    """A clean run of a plain Llama: attention, values, head outputs and streams."""

    def __init__(self, model: Any, tokens: Tensor) -> None:
        self.model, self.tokens = model, tokens
        config = model.config
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.attention = [layer.self_attn for layer in model.model.layers]
        values: list[Tensor] = []
        outputs: list[Tensor] = []
        handles = [
            a.v_proj.register_forward_hook(lambda m, i, o: values.append(o)) for a in self.attention
        ]
        handles += [
            a.o_proj.register_forward_pre_hook(lambda m, i: outputs.append(i[0]))
            for a in self.attention
        ]
        with torch.no_grad():
            found = model(
                tokens, use_cache=False, output_attentions=True, output_hidden_states=True
            )
        for handle in handles:
            handle.remove()
        self.logits, self.patterns = found.logits, torch.stack(found.attentions, 1).double()
        split = [
            v.unflatten(-1, (self.groups, -1)).repeat_interleave(self.heads // self.groups, 2)
            for v in values
        ]
        self.values = torch.stack(split, 1).transpose(2, 3)  # [prompt, layer, head, pos, d_head]
        z = [o.unflatten(-1, (self.heads, -1)) for o in outputs]
        self.z = torch.stack(z, 1).transpose(2, 3)
        self.streams = torch.stack(found.hidden_states[:-1], 1)

    def without(self, heads: list[str]) -> Tensor:
        """Logits with the outputs of heads set to zero."""

        def hook_for(number: int) -> Any:
            gone = [h for h in range(self.heads) if head_label((number, h)) in heads]

            def hook(module: Any, arguments: Any) -> Any:
                z = arguments[0].unflatten(-1, (self.heads, -1)).clone()
                z[:, :, gone] = 0
                return (z.flatten(-2),)

            return hook

        handles = [
            a.o_proj.register_forward_pre_hook(hook_for(i)) for i, a in enumerate(self.attention)
        ]
        with torch.no_grad():
            logits = self.model(self.tokens, use_cache=False).logits
        for handle in handles:
            handle.remove()
        return logits


@pytest.mark.heavy
def test_smollm2_agrees_with_plain_hugging_face(plain_smollm2: Any, smollm2_tokenizer: Any) -> None:
    """All scores by prompt and head, what position 0 holds, and an order with both controls."""
    model = sinklens.load(copy.deepcopy(plain_smollm2), tokenizer=smollm2_tokenizer)
    prompts = sinklens.prompts(model, n=2, length=20, bos=True)
    name = "output_norm:layer"
    result = run(model, prompts, draws=1, removed=(0.2,), conditions=(name,))
    plain = Plain(plain_smollm2, prompts.tokens)
    norms, z = plain.values.norm(dim=-1), plain.z.norm(dim=-1)
    parts = {
        "first_token_weight": plain.patterns[..., 0].mean(-1),
        "entropy": torch.from_numpy(stats.entropy(plain.patterns.numpy(), axis=-1)).mean(-1),
        "first_value_norm": norms[..., 0],
        "value_norm": norms.mean(-1),
        "last_output_norm": z[..., -1],
        "output_norm": z.mean(-1),
    }
    expected = {**parts, "last_output_norm:head": z[..., -1] / z.mean(-1)}
    expected |= {f"{key}:layer": part / part.mean(-1, keepdim=True) for key, part in parts.items()}
    assert set(expected) == set(SCORES)
    for key, values in zip(SCORES, result.arrays["scores"].values, strict=True):
        np.testing.assert_allclose(values, expected[key].mean(0), rtol=1e-3, atol=1e-4, err_msg=key)
    behind = torch.stack(
        [
            torch.einsum("bhpd,hdm->bhpm", v, a.o_proj.weight.T.unflatten(0, (plain.heads, -1)))
            for v, a in zip(plain.values.unbind(1), plain.attention, strict=True)
        ],
        1,
    ).norm(dim=-1)
    logs = plain.patterns.clamp_min(1e-300).log()
    gaps = [logs[..., i, 0] - logs[..., i, 1 : i + 1].mean(-1) for i in range(1, 20)]
    stream = plain.streams.norm(dim=-1)
    position0 = {
        "value_drain": (behind[..., 0] / behind[..., 1:].mean(-1)).mean((1, 2)),
        "sink_logit": torch.stack(gaps, -1).mean((1, 2, 3)),
        "residual_peak": (stream[..., 0] / stream[..., 1:].mean(-1)).amax(1),
    }
    for metric, values in position0.items():
        found = values_of(result, metric=metric, kind="measurement")
        np.testing.assert_allclose(found, values.detach(), rtol=1e-3, err_msg=metric)
    order = expected[name].mean(0).flatten().argsort()[: round(0.2 * 270)].tolist()
    sets = {
        None: [head_label(divmod(i, plain.heads)) for i in order],
        "random_order": result.draws["random_order"][0],
        "same_layers": result.draws["same_layers"][f"{name}@20%"][0],
    }
    for against, heads in sets.items():
        logits = plain.without(heads)
        after = {"loss": plain_hf.loss(logits, prompts.tokens, 0)}
        after["kl"] = plain_hf.kl(plain.logits, logits, 0)
        kind = "control" if against else "treatment"
        for metric, values in after.items():
            wanted = {"metric": metric, "condition": f"{name}@20%", "kind": kind}
            found = values_of(result, **wanted, against=against)
            np.testing.assert_allclose(found, values, rtol=1e-3, atol=1e-3)
    head = result.find(metric="loss_without_head", condition="prompts", kind="treatment")
    logits = plain.without([head_label((head.layer, head.head))])
    found = values_of(result, metric="loss_without_head", condition="prompts", kind="treatment")
    np.testing.assert_allclose(found, plain_hf.loss(logits, prompts.tokens, 0), atol=1e-3)
