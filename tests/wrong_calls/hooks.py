"""Wrong calls with hooks, metrics, and experiments of one's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

import sinklens
from sinklens import ExperimentConfig
from sinklens.core.errors import UsageError
from sinklens.runner import registry
from sinklens.runner.run import Run
from tests.wrong_calls import Call

TOKENS = torch.full((2, 6), 7)
PROMPTS = sinklens.Prompts(TOKENS, bos=False, source="tokens")
POINT = "blocks.2.hook_resid_pre"


@cache
def rope() -> Any:
    return sinklens.load("rope")


def evaluate(given: Any, metrics: Any = ("loss",), **how: Any) -> Any:
    return sinklens.evaluate(rope(), PROMPTS, given, metrics, progress=False, **how)


def compare(treatment: Any, control: Any = None, **how: Any) -> Any:
    how = {"null_models": 0, "progress": False, **how}
    return sinklens.compare_interventions(
        rope(), PROMPTS, treatment=treatment, control=control, **how
    )


def shift(x: Any, hook: Any) -> Any:
    return x + 1


def hook(returned: Callable[[Any], Any]) -> Any:
    """One intervention whose hook function returns what is made of its activation."""

    def own(x: Any, hook: Any) -> Any:
        return returned(x)

    return [(POINT, own)]


def metric(returned: Callable[[Any], Any]) -> Any:
    """A metric that returns what is made of the logits."""

    def own(logits: Any, tokens: Any, *, clean_logits: Any, positions: Any, answers: Any) -> Any:
        return returned(logits)

    return own


def declared(function: Any, **declared: Any) -> Any:
    """Run an experiment of this function, forgotten afterwards."""
    before = dict(registry._experiments)
    try:
        registry.experiment(paper="none", question="Is it?", **declared)(function)
        return sinklens.run(function.__name__, rope(), PROMPTS, progress=False)
    finally:
        registry._experiments.clear()
        registry._experiments.update(before)


def adds_nothing(run: Run[ExperimentConfig]) -> None:
    pass


def returns_nothing(model: Any, prompts: Any, config: ExperimentConfig) -> None:
    pass


def returns_a_number(model: Any, prompts: Any, config: ExperimentConfig) -> int:
    return 3


def untyped(run: Any) -> None:
    pass


def adds_an_undeclared(run: Run[ExperimentConfig]) -> None:
    from sinklens.results.estimates import Sample

    run.add("heigth", "hill", Sample(1.0))


def sink_profile(run: Run[ExperimentConfig]) -> None:
    pass


VALUES = torch.zeros(1, 6, 128)
HOOKS: dict[str, Call] = {
    "evaluate(function)": (lambda: evaluate(shift), UsageError, ("function alone", POINT)),
    "evaluate(list of functions)": (lambda: evaluate([shift]), UsageError, ("alone",)),
    "evaluate(name)": (lambda: evaluate("zero"), UsageError, ("'zero'", "Intervention")),
    "evaluate(None)": (lambda: evaluate(None), UsageError, ("None", "list of pairs")),
    "evaluate(pair the wrong way round)": (
        lambda: evaluate([(shift, POINT)]),
        UsageError,
        ("alone",),
    ),
    "evaluate(pair with a tensor)": (
        lambda: evaluate([(POINT, VALUES)]),
        UsageError,
        (POINT, "function"),
    ),
    "evaluate(empty list among lists)": (
        lambda: evaluate([[], [(POINT, shift)]]),
        UsageError,
        ("empty list",),
    ),
    "evaluate(name without hooks)": (lambda: evaluate({"a": []}), UsageError, ("a has no hooks",)),
    "evaluate(two functions)": (
        lambda: evaluate([(shift, shift)]),
        UsageError,
        ("in place of a hook point", "TypeError"),
    ),
    "evaluate(filter that chooses nothing)": (
        lambda: evaluate((lambda name: False, shift)),
        UsageError,
        ("no hook point",),
    ),
    "evaluate(unknown hook point)": (
        lambda: evaluate([("blocks.2.hook_resid_per", shift)]),
        sinklens.SinklensError,
        ("hook_resid_per", "did you mean", POINT),
    ),
    "evaluate(block that is not there)": (
        lambda: evaluate([("blocks.77.hook_resid_pre", shift)]),
        sinklens.SinklensError,
        ("blocks.77.hook_resid_pre",),
    ),
    "evaluate(hook point that is switched off)": (
        lambda: evaluate([("blocks.2.attn.hook_result", shift)]),
        sinklens.SinklensError,
        ("set_use_attn_result(True)",),
    ),
    "evaluate(split inputs that are switched off)": (
        lambda: evaluate([("blocks.2.hook_q_input", shift)]),
        sinklens.SinklensError,
        ("set_use_split_qkv_input(True)",),
    ),
    "hook(identity)": (
        lambda: evaluate(hook(lambda x: x)),
        sinklens.SinklensError,
        ("changed nothing", "identity=True"),
    ),
    "hook(returns None)": (
        lambda: evaluate(hook(lambda x: None)),
        sinklens.SinklensError,
        ("changed nothing",),
    ),
    "hook(returns a list)": (
        lambda: evaluate(hook(lambda x: x.tolist())),
        sinklens.SinklensError,
        ("returned a list", POINT),
    ),
    "hook(returns numpy)": (
        lambda: evaluate(hook(lambda x: x.numpy())),
        sinklens.SinklensError,
        ("ndarray", POINT),
    ),
    "hook(returns another shape)": (
        lambda: evaluate(hook(lambda x: x[:, 1:])),
        sinklens.SinklensError,
        ("[2, 5, 128]", "[2, 6, 128]"),
    ),
    "hook(returns another dtype)": (
        lambda: evaluate(hook(lambda x: x.double())),
        sinklens.SinklensError,
        ("forward pass", "dtype"),
    ),
    "hook(values by prompt, one prompt at a time)": (
        lambda: evaluate(hook(lambda x: x.copy_(torch.zeros(2, 6, 128))), batch_size=1),
        sinklens.SinklensError,
        ("for_prompts", "Intervention.from_values(site, values)"),
    ),
    "hook(values by prompt, returned)": (
        lambda: evaluate(hook(lambda x: x + torch.ones(2, 6, 128)), batch_size=1),
        sinklens.SinklensError,
        ("[2, 6, 128]", "Intervention.from_values(site, values)"),
    ),
    "hook(index out of range)": (
        lambda: evaluate(hook(lambda x: x[:, 99])),
        sinklens.SinklensError,
        ("IndexError", POINT, "own"),
    ),
    "hook(another signature)": (
        lambda: evaluate([(POINT, lambda x: x + 1)]),
        sinklens.SinklensError,
        ("TypeError", "fn(activation, hook=hook)"),
    ),
    "hook(a name that is not there)": (
        lambda: evaluate(hook(lambda x: x + undefined)),  # type: ignore[name-defined]  # noqa: F821
        sinklens.SinklensError,
        ("NameError", "undefined"),
    ),
    "hook(NaN)": (
        lambda: evaluate(hook(lambda x: x * float("nan"))),
        sinklens.SinklensError,
        ("NaN",),
    ),
    "from_values(too few)": (
        lambda: evaluate(sinklens.Intervention.from_values(POINT, VALUES)),
        UsageError,
        ("values of 1 prompts",),
    ),
    "from_values(another width)": (
        lambda: evaluate(sinklens.Intervention.from_values(POINT, torch.zeros(2, 6, 3))),
        sinklens.SinklensError,
        ("[6, 3]", "[6, 128]"),
    ),
    "from_values(position outside)": (
        lambda: evaluate(sinklens.Intervention.from_values(POINT, torch.zeros(2, 128), position=9)),
        sinklens.SinklensError,
        ("9", "6 tokens"),
    ),
    "from_values(list)": (
        lambda: sinklens.Intervention.from_values(POINT, [[0.0]]),  # type: ignore[arg-type]
        UsageError,
        ("list", "tensor"),
    ),
    "from_values(pair)": (
        lambda: sinklens.Intervention.from_values((POINT, shift), VALUES),  # type: ignore[arg-type]
        UsageError,
        ("hook point",),
    ),
    "metric(unknown)": (
        lambda: evaluate([(POINT, shift)], ["losss"]),
        UsageError,
        ("did you mean loss",),
    ),
    "metric(number)": (lambda: evaluate([(POINT, shift)], [3]), UsageError, ("int",)),
    "metric(another signature)": (
        lambda: evaluate([(POINT, shift)], [lambda logits: logits.mean((1, 2))]),
        sinklens.SinklensError,
        ("TypeError", "clean_logits, positions, answers"),
    ),
    "metric(returns nothing)": (
        lambda: evaluate([(POINT, shift)], [metric(lambda logits: None)]),
        sinklens.SinklensError,
        ("returned nothing", "one number per prompt"),
    ),
    "metric(returns a float)": (
        lambda: evaluate([(POINT, shift)], [metric(lambda logits: float(logits.mean()))]),
        sinklens.SinklensError,
        ("returned a float",),
    ),
    "metric(one number for all prompts)": (
        lambda: evaluate([(POINT, shift)], [metric(lambda logits: logits.mean())]),
        sinklens.SinklensError,
        ("one number per prompt",),
    ),
    "metric(fails)": (
        lambda: evaluate([(POINT, shift)], [metric(lambda logits: logits[:, 99])]),
        sinklens.SinklensError,
        ("the metric own failed", "IndexError"),
    ),
    "compare_interventions(function)": (
        lambda: compare(shift),
        UsageError,
        ("shift failed: TypeError", "list of pairs"),
    ),
    "compare_interventions(empty list)": (
        lambda: compare([]),
        UsageError,
        ("no intervention",),
    ),
    "compare_interventions(empty dictionary)": (lambda: compare({}), UsageError, ("empty",)),
    "compare_interventions(control of no condition)": (
        lambda: compare(
            {"a": [(POINT, shift)], "b": [(POINT, shift)]},
            {"a": [(POINT, shift)], "c": [(POINT, shift)]},
        ),
        UsageError,
        ("'c'", "a, b"),
    ),
    "compare_interventions(control that does nothing)": (
        lambda: compare([(POINT, shift)], hook(lambda x: x)),
        sinklens.SinklensError,
        ("changed nothing",),
    ),
    "compare_interventions(metric)": (
        lambda: compare([(POINT, shift)], metrics=["losss"]),
        UsageError,
        ("did you mean loss",),
    ),
    "compare_interventions(position)": (
        lambda: compare([(POINT, shift)], positions=[9]),
        UsageError,
        ("position 9",),
    ),
    "run(conditions=[hooks])": (
        lambda: sinklens.run(
            "position0_patching", rope(), PROMPTS, conditions=[[(POINT, shift)]], progress=False
        ),
        UsageError,
        ("compare_interventions",),
    ),
    "run(conditions=[Intervention])": (
        lambda: sinklens.run(
            "bos_replacement",
            rope(),
            PROMPTS,
            conditions=[sinklens.Intervention("own", "own", 0, [(POINT, shift)])],
            progress=False,
        ),
        UsageError,
        ("compare_interventions",),
    ),
    "experiment(adds nothing)": (
        lambda: declared(adds_nothing),
        UsageError,
        ("adds_nothing", "run.add"),
    ),
    "experiment(returns nothing)": (
        lambda: declared(returns_nothing),
        UsageError,
        ("returns_nothing returned nothing", "ExperimentResult"),
    ),
    "experiment(returns a number)": (
        lambda: declared(returns_a_number),
        UsageError,
        ("returned a int", "ExperimentResult"),
    ),
    "experiment(untyped)": (lambda: declared(untyped), UsageError, ("run: Run[MyConfig]",)),
    "experiment(a shipped name)": (
        lambda: registry.all_experiments() and declared(sink_profile),
        UsageError,
        ("sinklens.experiments.sinks.sink_profile", "another name"),
    ),
    "run.add(undeclared measure)": (
        lambda: declared(adds_an_undeclared),
        UsageError,
        ("heigth", "measures"),
    ),
}
