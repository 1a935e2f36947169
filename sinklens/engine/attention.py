"""Attention left to Hugging Face: without patterns, or with no more of them than is read.

TransformerLens makes the pattern of a whole layer at once, `batch x heads x T x T`, so that a hook
can edit it. Where no hook does, that is not needed:

- `without_patterns`: patterns are not needed; `sdpa` never materialises them.
- `with_key0_weights`: of the patterns, only the weights on key 0 are read. `sdpa` sums values with
  the weights, so a channel of the values that is 1 at key 0 and 0 elsewhere comes out as them.
- `in_slices`: probes read patterns but nothing changes them. The family's own eager function is
  called for some queries at a time, the probes read these rows, and the rows are discarded.

In all, hooks on projections, values, keys, z and the residual stream stay in place. The result is
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
from torch.nn.functional import pad

from ..core.protocol import HookedModel

SLICED, WITH_KEY0 = "sinklens_in_slices", "sinklens_with_key0"
CHANNELS = 8  # kernels of sdpa want sizes of heads that 8 divides
Reader = Callable[..., None]
Key0Reader = Callable[..., None]


class _Reading(NamedTuple):
    """The readers, and the number of queries at a time."""

    readers: Sequence[Reader]
    queries: int


_reading: ContextVar[_Reading | None] = ContextVar("sinklens_reading", default=None)
_key0: ContextVar[Sequence[Key0Reader]] = ContextVar("sinklens_key0", default=())


@contextmanager
def without_patterns(model: HookedModel) -> Iterator[None]:
    """Leave attention to Hugging Face's `sdpa`."""
    with _left_to_hugging_face(model, "sdpa"):
        yield


@contextmanager
def with_key0_weights(model: HookedModel, readers: Sequence[Key0Reader]) -> Iterator[None]:
    """Leave attention to `sdpa` and have the weights on key 0 read.

    Args:
        model: The model.
        readers: Called as `reader(weights, layer=)` with `[batch, head, query]`, once a layer.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(WITH_KEY0, _attend_with_key0)
    AttentionMaskInterface.register(WITH_KEY0, sdpa_mask)
    token = _key0.set(readers)
    try:
        with _left_to_hugging_face(model, WITH_KEY0):
            yield
    finally:
        _key0.reset(token)


def _attend_with_key0(
    module: Any,
    query: Float[Tensor, "batch head pos d_head"],
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **how: Any,
) -> tuple[Float[Tensor, "batch pos head d_head"], None]:
    """In place of `sdpa`, on values with one more channel; all get as many, which some need."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    own = value.shape[-1]
    wider = pad(value, (0, CHANNELS))
    wider[:, :, 0, own] = 1
    output, _ = sdpa_attention_forward(
        module,
        pad(query, (0, CHANNELS)),
        pad(key, (0, CHANNELS)),
        wider,
        attention_mask,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        **how,
    )
    weights = output[..., own].transpose(1, 2)
    for reader in _key0.get():
        reader(weights, layer=int(module.layer_idx))
    return output[..., :own], None


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
