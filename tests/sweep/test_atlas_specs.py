"""The specifications in `atlas/`: they are read, and name models that are there."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from sinklens import zoo
from sinklens.sweep.driver import read_sweep
from sinklens.sweep.spec import parse, read_toml
from tests.architectures.models import ARCHITECTURES
from tests.conftest import SMOLLM2_FILE

FOLDER = Path(__file__).parents[2] / "atlas"
COVERED = {
    "EleutherAI/pythia-": "Pythia",
    "allenai/OLMo-2-": "OLMo 2",
    "allenai/Olmo-3-": "OLMo 3",
    "allenai/OLMoE-": "OLMoE",
    "meta-llama/Llama-3": "Llama 3",
    "Qwen/Qwen2.5-": "Qwen 2.5",
    "Qwen/Qwen3-": "Qwen 3",
    "google/gemma-2-": "Gemma 2",
    "google/gemma-3-": "Gemma 3",
    "mistralai/Mistral-": "Mistral",
    "openai-community/gpt2": "GPT-2",
    "openai/gpt-oss-": "GPT-OSS",
}
"""By how a Hub id begins, the architecture that stands for it on the page of limits."""


def test_open_models_are_of_tried_architectures() -> None:
    file = FOLDER / "open_models.toml"
    names = [one.name for one in parse(read_toml(file), FOLDER).models]
    assert len(names) == len(set(names)) == 30
    for name in names:
        (known,) = [tried for start, tried in COVERED.items() if name.startswith(start)]
        assert known in ARCHITECTURES
    assert {start for start in COVERED if any(name.startswith(start) for name in names)} == {
        *COVERED
    }
    tasks = read_sweep(file).tasks
    assert len(tasks) == 6 * (28 + 2 * 8)


def test_open_models_are_spelled_as_transformer_lens_spells_them() -> None:
    listed = resources.files("transformer_lens") / "tools/model_registry/data/supported_models.json"
    spelled = {one["model_id"] for one in json.loads(listed.read_text("utf-8"))["models"]}
    names = {one.name for one in parse(read_toml(FOLDER / "open_models.toml"), FOLDER).models}
    assert not names - spelled


def test_all_that_is_shipped_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "shipped.toml").write_bytes((FOLDER / "shipped.toml").read_bytes())
    (tmp_path / SMOLLM2_FILE).touch()  # only found, not read
    tasks = read_sweep(tmp_path / "shipped.toml").tasks
    asked = {(one.checkpoint.name, one.checkpoint.step, one.checkpoint.model_seed) for one in tasks}
    there = {
        (name, step, seed)
        for name in zoo.names()
        for seed in zoo.seeds(name)
        for step in zoo.steps(name, seed)
    }
    there.add((SMOLLM2_FILE, None, None))
    assert asked == there and len(tasks) == 5 * len(there)
