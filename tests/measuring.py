"""What tests of experiments share: a tiny model with prompts, and the values of a row."""

from __future__ import annotations

from typing import Any

import numpy as np

import sinklens
from sinklens.models.prompts import corpus
from tests import families


def with_prompts(plain: Any, n: int = 4, length: int = 10) -> tuple[Any, sinklens.Prompts]:
    """A plain tiny model as a bridge, and prompts of the shipped text."""
    model = sinklens.load(plain, tokenizer=families.tiny_tokenizer())
    return model, sinklens.prompts(model, corpus()[:2000], n=n, length=length, bos=True)


def values_of(result: Any, **wanted: Any) -> np.ndarray:
    """The value of each prompt in the one row that is so."""
    number = result.effects.index(result.find(**wanted))
    return np.asarray(result.per_prompt["value"][number])
