"""The text that comes with the package, and its token ids."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Any
from weakref import WeakKeyDictionary

from ...core.protocol import HookedModel
from .encoding import encode

_cut_corpora: WeakKeyDictionary[Any, list[int]] = WeakKeyDictionary()
_cut_by_rules: dict[tuple[type, str], list[int]] = {}


def corpus() -> str:
    """The shipped text: 33 State of the Union addresses (public domain), one a line."""
    return resources.files("sinklens").joinpath("data/sotu.txt").read_text("utf-8")


def corpus_tokens(model: HookedModel) -> list[int]:
    """Token ids of the shipped corpus, cached for tokenizers with the same rules."""
    tokenizer = model.tokenizer
    known = None if tokenizer is None else _cut_corpora.get(tokenizer)
    if known is None:
        rules = _rules(tokenizer)
        known = None if rules is None else _cut_by_rules.get(rules)
        known = known or encode(model, corpus())
        _cut_corpora[tokenizer] = known
        if rules is not None:
            _cut_by_rules[rules] = known
    return known


def _rules(tokenizer: Any) -> tuple[type, str] | None:
    """The rules of a tokenizer, as far as it exposes them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    return type(tokenizer), hashlib.sha256(backend.to_str().encode()).hexdigest()
