"""The shipped models: their cards, their files, and the recipes that made them.

Losses are computed here with plain Hugging Face models and the formula written out, so that a card
is not checked with the code that wrote it.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import sinklens
from sinklens import zoo
from sinklens.models import shipped
from sinklens.models.prompts import Prompts, corpus
from sinklens.models.shipped import untrained
from sinklens.models.shipped.text import HELD_OUT_SEED, training_text
from sinklens.models.shipped.untrained import untrained_model
from sinklens.zoo import tasks
from sinklens.zoo.cards import findings, make_card, write
from sinklens.zoo.recipes import RECIPES
from sinklens.zoo.train import main, new_model, train

pytestmark = pytest.mark.slow

MEMBERS = Path(shipped.__file__).parent / "members"
TEXT_MEMBERS = [name for name in zoo.names() if zoo.card(name)["task"].startswith("next token")]
RUNS = [
    pytest.param(
        name,
        run,
        id=f"{name}-{run['file'].removesuffix('.safetensors')}",
        marks=[] if run["file"] == "model.safetensors" else pytest.mark.heavy,
    )
    for name in zoo.names()
    for run in zoo.card(name)["weights"]
]


def plain(name: str, run: dict[str, Any]) -> Any:
    """A member as Hugging Face reads it."""
    with zoo.folder(name, step=run["step"], seed=run["seed"]) as folder:
        config = transformers.AutoConfig.from_pretrained(folder)
        architecture = getattr(transformers, config.architectures[0])
        return architecture.from_pretrained(folder, dtype=torch.float32).eval()


def logits_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(input_ids=part).logits for part in tokens.split(64)])


@pytest.mark.parametrize(("name", "run"), RUNS)
def test_the_loss_is_that_of_the_card(name: str, run: dict[str, Any]) -> None:
    card = zoo.card(name)
    bridge = sinklens.load(name)
    tokens = sinklens.prompts(bridge, n=tasks.HELD_OUT_PROMPTS, length=card["length"]).tokens
    labels, shift = tokens.clone(), 1
    labels[:, :2] = tasks.IGNORED  # predictions made at positions >= 1
    if name == "encoder":
        (tokens, labels), shift = tasks.mask_tokens(tokens, HELD_OUT_SEED, 0), 0
    logits = logits_of(plain(name, run), tokens)
    end = logits.shape[1] - shift
    loss = torch.nn.functional.cross_entropy(
        logits[:, :end].flatten(0, 1), labels[:, shift:].flatten(), ignore_index=tasks.IGNORED
    )
    assert float(loss) == pytest.approx(run["figures"]["held-out loss"]["value"], abs=1e-3)


@pytest.mark.parametrize("name", zoo.names())
def test_the_bridge_computes_what_hugging_face_computes(name: str) -> None:
    bridge = sinklens.load(name)
    tokens = sinklens.prompts(bridge, n=4, length=32).tokens
    with torch.no_grad():
        found = bridge(tokens)
    expected = logits_of(plain(name, zoo.card(name)["weights"][0]), tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", zoo.names())
def test_the_profile_is_that_of_the_card(name: str) -> None:
    card = zoo.card(name)
    for run in card["weights"]:
        if run["step"] != card["recipe"]["steps"]:
            continue
        model = sinklens.load(name, seed=run["seed"])
        prompts = sinklens.prompts(model, length=card["length"])
        assert prompts.bos == card["bos"]
        result = sinklens.run("sink_profile", model, prompts, progress=False)
        assert len(result.effects) > 3
        for row in result.effects:
            stated = run["figures"][f"{row.metric} {row.condition}"]
            assert row.value == pytest.approx(stated["value"], abs=1e-3)
            assert row.baseline == pytest.approx(stated["uniform"], abs=1e-3)
        spike, norm_ratio = spike_and_norm_ratio(model, prompts.tokens)
        assert spike == pytest.approx(run["figures"]["spike"]["value"], rel=1e-3)
        assert norm_ratio == pytest.approx(run["figures"]["norm ratio"]["value"], rel=1e-3)


def spike_and_norm_ratio(model: Any, tokens: torch.Tensor) -> tuple[float, float]:
    """From the cache: the largest entry over the median one, and the norm at position 0."""
    sites = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)]
    sites.append(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post")
    _, cache = model.run_with_cache(tokens, names_filter=sites)
    spikes, ratios = [], []
    for site in sites:
        size, norms = cache[site].abs().flatten(1), cache[site].norm(dim=-1)
        spikes.append(float((size.amax(1) / size.median(1).values).mean()))
        ratios.append(float(norms[:, 0].mean() / norms[:, 1:].mean()))
    return max(spikes), max(ratios)


@pytest.mark.parametrize("name", zoo.names())
def test_the_card_belongs_to_its_recipe(name: str, tmp_path: Path) -> None:
    card, recipe = zoo.card(name), RECIPES[name]
    config = json.loads((MEMBERS / name / "config.json").read_text())
    fresh = new_model(recipe, 0)
    fresh.config.save_pretrained(tmp_path)
    assert config == json.loads((tmp_path / "config.json").read_text())
    assert card["parameters"] == sum(p.numel() for p in fresh.parameters())
    assert config["architectures"] == [type(fresh).__name__]
    stored = plain(name, card["weights"][0])
    assert {k: tuple(v.shape) for k, v in stored.state_dict().items()} == {
        k: tuple(v.shape) for k, v in fresh.state_dict().items()
    }
    made = json.loads(json.dumps(make_card(recipe, card["weights"], card["parameters"])))
    untrained = made.pop("untrained")  # rounding differs between processors
    assert untrained == pytest.approx(card["untrained"], abs=0.1)
    assert made == {key: card[key] for key in card if key not in ("untrained", "findings")}
    assert zoo.seeds(name) == sorted(recipe.seeds)
    assert zoo.steps(name) == sorted({0, recipe.steps, *recipe.checkpoints})
    for run in card["weights"]:
        for change in run.get("half_precision_change", {}).values():
            assert abs(change) < 1e-3
    assert card["findings"] == findings(card, {other: zoo.card(other) for other in zoo.names()})
    write(card, tmp_path)
    assert (tmp_path / "README.md").read_text() == (MEMBERS / name / "README.md").read_text()


@pytest.mark.parametrize("name", TEXT_MEMBERS)
def test_members_have_the_same_size_and_schedule(name: str) -> None:
    card, base = zoo.card(name), zoo.card("rope")
    assert card["parameters"] == pytest.approx(base["parameters"], rel=0.2)
    same = {"checkpoints", "seeds"}
    assert {k: v for k, v in card["recipe"].items() if k not in same} == {
        k: v for k, v in base["recipe"].items() if k not in same
    }


def test_all_of_it_fits() -> None:
    text = Path(sinklens.__file__).parent / "data" / "sotu_train.txt.xz"
    files = [text, *(file for file in MEMBERS.rglob("*") if file.is_file())]
    size = sum(file.stat().st_size for file in files)
    assert size <= 84e6  # the wheel compresses it; 80 MB there


@pytest.mark.parametrize("name", zoo.names())
def test_step_0_is_made_again_from_the_seed(name: str) -> None:
    for seed in zoo.seeds(name):
        first = new_model(RECIPES[name], seed).state_dict()
        loaded = plain(name, {"step": 0, "seed": seed}).state_dict()
        assert all(torch.equal(loaded[k], v.half().float()) for k, v in first.items())


def test_step_0_knows_where_it_came_from() -> None:
    origin = sinklens.origin(sinklens.load("rope", step=0))
    assert (origin.kind, origin.name, origin.step) == ("shipped", "rope", 0)


def test_first_weights_that_are_not_those_of_the_training_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As another version of torch might draw them: here those of another seed."""
    sinklens.load("postnorm", step=0)
    monkeypatch.setattr(
        untrained,
        "untrained_model",
        lambda config, seed, first_weights: untrained_model(config, 7, first_weights),
    )
    with pytest.raises(sinklens.SinklensError, match=r"other first weights .* step: 32, 64"):
        sinklens.load("postnorm", step=0)


def test_checkpoints_and_seeds_are_different_models() -> None:
    card = zoo.card("rope")
    assert len({run["sha256"] for run in card["weights"]}) == len(card["weights"])
    early, late = (sinklens.load("rope", step=step) for step in (32, 2048))
    tokens = sinklens.prompts(late, n=16).tokens
    assert (
        sinklens.sink_scores(early, tokens).max() < 0.3 < sinklens.sink_scores(late, tokens).max()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "ropes"}, "did you mean rope"),
        ({"source": "rope", "step": 5}, "no checkpoint of step 5 for seed 0; there is: 0, 32, 64"),
        ({"source": "rope", "seed": 1, "step": 64}, "seed 1; there is: 0, 4000"),
        ({"source": "rope", "seed": 9}, "no seed 9; there is: 0, 1, 2"),
        ({"source": "owner/model", "step": 5}, "owner/model is a hub id, .* by revision"),
    ],
)
def test_bad_names(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(sinklens.SinklensError, match=message):
        sinklens.load(**arguments)


def test_bad_names_without_loading() -> None:
    with pytest.raises(sinklens.SinklensError, match="no seed 9; there is: 0, 1, 2"):
        zoo.steps("rope", 9)
    prompts = Prompts(torch.ones(2, 8, dtype=torch.long), False, "strings")
    with pytest.raises(sinklens.SinklensError, match="did you mean rope"):
        zoo.own_prompts("ropes", prompts)


def test_a_folder_goes_on_only_with_the_run_that_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ntk` has the shapes of `rope`, and could go on from its weights without an error."""
    state = tmp_path / "rope-seed0" / "state"
    state.mkdir(parents=True)
    log = {"name": "rope", "seed": 0, "step": 2, "seconds": 1.0, "loss": []}
    (state / "log.json").write_text(json.dumps(log))
    for name, seed in (("ntk", 0), ("rope", 1)):
        with pytest.raises(sinklens.SinklensError, match=f"a run of rope with seed 0, .* {name}"):
            train(RECIPES[name], state.parent, seed=seed)
    monkeypatch.chdir(tmp_path)  # where a command without --out puts it
    (tmp_path / "ntk-seed3").symlink_to("rope-seed0")
    monkeypatch.setattr("sys.argv", ["train", "ntk", "--seed", "3"])
    with pytest.raises(SystemExit):
        main()
    assert [file.name for file in state.iterdir()] == ["log.json"]
    with pytest.raises(sinklens.SinklensError, match=r"of rope .* another version of the recipe"):
        train(RECIPES["rope"], state.parent)  # a run of before there were digests


def test_another_recipe_has_another_digest() -> None:
    recipe = RECIPES["encoder"]
    assert len({one.digest() for one in RECIPES.values()}) == len(RECIPES)
    assert dataclasses.replace(recipe, description="other words").digest() == recipe.digest()
    for change in (
        {"weight_decay": 0.5},
        {"first_weights": None},
        {"config": RECIPES["rope"].config},
    ):
        assert dataclasses.replace(recipe, **change).digest() != recipe.digest()


@pytest.mark.parametrize(
    ("file", "arguments"),
    [("model", {}), ("step64", {"step": 64}), ("seed1", {"seed": 1})],
)
def test_a_damaged_file_is_named(
    file: str, arguments: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(MEMBERS / "rope", tmp_path / "members" / "rope")
    weights = tmp_path / "members" / "rope" / f"{file}.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    monkeypatch.setattr(shipped.resources, "files", lambda _: tmp_path)
    with pytest.raises(sinklens.SinklensError, match=f"{file}.safetensors .* rope is damaged"):
        sinklens.load("rope", **arguments)
    weights.unlink()
    with pytest.raises(sinklens.SinklensError, match=f"{file}.safetensors .* rope is missing"):
        sinklens.load("rope", **arguments)


def test_the_prompts_corpus_was_not_trained_on() -> None:
    trained = set(training_text().splitlines())
    shipped = corpus().splitlines()
    assert len(shipped) == 33 and len(trained) == 200 and not trained & set(shipped)


@pytest.mark.parametrize("name", ["rope", "backcopy-1"])
def test_training_repeats_bit_for_bit_also_after_a_stop(name: str, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    state = torch.get_rng_state()
    try:
        for folder, stops in (("straight", [4]), ("stopped", [2, 4])):
            for stop in stops:
                train(RECIPES[name], tmp_path / folder, stop_at=stop)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)
    first, second = (
        load_file(tmp_path / folder / "state" / "4.safetensors")
        for folder in ("straight", "stopped")
    )
    assert first.keys() == second.keys() and len(first) > 10
    assert all(torch.equal(first[key], second[key]) for key in first)
    start = new_model(RECIPES[name], 0).state_dict()
    moved = [k for k, v in start.items() if not torch.equal(first[f"weight.{k}"], v)]
    frozen = [k for k in start if k.endswith(RECIPES[name].frozen)]
    assert set(moved) == set(start) - set(frozen)
    log = json.loads((tmp_path / "stopped" / "state" / "log.json").read_text())
    assert log["step"] == 4
    # The tokenizer that was shipped is the one that the training text gives.
    assert json.loads((MEMBERS / name / "tokenizer.json").read_text()) == json.loads(
        (tmp_path / "straight" / "tokenizer.json").read_text()
    )


def test_the_encoder_starts_from_positions_that_know_their_distance() -> None:
    positions = new_model(RECIPES["encoder"], 0).bert.embeddings.position_embeddings.weight
    products = (positions @ positions.T).detach().double()
    frequencies = 10000 ** (-torch.arange(64, dtype=torch.float64) / 64)
    for distance in (0, 1, 5, 100):
        wanted = 2 * 0.03**2 * float((distance * frequencies).cos().sum())
        assert torch.allclose(products.diagonal(distance), torch.tensor(wanted).double(), atol=1e-5)


def test_the_encoder_learned_to_attend() -> None:
    figures = zoo.card("encoder")["weights"][0]["figures"]
    without = figures["held-out loss without context"]["value"]
    assert figures["held-out loss"]["value"] < without - 1


def test_the_page_of_models_prints_the_figures_of_the_cards() -> None:
    page = (Path(zoo.__file__).parents[2] / "docs" / "models.md").read_text("utf-8")
    figures = zoo.card("encoder")["weights"][0]["figures"]
    assert f"a loss of {figures['held-out loss without context']['value']:.3f}" in page
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    printed = {row[0].strip("|` "): row[2:] for row in rows if len(row) == 6}
    assert sorted(printed) == zoo.names()
    keys = {"sink_mass position0": 3, "sink_rate gu": 2, "spike": 0, "held-out loss": 3}
    for name, cells in printed.items():
        card = zoo.card(name)
        ends = [run for run in card["weights"] if run["step"] == card["recipe"]["steps"]]
        for cell, (key, digits) in zip(cells, keys.items(), strict=True):
            mean = sum(run["figures"][key]["value"] for run in ends) / len(ends)
            assert float(cell.split()[0].rstrip("|")) == pytest.approx(mean, abs=0.51 * 10**-digits)


def test_the_loss_of_rope_on_the_predictions_of_no_bos() -> None:
    """The figure beside the loss of `no-bos`, which never predicts a second token."""
    losses = []
    for seed in zoo.seeds("rope"):
        model = sinklens.load("rope", seed=seed)
        prompts = sinklens.prompts(model, n=tasks.HELD_OUT_PROMPTS, length=64)
        later = range(2, prompts.length - 1)
        clean = sinklens.evaluate(model, prompts, [], ["loss"], positions=later, progress=False)
        losses.append(float(clean.clean.mean()))
    page = (Path(zoo.__file__).parents[2] / "docs" / "models.md").read_text("utf-8")
    [printed] = re.findall(r"`rope`: ([0-9.]+) on the same tokens", page)
    assert float(printed) == pytest.approx(sum(losses) / len(losses), abs=0.51e-3)


def test_findings_say_which_variance_is_assumed() -> None:
    lines = zoo.card("postnorm")["findings"]
    assert "significantly different (t test over seeds, p = " in lines[0]
    assert "rope has" in lines[0]
    [rate] = [line for line in lines if line.startswith("sink rate") and "qknorm has" in line]
    assert "one seed each" not in rate  # three of 0, and one
    assert "no variation between the seeds" in rate
    [spike] = [line for line in lines if line.startswith("spike") and "qknorm has" in line]
    assert "assuming that qknorm, with one seed, has the same variance" in spike
    # Without BOS the second token of a window is not predicted, and it is a hard one.
    [loss] = [line for line in zoo.card("no-bos")["findings"] if line.startswith("held-out loss")]
    assert "not compared with rope" in loss
