"""What results on a model have to say of it."""

from __future__ import annotations

from .capabilities import Capabilities


def remarks_on(capabilities: Capabilities) -> list[str]:
    """Sentences on layers without attention, hidden experts, and bridges unlike their model."""
    return [*_on_layers(capabilities), *_on_experts(capabilities), *_on_logits(capabilities)]


def _on_layers(found: Capabilities) -> list[str]:
    if len(found.attention) == found.n_layers:
        return []
    in_its_place = "In names of sub-blocks (`L0 attention`) it is what stands in its place."
    if not found.attention:
        return [f"TransformerLens shows no attention in {found.architecture}. {in_its_place}"]
    layers = ", ".join(map(str, found.attention))
    return [
        f"Of the {found.n_layers} layers of {found.architecture}, counted from 0, only these have "
        f"attention: {layers}. What is said of attention, heads, keys and values is of them, and "
        f"averages over layers are over them. {in_its_place}"
    ]


def _on_experts(found: Capabilities) -> list[str]:
    if not found.hidden_experts:
        return []
    return [
        f"TransformerLens does not show which experts tokens go to in {found.architecture}: there "
        "are no rows experts_changed, and an effect can be that of other experts."
    ]


def _on_logits(found: Capabilities) -> list[str]:
    if not found.unlike_plain:
        return []
    return [
        "The logits of this bridge differ from those of the Hugging Face model inside it by up "
        f"to {found.agreement:.2g}: one of the two was edited, or TransformerLens wraps "
        f"{found.architecture} wrongly (sinklens.load refuses that)."
    ]
