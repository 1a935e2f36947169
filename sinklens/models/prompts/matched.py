"""What makes two lists of prompts pairs: as many, of the same lengths, and not the same."""

from __future__ import annotations

from collections.abc import Sequence

from ...core.errors import UsageError


def require_pairs(clean: Sequence[Sequence[int]], corrupted: Sequence[Sequence[int]]) -> None:
    """Refuse prompts that cannot be patched into each other position by position.

    Args:
        clean: Token ids of each clean prompt.
        corrupted: Those of each corrupted one.

    Raises:
        UsageError: There are not as many of both, or the two of a pair differ in length or in
            nothing.
    """
    if len(clean) != len(corrupted):
        raise UsageError(
            f"pairs need a corrupted prompt for each clean one; there are {len(clean)} clean and "
            f"{len(corrupted)} corrupted"
        )
    for number, (one, other) in enumerate(zip(clean, corrupted, strict=True)):
        if len(one) != len(other):
            raise UsageError(
                f"pair {number} has {len(one)} clean and {len(other)} corrupted tokens; the two of "
                "a pair need equally many, since they are patched position by position: choose "
                "words of as many tokens (Prompts.from_strings(model, [...]).show() prints them)"
            )
        if list(one) == list(other):
            raise UsageError(f"pair {number} is the same prompt twice, so nothing is corrupted")
