"""What holds for every registered experiment, found by the registry and run as each declares.

No experiment is named here: a new one is held to all of it through its `smallest` settings. Each is
run on the first of the models on which it can be run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import sinklens
from sinklens.cli import app
from sinklens.core.errors import UsageError
from sinklens.engine import kept
from sinklens.engine.sweep import Sweep
from sinklens.models.prompts import corpus
from sinklens.results.drawing.choice import kinds_of
from sinklens.results.drawing.forests import MOST_ROWS
from sinklens.runner import registry
from tests import families

EXPERIMENTS = list(registry.all_experiments())
ORDER = [2, 0, 3, 1]
N_PROMPTS, LENGTH = len(ORDER), 12
# ARCHITECTURE section 4: what a researcher stumbles over.
NOT_ENGLISH = ("told apart", "by itself", "sees both ways", "the stream ", "no mechanism would")


@dataclass(frozen=True)
class Subject:
    """An experiment on a model on which it can be run."""

    name: str
    model: Any
    prompts: sinklens.Prompts

    @cached_property
    def result(self) -> sinklens.ExperimentResult:
        return self.run()

    def run(self, **settings: Any) -> sinklens.ExperimentResult:
        smallest = registry.get(self.name).smallest
        how = {
            "draws": 2,
            "null_models": 2,
            "progress": False,
            **smallest,
            "prompts": self.prompts,
            **settings,
        }
        return sinklens.run(self.name, self.model, **how)


@pytest.fixture(scope="module", params=EXPERIMENTS)
def subject(request: pytest.FixtureRequest, boot_family: Callable[[str], Any]) -> Subject:
    """On a tiny random model where that will do, else on a shipped one."""
    refusals = []
    for name in ("llama", "rope"):
        model = boot_family(name) if name in families.FAMILIES else sinklens.load(name)
        text = corpus()[:2000] if name in families.FAMILIES else None
        prompts = sinklens.prompts(model, text, n=N_PROMPTS, length=LENGTH, bos=True)
        subject = Subject(request.param, model, prompts)
        try:
            assert subject.result
        except UsageError:
            raise
        except sinklens.SinklensError as error:
            refusals.append(str(error))
        else:
            return subject
    raise AssertionError(f"{request.param} can be run on none of the models: {refusals}")


def bytes_of(result: sinklens.ExperimentResult) -> dict[str, bytes]:
    files = result.files()
    return {name: files[name] for name in ("result.json", "values.safetensors")}


def by_prompt(result: sinklens.ExperimentResult) -> dict[tuple[Any, ...], np.ndarray]:
    """Of every row over prompts, its values and baselines."""
    sides = [result.per_prompt[name].numpy() for name in ("value", "baseline")]
    return {
        (row.metric, row.condition, row.kind, row.against, row.layer, row.head, row.queries): (
            np.stack([side[number] for side in sides])
        )
        for number, row in enumerate(result.effects)
        if row.resampled == "prompt"
    }


# --- What is declared ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_mistyped_name_is_refused_before_a_model_is_loaded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Condition, setting and metric: near names and status 2."""

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("sinklens.models.loading.load", load)
    declared = registry.get(name)
    known = [*declared.default_conditions(declared.config())]
    wrong = [f"{known[0]}x=1", "drawz=3"]
    if known:
        wrong.append(f"conditions={known[0][:-1]}")
    wrong.append("metrics=losss")
    for setting in wrong:
        done = CliRunner().invoke(app, ["run", name, "rope", "--quiet", "--set", setting])
        assert done.exit_code == 2, (setting, done.output)
        assert len(done.output.strip().splitlines()) == 1, done.output
    for setting in ("drawz=3", *([f"conditions={known[0][:-1]}"] if known else [])):
        done = CliRunner().invoke(app, ["run", name, "rope", "--quiet", "--set", setting])
        assert "did you mean" in done.output, done.output


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_question_and_paper_are_said(name: str) -> None:
    declared = registry.get(name)
    assert declared.question.endswith("?")
    assert re.search(r"\b\d{4}\.\d{4,5}\b", declared.paper)
    assert declared.function.__doc__ and declared.config.__doc__


# --- The result ----------------------------------------------------------------------------------


def test_the_result_is_whole(subject: Subject, tmp_path: Path) -> None:
    result = subject.result
    assert result.effects and 0 < len(result.summary) <= 12
    assert not any("failed:" in note for note in result.notes())
    for row in result.effects:
        numbers = (row.baseline, row.value, row.effect)
        assert all(math.isfinite(number) for number in numbers), row
        assert row.unit == result.measure(row.metric, row.condition).unit
        assert (row.against is None) == (row.kind in ("treatment", "measurement"))
    for row in result.effects:
        if row.against is not None:
            leads = [lead for lead in result.effects if lead.against is None]
            assert any(_same_place(row, lead) for lead in leads), row
    loaded = sinklens.ExperimentResult.load(result.save(tmp_path / "out"))
    assert loaded == result and str(loaded) == str(result)
    assert loaded.plot().to_json() == result.plot().to_json() and result.plot().data
    assert "<table" in result._repr_html_()
    json.dumps(result.findings), json.dumps(result.draws)


def test_every_number_of_the_figure_is_a_number_of_the_result(subject: Subject) -> None:
    """Of the declared figure and of every other kind; and none of the rows is left out of it."""
    result = subject.result
    rows, sides = result.effects, ("value", "effect", "baseline")
    known = [getattr(row, side) for row in rows for side in sides]
    known += [
        row.value - row.effect + end for row in rows for end in (row.ci_low, row.ci_high) if end
    ]
    known += [end for row in rows for end in (row.ci_low, row.ci_high) if end is not None]
    known += [number for array in result.arrays.values() for number in np.ravel(array).tolist()]
    known = np.array(known, float)
    for drawn in (result.plot(), *(result.plot(kind) for kind in kinds_of(result))):
        assert drawn.layout.title.text and drawn.data
        for trace in drawn.data:
            sides = [trace.z] if trace.type == "heatmap" else [trace.x, trace.y]
            shown = [_numbers(side) for side in sides]
            assert any(np.isin(side.round(9), known.round(9)).all() for side in shown), trace
    forest = result.plot("forest")
    marks = np.concatenate([_numbers(trace.x) for trace in forest.data]).round(9)
    for metric in {row.metric for row in rows}:
        mine = [row for row in rows if (row.metric, row.against) == (metric, None)]
        at = [row.effect if row.kind == "treatment" else row.value for row in mine]
        assert len(mine) > MOST_ROWS or np.isin(np.round(at, 9), marks).all(), metric


def _numbers(values: Any) -> np.ndarray:
    """What of a trace are numbers; labels are none."""
    known = np.ravel(np.array(values, dtype=object))
    numbers = [float(n) for n in known if isinstance(n, int | float | np.number) and n == n]
    return np.array(numbers if len(numbers) else [np.nan])


def _same_place(row: sinklens.EffectSize, lead: sinklens.EffectSize) -> bool:
    names = ("metric", "condition", "layer", "head", "queries")
    return all(getattr(row, name) == getattr(lead, name) for name in names)


def test_every_sentence_is_in_the_fields_own_words(subject: Subject) -> None:
    result = subject.result
    for line in [*result.summary, *result.notes()[1:]]:  # the first names the model
        first = line.split()[0].strip(":")
        named = first in {name for row in result.effects for name in (row.metric, row.condition)}
        assert line[0].isupper() or line[0] in "*0123456789" or named, line
        assert line.endswith("."), line
        assert not [words for words in NOT_ENGLISH if words in line], line
        assert "{" not in line and "nan" not in line.split(), line


def test_no_number_is_written_below_rounding(subject: Subject) -> None:
    """No `3.469e-18`, no `-0 nats`, no unit `1`, in any form."""
    result = subject.result
    for text in (*result.summary, *result.notes(), str(result.table(full=True)), result.to_latex()):
        assert not re.search(r"e-(0[7-9]|[1-9]\d)|(?<![\w.])[-+]0(?![.\d])", text), text
    assert not {row.unit for row in result.effects} & {"1", "1 to d_model"}


# --- Invariants ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(subject: Subject) -> None:
    first = bytes_of(subject.result)
    torch.rand(3)  # the global state is no part of it
    assert bytes_of(subject.run()) == first


@pytest.mark.slow
def test_the_order_of_prompts_does_not_matter(subject: Subject) -> None:
    shuffled = replace(subject.prompts, tokens=subject.prompts.tokens[ORDER])
    mine, theirs = by_prompt(subject.result), by_prompt(subject.run(prompts=shuffled))
    assert mine.keys() == theirs.keys()
    for key, values in mine.items():
        close = 2e-5 * max(1.0, float(np.abs(values).max()))
        moved, stayed = (np.abs(part - theirs[key]).max() for part in (values[:, ORDER], values))
        # Control inputs of an experiment's own do not stand in the order of the prompts.
        assert min(moved, stayed) <= close, key


@pytest.mark.slow
def test_the_batch_size_does_not_matter(subject: Subject) -> None:
    whole = by_prompt(subject.result)
    for size in (1, 3):
        batched = by_prompt(subject.run(batch_size=size))
        assert whole.keys() == batched.keys()
        for key, values in whole.items():
            scale = max(1.0, float(np.abs(values).max()))
            np.testing.assert_allclose(values, batched[key], atol=2e-5 * scale, err_msg=str(key))


@pytest.mark.slow
def test_all_positions_are_the_default(subject: Subject) -> None:
    """Experiments that count predictions take a sample of positions; the others refuse one."""
    every = tuple(range(1, LENGTH))
    if not registry.get(subject.name).metrics:
        with pytest.raises(sinklens.SinklensError, match="takes no positions"):
            subject.run(positions=every)
        return
    whole, counted = by_prompt(subject.result), by_prompt(subject.run(positions=every))
    for key, values in whole.items():
        np.testing.assert_allclose(values, counted[key], atol=1e-5, err_msg=str(key))
    late = subject.run(positions=(LENGTH - 3, LENGTH - 2))
    losses = [row for row in late.effects if row.metric == "loss" and row.kind == "treatment"]
    assert any(
        row.value != whole_row.value
        for row, whole_row in zip(
            losses,
            [r for r in subject.result.effects if (r.metric, r.kind) == ("loss", "treatment")],
            strict=True,
        )
    )


@pytest.mark.slow
def test_the_callers_state_is_kept(subject: Subject) -> None:
    before = subject.prompts.tokens.clone()
    for grad in (True, False):
        with torch.set_grad_enabled(grad), _state_kept(subject.model):
            subject.run()
    assert torch.equal(subject.prompts.tokens, before)


@contextmanager
def _state_kept(model: Any) -> Iterator[None]:
    before = _snapshot(model)
    yield
    after = _snapshot(model)
    assert {key for key in before if before[key] != after[key]} == set()


def _snapshot(model: Any) -> dict[str, Any]:
    modules = [*model.modules(), *model.original_model.modules()]
    parameters = list(model.original_model.parameters())
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "grad": torch.is_grad_enabled(),
        "training": [module.training for module in modules],
        "hooks": [
            (len(point.fwd_hooks), len(point.bwd_hooks)) for point in model.hook_dict.values()
        ],
        "module hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules],
        "gradients": [(p.requires_grad, p.grad is None) for p in parameters],
        "weights": [float(p.detach().double().sum()) for p in parameters],
        "threads": torch.get_num_threads(),
    }


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bytes(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of its interventions; what only reads starts again."""
    groups: list[int] = []
    whole_run = Sweep.run_group

    def counted(self: Any, watches: Any) -> Any:
        groups.append(len(watches))
        if stop_at is not None and len(groups) > stop_at:
            raise KeyboardInterrupt
        return whole_run(self, watches)

    stop_at: int | None = None
    monkeypatch.setattr(Sweep, "run_group", counted)
    expected = bytes_of(subject.run(batch_size=2))
    every, stop_at = len(groups), len(groups) // 2
    groups.clear()
    if every:
        with pytest.raises(KeyboardInterrupt), kept(tmp_path, [subject.name]):
            subject.run(batch_size=2)
    stop_at = None
    groups.clear()
    with kept(tmp_path, [subject.name]):
        again = subject.run(batch_size=2)
    assert bytes_of(again) == expected
    assert len(groups) <= every - every // 2
