"""The registry: how an experiment is declared, found, configured and run.

    @experiment(paper="Gu et al. 2025 (2410.10781)", question="...", measures=MEASURES, says=SAYS)
    def my_experiment(run: Run[MyConfig]) -> None: ...

The function's name is the experiment's name. Modules of this package are found by themselves; other
packages name theirs in the entry-point group `sinklens.experiments`.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch

from ..core.errors import UsageError, unknown_name
from ..core.protocol import HookedModel
from ..engine import has_own_hooks, run_bar, section
from ..models import in_use, load, look_again, origin
from ..models.prompts import Prompts, as_prompts, require_several
from ..models.prompts import prompts as make_prompts
from ..results.estimates import Measure
from ..results.figures import Effects, Figured
from ..results.result import ExperimentResult, identity
from ..results.wording import Says
from .config import ExperimentConfig, fit
from .declaration import Experiment
from .keeping import in_few_lines, kept_for
from .needs import Need
from .plugins import left_out, load_plugins
from .precision import DEFAULTS, FULL, PRECISIONS, PROMPTS
from .run import Run

HOME = "sinklens.experiments"

_experiments: dict[str, Experiment] = {}


def experiment(
    *,
    paper: str,
    question: str,
    needs: Sequence[Need] = (),
    conditions: Sequence[str] = (),
    defaults: Callable[[Any], Sequence[str]] | Sequence[str] = (),
    metrics: Sequence[str] = (),
    measures: Mapping[str, Measure] | None = None,
    says: Says = (),
    figure: Figured | None = None,
    draws_controls: bool = True,
    smallest: Mapping[str, Any] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., ExperimentResult]]:
    """Declare a function of a `Run` as an experiment.

    The function takes `run: Run[MyConfig]`; what is declared can be called as
    `(model, prompts, config) -> ExperimentResult`. For the arguments see `Experiment`.

    Raises:
        UsageError: Another module has an experiment of that name, or its argument has no type.
    """

    def register(function: Callable[..., Any]) -> Callable[..., ExperimentResult]:
        name = function.__name__
        known = _experiments.get(name)
        # A cell or a module that runs again replaces what it declared before.
        if known is not None and known.function.__module__ != function.__module__:
            raise UsageError(
                f"there is an experiment named {name} already, in {known.function.__module__}; "
                "give the function another name"
            )
        hints = get_type_hints(function)
        hint = hints.get("run")
        config = get_args(hint)[0] if get_origin(hint) is Run else hints.get("config")
        if not (isinstance(config, type) and issubclass(config, ExperimentConfig)):
            raise UsageError(f"{name} needs an argument typed `run: Run[MyConfig]`")

        @wraps(function)
        def perform(
            model: HookedModel, prompts: Prompts, config: ExperimentConfig
        ) -> ExperimentResult:
            if hint is None:
                made = function(model, prompts, config)
                if not isinstance(made, ExperimentResult):
                    what = "nothing" if made is None else f"a {type(made).__name__}"
                    raise UsageError(
                        f"{name} returned {what}; a function of (model, prompts, config) returns "
                        "an ExperimentResult, and one of `run: Run[MyConfig]` nothing"
                    )
                return made
            run = Run(declared, model, prompts, config)
            function(run)
            return run.result()

        declared = Experiment(
            name,
            perform,
            config,
            paper,
            question,
            tuple(needs),
            tuple(conditions),
            defaults,
            tuple(metrics),
            dict(measures or {}),
            says,
            figure or Effects(),
            draws_controls,
            dict(smallest or {}),
        )
        _experiments[name] = declared
        declared_function: Callable[..., ExperimentResult] = perform
        return declared_function

    return register


def all_experiments() -> dict[str, Experiment]:
    """All experiments, by name, without those of plugins that cannot be imported."""
    package = importlib.import_module(HOME)
    for module in pkgutil.walk_packages(package.__path__, f"{HOME}."):
        importlib.import_module(module.name)
    load_plugins(_experiments)
    return dict(sorted(_experiments.items()))


def get(name: str) -> Experiment:
    """The experiment of a name.

    Raises:
        UsageError: There is none.
    """
    known = all_experiments()
    if name not in known:
        error = unknown_name("experiment", name, known)
        raise UsageError("; left out: ".join([str(error), *left_out()]))
    return known[name]


@in_few_lines
def run(
    name: str | Experiment,
    model: HookedModel | str | Any,
    prompts: Prompts | Any = None,
    *,
    seed: int = 0,
    progress: bool | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> ExperimentResult:
    """Run an experiment.

    Args:
        name: Its name, as `sinklens list` prints it; or its declaration.
        model: A bridge, as `sinklens.load` returns it; it is left unchanged. Anything else that
            `load` takes is loaded.
        prompts: Prompts; strings, one a prompt; conversations; token ids or what a tokenizer
            returned. By default 64 windows of 64 tokens of the shipped corpus (8 with
            `precision="quick"`).
        seed: Seed of every random draw.
        progress: Whether to show progress; None shows it in a terminal or a notebook.
        out: A folder, absent or empty, that the result is saved to. Until then it keeps what is
            finished, so that after an interruption the same call goes on.
        overwrite: Whether to replace what is in that folder.
        **settings: Fields of the experiment's configuration. Strings from a command line are
            turned into what the field holds.

    Raises:
        SinklensError: It cannot be run on this model or these prompts.
        UsageError: A name or a setting is wrong.
    """
    chosen = name if isinstance(name, Experiment) else get(name)
    config = configure(chosen, {**settings, "seed": seed, "progress": progress})
    require_several(prompts)
    bridge: HookedModel = load(model)
    look_again(bridge)
    began = time.perf_counter()
    with in_use(bridge), run_bar(chosen.name, progress):
        if prompts is None:
            prompts = make_prompts(bridge, n=default_prompts(bridge, settings))
        prompts = as_prompts(bridge, prompts)
        command = [chosen.name, str(config.recorded()), origin(bridge).name, prompts.hash]
        with kept_for(out, command, overwrite=overwrite) as finished:
            if finished and out is not None:
                return ExperimentResult.load(out)
            with section(lambda: _kept_under(chosen, bridge, prompts, config)):
                result = chosen.function(bridge, prompts, config)
            timing = {"seconds": round(time.perf_counter() - began, 3), **_machine()}
            result = dataclasses.replace(result, run=timing)
            if out is not None:
                result.save(out, overwrite=overwrite)
    return result


def default_prompts(model: HookedModel, settings: Mapping[str, Any]) -> int:
    """How many prompts a run has where nobody says it."""
    return PROMPTS[_precision(settings)]


def _kept_under(
    chosen: Experiment, model: HookedModel, prompts: Prompts, config: ExperimentConfig
) -> dict[str, Any]:
    """All that finished work depends on, for whoever goes on with it."""
    release = _version_of(chosen.function)
    own = any(not isinstance(metric, str) for metric in config.metrics)
    # What own metrics and hooks do cannot be known again: such work is never gone on with.
    own = own or chosen.own_hooks
    known = release is not None and not own and not has_own_hooks(model)
    return {
        **identity(model, prompts),
        "experiment": chosen.name,
        "settings": config.recorded(),
        "answers": None if prompts.answers is None else prompts.answers.tolist(),
        "experiment_version": release,
        "autocast": torch.is_autocast_enabled(torch.device(model.cfg.device).type),
        "unknown": "" if known else uuid.uuid4().hex,
    }


def _version_of(function: Callable[..., Any]) -> str | None:
    """The version of the package that an experiment is from; None for what is in no package.

    What a notebook defines can change under the same name, so its work is never gone on with.
    """
    package = function.__module__.partition(".")[0]
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return None


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
        if key == "conditions":
            _require_names(chosen, value)
        values[key] = fit(key, value, hints[key])
    config = chosen.config(**{**DEFAULTS[_precision(values)], **values})
    if chosen.conditions:
        chosen.require_known(config)
    return config


def _precision(settings: Mapping[str, Any]) -> str:
    """The precision that is asked for; one that does not exist is refused with the others."""
    asked = settings.get("precision", FULL)
    return asked if asked in PRECISIONS else FULL


def _require_names(chosen: Experiment, conditions: Any) -> None:
    """Refuse hooks in place of the names of conditions."""
    several = isinstance(conditions, Iterable) and not isinstance(conditions, Mapping)
    for one in conditions if several else [conditions]:
        if not isinstance(one, str):
            raise UsageError(
                f"a condition of {chosen.name} is a name, not a {type(one).__name__}; hooks of "
                "your own are compared by sinklens.compare_interventions(model, prompts, "
                "treatment=..., control=...)"
            )


def _machine() -> dict[str, Any]:
    import os
    import platform

    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "peak_memory_kib": _peak_memory_kib(),
    }


def _peak_memory_kib() -> int | None:
    """The most memory that the process held; None where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak // 1024 if sys.platform == "darwin" else peak  # macOS counts bytes
