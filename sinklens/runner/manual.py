"""What can be asked of an experiment, as `sinklens list NAME` prints it."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from ..core.errors import SinklensError
from ..models import load
from ..models.prompts import prompts as make_prompts
from .config import ExperimentConfig, limits_in_words
from .declaration import Experiment
from .planning import plan

WIDTH = 96
EXAMPLE, COST_PROMPTS, COST_LENGTH = "rope", 4, 32
HIDDEN = ("conditions", "metrics", "seed", "progress")
"""Settings that have a part of the page, or an option of the command, of their own."""


def manual(experiment: Experiment) -> str:
    """Question, needs, conditions, metrics, settings with defaults, and cost."""
    config = experiment.config()
    usual = set(experiment.default_conditions(config))
    stars = [f"{name}{'*' if name in usual else ''}" for name in _spelled(experiment.conditions)]
    own = [field for field in dataclasses.fields(config) if not _is_shared(field.name)]
    shared = [
        f for f in dataclasses.fields(config) if _is_shared(f.name) and _applies(experiment, f)
    ]
    lines = [f"{experiment.name}: {experiment.question}", f"Follows {experiment.paper}.", ""]
    for need in experiment.needs:
        lines += _wrapped(f"Needs {need.what}.")
    lines += _wrapped(f"Conditions (* by default): {', '.join(stars)}")
    if experiment.metrics:
        lines += _wrapped(f"Metrics by default: {', '.join(experiment.metrics)}")
    for title, fields in (("Settings", own), ("Settings of all experiments", shared)):
        if fields:
            lines += ["", title, *(line for field in fields for line in _said(config, field))]
    lines += [
        "",
        f"In Python:  sinklens.run({experiment.name!r}, model, prompts, KEY=VALUE, ...)",
        f"In a shell: sinklens run {experiment.name} MODEL --set KEY=VALUE --set KEY=ITEM,ITEM",
        "",
        *_wrapped(f"Cost: {cost(experiment)}On your model: the command with --dry-run."),
    ]
    return "\n".join(lines)


def cost(experiment: Experiment) -> str:
    """How many forward passes a default run takes on a shipped model; empty where it refuses."""
    model: Any = load(EXAMPLE)
    prompts = make_prompts(model, n=COST_PROMPTS, length=COST_LENGTH)
    try:
        needed = plan(experiment.name, model, prompts)
    except SinklensError:
        return ""
    random = ""
    if needed.random_forwards:
        random = f" and {needed.random_forwards} of two prompts on models with random weights"
    return (
        f"{needed.forwards} forward passes{random} for {EXAMPLE}, where all prompts fit into one. "
    )


def _spelled(conditions: tuple[str, ...]) -> list[str]:
    return [name.replace("*", "<text>") for name in conditions]


def _is_shared(name: str) -> bool:
    return name in {field.name for field in dataclasses.fields(ExperimentConfig)}


def _applies(experiment: Experiment, field: dataclasses.Field[Any]) -> bool:
    """Whether a shared setting can be given to this experiment."""
    about_predictions = field.name in ("screen", "top", "positions", "null_models")
    return field.name not in HIDDEN and (bool(experiment.metrics) or not about_predictions)


def _said(config: ExperimentConfig, field: dataclasses.Field[Any]) -> Iterator[str]:
    """A setting: its default, its limits, and what it is."""
    yield f"  {field.name}={_value(getattr(config, field.name))}{_allowed(field)}"
    yield from _wrapped(documented(type(config)).get(field.name, ""), "      ")


def _allowed(field: dataclasses.Field[Any]) -> str:
    """`  (at least 0)`, or the choices."""
    limits = limits_in_words(field.metadata.get("limits", {}))
    choices = field.metadata.get("choices", ())
    said = f"one of {', '.join(choices)}" if choices else limits.removeprefix(", ")
    return f"  ({said})" if said else ""


def _value(value: Any) -> str:
    """A default as the command line spells it."""
    if isinstance(value, tuple):
        return ",".join(map(_value, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def documented(config: type[ExperimentConfig]) -> dict[str, str]:
    """What the docstrings of a configuration say of each setting."""
    said: dict[str, str] = {}
    for kind in reversed(config.__mro__):
        _, _, attributes = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
        for entry in re.split(r"\n(?=    \w+: )", f"\n{attributes}"):
            name, colon, text = entry.strip().partition(": ")
            if colon:
                said[name] = " ".join(text.split())
    return said


def _wrapped(text: str, indent: str = "") -> list[str]:
    hanging = indent or "  "
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=hanging)
