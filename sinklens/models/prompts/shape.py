"""The tensor in which prompts of one length or several stand, and the answers beside it."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from ...core.errors import UsageError

NO_TOKEN = -1


def require_shape(
    tokens: Int[Tensor, "prompt pos"], answers: Int[Tensor, "prompt 2"] | None
) -> None:
    """Refuse tokens and answers that no experiment can use.

    Args:
        tokens: Token ids, with `NO_TOKEN` behind the end of shorter prompts.
        answers: The correct and the incorrect next token after each prompt.

    Raises:
        UsageError: They are no integers of this shape, or `NO_TOKEN` stands elsewhere.
    """
    kind = tokens.dtype
    if (
        tokens.ndim != 2
        or kind.is_floating_point
        or kind.is_complex
        or kind == torch.bool
        or not tokens.numel()
    ):
        raise UsageError(
            f"tokens must be integers of shape [prompt, pos], not {kind} {tuple(tokens.shape)}"
        )
    if answers is not None and answers.shape != (len(tokens), 2):
        raise UsageError(
            f"answers must have shape [{len(tokens)}, 2] (right and wrong token of each "
            f"prompt), not {list(answers.shape)}"
        )
    held = tokens != NO_TOKEN
    ends = held[:, :-1] >= held[:, 1:]  # behind the first -1 of a row nothing else stands
    if not bool(ends.all() and held[:, 0].all()):
        raise UsageError(
            "-1 marks the end of a prompt that is shorter than others, and stands behind its "
            "last token only; Prompts.from_tokens(model, tokens, attention_mask=...) takes "
            "padding off"
        )
