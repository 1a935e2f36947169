"""Calls of functions of the user's: what they return, what they write in place, how they fail.

The usual idiom edits in place, `x[:, 0] += v; return x`, or without a return. Both are edits, seen
by the counter that PyTorch keeps of writes to a tensor. They are passed on as a copy: at norms
TransformerLens takes the same tensor for an unchanged one, and the edit would be lost there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..core.errors import SinklensError, in_one_line

BY_PROMPT = (
    "A forward pass holds some of the prompts; values that differ by prompt are bound to them by "
    "Intervention.from_values(site, values), or by for_prompts(index) of one with rebind="
)
METRIC_FORM = (
    "a metric is fn(logits, tokens, *, clean_logits, positions, answers) and returns a tensor with "
    "one number per prompt"
)
SHAPE = "A hook function returns a tensor of the shape, dtype and device that it gets, or None"


class CannotShareError(Exception):
    """A hook point whose activation does not hold the batch first; its edits run alone."""


def edited_by(
    function: Callable[..., Any], activation: Tensor, hook: Any, *, point: str, name: str
) -> Tensor | None:
    """What a hook function makes of an activation; None or the same tensor where it changes none.

    Args:
        function: The function.
        activation: The activation, which it may write to.
        hook: The hook point.
        point: Its name, as the intervention spells it.
        name: The intervention's name.

    Raises:
        SinklensError: It fails, or what it returns does not fit.
    """
    before = _mark(activation)
    try:
        edited = function(activation, hook=hook)
    except (SinklensError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise SinklensError(
            f"{_who(function, name)} failed at {point}, where it got a tensor of shape "
            f"{list(activation.shape)}: {in_one_line(error)}.{_advice(error)}"
        ) from error
    if edited is None or edited is activation:
        return activation.clone() if _is_written(activation, before) else edited
    if not isinstance(edited, Tensor):
        raise SinklensError(
            f"{_who(function, name)} returned a {type(edited).__name__} at {point}. {SHAPE}"
        )
    if edited.shape != activation.shape:
        raise SinklensError(
            f"{_who(function, name)} returned shape {list(edited.shape)} at {point}, where it "
            f"got {list(activation.shape)}. {BY_PROMPT}"
        )
    return edited


@contextmanager
def failures_of(names: Sequence[str]) -> Iterator[None]:
    """Name the interventions under which a forward pass fails.

    Raises:
        SinklensError: It failed, behind one of their hooks.
    """
    listed = ", ".join(dict.fromkeys(names))
    with _failures_of(f"the forward pass under {listed}", SHAPE):
        yield


@contextmanager
def failures_of_metric(name: str) -> Iterator[None]:
    """Name a metric of the user's that fails.

    Raises:
        SinklensError: It failed.
    """
    with _failures_of(f"the metric {name}", METRIC_FORM):
        yield


@contextmanager
def _failures_of(what: str, advice: str) -> Iterator[None]:
    """Say in one line what failed and what would work."""
    try:
        yield
    except (SinklensError, CannotShareError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise SinklensError(f"{what} failed: {in_one_line(error)}. {advice}") from error


def _advice(error: Exception) -> str:
    """What would work, by the kind of error."""
    if isinstance(error, TypeError):
        return " A hook function is called as fn(activation, hook=hook)"
    return f" {BY_PROMPT}" if isinstance(error, (RuntimeError, ValueError, IndexError)) else ""


def _who(function: Any, name: str) -> str:
    """A hook function and its intervention in words."""
    inner = getattr(function, "func", function)
    return f"the hook function {getattr(inner, '__name__', type(inner).__name__)} of {name}"


def _mark(activation: Tensor) -> int | Tensor:
    """What tells whether a tensor is written to: its counter of writes, or a copy without one."""
    return activation.clone() if activation.is_inference() else activation._version


def _is_written(activation: Tensor, mark: int | Tensor) -> bool:
    """Whether a tensor was written to since it was marked."""
    if isinstance(mark, Tensor):
        return not torch.equal(activation, mark)
    return activation._version != mark
