"""How experiments work, for reports: what they declare, and their modules' docstrings."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable

from ..results.methods import Method
from .declaration import Experiment
from .registry import all_experiments


def methods_of(names: Iterable[str]) -> dict[str, Method]:
    """How experiments work, without those that are not installed here.

    Args:
        names: Their names.
    """
    known = all_experiments()
    return {name: _method(known[name]) for name in names if name in known}


def _method(experiment: Experiment) -> Method:
    module = sys.modules[experiment.function.__module__]
    defaults = experiment.config().recorded()
    return Method(experiment.question, experiment.paper, inspect.getdoc(module) or "", defaults)
