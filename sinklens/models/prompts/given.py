"""Whatever is given as prompts, as `Prompts`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ...core.errors import UsageError
from ...core.protocol import HookedModel
from .base import Pairs, Prompts
from .documents import require_no_table
from .look_up import require_bos, starts_with_bos


def as_prompts(model: HookedModel, given: Any) -> Prompts:
    """Prompts whose `bos` is what their tokens say.

    Args:
        model: The model that will read them.
        given: `Prompts`; strings, one a prompt; conversations; token ids, or what a tokenizer
            returns.

    Raises:
        UsageError: It is none of these, or its tokens cannot be prompts (`look_up`).
    """
    if isinstance(given, Prompts):
        if given.bos:
            require_bos(model, given.rows())
            return given
        return replace(given, bos=starts_with_bos(model, given.rows()))
    if isinstance(given, Pairs):
        raise UsageError(
            "these are pairs of prompts; pairs.clean and pairs.corrupted are prompts, and "
            "sinklens.compare_pairs takes both"
        )
    require_several(given)
    if isinstance(given, (Mapping, Tensor)) or hasattr(given, "__array__"):
        return Prompts.from_tokens(model, given)
    listed = list(given) if isinstance(given, Iterable) else []
    first = listed[0] if listed else None
    if isinstance(first, str):
        return Prompts.from_strings(model, listed)
    if isinstance(first, Mapping) or (isinstance(first, Sequence) and first and _is_message(first)):
        return Prompts.from_chat(model, listed)
    if isinstance(first, (Sequence, int, Tensor)):
        return Prompts.from_tokens(model, listed)
    raise UsageError(
        f"prompts cannot be a {type(given).__name__}{'' if listed else ' that is empty'}; "
        "sinklens.prompts(model, text) makes prompts of a text, Prompts.from_strings of strings"
    )


def require_several(given: Any) -> None:
    """Refuse a table and one text, for which no model has to be loaded.

    Raises:
        UsageError: It is one.
    """
    require_no_table(given)
    if isinstance(given, (str, Path)):
        raise UsageError(
            f"prompts cannot be one text, a {type(given).__name__} ({str(given)[:40]!r}); "
            "sinklens.prompts(model, text) cuts it into windows, a list of strings is one prompt "
            "each"
        )


def _is_message(first: Sequence[Any]) -> bool:
    return isinstance(first[0], Mapping)
