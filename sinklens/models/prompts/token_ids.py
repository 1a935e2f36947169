"""Token ids as people have them: a tokenizer's output, tensors, lists; padded or not."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ...core.errors import UsageError
from ...core.protocol import HookedModel
from ..origins import bos_token_id
from .look_up import pad_token


def token_rows(
    model: HookedModel, tokens: Any, attention_mask: Any = None, pad_id: int | None = None
) -> list[list[int]]:
    """The token ids of each prompt, without padding where a mask or a pad id says what it is.

    Raises:
        UsageError: These are no token ids, the mask does not fit or has holes, or nothing is left.
    """
    if isinstance(tokens, Mapping):
        if "input_ids" not in tokens:
            raise UsageError(
                f"a mapping of {', '.join(map(str, tokens))} has no input_ids; give what the "
                "tokenizer returned"
            )
        if attention_mask is None and pad_id is None:
            attention_mask = tokens.get("attention_mask")
        tokens = tokens["input_ids"]
    rows = _listed(tokens, "tokens")
    if attention_mask is not None:
        rows = _unmasked(rows, _listed(attention_mask, "attention_mask"))
    elif pad_id is not None:
        rows = _unpadded(model, rows, pad_id)
    else:
        _require_ends_alike(model, rows)
    empty = [number for number, row in enumerate(rows) if not row]
    if not rows or empty:
        which = f"prompt {empty[0]} has" if rows else "there are"
        raise UsageError(f"{which} no tokens; leave empty prompts out")
    return rows


def token_tensor(model: HookedModel, tokens: Any) -> Int[Tensor, "prompt pos"]:
    """Token ids of prompts of one length as the model takes them, padding or not.

    Raises:
        UsageError: These are no token ids of the model, or of several lengths.
    """
    rows = _listed(tokens, "tokens")
    lengths, size = {len(row) for row in rows}, int(model.cfg.d_vocab)
    if len(lengths) != 1 or 0 in lengths:
        raise UsageError(f"tokens must be prompts of one length, not of {sorted(lengths)} tokens")
    ids = [token for row in rows for token in row]
    if not 0 <= min(ids) <= max(ids) < size:
        outside = max(ids) if max(ids) >= size else min(ids)
        raise UsageError(f"token {outside} is outside the vocabulary of {size}")
    return torch.tensor(rows, device=model.cfg.device)


def _require_ends_alike(model: HookedModel, rows: list[list[int]]) -> None:
    """Refuse a rectangle of which some rows end in the token that pads and others do not.

    Such a token can be the end of a text, but then it ends all of them or none.
    """
    ending = sum(row[-1:] == [pad_token(model)] for row in rows)
    if len(set(map(len, rows))) == 1 and 0 < ending < len(rows):
        raise UsageError(
            f"{ending} of {len(rows)} prompts end in token {pad_token(model)}, which pads; give "
            "attention_mask=... or pad_id=..., and padding is taken off"
        )


def _listed(values: Any, what: str) -> list[list[int]]:
    """A tensor, an array or lists as lists of integers, one a prompt."""
    if isinstance(values, Tensor) or hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, (list, tuple)):
        values = [one.tolist() if hasattr(one, "tolist") else one for one in values]
        if values and all(_is_whole(one) for one in values):
            values = [values]
        if all(isinstance(row, (list, tuple)) and all(map(_is_whole, row)) for row in values):
            return [list(map(int, row)) for row in values]
    raise UsageError(
        f"{what} must be integers, one row a prompt: a tensor [prompt, pos], lists of token ids, "
        f"or what a tokenizer returns; not a {type(values).__name__} of something else"
    )


def _is_whole(value: Any) -> bool:
    """Whether a value is an integer that a tensor can hold."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _unmasked(rows: list[list[int]], masks: list[list[int]]) -> list[list[int]]:
    """What a mask leaves, which has to be one piece."""
    if list(map(len, rows)) != list(map(len, masks)):
        raise UsageError("attention_mask must have the shape of the tokens, one number for each")
    for number, mask in enumerate(masks):
        if sum(first != second for first, second in pairwise([0, *map(bool, mask), 0])) > 2:
            raise UsageError(
                f"attention_mask of prompt {number} has a hole; padding is at the ends of a prompt"
            )
    return [
        [token for token, counts in zip(row, mask, strict=True) if counts]
        for row, mask in zip(rows, masks, strict=True)
    ]


def _unpadded(model: HookedModel, rows: list[list[int]], pad: int) -> list[list[int]]:
    """The rows without a token at their ends."""
    if pad == bos_token_id(model):
        raise UsageError(
            f"pad_id={pad} is BOS too, so that tokens do not say which of them pad; give "
            "attention_mask"
        )
    stripped = []
    for row in rows:
        held = [place for place, token in enumerate(row) if token != pad]
        stripped.append(row[held[0] : held[-1] + 1] if held else [])
    return stripped
