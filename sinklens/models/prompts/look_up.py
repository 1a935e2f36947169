"""BOS and padding, looked up in the tokens: what prompts are does not follow from what they say.

A prompt starts with one BOS or with none, all prompts of a run alike. BOS further on (several texts
packed into one window, or a chat template that opens every turn with it) is counted (`notes`).
Padding would be attended to, and would move every position; it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...core.errors import UsageError
from ...core.protocol import HookedModel
from ..origins import bos_token_id
from .encoding import token_text

Rows = Sequence[Sequence[int]]
MEND = "Prompts.from_tokens(model, tokens, attention_mask=...) or pad_id=... takes padding off"


def starts_with_bos(model: HookedModel, rows: Rows) -> bool:
    """Whether the prompts start with BOS, each with one.

    Raises:
        UsageError: Some do and others do not, one starts with two, or there is padding.
    """
    require_unpadded(model, rows)
    bos = bos_token_id(model)
    if bos is None:
        return False
    for number, row in enumerate(rows):
        if list(row[:2]) == [bos, bos]:
            raise UsageError(
                f"prompt {number} starts with two BOS (token {bos}, "
                f"{token_text(model, bos)!r}); give one. Where the first is padding, {MEND}"
            )
    having = sum(row[0] == bos for row in rows)
    if 0 < having < len(rows):
        raise UsageError(
            f"{having} of {len(rows)} prompts start with BOS (token {bos}, "
            f"{token_text(model, bos)!r}) and the others do not; BOS is a setting of a whole run, "
            "so give it to all or to none"
        )
    return having > 0


def require_bos(model: HookedModel, rows: Rows) -> None:
    """Refuse prompts that do not start with the BOS that they are said to have.

    Raises:
        UsageError: They do not, or start with two.
    """
    if not starts_with_bos(model, rows):
        bos, first = bos_token_id(model), rows[0][0]
        has = "has none" if bos is None else f"is token {bos}, {token_text(model, bos)!r}"
        raise UsageError(
            f"these prompts say bos=True, but start with token {first} "
            f"({token_text(model, first)!r}), and BOS of this model {has}; say bos=False, or put "
            "BOS in front"
        )


def require_unpadded(model: HookedModel, rows: Rows) -> None:
    """Refuse padding at the start or the end of a prompt.

    A single end-of-text token at the end is none, also where that token pads.

    Raises:
        UsageError: There is some.
    """
    pad, ends = pad_token(model), getattr(model.tokenizer, "eos_token_id", None)
    if pad is None:
        return
    for number, row in enumerate(rows):
        left = row[0] == pad and pad != bos_token_id(model)
        right = row[-1] == pad and (pad != ends or list(row[-2:]) == [pad, pad])
        if left or (right and len(row) > 1):
            raise UsageError(
                f"prompt {number} {'starts' if left else 'ends'} with padding (token {pad}, "
                f"{token_text(model, pad)!r}), which the model would read as text; {MEND}"
            )


def pad_token(model: HookedModel) -> int | None:
    """The token that pads, None where there is none."""
    config = getattr(model.original_model, "config", None)
    for holder in (model.tokenizer, config):
        token = getattr(holder, "pad_token_id", None)
        if token is not None:
            return int(token)
    return None
