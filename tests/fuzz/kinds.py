"""All kinds of input, and how they are tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests import fuzz
from tests.fuzz import models

KINDS: dict[str, tuple[Callable[[Any], None], Any]] = {
    "results": (fuzz.look_at, fuzz.changed_json()),
    "tensors": (fuzz.look_at, fuzz.changed_tensors()),
    "gguf": (fuzz.load_gguf, st.deferred(lambda: fuzz.damaged(fuzz.gguf_file()))),
    "settings": (fuzz.configure, fuzz.set_options()),
    "texts": (fuzz.cut, fuzz.texts),
    "tokens": (fuzz.measure, fuzz.tokens),
    **models.KINDS,
}


def run(kind: str, n: int, seed: int = 0) -> None:
    """Try `n` inputs of a kind.

    Raises:
        Exception: The first that was not typed, of the smallest input that raises it.
    """
    import hypothesis

    check, inputs = KINDS[kind]

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=n,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(inputs)
    def every(given: Any) -> None:
        check(given)

    every()
