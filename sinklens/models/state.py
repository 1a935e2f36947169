"""A model as it is at one moment, which is what everything known about it holds for.

What is kept about a model (what can be edited, shortcuts, means, the hash of its weights, finished
work) is kept together with `model_state`, and asked for again when that is another. Most changes
are told by versions, which torch counts; a write through `.data`, or to a tensor made in inference
mode, is not, so that a run, a diagnosis and `check` look at the weights themselves as they begin:
a checksum at the speed of memory, 0.1 s for 135 million float32 parameters on one core.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial, wraps
from threading import Lock, RLock, get_ident
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..core.errors import SinklensError, UsageError
from ..core.protocol import HookedModel
from .placement import require_uncompiled

F = TypeVar("F", bound=Callable[..., Any])
State = tuple[Any, ...]
MOST_LOOKED_AT = 4 << 30
"""Bytes of weights that a checksum reads; of more, every k-th kilobyte."""
_WORDS = 128  # in a sum, of 8 bytes each

_states: ContextVar[Mapping[Any, State]] = ContextVar("sinklens_states", default={})  # noqa: B039
_checksums: WeakKeyDictionary[Any, tuple[State, str]] = WeakKeyDictionary()
_locks: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
_making = Lock()


def require_bridge(model: Any) -> None:
    """Refuse what is no model with hook points.

    Raises:
        UsageError: It is a name, a Hugging Face model, or something else.
        SinklensError: It is compiled.
    """
    if not hasattr(model, "hook_dict"):
        given = repr(model) if isinstance(model, str) else f"a {type(model).__name__}"
        raise UsageError(f"{given} is not a loaded model; sinklens.load(...) gives one")
    require_uncompiled(model)


@contextmanager
def in_use(model: HookedModel) -> Iterator[None]:
    """Use a model alone, and as it is now, for the length of a `with` block.

    Hooks are attached to the model itself, so that another thread that wants it waits, and one that
    calls it by itself gets an error. What is made beside it is float32 and on the CPU unless it
    says otherwise, whatever the caller's defaults are.

    Raises:
        UsageError: It is no bridge.
    """
    require_bridge(model)
    if model in _states.get():
        yield
        return
    with _making:
        lock = _locks.setdefault(model, RLock())
    with lock, _plain_defaults(), _in_this_thread(model):
        token = _states.set({**_states.get(), model: model_state(model)})
        try:
            yield
        finally:
            _states.reset(token)


@contextmanager
def _plain_defaults() -> Iterator[None]:
    """Have torch make tensors in float32 and on the CPU, as it does by default."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        # On every call of torch a default device costs time.
        with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextmanager
def _in_this_thread(model: HookedModel) -> Iterator[None]:
    """Refuse forward passes of other threads, which would meet the hooks of this one."""
    hook = partial(_require_thread, get_ident())
    handle = model.original_model.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _require_thread(owner: int, module: Any, inputs: Any) -> None:
    """Refuse a forward pass in another thread.

    Raises:
        SinklensError: It is one.
    """
    if get_ident() != owner:
        raise SinklensError(
            f"this {type(module).__name__} is used by sinklens in another thread, whose hooks are "
            "on it; wait until that ends, or load another copy of the model"
        )


def alone(function: F) -> F:
    """A function of a model that has it `in_use`."""

    @wraps(function)
    def call(model: HookedModel, *args: Any, **kwargs: Any) -> Any:
        with in_use(model):
            return function(model, *args, **kwargs)

    return cast(F, call)


def look_again(model: HookedModel) -> None:
    """Take the checksum of the weights anew where the model's state is asked for next."""
    if model not in _states.get():
        _checksums.pop(model, None)


def model_state(model: HookedModel) -> State:
    """A value that changes when the model does: its weights, modes, dtype, device or code.

    A write that torch does not count is seen after `look_again`.
    """
    known = _states.get().get(model)
    if known is not None:
        return known
    modes = ("compatibility_mode", "_weights_processed")
    return (
        *(bool(getattr(model, mode, False)) for mode in modes),
        torch.is_autocast_enabled(torch.device(model.cfg.device).type),
        tuple(type(module).forward for module in model.original_model.modules()),
        *_weights_state(model),
    )


def _weights_state(model: HookedModel) -> State:
    """Versions and checksum of the weights; the checksum is kept while the versions stay."""
    weights = model.original_model.state_dict()
    versions = tuple(
        (name, w.data_ptr(), w.dtype, w.device, 0 if w.is_inference() else w._version)
        for name, w in weights.items()
    )
    known = _checksums.get(model)
    if known is None or known[0] != versions:
        known = (versions, _checksum(weights))
        _checksums[model] = known
    return known


def _checksum(weights: Mapping[str, Tensor]) -> str:
    """A hash of sums of 128 words of 8 bytes, exact and in order.

    TransformerLens has each weight under several names; it is read once.
    """
    places = {(w.data_ptr(), w.shape, w.dtype): name for name, w in weights.items()}
    weights = {name: weights[name] for name in places.values()}
    size = sum(w.numel() * w.element_size() for w in weights.values())
    step = -(-size // MOST_LOOKED_AT) or 1
    digest = hashlib.sha256()
    for name, weight in weights.items():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        for part in _sums(weight, step):
            digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()


def _sums(weight: Tensor, step: int) -> Iterator[Tensor]:
    """Sums of the bytes of a weight as whole numbers, of every `step`-th row, and what is left."""
    if weight.is_meta:  # which has none
        return
    raw = weight.detach().contiguous().reshape(-1).view(torch.uint8)
    if raw.storage_offset() % 8:
        raw = raw.clone()
    whole = len(raw) // (8 * _WORDS) * 8 * _WORDS
    yield raw[:whole].view(torch.int64).view(-1, _WORDS)[::step].sum(1)
    yield raw[whole:]
