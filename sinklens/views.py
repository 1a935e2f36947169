"""What heads attend to, to look at: before and after an intervention, with their sink or not.

The patterns are those that `run_with_cache` and `run_with_hooks` give, of one prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .core.errors import UsageError
from .core.labels import Head, head_label, heads_of, token_label
from .core.protocol import HookedModel
from .engine.read import read_under
from .functional.without_key import LEAST, without_key
from .hooks.bos import replace_bos_embedding
from .hooks.forms import as_interventions
from .hooks.intervention import Intervention
from .metrics import SINK_MASS
from .models import load, origin
from .models.capabilities import Capabilities, check
from .models.prompts import Prompts, as_prompts, token_text
from .probes.patterns import HeadPatterns, PatternReader
from .probes.sinks import KeyMass
from .results.attention import AttentionView

MOST_HEADS, MOST_TOKENS = 8, 96  # a page of 1.5 MB where both sides are shown and queries see all


def attention_view(
    model: HookedModel | str | Any,
    prompt: Any,
    heads: str | Sequence[str] = "sink",
    *,
    edit: Any = None,
    without_sink: bool = False,
) -> AttentionView:
    """The attention patterns of some heads on one prompt, for Jupyter or as a page.

    At most 8 heads and the first 96 tokens are shown; what is cut is said.

    Args:
        model: A bridge, or anything that `sinklens.load` takes.
        prompt: A text, token ids, or `Prompts` of one prompt.
        heads: `sink`, the heads that give position 0 most, strongest first; or labels (`L2H1`).
        edit: An intervention, whose patterns are shown beside those of the clean run.
        without_sink: Take key 0 out and rescale each row to sum to 1, since a sink hides what a
            head does otherwise. Rows that give less than 0.0001 to other keys are empty then;
            query 0 of a causal model is one.

    Raises:
        UsageError: The prompt, a head or the intervention is none.
        SinklensError: The model has no patterns that can be read, or the intervention did not
            happen.
    """
    bridge: Any = load(model)
    prompts = _one_prompt(bridge, prompt)
    capabilities, edited = check(bridge), _one_edit(bridge, edit)
    PatternReader(bridge, capabilities, prompts.tokens)
    mass = capabilities.by_head(_read(bridge, prompts, None, KeyMass(bridge, [0]))[0][0])
    chosen = _chosen(heads, mass, capabilities)
    shown = chosen[:MOST_HEADS]
    whole = {"before": _read(bridge, prompts, None, HeadPatterns(shown))[0]}
    if edited is not None:
        whole["after"] = _read(bridge, prompts, edited, HeadPatterns(shown))[0]
    notes = _cut(len(chosen), prompts.length) + _without_effect(whole)
    if without_sink:
        whole = {side: without_key(patterns) for side, patterns in whole.items()}
        notes += _left_empty(whole, capabilities.causal)
    tokens = prompts.rows()[0][:MOST_TOKENS]
    return AttentionView(
        title=f"{origin(bridge).name}: attention of {_which(heads, mass)}"
        + (", position 0 taken out and rows rescaled" if without_sink else ""),
        tokens=[token_label(token_text(bridge, token)) for token in tokens],
        heads={head_label(head): f"{mass[head]:.0%}" for head in shown},
        patterns={side: at[:, :MOST_TOKENS, :MOST_TOKENS] for side, at in whole.items()},
        names={"before": "clean run", "after": _named(edited)},
        causal=capabilities.causal,
        notes=["Behind each head: its sink mass, what later queries give to position 0.", *notes],
    )


def views_of(model: HookedModel, prompt: Prompts) -> dict[str, AttentionView]:
    """The views of a report, by heading: with and without BOS, and without position 0.

    Args:
        model: A bridge.
        prompt: One prompt.

    Raises:
        SinklensError: The model has no patterns that can be read.
    """
    edit = replace_bos_embedding(model, with_="mean") if prompt.bos else None
    beside = ", and with the mean embedding in place of BOS" if edit else ""
    return {
        f"On the first prompt{beside}": attention_view(model, prompt, edit=edit),
        "The same heads without position 0": attention_view(model, prompt, without_sink=True),
    }


def _one_prompt(model: HookedModel, given: Any) -> Prompts:
    prompts = as_prompts(model, [given] if isinstance(given, str) else given)
    if len(prompts) > 1:
        raise UsageError(f"a view shows one prompt, not {len(prompts)}; give one: prompts[0]")
    if prompts.length < 2:
        raise UsageError("a view needs a prompt of at least 2 tokens, not 1")
    return prompts


def _one_edit(model: HookedModel, given: Any) -> Intervention | None:
    if given is None:
        return None
    made = as_interventions(model, given)
    if len(made) != 1:
        raise UsageError(
            f"a view shows one intervention beside the clean run, not {len(made)}; "
            "Intervention.together makes one of several"
        )
    return made[0]


def _named(edit: Intervention | None) -> str:
    return "" if edit is None else f"with {edit.name} ({edit.site})"


def _read(model: HookedModel, prompts: Prompts, edit: Intervention | None, probe: Any) -> Any:
    """What a probe reads of the whole model, so that every hook of an intervention is reached."""
    last = int(model.cfg.n_layers) - 1
    return read_under(model, prompts, edit, probe, last_layer=last).values


def _chosen(
    heads: str | Sequence[str], mass: Mapping[Head, float], capabilities: Capabilities
) -> list[Head]:
    """The heads of a list, or the sink heads; the strongest heads where there are none."""
    labels = _labels(heads)
    if labels != ["sink"]:
        chosen = heads_of(labels, capabilities.attention, capabilities.n_heads, "use sink, or ")
        if not chosen:
            raise UsageError("heads= names no head; use sink, or labels such as L0H0")
        return chosen
    ranked = sorted(mass, key=lambda head: -mass[head])
    return [head for head in ranked if mass[head] > SINK_MASS] or ranked[:MOST_HEADS]


def _labels(heads: str | Sequence[str]) -> list[str]:
    return heads.split(",") if isinstance(heads, str) else list(heads)


def _which(heads: str | Sequence[str], mass: Mapping[Head, float]) -> str:
    """The heads in words."""
    if _labels(heads) != ["sink"]:
        return "chosen heads"
    if max(mass.values()) > SINK_MASS:
        return "sink heads, strongest first"
    return f"the heads that give position 0 most, of which none gives it more than {SINK_MASS:.0%}"


def _cut(heads: int, tokens: int) -> list[str]:
    """What is not shown."""
    most = {"heads": (heads, MOST_HEADS), "tokens": (tokens, MOST_TOKENS)}
    return [
        f"The first {shown} of {count} {what} are shown."
        for what, (count, shown) in most.items()
        if count > shown
    ]


def _without_effect(patterns: dict[str, Float[Tensor, "head query key"]]) -> list[str]:
    """That an intervention acts only behind what is shown."""
    if "after" in patterns and torch.equal(patterns["before"], patterns["after"]):
        return ["The intervention took effect, but not on these patterns, which it does not reach."]
    return []


def _left_empty(rescaled: dict[str, Float[Tensor, "head query key"]], causal: bool) -> list[str]:
    """How many rows have nothing left; query 0 of a causal model never has."""
    empty = sum(int((at[:, causal:].sum(-1) == 0).sum()) for at in rescaled.values())
    first = ["Query 0 sees only itself, so that its row is empty."] if causal else []
    more = [f"{empty} more rows give less than {LEAST:g} to other keys and are left empty."]
    return first + (more if empty else [])
