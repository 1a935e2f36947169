"""A model of the same configuration as the user's with untrained weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ..core.errors import SinklensError
from ..core.protocol import HookedModel
from .loading import load
from .origins import count_parameters
from .placement import placed_like
from .state import State, model_state
from .weights import is_offloaded

RANDOM_WEIGHTS = "random_weights"
"""The name of its rows and arrays."""
LARGEST = 1_000_000_000
"""Up to this many parameters, the random model is made by default."""
MOST_HELD = 2**30
"""Bytes of weights that `random_models_held` holds."""


@dataclass(frozen=True)
class _Made:
    """A random model.

    Attributes:
        of: The state of the model that it was made of.
        twin: The random model.
        state: Its own state.
        how: How it was made.
    """

    of: State
    twin: HookedModel
    state: State
    how: str

    @property
    def size(self) -> int:
        """The bytes of its weights."""
        weights = self.twin.original_model.parameters()
        return sum(weight.numel() * weight.element_size() for weight in weights)


class Held:
    """Random models that several runs use, as long as they are as they were made."""

    def __init__(self) -> None:
        """Begin with none."""
        self._models: WeakKeyDictionary[Any, dict[int, _Made]] = WeakKeyDictionary()

    def get(self, model: HookedModel, seed: int) -> tuple[HookedModel, str] | None:
        """The random model that was made of `model` as it is now, with how it was made."""
        one = self._models.get(model, {}).get(seed)
        if one is None or one.of != model_state(model) or one.state != model_state(one.twin):
            return None
        return one.twin, one.how

    def put(self, model: HookedModel, seed: int, twin: HookedModel, how: str) -> None:
        """Hold a random model, and let go of those held longest where there is no room."""
        own = self._models.setdefault(model, {})
        own[seed] = _Made(model_state(model), twin, model_state(twin), how)
        while own and self._size() > MOST_HELD:
            del own[next(iter(own))]

    def _size(self) -> int:
        return sum(made.size for own in self._models.values() for made in own.values())


_held: ContextVar[Held | None] = ContextVar("sinklens_random_models", default=None)


@contextmanager
def random_models_held() -> Iterator[None]:
    """Make a random model once for all runs of a `with` block that ask for the same one.

    It is the same one for the same model as it is then and the same seed. The last that fit into
    `MOST_HELD` bytes are held, while their model is there and at most until the block ends.
    """
    token = _held.set(Held())
    try:
        yield
    finally:
        _held.reset(token)


def random_twin(
    model: HookedModel, wanted: bool | None, seed: int
) -> tuple[HookedModel | None, str]:
    """The random model, if wanted and possible, with how it was made or why it was not.

    Args:
        model: The model.
        wanted: Whether it was requested; None makes one unless the model is large.
        seed: Seed of the weights.

    Raises:
        SinklensError: It was requested and cannot be made.
    """
    if wanted is False:
        return None, ""
    held = _held.get()
    known = None if held is None else held.get(model, seed)
    if known is not None:
        return known
    if wanted is None and count_parameters(model) > LARGEST:
        return None, (
            "the model is large and a random model would need as much memory; "
            "random_weights=True requests it"
        )
    try:
        twin, how = random_weights(model, seed)
    except SinklensError as error:
        if wanted:
            raise
        return None, str(error)
    if held is not None:
        held.put(model, seed, twin, how)
    return twin, how


def random_weights(model: HookedModel, seed: int) -> tuple[HookedModel, str]:
    """A model of the same class and configuration with fresh weights, and how it was made.

    The weights are those that Hugging Face's own initialisation draws, in the model's dtype and on
    its device. It takes as much memory as the model. The user's model is not touched.

    Raises:
        SinklensError: It cannot be made from the configuration alone.
    """
    original = model.original_model
    kind = type(original)
    if not hasattr(original, "config"):
        raise SinklensError(
            f"{kind.__name__} has no Hugging Face configuration to make a random model from"
        )
    if is_offloaded(model):
        raise SinklensError(
            "part of its weights is offloaded; a random model has no room beside it"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # of the CPU alone, and put back
            config = copy.deepcopy(original.config)
            made = kind._from_config(config, attn_implementation="eager", dtype=model.cfg.dtype)
        random = load(placed_like(made, model))
    except Exception as error:
        line = str(error).strip().splitlines()[:1]
        raise SinklensError(
            f"no random {kind.__name__} can be made from the configuration alone "
            f"({type(error).__name__}: {''.join(line)[:200]})"
        ) from error
    return random, f"{kind.__name__} of the same configuration, Hugging Face's initialisation"
