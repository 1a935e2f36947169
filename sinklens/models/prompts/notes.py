"""What a reader of a table has to know of the prompts."""

from __future__ import annotations

from typing import Any

from ...core.protocol import HookedModel
from ..origins import bos_token_id, origin
from ..shipped import card
from .base import Prompts
from .encoding import token_text


def notes_on(model: HookedModel, prompts: Prompts) -> list[str]:
    """Sentences on lengths, BOS further on, the preamble of chats, and what was trained on."""
    return [
        *_lengths(prompts),
        *_later_bos(model, prompts),
        *_preamble(prompts),
        *_documents(prompts),
        *_beyond(model, prompts),
    ]


def trained_length(model: HookedModel) -> int | None:
    """How many positions a model was trained on, as its card or its configuration says."""
    known = origin(model)
    if known.kind == "shipped":
        return int(card(known.name)["length"])
    config: Any = getattr(model.original_model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    length = getattr(config, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def _lengths(prompts: Prompts) -> list[str]:
    if prompts.length == prompts.longest:
        return []
    return [
        f"Prompts have {prompts.length} to {prompts.longest} tokens; those of one length ran "
        "together, without padding. Control positions, and arrays with an axis of positions, "
        f"lie within the first {prompts.length}."
    ]


def _later_bos(model: HookedModel, prompts: Prompts) -> list[str]:
    """How often BOS stands behind position 0."""
    bos = bos_token_id(model)
    counts = [row[1:].count(bos) for row in prompts.rows()] if bos is not None else []
    if not sum(counts):
        return []
    return [
        f"BOS ({token_text(model, bos or 0)!r}) also stands behind position 0, "
        f"{sum(counts)} times in {sum(map(bool, counts))} of {len(prompts)} prompts; such a token "
        "can be a sink of its own."
    ]


def _preamble(prompts: Prompts) -> list[str]:
    """How much of chats is no user's word."""
    if prompts.preamble is None:
        return []
    least, most = int(prompts.preamble.min()), int(prompts.preamble.max())
    count = f"{least}" if least == most else f"{least} to {most}"
    return [
        f"The chat template puts {count} tokens (BOS, system prompt, header of the turn) before "
        "the user's first words; control positions may lie among them."
    ]


def _documents(prompts: Prompts) -> list[str]:
    """What intervals are over, where several prompts come from one document."""
    count = 0 if prompts.documents is None else len(prompts.documents.unique())
    if count in (0, len(prompts)):
        return []
    over = "have no interval" if count == 1 else f"have intervals over {count} documents"
    return [
        f"Several prompts are windows of one document: measurements by themselves {over}, effects "
        "and differences over prompts."
    ]


def _beyond(model: HookedModel, prompts: Prompts) -> list[str]:
    """Whether positions come that the model never saw."""
    trained = trained_length(model)
    if trained is None or prompts.longest <= trained:
        return []
    return [
        f"Prompts of {prompts.longest} tokens are longer than the {trained} that "
        f"{origin(model).name} was trained on; what it does beyond is extrapolation."
    ]
