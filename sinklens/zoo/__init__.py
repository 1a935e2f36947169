"""Models that come with the package, and the recipes that trained them.

A family of matched small models: each differs from `rope` in one respect, as far as its
architecture allows. `names` lists them, `card` says how each was trained and what was measured on
it, `compare` runs an experiment on several and compares their differences with the variation
between seeds. The shipped files are in `models/shipped`; recipes, training and cards are here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.lazy import on_first_use
from ..models.shipped import card as card
from ..models.shipped import folder as folder
from ..models.shipped import names as names
from ..models.shipped import seeds as seeds
from ..models.shipped import steps as steps

if TYPE_CHECKING:
    from ..models.prompts import own_prompts as own_prompts
    from .comparison import MemberComparison as MemberComparison
    from .comparison import compare as compare
    from .constructed import ConstructedSink as ConstructedSink
    from .constructed import constructed_sink as constructed_sink

_HOMES = {
    "MemberComparison": "comparison",
    "compare": "comparison",
    "ConstructedSink": "constructed",
    "constructed_sink": "constructed",
    "own_prompts": ".models.prompts",
}

__getattr__ = on_first_use(__name__, _HOMES)
