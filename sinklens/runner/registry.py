"""The registry: how an experiment is declared, found, configured and run.

    @experiment(paper="2606.06160", question="What holds up the sink?", summary=sentences)
    def my_experiment(model, prompts, config: MyConfig) -> ExperimentResult: ...

The function's name is the experiment's name. Modules of this package are found by themselves; other
packages name theirs in the entry-point group `sinklens.experiments`.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import torch

from ..core.errors import SinklensError, UsageError, unknown_name
from ..core.protocol import HookedModel
from ..engine import code_digest, has_own_hooks, section
from ..metrics import resolve_metrics
from ..models import require_eval_mode
from ..models.prompts import Prompts
from ..models.prompts import prompts as make_prompts
from ..results.figures import FIGURES
from ..results.result import LONGEST_SUMMARY, ExperimentResult, identity

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

HOME = GROUP = "sinklens.experiments"


@dataclass(frozen=True)
class ExperimentConfig:
    """Settings that all experiments share.

    Attributes:
        conditions: Which conditions to run; empty means the defaults. One that was asked for by
            name and cannot act on the model is an error, a default one is left out.
        draws: Draws of what is random, and of control positions or heads; 0 leaves controls out.
        metrics: Names, or metrics of the user's own; empty means the defaults.
        seed: Decides every draw.
        progress: Whether to show progress; None shows it in a terminal or a notebook.
        batch_size: Prompts in a forward; None lets `memory` decide.
        memory: Bytes for what a forward holds; by default 1 GiB, or a quarter of all there is.
        positions: Count only predictions at these positions.
        screen: Rank the rows of a condition by a gradient estimate and run only the `top` largest.
        top: How many rows of each condition to run after screening.
    """

    conditions: tuple[str, ...] = ()
    draws: int = 5
    metrics: tuple[Any, ...] = ()
    seed: int = 0
    progress: bool | None = None
    batch_size: int | None = None
    memory: int | None = None
    positions: tuple[int, ...] | None = None
    screen: bool = False
    top: int = 30

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        for name in ("draws", "seed"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise UsageError(f"{name} must be a whole number, 0 or more, not {value!r}")
        object.__setattr__(self, "conditions", tuple(dict.fromkeys(self.conditions)))
        for name in ("batch_size", "memory", "top"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}")
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


@dataclass(frozen=True)
class Experiment:
    """An experiment as it was declared."""

    name: str
    function: Callable[..., ExperimentResult]
    config: type[ExperimentConfig]
    paper: str
    question: str
    summary: Callable[[ExperimentResult], list[str]]


_experiments: dict[str, Experiment] = {}


def experiment(
    *,
    paper: str,
    question: str,
    summary: Callable[[ExperimentResult], list[str]],
    plot: Callable[[ExperimentResult], Figure] | None = None,
) -> Callable[[Callable[..., ExperimentResult]], Callable[..., ExperimentResult]]:
    """Declare a function `(model, prompts, config) -> ExperimentResult` as an experiment.

    Args:
        paper: The arXiv number of what it follows.
        question: One line for `sinklens list`.
        summary: Turns a result into at most 12 sentences.
        plot: Its figure; by default a forest of effects.

    Raises:
        ValueError: An experiment of that name exists, or `config` has no type.
    """

    def register(function: Callable[..., ExperimentResult]) -> Callable[..., ExperimentResult]:
        name = function.__name__
        if name in _experiments:
            raise ValueError(f"there are two experiments named {name}")
        config = get_type_hints(function).get("config")
        if not (isinstance(config, type) and issubclass(config, ExperimentConfig)):
            raise ValueError(f"{name} needs an argument `config` typed with an ExperimentConfig")
        _experiments[name] = Experiment(name, function, config, paper, question, summary)
        if plot is not None:
            FIGURES[name] = plot
        return function

    return register


def all_experiments() -> dict[str, Experiment]:
    """Every experiment there is, by name."""
    package = importlib.import_module(HOME)
    for module in pkgutil.walk_packages(package.__path__, f"{HOME}."):
        importlib.import_module(module.name)
    for entry in entry_points(group=GROUP):
        entry.load()
    return dict(sorted(_experiments.items()))


def get(name: str) -> Experiment:
    """The experiment of a name.

    Raises:
        UsageError: There is none.
    """
    known = all_experiments()
    if name not in known:
        raise unknown_name("experiment", name, known)
    return known[name]


def run(
    name: str,
    model: HookedModel,
    prompts: Prompts | None = None,
    *,
    seed: int = 0,
    progress: bool | None = None,
    **settings: Any,
) -> ExperimentResult:
    """Run an experiment.

    Args:
        name: Its name; `sinklens list` prints them.
        model: A bridge, as `sinklens.load` returns it; it comes back as it was.
        prompts: What to run it on; by default 64 windows of 64 tokens of the shipped corpus.
        seed: Decides every draw.
        progress: Whether to show progress; None shows it in a terminal or a notebook.
        **settings: Fields of the experiment's configuration. Strings from a command line are
            turned into what the field holds.

    Raises:
        SinklensError: It cannot be done on this model or these prompts.
        UsageError: A name or a setting is wrong.
    """
    chosen = get(name)
    if not hasattr(model, "hook_dict"):
        raise UsageError(
            f"run needs a model, not a {type(model).__name__}; sinklens.load(...) gives one"
        )
    require_eval_mode(model)
    if prompts is not None and not isinstance(prompts, Prompts):
        raise UsageError(
            f"prompts is a {type(prompts).__name__}; sinklens.prompts(model, text) makes prompts"
        )
    config = configure(chosen, {**settings, "seed": seed, "progress": progress})
    if prompts is None:
        prompts = make_prompts(model)
    began = time.perf_counter()
    with section(lambda: _kept_under(chosen, model, prompts, config)):
        result = chosen.function(model, prompts, config)
    sentences = chosen.summary(result)
    if len(sentences) > LONGEST_SUMMARY:
        raise ValueError(f"the summary of {name} has {len(sentences)} sentences")
    timing = {"seconds": round(time.perf_counter() - began, 3), **_machine()}
    return dataclasses.replace(result, summary=sentences, run=timing)


def _kept_under(
    chosen: Experiment, model: HookedModel, prompts: Prompts, config: ExperimentConfig
) -> dict[str, Any]:
    """All that finished work depends on, for whoever goes on with it."""
    code = code_digest(chosen.function)
    own = any(not isinstance(metric, str) for metric in config.metrics)
    # What own metrics and hooks do cannot be known again: such work is never gone on with.
    known = code is not None and not own and not has_own_hooks(model)
    return {
        **identity(model, prompts),
        "experiment": chosen.name,
        "settings": config.recorded(),
        "answers": None if prompts.answers is None else prompts.answers.tolist(),
        "code": code,
        "autocast": torch.is_autocast_enabled(torch.device(model.cfg.device).type),
        "unknown": "" if known else uuid.uuid4().hex,
    }


def configure(chosen: Experiment, settings: dict[str, Any]) -> ExperimentConfig:
    """The experiment's configuration from settings, which may be strings.

    Raises:
        UsageError: A setting does not exist or does not fit.
    """
    hints = get_type_hints(chosen.config)
    values = {}
    for key, value in settings.items():
        if key not in hints:
            raise unknown_name(f"setting of {chosen.name}", key, hints)
        values[key] = _fit(key, value, hints[key])
    return chosen.config(**values)


def choose_conditions(
    config: ExperimentConfig,
    defaults: Sequence[str],
    refusal: Callable[[str], str | None],
) -> tuple[list[str], dict[str, str]]:
    """The conditions to run, and those left out with their reasons.

    Args:
        config: What was asked for.
        defaults: What to run if nothing was.
        refusal: Why a condition cannot act on this model, or None if it can.

    Raises:
        SinklensError: A condition that was asked for cannot act, or none is left.
    """
    chosen, left_out = [], {}
    for condition in config.conditions or defaults:
        reason = refusal(condition)
        if reason is None:
            chosen.append(condition)
        elif config.conditions:
            raise SinklensError(reason)
        else:
            left_out[condition] = reason
    if not chosen:
        raise SinklensError(f"nothing is left to do: {'; '.join(left_out.values())}")
    return chosen, left_out


def choose_metrics(
    config: ExperimentConfig, defaults: Sequence[str], *, causal: bool
) -> tuple[list[Any], dict[str, str]]:
    """The metrics to measure, and those left out with their reasons.

    Raises:
        SinklensError: A metric that was asked for by name needs a causal model.
    """
    resolved = resolve_metrics(config.metrics or defaults)
    impossible = [metric for metric in resolved if metric.causal_only and not causal]
    reason = "it is a next-token measure and this model attends in both directions"
    if impossible and config.metrics:
        raise SinklensError(f"{impossible[0].name} cannot be measured: {reason}; use metrics=kl")
    return (
        [metric for metric in resolved if metric not in impossible],
        {metric.name: reason for metric in impossible},
    )


def _fit(key: str, value: Any, hint: Any) -> Any:
    """A value as the type of its field; strings and lists are read as a command line means them."""
    options = [option for option in get_args(hint) or (hint,) if option is not type(None)]
    if get_origin(hint) is tuple:
        options = [hint]
    target = next((o for o in options if get_origin(o) is tuple), options[0])
    try:
        if get_origin(target) is tuple:
            item = get_args(target)[0]
            items = value.split(",") if isinstance(value, str) else value
            if callable(items) or isinstance(items, int):
                items = [items]
            if items is None and type(None) in get_args(hint):
                return None
            return tuple(_fit(key, part, item) for part in items)
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


def _machine() -> dict[str, Any]:
    import os
    import platform
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "peak_memory_kib": peak,
    }
