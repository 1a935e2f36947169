"""Settings of an experiment: a frozen dataclass that refuses invalid values.

    @dataclass(frozen=True)
    class MyConfig(ExperimentConfig):
        threshold: float = setting(0.3, least=0, most=1)

Limits stand with the field and are checked when the settings are made, before any model is loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from ..core.errors import UsageError, unknown_name
from ..metrics import resolve_metrics
from ..stats.effects import INTERVALS, STUDENT_T
from .precision import FULL, PRECISIONS


def setting(
    default: Any,
    *,
    least: float | int | None = None,
    most: float | int | None = None,
    above: float | int | None = None,
    below: float | int | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """A field with limits; those of a tuple hold for each of its items, and None is always valid.

    Args:
        default: The default.
        least: The smallest value.
        most: The largest value.
        above: What every value is above.
        below: What every value is below.
        choices: The only values, of text.
    """
    limits = {"least": least, "most": most, "above": above, "below": below}
    return dataclasses.field(default=default, metadata={"limits": limits, "choices": choices})


@dataclass(frozen=True)
class ExperimentConfig:
    """Settings that all experiments share.

    Attributes:
        conditions: Which conditions to run; empty means the defaults. One that was asked for by
            name and cannot act on the model is an error, a default one is left out.
        draws: Draws of what is random, and of control positions or heads; 0 leaves controls out.
        metrics: Names, or metrics of the user's own; empty means the defaults.
        seed: Seed of every random draw.
        progress: Whether to show progress; None shows it in a terminal or a notebook.
        batch_size: Prompts in a forward pass; None lets `memory` decide.
        memory: Bytes that a forward pass may hold; by default 1 GiB, at most a quarter of all.
        positions: Count only predictions at these positions.
        null_models: How many models with random weights judge the contrasts of measures without
            sign (`kl`) and of those about position 0 (`sink_mass`); fewer than 2 leave these
            untested.
        precision: `full`, or `quick` for a first answer: fewer draws and no models with random
            weights where the call does not say how many (`runner.precision`).
        interval: How intervals over prompts are made: `student_t`, or `bootstrap_t`, which covers
            more where differences are skewed (`docs/calibration.md`).
        screen: Rank the rows of a condition by a gradient estimate and run only the `top` largest.
        top: How many rows of each condition to run after screening.
    """

    conditions: tuple[str, ...] = ()
    draws: int = setting(5, least=0)
    metrics: tuple[Any, ...] = ()
    seed: int = setting(0, least=0)
    progress: bool | None = None
    batch_size: int | None = setting(None, least=1)
    memory: int | None = setting(None, least=1)
    positions: tuple[int, ...] | None = None
    null_models: int = setting(5, least=0)
    precision: str = setting(FULL, choices=PRECISIONS)
    interval: str = setting(STUDENT_T, choices=tuple(INTERVALS))
    screen: bool = False
    top: int = setting(30, least=1)

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        object.__setattr__(self, "conditions", tuple(dict.fromkeys(self.conditions)))
        for entry in dataclasses.fields(self):
            _require_allowed(entry, getattr(self, entry.name))
        if self.metrics:
            resolve_metrics(self.metrics)

    def for_engine(self) -> dict[str, Any]:
        """What `engine.evaluate` is told."""
        return {
            name: getattr(self, name) for name in ("batch_size", "memory", "positions", "progress")
        }

    def recorded(self) -> dict[str, Any]:
        """The settings that decide the result, ready for JSON."""
        skipped = {"progress"}
        return {
            entry.name: _plain(getattr(self, entry.name))
            for entry in dataclasses.fields(self)
            if entry.name not in skipped
        }


def _require_allowed(entry: dataclasses.Field[Any], value: Any) -> None:
    """Refuse a value outside the limits of its field."""
    limits = entry.metadata.get("limits", {})
    for item in value if isinstance(value, tuple) else (value,):
        choices = entry.metadata.get("choices", ())
        if choices and item is not None and item not in choices:
            raise unknown_name(entry.name, str(item), choices)
        if item is None or all(limit is None for limit in limits.values()):
            continue
        number = isinstance(item, (int, float)) and not isinstance(item, bool)
        whole = "int" in str(entry.type)
        if not number or (whole and not isinstance(item, int)):
            kind = "a whole number" if whole else "a number"
            raise UsageError(f"{entry.name} must be {kind}{limits_in_words(limits)}, not {item!r}")
        if not _within(item, **limits):
            raise UsageError(f"{entry.name} must be{limits_in_words(limits)[1:]}, not {item!r}")


def _within(
    value: float | int,
    *,
    least: float | int | None,
    most: float | int | None,
    above: float | int | None,
    below: float | int | None,
) -> bool:
    return (
        (least is None or value >= least)
        and (most is None or value <= most)
        and (above is None or value > above)
        and (below is None or value < below)
    )


def limits_in_words(limits: dict[str, Any]) -> str:
    """`, at least 0 and below 1`; empty where there are none."""
    words = {"least": "at least", "most": "at most", "above": "above", "below": "below"}
    said = [f"{words[name]} {limit:g}" for name, limit in limits.items() if limit is not None]
    return f", {' and '.join(said)}" if said else ""


def fit(key: str, value: Any, hint: Any) -> Any:
    """A value as the type of its field; strings and lists are read as a command line means them.

    Raises:
        UsageError: It does not fit.
    """
    options = [option for option in get_args(hint) or (hint,) if option is not type(None)]
    if get_origin(hint) is tuple:
        options = [hint]
    target = next((o for o in options if get_origin(o) is tuple), options[0])
    if value == "none" and type(None) in get_args(hint):
        return None
    try:
        if get_origin(target) is tuple:
            item, is_text = get_args(target)[0], isinstance(value, str)
            items = [part for part in value.split(",") if value] if is_text else value
            if callable(items) or isinstance(items, int):
                items = [items]
            if items is None and type(None) in get_args(hint):
                return None
            return tuple(fit(key, part, item) for part in items)
        if target is Any or (value is None and type(None) in get_args(hint)):
            return value
        if not isinstance(value, str) or target is str:
            if not isinstance(value, target) or isinstance(value, bool) != (target is bool):
                raise UsageError(f"{key}={value!r} does not fit: it takes {target.__name__}")
            return value
        if target is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[
                value.lower()
            ]
        return target(value)
    except UsageError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{key}={value!r} does not fit: {error}") from error


def _plain(value: Any) -> Any:
    """A setting as JSON holds it."""
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "name", None) or getattr(value, "__name__", str(value))
