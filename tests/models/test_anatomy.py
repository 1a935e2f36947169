"""What kind of model it is, held against what the configurations are known to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sinklens.models import anatomy_of, load
from tests import families

KINDS = {
    "gpt2": ("gpt2", "absolute", "LN", "pre"),
    "llama": ("llama", "rotary", "RMS", "pre"),
    "neox": ("gpt_neox", "rotary", "LN", "pre"),
    "gemma2": ("gemma2", "rotary", "RMS", "sandwich"),
    "mistral": ("mistral", "rotary", "RMS", "pre"),
    "opt": ("opt", "absolute", "LN", "pre"),
    "bert": ("bert", "absolute", "LN", "post"),
}


@pytest.mark.parametrize("name", KINDS)
def test_families(name: str, boot_family: Callable[[str], Any]) -> None:
    model = boot_family(name)
    found = anatomy_of(model)
    place = (found.family, found.position_encoding, found.norm, found.norm_placement)
    assert place == KINDS[name]
    plain = getattr(families, name)()
    assert found.parameters == sum(weight.numel() for weight in plain.parameters())
    assert (found.n_layers, found.n_heads, found.d_model) == (model.cfg.n_layers, 4, 32)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "encoding", "placement"),
    [
        ("alibi", "alibi", "pre"),
        ("nope", "none", "pre"),
        ("postnorm", "rotary", "post sub-block"),
        ("sandwich", "rotary", "sandwich"),
        ("encoder", "absolute", "post"),
    ],
)
def test_shipped_models(name: str, encoding: str, placement: str) -> None:
    found = anatomy_of(load(name))
    assert (found.position_encoding, found.norm_placement) == (encoding, placement)
