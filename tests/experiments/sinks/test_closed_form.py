"""Every row of every experiment on the constructed model is what its formulas say, to 1e-5.

A case is a run of an experiment; its `expect` says, in `ConstructedSink` formulas alone, what each
intervention does to each prompt. Which tokens, positions and heads were drawn is read from
`draws`; draws that are not recorded there (directions, derangements, the tokens of
`mean_token` and of control runs) are drawn again by the makers that users have, `seeded` included.
That repeats a draw, never a measurement: what follows from it is computed from the formulas.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy import stats

import sinklens
from sinklens.core.labels import row_label
from sinklens.hooks import patch_position0, replace_bos_embedding
from sinklens.hooks.matching import derangement
from sinklens.models.prompts import Prompts, random_prompts, repeated_prompts
from sinklens.results.result import ExperimentResult
from sinklens.runner.compare import UNREACHED
from sinklens.stats.effects import EffectSize
from sinklens.zoo.constructed import (
    BOS,
    N_HEADS,
    N_LAYERS,
    OTHER,
    SINK_HEAD,
    UNIFORM_HEAD,
    VOCABULARY,
    ConstructedRun,
    ConstructedSink,
    constructed_sink,
)

pytestmark = pytest.mark.slow

N_PROMPTS, LENGTH, DRAWS, SEED = 5, 16, 3, 1
TOLERANCE = 1e-5
AT_1 = 3  # a seed that makes position 1 a control
WORDS = range(OTHER, len(VOCABULARY))
LAYERS = range(N_LAYERS)
SINK_HEADS = [(layer, SINK_HEAD) for layer in LAYERS]
UNIFORM_HEADS = [(layer, UNIFORM_HEAD) for layer in LAYERS]
ALL_HEADS = sorted(SINK_HEADS + UNIFORM_HEADS)
Head = tuple[int, int]

MODELS = {
    "default": ConstructedSink(),
    "weak": ConstructedSink(sink_logit=2.0, word_vote=-1.0, bos_vote=0.5, bos_scale=1.5),
}


@dataclass(frozen=True)
class Setup:
    """A constructed model, its formulas and what they say about the prompts."""

    formulas: ConstructedSink
    model: Any
    prompts: Prompts
    clean: list[ConstructedRun]

    def edited(self, **edit: Any) -> list[ConstructedRun]:
        """The same edit of every prompt."""
        return [self.formulas.run(run.tokens, **edit) for run in self.clean]


@dataclass(frozen=True)
class Edit:
    """One intervention: the prompts under it, and where it is read.

    Attributes:
        runs: The prompts.
        position: Predictions after it count.
        first: The first layer whose attention it can change; that of layers from there on counts.
    """

    runs: list[ConstructedRun]
    position: int = 0
    first: int = 0


@dataclass(frozen=True)
class Expected:
    """The rows of one condition; draws are averaged within a prompt."""

    condition: str
    treatment: list[Edit]
    control: list[Edit] = field(default_factory=list)
    layer: int | None = None
    head: int | None = None


@dataclass(frozen=True)
class Case:
    """A run of an experiment, and what comes out."""

    experiment: str
    settings: Mapping[str, Any]
    expect: Callable[[Setup, ExperimentResult], list[Expected]]
    metrics: tuple[str, ...] = ("loss", "kl", "sink_mass")


def draws_made(result: ExperimentResult) -> dict[str, Any]:
    drawn: dict[str, Any] = result.draws
    return drawn


def seed_of(result: ExperimentResult) -> int:
    return int(result.settings["seed"])


# --- bos_replacement


def expect_bos_replacement(setup: Setup, result: ExperimentResult) -> list[Expected]:
    drawn = draws_made(result)
    draws = max(1, result.settings["draws"])
    expected = []
    for condition in result.settings["conditions"] or ("mean", "zero", "random_token", "gaussian"):
        random = condition in ("random_token", "gaussian")
        expected.append(
            Expected(
                condition,
                [
                    bos_replaced(setup, result, condition, 0, draw)
                    for draw in range(draws if random else 1)
                ],
                [
                    bos_replaced(setup, result, condition, position, draw)
                    for draw, position in enumerate(drawn["control_positions"])
                ],
            )
        )
    return expected


def bos_replaced(
    setup: Setup, result: ExperimentResult, condition: str, position: int, draw: int
) -> Edit:
    embedding = setup.formulas.embedding
    if condition == "gaussian":
        # The direction is not recorded: the maker draws it again.
        maker = replace_bos_embedding(setup.model, condition, seed=seed_of(result), draw=draw)
        direction = recorded_direction(maker)
        vectors = [
            direction * np.linalg.norm(embedding[run.tokens[position]]) for run in setup.clean
        ]
    elif condition == "mean":
        vectors = [embedding.mean(axis=0)] * N_PROMPTS
    elif condition == "zero":
        vectors = [np.zeros_like(embedding[0])] * N_PROMPTS
    elif condition == "random_token":
        vectors = [embedding[draws_made(result)["tokens"][draw]]] * N_PROMPTS
    else:
        word = condition.removeprefix("token:")
        vectors = [embedding[VOCABULARY.index(word)]] * N_PROMPTS
    return residual_written(setup, 0, position, vectors)


def recorded_direction(intervention: Any) -> np.ndarray:
    """The unit vector of a redirecting hook."""
    direction = intervention.fwd_hooks[0][1].keywords["direction"].double().numpy()
    return np.asarray(direction / np.linalg.norm(direction))


def residual_written(
    setup: Setup, layer: int, position: int, vectors: Sequence[np.ndarray]
) -> Edit:
    return Edit(
        [
            setup.formulas.run(run.tokens, residual={(layer, position): vector})
            for run, vector in zip(setup.clean, vectors, strict=True)
        ],
        position,
        layer,
    )


# --- position0_patching


def expect_patching(
    part: str, conditions: Sequence[str]
) -> Callable[[Setup, ExperimentResult], list[Expected]]:
    def expect(setup: Setup, result: ExperimentResult) -> list[Expected]:
        positions = draws_made(result)["control_positions"]
        assert len(positions) == result.settings["draws"]
        expected = []
        for condition, layer in itertools.product(conditions, LAYERS):
            draws = max(1, len(positions)) if condition == "redirected" else 1
            write = {"residual": residual_patch, "key": key_patch, "value": value_patch}[part]
            expected.append(
                Expected(
                    f"{condition}:{part}",
                    [write(setup, result, condition, layer, 0, draw) for draw in range(draws)],
                    [
                        write(setup, result, condition, layer, position, draw)
                        for draw, position in enumerate(positions)
                    ],
                    layer,
                )
            )
        return expected

    return expect


def other_runs(
    setup: Setup, result: ExperimentResult, position: int, draw: int
) -> list[ConstructedRun]:
    """For each prompt the run in which another token is at the position."""
    if position == 0:
        others = draws_made(result)["other_tokens"]
    else:
        others = draws_made(result)["control_tokens"][draw]
    runs = []
    for run, token in zip(setup.clean, others, strict=True):
        assert token in WORDS and token != run.tokens[position]
        tokens = run.tokens.copy()
        tokens[position] = token
        runs.append(setup.formulas.run(tokens))
    return runs


def mean_token_runs(setup: Setup, result: ExperimentResult) -> list[ConstructedRun]:
    """256 ordinary tokens as prompts of length 1."""
    tokens = draws_made(result)["mean_tokens"]
    assert len(tokens) == 256 and set(tokens) <= set(WORDS)
    by_token = {token: setup.formulas.run([token]) for token in WORDS}
    return [by_token[token] for token in tokens]


def residual_patch(
    setup: Setup, result: ExperimentResult, condition: str, layer: int, position: int, draw: int
) -> Edit:
    own = [run.residual[layer, position] for run in setup.clean]
    if condition == "other_token" or (condition == "mean_token" and position > 0):
        runs = other_runs(setup, result, position, draw)
        vectors = [run.residual[layer, position] for run in runs]
    elif condition == "mean_token":
        mean = np.mean([run.residual[layer, 0] for run in mean_token_runs(setup, result)], axis=0)
        vectors = [mean] * N_PROMPTS
    elif condition == "zero":
        vectors = [np.zeros_like(vector) for vector in own]
    elif condition == "rescaled":
        norms = [np.linalg.norm(run.residual[layer, 1:], axis=-1) for run in setup.clean]
        vectors = [vector / np.linalg.norm(vector) * np.mean(norms) for vector in own]
    else:
        maker = patch_position0(setup.model, layer, condition, seed=seed_of(result), draw=draw)
        direction = recorded_direction(maker)
        vectors = [direction * np.linalg.norm(vector) for vector in own]
    return residual_written(setup, layer, position, vectors)


def key_patch(
    setup: Setup, result: ExperimentResult, condition: str, layer: int, position: int, draw: int
) -> Edit:
    if position > 0:
        # All words have key 0, so neither zero nor another word's key is an edit.
        assert not any(run.key[layer, position] for run in setup.clean)
        return Edit(setup.clean, position)
    if condition == "other_token":
        keys = [run.key[layer, 0] for run in other_runs(setup, result, 0, draw)]
    elif condition == "mean_token":
        keys = [np.mean([run.key[layer, 0] for run in mean_token_runs(setup, result)])] * N_PROMPTS
    else:
        keys = [0.0] * N_PROMPTS
    runs = [
        setup.formulas.run(run.tokens, key={layer: float(key)})
        for run, key in zip(setup.clean, keys, strict=True)
    ]
    return Edit(runs, first=layer)


def value_patch(
    setup: Setup, result: ExperimentResult, condition: str, layer: int, position: int, draw: int
) -> Edit:
    if condition == "zero":
        values = [np.zeros(len(VOCABULARY))] * N_PROMPTS
    elif condition == "other_token" or position > 0:
        runs = other_runs(setup, result, position, draw)
        values = [run.value[layer, position] for run in runs]
    else:
        mean = np.mean([run.value[layer, 0] for run in mean_token_runs(setup, result)], axis=0)
        values = [mean] * N_PROMPTS
    edited = []
    for run, value in zip(setup.clean, values, strict=True):
        if position == 0:
            edited.append(setup.formulas.run(run.tokens, value={layer: value}))
            continue
        # z_i = sum_j A_ij v_j, of which an edit of v_p changes one term, for queries i > p.
        z = {}
        for head in range(N_HEADS):
            weight = np.where(
                np.arange(LENGTH) > position, run.pattern[layer, head, :, position], 0
            )
            change = np.outer(weight, value - run.value[layer, position])
            z[layer, head] = run.z[layer, head] + change
        edited.append(setup.formulas.run(run.tokens, z=z))
    return Edit(edited, position, layer + 1)


# --- sink_head_ablation


def expect_ablation(
    conditions: Sequence[str], heads: Sequence[Head], each: bool = False
) -> Callable[[Setup, ExperimentResult], list[Expected]]:
    def expect(setup: Setup, result: ExperimentResult) -> list[Expected]:
        drawn = draws_made(result)
        assert parse(drawn["heads"]) == list(heads)
        expected = []
        for condition in conditions:
            for group in [[head] for head in heads] if each else [list(heads)]:
                if "drop_edge" in condition:
                    expected.append(edges_dropped(setup, drawn, condition, group, each))
                else:
                    expected += outputs_replaced(setup, result, condition, group)
        return expected

    return expect


def parse(labels: Sequence[str]) -> list[Head]:
    heads = []
    for label in labels:
        match = re.fullmatch(r"L(\d+)H(\d+)", label)
        assert match, label
        heads.append((int(match[1]), int(match[2])))
    return heads


def where(heads: Sequence[Head]) -> dict[str, int]:
    """Layer and head of a row about one head."""
    return {"layer": heads[0][0], "head": heads[0][1]} if len(heads) == 1 else {}


def edges_dropped(
    setup: Setup, drawn: dict[str, Any], condition: str, heads: list[Head], each: bool
) -> Expected:
    renormalise = condition == "drop_edge"

    def dropped(these: list[Head], key: int) -> Edit:
        runs = setup.edited(dropped=these, dropped_key=key, renormalise=renormalise)
        return Edit(runs, key, min(layer for layer, _ in these))

    if each:  # the edge to position 0 of other heads, each alone
        control = [dropped(parse(labels), 0) for labels in drawn["control_heads"][condition]]
    else:
        control = [dropped(heads, position) for position in drawn["control_positions"]]
    return Expected(condition, [dropped(heads, 0)], control, **where(heads))


def outputs_replaced(
    setup: Setup, result: ExperimentResult, condition: str, heads: list[Head]
) -> list[Expected]:
    drawn, seed = draws_made(result), seed_of(result)
    draws = DRAWS if condition == "resample" else 1

    @cache
    def runs(these: tuple[Head, ...], draw: int) -> list[ConstructedRun]:
        return written(setup, condition, these, seed, draw)

    def edit(these: list[Head], draw: int) -> Edit:
        # Only resampling differs by draw; the same heads are else the same draw.
        own = runs(tuple(these), draw if condition == "resample" else 0)
        return Edit(own, first=1 + min(layer for layer, _ in these))

    treatment = [edit(heads, draw) for draw in range(draws)]
    chosen = [parse(labels) for labels in drawn.get("control_heads", {}).get(condition, [])]
    control = [edit(these, draw) for draw, these in enumerate(chosen)]
    matched = drawn.get("treated_heads", {}).get(f"{condition}:matched", [])
    if not matched:
        return [Expected(condition, treatment, control, **where(heads))]
    own = [edit(parse(labels), draw) for draw, labels in enumerate(matched)]
    chosen = drawn["control_heads"][f"{condition}:matched"]
    control = [edit(parse(labels), draw) for draw, labels in enumerate(chosen)]
    return [
        Expected(condition, treatment, **where(heads)),
        Expected(f"{condition}:matched", own, control),
    ]


def written(
    setup: Setup, condition: str, heads: Sequence[Head], seed: int, draw: int
) -> list[ConstructedRun]:
    """The prompts with the outputs of heads replaced."""
    outputs = np.stack([run.z for run in setup.clean])  # prompt layer head pos vocab
    if condition == "zero":
        z = np.zeros_like(outputs)
    elif condition == "mean":
        z = np.empty_like(outputs)
        z[..., :1, :] = outputs[..., :1, :].mean(axis=0)
        z[..., 1:, :] = outputs[..., 1:, :].mean(axis=(0, 3), keepdims=True)
    else:
        # Which prompt stands in for which is not recorded: the public maker gives it again.
        order = derangement(setup.prompts.tokens, seed, draw).numpy()
        assert (order != np.arange(N_PROMPTS)).all()
        z = outputs[order]
    return [
        setup.formulas.run(run.tokens, z={head: z[(i, *head)] for head in heads})
        for i, run in enumerate(setup.clean)
    ]


# --- the cases

Z_CONDITIONS = ("zero", "mean", "resample")
EDGE_CONDITIONS = ("drop_edge", "drop_edge_unnormalised")
ABLATIONS = Z_CONDITIONS + EDGE_CONDITIONS
ANY_PART = ("other_token", "mean_token", "zero")
BOS_METRICS = ("loss", "kl", "sink_mass", "sink_rate", "position0_norm")
EVERY_BOS = ("mean", "zero", "random_token", "gaussian", "token:the")


def patching_case(part: str, *conditions: str, **settings: Any) -> Case:
    named = {"conditions": conditions} if settings.pop("named", True) else {}
    return Case(
        "position0_patching",
        {"part": part, **named, **settings},
        expect_patching(part, conditions),
    )


def ablation_case(conditions: Sequence[str], treated: Sequence[Head], **settings: Any) -> Case:
    return Case(
        "sink_head_ablation",
        settings if conditions == ABLATIONS else {"conditions": conditions, **settings},
        expect_ablation(conditions, treated, settings.get("each", False)),
    )


CASES = {
    "bos-defaults": Case("bos_replacement", {}, expect_bos_replacement, BOS_METRICS),
    "bos-every-condition": Case(
        "bos_replacement", {"conditions": EVERY_BOS}, expect_bos_replacement, BOS_METRICS
    ),
    # More conditions than a summary of two sentences each has room for.
    "bos-six-conditions": Case(
        "bos_replacement",
        {"conditions": (*EVERY_BOS, "token:other")},
        expect_bos_replacement,
        BOS_METRICS,
    ),
    "bos-no-draws": Case("bos_replacement", {"draws": 0}, expect_bos_replacement, BOS_METRICS),
    "bos-small-batches": Case(
        "bos_replacement", {"batch_size": 2}, expect_bos_replacement, BOS_METRICS
    ),
    "residual-tokens": patching_case("residual", *ANY_PART),
    "residual-rescaled": patching_case("residual", "rescaled"),
    "residual-redirected": patching_case("residual", "redirected"),
    "residual-defaults": patching_case(
        "residual", *ANY_PART, "rescaled", "redirected", named=False
    ),
    "residual-no-draws": patching_case(
        "residual", *ANY_PART, "rescaled", "redirected", named=False, draws=0
    ),
    "residual-small-batches": patching_case("residual", *ANY_PART, "redirected", batch_size=2),
    # This seed draws position 1, whose control runs are as short as a prompt can be.
    "residual-control-at-1": patching_case("residual", *ANY_PART, seed=AT_1),
    "value-control-at-1": patching_case("value", *ANY_PART, seed=AT_1),
    "rescaled-control-at-1": patching_case("residual", "rescaled", seed=AT_1),
    "heads-control-at-1": ablation_case(EDGE_CONDITIONS, SINK_HEADS, seed=AT_1),
    "bos-control-at-1": Case(
        "bos_replacement", {"seed": AT_1}, expect_bos_replacement, BOS_METRICS
    ),
    "key-no-draws": patching_case("key", *ANY_PART, named=False, draws=0),
    "value": patching_case("value", *ANY_PART, named=False),
    "value-small-batches": patching_case("value", *ANY_PART, batch_size=2),
    "value-no-draws": patching_case("value", *ANY_PART, named=False, draws=0),
    "heads-sink": ablation_case(ABLATIONS, SINK_HEADS),
    "heads-small-batches": ablation_case(ABLATIONS, SINK_HEADS, batch_size=2),
    "heads-each": ablation_case(ABLATIONS, SINK_HEADS, each=True),
    "heads-uniform": ablation_case(ABLATIONS, UNIFORM_HEADS, heads=("L0H1", "L1H1")),
    "heads-one": ablation_case(ABLATIONS, [(1, 0)], heads=("L1H0",)),
    "heads-three": ablation_case(ABLATIONS, ALL_HEADS[:3], heads=("L0H1", "L0H0", "L1H0")),
    "heads-all": ablation_case(ABLATIONS, ALL_HEADS, heads=("all",)),
    "heads-all-each": ablation_case(ABLATIONS, ALL_HEADS, heads=("all",), each=True),
}


@cache
def make_setup(name: str) -> Setup:
    formulas = MODELS[name]
    model = constructed_sink(formulas)
    prompts = sinklens.prompts(model, n=N_PROMPTS, length=LENGTH)
    tokens = prompts.tokens.numpy()
    assert prompts.bos and (tokens[:, 0] == BOS).all()
    assert len(np.unique(tokens, axis=0)) == N_PROMPTS
    return Setup(formulas, model, prompts, [formulas.run(row) for row in tokens])


@pytest.fixture(scope="module", params=MODELS)
def setup(request: pytest.FixtureRequest) -> Setup:
    return make_setup(request.param)


@cache
def run_case(model_name: str, case_name: str) -> ExperimentResult:
    setup, case = make_setup(model_name), CASES[case_name]
    settings = {"draws": DRAWS, "seed": SEED, "null_models": 0, **case.settings}
    return sinklens.run(case.experiment, setup.model, setup.prompts, progress=False, **settings)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def measured(metric: str, clean: ConstructedRun, edited: ConstructedRun, where: Edit) -> float:
    """A default metric, from the formulas, where an edit is read."""
    if metric == "loss":
        return edited.loss(where.position)
    if metric == "kl":
        return clean.kl(edited, where.position)
    if metric == "sink_mass":
        return float(edited.sink_mass[where.first :].mean()) if reaches(metric, where) else np.nan
    if metric == "sink_rate":
        return float((edited.pattern[..., 0].mean(axis=-1) > 0.3).mean())
    assert metric == "position0_norm"
    return float(np.linalg.norm(edited.residual[:, 0], axis=-1).max())


def per_prompt(setup: Setup, metric: str, edits: Sequence[Edit]) -> tuple[np.ndarray, np.ndarray]:
    """Value and baseline of each prompt, averaged over the draws."""
    values, baselines = (
        [
            [
                measured(metric, clean, edited if which else clean, edit)
                for clean, edited in zip(setup.clean, edit.runs, strict=True)
            ]
            for edit in edits
        ]
        for which in (True, False)
    )
    return np.mean(values, axis=0), np.mean(baselines, axis=0)


Place = tuple[str, str, str, int | None, int | None]


def place(effect: EffectSize) -> Place:
    return (effect.metric, effect.condition, effect.kind, effect.layer, effect.head)


def expected_rows(
    setup: Setup, expected: Sequence[Expected], metrics: Sequence[str]
) -> Iterator[tuple[Place, np.ndarray, np.ndarray, int]]:
    """Place, value and baseline of each prompt, and draws of all rows that there should be."""
    for metric, one in itertools.product(metrics, expected):

        def at(kind: str, metric: str = metric, one: Expected = one) -> Place:
            return (metric, one.condition, kind, one.layer, one.head)

        treatment = [edit for edit in one.treatment if reaches(metric, edit)]
        if not treatment:
            continue
        values, baselines = per_prompt(setup, metric, treatment)
        yield at("treatment"), values, baselines, len({id(edit.runs) for edit in treatment})
        if pairs := [pair for pair in compared(one) if reaches(metric, pair[0])]:
            own, control = zip(*pairs, strict=True)
            treated, untreated = per_prompt(setup, metric, own)
            values, baselines = per_prompt(setup, metric, control)
            draws = [len({id(edit.runs) for edit in side}) for side in (control, own)]
            yield at("control"), values, baselines, draws[0]
            yield at("contrast"), treated - untreated, values - baselines, max(draws)


def reaches(metric: str, edit: Edit) -> bool:
    """Whether an edit can change what a metric reads."""
    return metric != "sink_mass" or edit.first < N_LAYERS


def compared(one: Expected) -> Iterator[tuple[Edit, Edit]]:
    """Each draw of the treatment with one of the control, at the predictions and layers of both."""
    own, control = one.treatment, one.control
    if len(own) == len(control):
        pairs = list(zip(own, control, strict=True))
    else:
        pairs = list(itertools.product(own, control))
    for left, right in pairs:
        first = max(left.first, right.first)
        yield Edit(left.runs, right.position, first), Edit(right.runs, right.position, first)


def assert_rows(
    result: ExperimentResult, rows: Sequence[tuple[Place, np.ndarray, np.ndarray, int]]
) -> None:
    """The result has these rows and no others, per prompt and in the mean."""
    assert len(result.effects) == len(rows)
    number = {place(effect): i for i, effect in enumerate(result.effects)}
    assert set(number) == {row[0] for row in rows}
    wrong = []
    for at, values, baselines, n_draws in rows:
        effect = result.effects[number[at]]
        found = [
            result.per_prompt["value"][number[at]].numpy(),
            result.per_prompt["baseline"][number[at]].numpy(),
            np.array([effect.value, effect.baseline, effect.effect]),
        ]
        meant = [
            values,
            baselines,
            np.array([values.mean(), baselines.mean(), (values - baselines).mean()]),
        ]
        worst = max(np.abs(f - m).max() for f, m in zip(found, meant, strict=True))
        if not worst <= TOLERANCE:
            wrong.append(f"{at}: off by {worst:.2g}; found {found}, expected {meant}")
        assert (effect.n_prompts, effect.n_draws) == (N_PROMPTS, n_draws), at
        assert effect.queries is None
    assert not wrong, "\n".join([f"{len(wrong)} of {len(rows)} rows", *wrong])


def test_every_row_is_the_closed_form(setup: Setup, case: str) -> None:
    result = run_case(model_name(setup), case)
    expected = CASES[case].expect(setup, result)
    assert_rows(result, list(expected_rows(setup, expected, CASES[case].metrics)))
    assert result.settings["left_out"] == left_out(expected, CASES[case].metrics)


def left_out(expected: Sequence[Expected], metrics: Sequence[str]) -> dict[str, str]:
    """The rows that an edit in the last layer has none of: no attention is above it."""
    labels = []
    for one in expected:
        label = row_label(one.condition, one.layer, one.head)
        if not any(reaches("sink_mass", edit) for edit in one.treatment):
            labels.append(label)
        elif one.control and not any(reaches("sink_mass", own) for own, _ in compared(one)):
            labels.append(f"{label} against other_heads")
    return {f"sink_mass of {', '.join(labels)}": UNREACHED} if labels else {}


def model_name(setup: Setup) -> str:
    return next(name for name, formulas in MODELS.items() if formulas == setup.formulas)


def test_mean_effect_of_each_control_draw(setup: Setup, case: str) -> None:
    result = run_case(model_name(setup), case)
    expected = CASES[case].expect(setup, result)
    most = max(len(one.control) for one in expected)
    if most == 0:
        assert "control_draws" not in result.arrays
        assert any("No control" in note for note in result.notes())
        return
    array = result.arrays["control_draws"]
    assert array.dims == ("metric", "control", "draw")
    expected = [one for one in expected if one.control]
    assert array.coords["metric"] == list(CASES[case].metrics)
    for label, one in zip(array.coords["control"], expected, strict=True):
        assert label.startswith(one.condition)
    meant = np.full((len(CASES[case].metrics), len(expected), most), np.nan)
    for (i, metric), (j, one) in itertools.product(
        enumerate(CASES[case].metrics), enumerate(expected)
    ):
        for draw, edit in enumerate(one.control):
            values, baselines = per_prompt(setup, metric, [edit])
            meant[i, j, draw] = (values - baselines).mean()
    np.testing.assert_allclose(array.values.numpy(), meant, rtol=0, atol=TOLERANCE)


def test_what_was_drawn_is_allowed(setup: Setup, case: str) -> None:
    result = run_case(model_name(setup), case)
    drawn, draws = draws_made(result), result.settings["draws"]
    if "control_positions" in drawn:
        assert len(drawn["control_positions"]) == draws
        assert all(1 <= position <= LENGTH // 4 for position in drawn["control_positions"])
        if result.settings["seed"] == AT_1:
            assert 1 in drawn["control_positions"]
    assert all(token in WORDS for token in drawn.get("tokens", []))
    assert all(token in WORDS for token in drawn.get("other_tokens", []))
    heads = set(parse(drawn.get("heads", [])))
    treated = drawn.get("treated_heads", {})
    for condition, pools in drawn.get("control_heads", {}).items():
        for draw, labels in enumerate(pools):
            control = parse(labels)
            assert len(set(control)) == len(control)
            assert all(result.arrays["sink_mass"].values[head] <= 0.3 for head in control)
            if result.settings["each"]:
                assert len(control) == 1
                continue
            assert not heads & set(control)
            own = heads
            if condition in treated:
                own = set(parse(treated[condition][draw]))
                assert own <= heads
                assert sorted(layer for layer, _ in own) == sorted(layer for layer, _ in control)
            assert len(own) == len(control)


# --- sink_profile

THRESHOLDS = {"gu": 0.3, "strict": 0.8}
INPUTS = ("natural", "no_bos", "random", "repeated")


def profile(setup: Setup) -> ExperimentResult:
    return sinklens.run("sink_profile", setup.model, setup.prompts, seed=SEED, progress=False)


def input_runs(setup: Setup, name: str) -> list[ConstructedRun]:
    """The runs of an input; the random ones are drawn by their public makers."""
    tokens = setup.prompts.tokens
    size = {"n": N_PROMPTS, "length": LENGTH, "bos": True, "seed": SEED}
    if name == "no_bos":
        tokens = tokens[:, 1:]
    elif name == "random":
        tokens = random_prompts(setup.model, **size).tokens  # type: ignore[arg-type]
    elif name == "repeated":
        tokens = repeated_prompts(setup.model, **size).tokens  # type: ignore[arg-type]
    return [setup.formulas.run(row) for row in tokens.numpy()]


def scores(run: ConstructedRun, key: int = 0) -> np.ndarray:
    """Mean of A_ik over queries i >= k, `[layer, head]`."""
    return np.asarray(run.pattern[:, :, key:, key].mean(axis=-1))


def test_profile_is_the_closed_form(setup: Setup) -> None:
    result = profile(setup)
    rows = []
    for name in INPUTS:
        runs, suffix = input_runs(setup, name), "" if name == "natural" else f":{name}"
        length = LENGTH - (name == "no_bos")
        uniform = 1 / (1 + np.arange(length))
        for preset, threshold in THRESHOLDS.items():
            rates = np.array([(scores(run) > threshold).mean() for run in runs])
            null = np.full(N_PROMPTS, float(uniform.mean() > threshold))
            at = ("sink_rate", f"{preset}{suffix}", "measurement", None, None)
            rows.append((at, rates, null, 1))
        masses = np.array([run.sink_mass.mean() for run in runs])
        null = np.full(N_PROMPTS, uniform[1:].mean())
        rows.append(
            (("sink_mass", f"position0{suffix}", "measurement", None, None), masses, null, 1)
        )
    assert_rows(result, rows)
    assert result.findings["uniform_score"] == pytest.approx((1 / np.arange(1, 17)).mean())


def test_profile_arrays_are_the_closed_form(setup: Setup) -> None:
    arrays = profile(setup).arrays
    clean, dims = setup.clean, ("layer", "head")
    score = np.stack(
        [np.stack([scores(run, key) for key in range(LENGTH)], axis=-1) for run in clean]
    )
    later = (score > 0.3).mean(axis=0)
    later[..., 0] = later[..., LENGTH // 2 + 1 :] = 0
    norms = np.stack([np.linalg.norm(run.residual, axis=-1) for run in clean])
    values = np.stack([np.linalg.norm(run.value, axis=-1) for run in clean])
    expected = {
        "sink_mass": (dims, np.mean([run.sink_mass for run in clean], axis=0)),
        "sink_rate": (dims, (score[..., 0] > 0.3).mean(axis=0)),
        "sink_score": ((*dims, "key"), score.mean(axis=0)),
        "later_sink_share": ((*dims, "key"), later),
        "some_later_sink_share": (
            dims,
            (score[..., 1 : LENGTH // 2 + 1] > 0.3).any(axis=-1).mean(axis=0),
        ),
        "position0_norm": (("layer_input",), norms[..., 0].mean(axis=0)),
        "other_norm": (("layer_input",), norms[..., 1:].mean(axis=(0, 2))),
        "position0_value_norm": (
            ("layer", "key_value_head"),
            values[..., 0].mean(axis=0)[:, None],
        ),
        "other_value_norm": (
            ("layer", "key_value_head"),
            values[..., 1:].mean(axis=(0, 2))[:, None],
        ),
    }
    nulls = [np.mean([1 / (i + 1) for i in range(k, LENGTH)]) for k in range(LENGTH)]
    expected["later_sink_null"] = (("key",), np.array(nulls))
    for name in INPUTS[1:]:
        mass = np.mean([run.sink_mass for run in input_runs(setup, name)], axis=0)
        expected[f"sink_mass_{name}"] = (dims, mass)
    assert set(arrays) == set(expected)
    for name, (names, meant) in expected.items():
        assert arrays[name].dims == names
        found = arrays[name].values.numpy()
        np.testing.assert_allclose(found, meant, rtol=0, atol=TOLERANCE, err_msg=name)


# --- statistics, from the values of each prompt


def statistics_results(setup: Setup, case: str) -> ExperimentResult:
    return profile(setup) if case == "profile" else run_case(model_name(setup), case)


STATISTICS = ("bos-every-condition", "residual-tokens", "heads-each", "heads-three", "profile")


def sign_flip(differences: np.ndarray) -> float:
    """Two-sided p by going through all signs; ties count, up to rounding."""
    signs = np.array(list(itertools.product((1, -1), repeat=len(differences))))
    means = signs @ differences / len(differences)
    slack = 1e-12 * np.abs(differences).max()
    return float((np.abs(means) >= abs(differences.mean()) - slack).mean())


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_follow_from_the_paired_differences(setup: Setup, name: str) -> None:
    result = statistics_results(setup, name)
    for i, effect in enumerate(result.effects):
        values, baselines = (result.per_prompt[key][i].numpy() for key in ("value", "baseline"))
        differences = values - baselines
        assert effect.value == pytest.approx(values.mean(), abs=1e-12)
        assert effect.baseline == pytest.approx(baselines.mean(), abs=1e-12)
        assert effect.effect == pytest.approx(differences.mean(), abs=1e-12)
        if np.ptp(differences) == 0:
            assert effect.d_z is None
        else:
            assert effect.d_z == pytest.approx(differences.mean() / differences.std(ddof=1))
        if effect.n_draws > 1:  # whose choice is in the interval as well
            assert effect.p_value is None or effect.p_value >= sign_flip(differences) - 1e-9
            continue
        if np.ptp(differences) == 0:
            assert effect.ci_low == effect.ci_high == differences[0]
        else:
            low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
            measure = result.measure(effect.metric)
            if effect.kind != "contrast":  # no interval leaves what the metric can be
                low = max(low, (-np.inf if measure.lowest is None else 0) - effect.baseline)
                high = min(high, (np.inf if measure.highest is None else 1) - effect.baseline)
            assert (effect.ci_low, effect.ci_high) == pytest.approx((low, high), abs=1e-12)
        if effect.p_value is not None:
            assert effect.p_value == pytest.approx(sign_flip(differences)), place(effect)


@pytest.mark.parametrize("name", STATISTICS)
def test_only_what_can_be_negative_is_tested(setup: Setup, name: str) -> None:
    for effect in statistics_results(setup, name).effects:
        # Contrasts of KL and of the sink are tested beside models with random weights, of which
        # there are none here.
        tested = (effect.kind == "treatment" and effect.metric != "kl") or (
            effect.kind == "contrast" and effect.metric == "loss"
        )
        tested &= effect.d_z is not None or abs(effect.effect) > 1e-6  # else nothing changes
        assert (effect.p_value is not None) == tested, place(effect)
        assert (effect.q_value is not None) == tested, place(effect)


@pytest.mark.parametrize("name", STATISTICS)
def test_q_values_are_benjamini_hochberg_by_metric_and_kind(setup: Setup, name: str) -> None:
    families: defaultdict[tuple[str, str], list[EffectSize]] = defaultdict(list)
    for effect in statistics_results(setup, name).effects:
        if effect.p_value is not None:
            families[effect.metric, effect.kind].append(effect)
    assert bool(families) == (name != "profile")
    for (metric, kind), family in families.items():
        p = np.array([effect.p_value for effect in family])
        # BH by its definition: q_i is the least p_j m / rank_j over all p_j >= p_i.
        scaled = p * len(p) / stats.rankdata(p, method="max")
        q = [min(1.0, scaled[p >= own].min()) for own in p]
        assert [effect.q_value for effect in family] == pytest.approx(q), (metric, kind)


@pytest.mark.parametrize("name", [name for name in STATISTICS if name != "profile"])
def test_contrast_is_treatment_minus_control(setup: Setup, name: str) -> None:
    result = statistics_results(setup, name)
    groups: defaultdict[Any, dict[str, int]] = defaultdict(dict)
    for i, effect in enumerate(result.effects):
        groups[effect.metric, effect.condition, effect.layer, effect.head][effect.kind] = i
    differences = result.per_prompt["value"] - result.per_prompt["baseline"]
    # A control at a later position is compared at later queries, and one that reaches fewer layers
    # over those.
    later = "control_positions" in draws_made(result)
    for (metric, condition, _, _), kinds in groups.items():
        if set(kinds) == {"treatment"}:  # no control, or one that reaches no layer that is read
            matched = f"{condition}:matched" in draws_made(result).get("treated_heads", {})
            assert matched or metric == "sink_mass"
            continue
        assert set(kinds) == {"treatment", "control", "contrast"}
        treatment, control, contrast = (result.effects[kinds[k]] for k in kinds)
        assert contrast.baseline == pytest.approx(control.effect, abs=1e-12)
        assert contrast.unit == treatment.unit == control.unit
        of_outputs = condition.removesuffix(":matched") in Z_CONDITIONS and (
            result.experiment == "sink_head_ablation"
        )
        if contrast.layers == treatment.layers and (of_outputs or not later):
            assert contrast.value == pytest.approx(treatment.effect, abs=1e-12)
            by_prompt = differences[kinds["treatment"]] - differences[kinds["control"]]
            np.testing.assert_allclose(differences[kinds["contrast"]], by_prompt, atol=1e-12)


def test_a_control_that_changes_nothing_is_an_error(setup: Setup) -> None:
    # Every word has key 0, so no other word's key is an edit of a later position.
    with pytest.raises(sinklens.SinklensError, match=r"a control; draws=0"):
        sinklens.run(
            "position0_patching", setup.model, setup.prompts, part="key", draws=2, progress=False
        )


def test_what_falls_by_construction_is_no_sentence() -> None:
    """The sink mass of a dropped edge is a row, and no finding."""
    result = run_case(next(iter(MODELS)), "heads-sink")
    assert result.find(metric="sink_mass", condition="drop_edge", kind="treatment").effect < 0
    for line in result.summary:
        assert not ("drop_edge" in line and "sink_mass" in line)
