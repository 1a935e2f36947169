"""How much work is done where a call does not say: `full`, or `quick` for a first answer.

`quick` takes fewer prompts and draws, and leaves out the models with random weights, and with them
the tests of contrasts of KL and of what is about position 0. It estimates the same quantities with
wider intervals: what differs significantly from its control there would, but for chance, do so in a
full run; what does not, may.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.protocol import HookedModel
from ..models import count_parameters

FULL, QUICK = "full", "quick"
PRECISIONS = (FULL, QUICK)
DEFAULTS: Mapping[str, Mapping[str, Any]] = {FULL: {}, QUICK: {"draws": 3, "null_models": 0}}
"""Settings that a precision has in place of the defaults; one that is given holds."""
PROMPTS = {FULL: 64, QUICK: 8}
"""Prompts of a run."""
LARGE = 20_000_000
"""With more parameters, a diagnosis is quick by default: a full one takes many minutes on a CPU."""


def by_size(model: HookedModel) -> str:
    """The precision that a diagnosis has by default."""
    return QUICK if count_parameters(model) > LARGE else FULL


def quick_note(draws: int, models: int) -> str:
    """What a quick run leaves out, for a result's notes.

    Args:
        draws: Of what is random.
        models: With random weights.
    """
    untested = "" if models else ", and no models with random weights to test KL and sink contrasts"
    return (
        f"A quick run: {draws} draws{untested}. precision=full (--precision full) gives "
        "narrower intervals and all tests."
    )
