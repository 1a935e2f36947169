"""Attention left to Hugging Face: without patterns, or with patterns a slice of queries at a time.

TransformerLens makes the pattern of a whole layer at once, `batch x heads x T x T`, so that a hook
can edit it. Where no hook does, that is not needed:

- `without_patterns`: patterns are not needed; `sdpa` never materialises them.
- `in_slices`: probes read patterns but nothing changes them. The family's own eager function is
  called for some queries at a time, the probes read these rows, and the rows are discarded.

In both, hooks on projections, values, keys, z and the residual stream stay in place. The result is
equal within rounding error; whether a family allows it is found by trying (`shortcuts`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, cat

from ..core.protocol import HookedModel

SLICED = "sinklens_in_slices"
Reader = Callable[..., None]


class _Reading(NamedTuple):
    """The readers, and the number of queries at a time."""

    readers: Sequence[Reader]
    queries: int


_reading: ContextVar[_Reading | None] = ContextVar("sinklens_reading", default=None)


@contextmanager
def without_patterns(model: HookedModel) -> Iterator[None]:
    """Leave attention to Hugging Face's `sdpa`."""
    with _left_to_hugging_face(model, "sdpa"):
        yield


@contextmanager
def in_slices(model: HookedModel, readers: Sequence[Reader], queries: int) -> Iterator[None]:
    """Have each layer's pattern made and read `queries` rows at a time.

    Args:
        model: The model.
        readers: Called as `reader(rows, layer=, first=)` with `[batch, head, some queries, key]`,
            of which the first is query `first`; all queries of a layer in order.
        queries: Rows at a time.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(SLICED, _attend_in_slices)
    AttentionMaskInterface.register(SLICED, eager_mask)
    token = _reading.set(_Reading(readers, queries))
    try:
        with _left_to_hugging_face(model, SLICED):
            yield
    finally:
        _reading.reset(token)


def _attend_in_slices(
    module: Any,
    query: Float[Tensor, "batch head pos d_head"],
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **how: Any,
) -> tuple[Float[Tensor, "batch pos head d_head"], None]:
    """In place of a family's eager attention, which is called for each slice."""
    reading = _reading.get()
    assert reading is not None
    eager = sys.modules[type(module).__module__].eager_attention_forward
    outputs = []
    for first in range(0, query.shape[2], reading.queries):
        rows = slice(first, first + reading.queries)
        mask = None if attention_mask is None else attention_mask[:, :, rows]
        output, pattern = eager(module, query[:, :, rows], key, value, mask, **how)
        for reader in reading.readers:
            reader(pattern, layer=int(module.layer_idx), first=first)
        outputs.append(output)
    return cat(outputs, dim=1), None


@contextmanager
def _left_to_hugging_face(model: HookedModel, implementation: str) -> Iterator[None]:
    """Have every block's attention run as Hugging Face has it, with an implementation of its."""
    from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

    attentions = [block.attn for block in model.blocks]
    configs = {
        id(config): config
        for config in (
            model.original_model.config,
            *(getattr(attention.original_component, "config", None) for attention in attentions),
        )
        if config is not None
    }
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for attention in attentions:
            attention.__dict__["forward"] = MethodType(AttentionBridge.forward, attention)
        for config in configs.values():
            config._attn_implementation = implementation
        yield
    finally:
        for attention in attentions:
            attention.__dict__.pop("forward", None)
        for key, config in configs.items():
            config._attn_implementation = before[key]
