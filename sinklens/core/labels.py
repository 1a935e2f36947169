"""Labels: `L18H8` for a query head, `L3 MLP` for what a sub-block puts out, tokens as text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from .errors import UsageError

Head = tuple[int, int]
SUB_BLOCKS = ("attention", "MLP")
RIGHT_TO_LEFT = ("R", "AL", "AN")
ISOLATED = "\N{FIRST STRONG ISOLATE}{}\N{POP DIRECTIONAL ISOLATE}"
LONGEST_TOKEN = 24


def head_label(head: Head) -> str:
    """The label of a query head: `L18H8`."""
    return f"L{head[0]}H{head[1]}"


def heads_of(
    labels: Iterable[str], layers: Sequence[int], n_heads: int, instead: str = "use "
) -> list[Head]:
    """The query heads of labels, in the order of the layers.

    Args:
        labels: Such as `L18H8`.
        layers: The layers that have heads, in order.
        n_heads: Query heads of each.
        instead: How an error begins to say what can be asked for.

    Raises:
        UsageError: A label names no head of the model.
    """
    heads = set()
    for label in labels:
        match = re.fullmatch(r"[Ll](\d+)[Hh](\d+)", str(label).strip())
        head = (int(match[1]), int(match[2])) if match else None
        if head is None or head[0] not in layers or head[1] >= n_heads:
            first, last = head_label((layers[0], 0)), head_label((layers[-1], n_heads - 1))
            whole = len(layers) == layers[-1] - layers[0] + 1
            among = "" if whole else f", of layers {', '.join(map(str, layers))}"
            raise UsageError(
                f"unknown head {label!r}; {instead}labels from {first} to {last}{among}"
            )
        heads.add(head)
    return sorted(heads)


def token_label(text: str) -> str:
    """A token as text that stands in one line and leaves the text around it as it is.

    Spaces are open boxes, characters that cannot be seen are escaped as in Python, what is written
    from right to left is isolated, and long tokens are cut.
    """
    seen = "".join(map(_seen, text)) or "''"
    if len(seen) > LONGEST_TOKEN:
        seen = f"{seen[: LONGEST_TOKEN - 3]}..."
    if any(unicodedata.bidirectional(character) in RIGHT_TO_LEFT for character in seen):
        return ISOLATED.format(seen)
    return seen


def _seen(character: str) -> str:
    if character == " ":
        return "\N{OPEN BOX}"
    return character if character.isprintable() else ascii(character)[1:-1]


def row_label(condition: str, layer: int | None, head: int | None) -> str:
    """The label of a condition at a layer or head, if it is about one: `zero L18H8`."""
    place = "" if layer is None else f" L{layer}"
    return f"{condition}{place}" + ("" if head is None else f"H{head}")


def stage_name(stage: int) -> str:
    """The last sub-block that writes before a stage, such as `L3 MLP`; stage 0 is `embedding`."""
    if stage == 0:
        return "embedding"
    return f"L{(stage - 1) // 2} {SUB_BLOCKS[(stage - 1) % 2]}"
