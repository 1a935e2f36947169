"""The shipped model: its card, its file, and the recipe that made it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sinklens
from sinklens import zoo
from sinklens.zoo import corpus
from sinklens.zoo.recipes import RECIPES
from sinklens.zoo.train import train


def test_the_card_tells_what_is_measured_on_the_file() -> None:
    card = zoo.card("rope")
    model = sinklens.load("rope")
    assert card["bytes"] <= 4 * 2**20 and card["recipe"]["steps"] == 4000
    assert card["parameters"] == sum(p.numel() for p in model.original_model.parameters())
    prompts = sinklens.prompts(model, n=card["held_out_loss"]["prompts"])
    # The loss written out here: predictions made at positions >= 1.
    losses = []
    with torch.no_grad():
        for tokens in prompts.tokens.split(64):
            logits = model(tokens)[:, 1:-1]
            losses.append(
                torch.nn.functional.cross_entropy(
                    logits.transpose(1, 2), tokens[:, 2:], reduction="none"
                ).mean(-1)
            )
    assert float(torch.cat(losses).mean()) == pytest.approx(card["held_out_loss"]["nats"], abs=1e-3)
    mass = sinklens.run(
        "sink_profile", model, sinklens.prompts(model, n=card["sinks"]["prompts"]), progress=False
    )
    for row in mass.effects:
        stated = card["sinks"][f"{row.metric} {row.condition}"]
        assert row.value == pytest.approx(stated["value"], abs=1e-3)


def test_origin_and_bad_names() -> None:
    assert sinklens.origin(sinklens.load("rope")).kind == "shipped"
    for arguments, message in (
        ({"source": "ropes"}, "did you mean rope"),
        ({"source": "rope", "step": 5}, "no checkpoint of step 5"),
        ({"source": "rope", "seed": 9}, "no seed 9"),
    ):
        with pytest.raises(sinklens.SinklensError, match=message):
            sinklens.load(**arguments)


def test_a_damaged_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "zoo"
    shutil.copytree(Path(zoo.__file__).parent / "members", copy / "members")
    file = copy / "members" / "rope" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    monkeypatch.setattr(zoo.resources, "files", lambda _: copy)
    with pytest.raises(sinklens.SinklensError, match="rope are damaged"):
        sinklens.load("rope")


def test_the_prompts_corpus_was_not_trained_on() -> None:
    trained = set(corpus.training_text().splitlines())
    shipped = sinklens.text.corpus().splitlines()
    assert len(shipped) == 33 and len(trained) == 200 and not trained & set(shipped)


def test_training_repeats_bit_for_bit_also_after_a_stop(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    state = torch.get_rng_state()
    try:
        for name, stops in (("straight", [4]), ("stopped", [2, 4])):
            for stop in stops:
                train(RECIPES["rope"], tmp_path / name, stop_at=stop)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)
    first, second = (
        load_file(tmp_path / name / "state" / "4.safetensors") for name in ("straight", "stopped")
    )
    assert first.keys() == second.keys() and len(first) > 100
    assert all(torch.equal(first[key], second[key]) for key in first)
    log = json.loads((tmp_path / "stopped" / "state" / "log.json").read_text())
    assert log["step"] == 4
    # The tokenizer that was shipped is the one that the training text gives.
    shipped = Path(zoo.__file__).parent / "members" / "rope" / "tokenizer.json"
    assert json.loads(shipped.read_text()) == json.loads(
        (tmp_path / "straight" / "tokenizer.json").read_text()
    )
