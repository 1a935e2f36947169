"""What a run would take, found out by running it up to the point where it says so."""

from __future__ import annotations

from typing import Any

from ..core.protocol import HookedModel
from ..engine import Plan, announced_to
from ..models.prompts import Prompts
from . import registry


class _Announced(Exception):
    """Ends a run that has said what it takes."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(str(plan))
        self.plan = plan


def plan(
    name: str,
    model: HookedModel | str | Any,
    prompts: Prompts | None = None,
    *,
    seed: int = 0,
    **settings: Any,
) -> Plan:
    """Count the forward passes of an experiment and estimate its time, without running it.

    What has to be read before the interventions are known (which heads have sinks) is read; one
    forward pass of the first batch is timed.

    Args:
        name: The experiment.
        model: As in `run`.
        prompts: As in `run`.
        seed: As in `run`.
        **settings: As in `run`.

    Raises:
        SinklensError: It cannot be run on this model or these prompts.
        UsageError: A name or a setting is wrong.
    """
    try:
        with announced_to(_stop):
            result = registry.run(name, model, prompts, seed=seed, progress=False, **settings)
    except _Announced as announced:
        return announced.plan
    # It only reads, and has done so.
    known = result.provenance
    return Plan(
        name,
        str(known["model"]["name"]),
        int(known["forwards"]),
        int(known["prompts"]["n"]),
        int(known["prompts"]["length"]),
        seconds=float(result.run["seconds"]),
    )


def _stop(plan: Plan) -> None:
    raise _Announced(plan)
