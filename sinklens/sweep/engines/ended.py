"""How a group of tasks ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ...core.errors import in_one_line
from ..tasks import Group
from ..worker import Outcome


@dataclass(frozen=True)
class Ended:
    """How a group of tasks ended.

    Attributes:
        group: The group.
        outcomes: How each of its tasks ended.
        died: Why its worker died before it returned; empty where it did not.
    """

    group: Group
    outcomes: list[Outcome] = field(default_factory=list)
    died: str = ""


def ended(group: Group, result: Callable[[], list[Outcome]]) -> Ended:
    """What a worker returned, or why it died.

    Args:
        group: The group.
        result: Returns what the worker returned, or raises.
    """
    try:
        return Ended(group, result())
    except Exception as error:  # every engine has its own
        return Ended(group, died=in_one_line(error))
