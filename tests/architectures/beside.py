"""One tiny model of each architecture twice: for sinklens, and for plain Hugging Face code."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

import sinklens
from sinklens.models.capabilities import check
from tests import families, limits
from tests.architectures.cells import TOKENS
from tests.architectures.models import ARCHITECTURES
from tests.reference import plain_attention
from tests.reference.plain_attention import Attention

QUICK = ("Llama 3", "Mamba")
RUN = {"progress": False, "draws": 0, "null_models": 0}


def of_every(*quick: str) -> Any:
    """Parametrised by architecture; all but the quick ones need `--architectures`."""
    marks = [pytest.mark.architectures]
    names = [n if n in quick else pytest.param(n, marks=marks) for n in ARCHITECTURES]
    return pytest.mark.parametrize("name", names)


@cache
def plain(name: str) -> Any:
    """The plain Hugging Face model."""
    return ARCHITECTURES[name]()


@cache
def bridge(name: str) -> Any:
    """The same as sinklens loads it."""
    return sinklens.load(ARCHITECTURES[name](), tokenizer=families.tiny_tokenizer())


@cache
def attention(name: str) -> dict[int, Attention]:
    """Of the plain model on `TOKENS`, by layer."""
    layers = check(bridge(name)).attention
    return dict(zip(layers, plain_attention.attention(plain(name), TOKENS), strict=True))


def works(name: str, experiment: str) -> bool:
    """Whether the page says that an experiment can be run on an architecture."""
    return limits.on_page(name)[experiment][0] != "refused"


def run(experiment: str, name: str, *, bos: bool = True, **settings: Any) -> Any:
    """An experiment on the few prompts of the page, without draws."""
    prompts = sinklens.Prompts(TOKENS if bos else TOKENS[:, 1:], bos=bos, source="tokens")
    return sinklens.run(experiment, bridge(name), prompts, **{**RUN, **settings})
