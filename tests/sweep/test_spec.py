"""What a sweep is asked for: read into tasks, and refused before any work where it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sinklens.core.errors import SinklensError, UsageError
from sinklens.sweep.driver import read_sweep
from sinklens.sweep.spec import parse
from sinklens.sweep.tasks import expand, grouped, sharded

ASKED: dict[str, Any] = {"models": ["rope"], "experiments": ["sink_profile"]}


def tasks_of(**asked: Any) -> Any:
    return expand(parse(ASKED | asked, Path.cwd()))


def test_every_combination_is_a_task() -> None:
    models = ["nope", {"name": "rope", "steps": [0, 64], "model_seeds": [0]}]
    experiments = ["sink_profile", {"name": "bos_replacement", "conditions": ["zero"]}]
    tasks = tasks_of(models=models, seeds=[0, 5], experiments=experiments)
    assert len(tasks) == 3 * 2 * 2 == len({task.name for task in tasks})
    first = tasks[0]
    assert (first.checkpoint.name, first.seed, first.experiment) == ("nope", 0, "sink_profile")
    assert [str(task.checkpoint) for task in tasks[4::4]] == [
        "rope step0 seed0",
        "rope step64 seed0",
    ]
    assert tasks[1].settings == {"conditions": ["zero"]}
    assert first.name.startswith("nope-sink_profile-0-")


def test_all_checkpoints_are_those_that_ship() -> None:
    tasks = tasks_of(models=[{"name": "rope", "steps": "all", "model_seeds": "all"}])
    found = [(task.checkpoint.model_seed, task.checkpoint.step) for task in tasks]
    assert found[:9] == [(0, s) for s in (0, 32, 64, 128, 256, 512, 1024, 2048, 4000)]
    assert found[9:] == [(1, 0), (1, 4000), (2, 0), (2, 4000)]


def test_a_name_is_of_all_that_decides_the_numbers(tiny_models: Path) -> None:
    names = [
        tasks_of(**asked)[0].name
        for asked in (
            {},
            {"seeds": [1]},
            {"threads": 2},
            {"texts": [{"n": 2}]},
            {"texts": [{"bos": False}]},
            {"settings": {"draws": 1}},
            {"models": [{"name": "rope", "dtype": "float64"}]},
        )
    ]
    assert len(set(names)) == len(names)
    # Defaults that are spelled out, devices and the place of the folder are none of it.
    assert tasks_of(settings={"draws": 5})[0].name == names[0]
    assert tasks_of(models=[{"name": "rope", "device": "cpu"}])[0].name == names[0]
    assert tasks_of(ray={"num_gpus": 1})[0].name == names[0]


def test_shards_and_groups_hold_every_task_once() -> None:
    tasks = tasks_of(models=["rope", "nope", "ntk"], seeds=[0, 1, 2])
    for count in (1, 2, 4, 20):
        parts = [sharded(tasks, number, count) for number in range(count)]
        assert [task for part in parts for task in part] == tasks
    assert [len(group.tasks) for group in grouped(tasks, 1)] == [3, 3, 3]
    assert [len(group.tasks) for group in grouped(tasks, 2)] == [1] * 9  # none is idle
    assert {len({t.checkpoint for t in group.tasks}) for group in grouped(tasks, 1)} == {1}


def test_a_pattern_is_every_model_that_matches(tiny_models: Path) -> None:
    tasks = read_sweep(tiny_models / "spec.toml").tasks
    assert [task.checkpoint.name for task in tasks[::4]] == ["models/gpt2", "models/llama"]
    assert Path(tasks[0].checkpoint.source).is_absolute()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"model": ["rope"]}, "unknown key of a sweep 'model'; did you mean models"),
        ({"models": []}, 'a sweep needs models, such as models = ["rope"]'),
        ({"models": "rope"}, "models is a list of names and tables"),
        ({"models": ["ropee"]}, "unknown model 'ropee'; did you mean rope"),
        ({"models": ["no/such/folder/*"]}, "no model matches"),
        ({"models": ["./nowhere"]}, "there is no file or folder"),
        ({"models": [{"name": "rope", "step": [1]}]}, "key of a model 'step'; did you mean steps"),
        ({"models": [{"name": "rope", "steps": [65]}]}, "no checkpoint of step 65"),
        ({"models": [{"name": "rope", "model_seeds": [9]}]}, "has no seed 9; there is: 0, 1, 2"),
        (
            {"models": [{"name": "rope", "device": "cpu", "device_map": "auto"}]},
            "device and device_map say different things",
        ),
        (
            {"models": [{"name": "rope", "dtype": "float33"}]},
            "dtype 'float33'; did you mean float32",
        ),
        ({"models": [{"name": "rope", "revisions": ["a"]}]}, "revisions pick versions of a Hub id"),
        ({"models": [{"name": "a/b", "steps": [1]}]}, "steps pick checkpoints of shipped models"),
        ({"models": [{"steps": [1]}]}, "a model needs a name"),
        ({"experiments": ["sink_profil"]}, "unknown experiment 'sink_profil'; did you mean"),
        ({"experiments": [{"draws": 1}]}, "an experiment needs a name"),
        (
            {"experiments": [{"name": "bos_replacement", "conditions": ["zeroo"]}]},
            "did you mean zero",
        ),
        ({"settings": {"drawz": 1}}, "did you mean draws"),
        ({"settings": {"draws": -1}}, "draws must be at least 0"),
        ({"settings": {"seed": 1}}, "use seeds"),
        ({"settings": 3}, "settings is a table"),
        ({"texts": ["nowhere.txt"]}, "there is no text"),
        ({"texts": [{"n": 0}]}, "prompts need n >= 1"),
        ({"texts": [{"lenght": 8}]}, "did you mean length"),
        ({"seeds": []}, "needs seeds"),
        ({"seeds": ["a"]}, "does not fit"),
        ({"threads": 0}, "threads of at least 1"),
    ],
)
def test_what_is_wrong_is_refused_with_near_names(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=r".") as caught:
        tasks_of(**asked)
    assert said in str(caught.value)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SinklensError, match=r"cannot read .*nowhere\.toml"):
        read_sweep(tmp_path / "nowhere.toml")
    (tmp_path / "bad.toml").write_text("models = [")
    with pytest.raises(UsageError, match=r"bad\.toml is no TOML"):
        read_sweep(tmp_path / "bad.toml")
    with pytest.raises(SinklensError, match="is no folder of a sweep"):
        read_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text('{"schema": ')
    with pytest.raises(SinklensError, match=r"sweep\.json is damaged.*writes it anew"):
        read_sweep(tmp_path)
    (tmp_path / "one.toml").write_text('models = ["rope"]\nexperiments = ["sink_profile"]')
    with pytest.raises(UsageError, match="shards count from 0/2 on"):
        read_sweep(tmp_path / "one.toml", (2, 2))
