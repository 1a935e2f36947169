"""Random models are held within a block alone, and only as they were made."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

import sinklens
from sinklens.models import random_weights
from sinklens.models.random_weights import random_models_held, random_twin
from tests import families


@pytest.fixture(scope="module")
def model() -> Any:
    return sinklens.load(families.llama())


def twin(model: Any, seed: int = 0) -> Any:
    made, how = random_twin(model, None, seed)
    assert made is not None and "same configuration" in how
    return made


def weights(model: Any) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in model.original_model.parameters()]


def test_one_is_made_once_within_a_block(model: Any) -> None:
    alone, other = weights(twin(model)), weights(twin(model, 1))
    with random_models_held():
        first = twin(model)
        assert twin(model) is first and twin(model, 1) is not first
        assert all(map(torch.equal, weights(first), alone))
        assert all(map(torch.equal, weights(twin(model, 1)), other))
        left = weakref.ref(first)
        del first
    gc.collect()
    assert left() is None
    assert twin(model) is not twin(model)


def test_one_that_was_changed_is_made_again(model: Any) -> None:
    with random_models_held(), torch.no_grad():
        first, made = twin(model), weights(twin(model))
        next(first.original_model.parameters()).add_(1)
        assert twin(model) is not first
        assert all(map(torch.equal, weights(twin(model)), made))


def test_one_of_a_model_that_was_changed_is_another(model: Any) -> None:
    weight = next(model.original_model.parameters())
    with random_models_held(), torch.no_grad():
        first = twin(model)
        weight.add_(1)
        second = twin(model)
        assert second is not first and twin(model) is second
        weight.sub_(1)


def test_the_last_that_have_room_are_held(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(4 * weight.numel() for weight in weights(twin(model)))
    monkeypatch.setattr(random_weights, "MOST_HELD", 2 * size - 1)
    with random_models_held():
        first = twin(model)
        assert twin(model) is first
        assert twin(model, 1) is twin(model, 1) and twin(model) is not first
    monkeypatch.setattr(random_weights, "MOST_HELD", size - 1)
    with random_models_held():
        assert twin(model) is not twin(model)


def test_models_that_are_gone_take_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    other = sinklens.load(families.llama())
    size = sum(4 * weight.numel() for weight in weights(twin(other)))
    monkeypatch.setattr(random_weights, "MOST_HELD", 2 * size - 1)
    with random_models_held():
        twin(other)
        del other
        gc.collect()
        model = sinklens.load(families.llama())
        assert twin(model) is twin(model)
