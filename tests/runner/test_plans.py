"""What is announced is what is counted, and a plan says it without the run."""

from __future__ import annotations

from typing import Any

import pytest

import sinklens
from sinklens.engine import Plan, announced_to, progress
from sinklens.runner import registry

pytestmark = pytest.mark.slow
EXPERIMENTS = list(registry.all_experiments())


class Bar:
    """What tqdm is asked to show."""

    made: list[Bar]

    def __init__(self, *, total: int | None, desc: str, disable: bool, **_: Any) -> None:
        self.total, self.desc, self.disable, self.n = total, desc, disable, 0
        self.made.append(self)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int) -> None:
        self.n += n

    def refresh(self) -> None:
        pass

    @staticmethod
    def write(text: str, file: Any) -> None:
        print(text, file=file)


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    monkeypatch.setattr(progress, "tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [], raising=False)
    return Bar.made


@pytest.fixture(scope="module")
def model() -> Any:
    return sinklens.load("rope")


@pytest.fixture(scope="module")
def prompts(model: Any) -> sinklens.Prompts:
    return sinklens.prompts(model, n=4, length=16)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_is_announced_is_counted(
    name: str,
    model: Any,
    prompts: sinklens.Prompts,
    bars: list[Bar],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In two batches: announced, planned, shown on one named bar, and in the result."""
    asked = {"draws": 2, "null_models": 2, "batch_size": 2, **registry.get(name).smallest}
    planned = sinklens.plan(name, model, prompts, **asked)
    shown = len(bars)
    result = sinklens.run(name, model, prompts, progress=True, **asked)
    known = result.provenance
    counted = (known["forwards"], known["forwards_with_random_weights"])
    assert (planned.forwards, planned.random_forwards) == counted
    assert (planned.prompts, planned.length, planned.model) == (4, 16, "rope")
    bar, *others = (bar for bar in bars[shown:] if not bar.disable)
    assert {other.desc for other in others} <= {"gradients"}
    assert bar.desc == name
    assert bar.total == bar.n == sum(counted)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"{name} on rope, 4 prompts of 16 tokens: {counted[0]} forwards")
    assert (f"and {counted[1]} of models with random weights" in said[0]) == bool(counted[1])
    assert ("; about" in said[0]) == (sum(counted) >= 20)


def test_a_plan_does_not_run_the_interventions(
    model: Any, prompts: sinklens.Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sinklens.engine.sweep import Sweep

    def run_group(*_: Any) -> None:
        raise AssertionError("an intervention was run")

    monkeypatch.setattr(Sweep, "run_group", run_group)
    planned = sinklens.plan("sink_head_ablation", model, prompts, heads="all", each=True)
    # 24 heads under 5 conditions and 5 draws of controls: at least one pass each.
    assert planned.forwards > 24 * 5
    assert planned.seconds is not None and 0 < planned.seconds < 600


def test_screened_runs_count_their_gradients(model: Any, prompts: sinklens.Prompts) -> None:
    asked = {"screen": True, "top": 2, "draws": 1, "null_models": 0, "conditions": "zero"}
    said: list[Plan] = []
    with announced_to(said.append):
        result = sinklens.run("position0_patching", model, prompts, **asked)
    assert [plan.forwards for plan in said] == [result.provenance["forwards"]]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "1 s"), (42.4, "42 s"), (99.6, "2 min"), (540.0, "9 min"), (9000.0, "2.5 h")],
)
def test_times_as_one_speaks_of_them(seconds: float, said: str) -> None:
    assert progress.duration(seconds) == said
