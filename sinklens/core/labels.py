"""Labels of places in a model: `L18H8` for a query head, `L3 MLP` for a sub-block's output."""

from __future__ import annotations

Head = tuple[int, int]
SUB_BLOCKS = ("attention", "MLP")


def head_label(head: Head) -> str:
    """The label of a query head: `L18H8`."""
    return f"L{head[0]}H{head[1]}"


def row_label(condition: str, layer: int | None, head: int | None) -> str:
    """The label of a condition at a layer or head, if it is about one: `zero L18H8`."""
    place = "" if layer is None else f" L{layer}"
    return f"{condition}{place}" + ("" if head is None else f"H{head}")


def stage_name(stage: int) -> str:
    """The last sub-block that writes before a stage, such as `L3 MLP`; stage 0 is `embedding`."""
    if stage == 0:
        return "embedding"
    return f"L{(stage - 1) // 2} {SUB_BLOCKS[(stage - 1) % 2]}"
