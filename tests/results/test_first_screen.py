"""The first screen of a diagnosis: its rules on rows made by hand, and its shape."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from sinklens.results.claim import Claim, fits
from sinklens.results.effect_claims import PATCHING, by_layer, cutting_the_edge, replacing_bos
from sinklens.results.estimates import Effect, Measure, Place, Reference, Sample, rows_of
from sinklens.results.first_screen import SINKS, USES, claims, first_screen, verdict
from sinklens.results.record import Array, Record
from sinklens.results.sink_claims import sink_heads, the_sink, what_it_follows
from sinklens.stats.effects import Row, with_q_values

PROMPTS, SHORTEST_NAME = 12, 12
NOISE = np.random.default_rng(0).standard_normal((4, PROMPTS)) / 100
NOISE -= NOISE.mean(1, keepdims=True)  # so that means are round
MASS, LOSS = Measure("share of attention", "uniform attention", ".1%"), Measure("nats")
UNIFORM = 0.05


def record(rows: list[Any], experiment: str = "test", **parts: Any) -> Record:
    known = {
        "bos": True,
        "seed": 3,
        "model": {"name": "model", "weights": "0123456789abcdef"},
        "prompts": {"n": PROMPTS, "length": 64, "source": "text"},
    }
    empty: dict[str, Any] = {"summary": [], "arrays": {}, "per_prompt": {}, "settings": {}}
    effects = [row.effect for row in with_q_values(rows)]
    measures = {"sink_mass": MASS, "loss": LOSS}
    return Record(
        experiment, effects, **{**empty, "provenance": known, "measures": measures, **parts}
    )


def profile(
    strongest: float = 0.6, later: float = 0.0, bos: bool = True, **masses: float
) -> Record:
    """A profile with some sink mass by condition, and one head of four with the strongest."""
    rows = []
    for name, mass in {"position0": 0.35, **masses}.items():
        sample = Sample(mass + NOISE[0], UNIFORM)
        rows += rows_of("sink_mass", MASS, INPUT.get(name, name), sample, **SEEDED)
    heads = torch.tensor([[0.1, strongest], [0.31 if strongest > 0.3 else 0.1, 0.2]])
    arrays = {
        "sink_mass": Array(heads, ("layer", "head")),
        "some_later_sink_share": Array(torch.tensor([[later, 0.0], [0.0, 0.0]]), ("layer", "head")),
    }
    found = {"later_sinks": {"keys": 3, "tokens": [{"token": " the"}] if later else []}}
    made = record(rows, "sink_profile", arrays=arrays, findings=found)
    return replace(made, provenance={**made.provenance, "bos": bos})


INPUT = {name: f"position0:{name}" for name in ("no_bos", "random", "repeated")}
SEEDED: dict[str, Any] = {"prompts": PROMPTS, "seed": 0}


def effects(*given: tuple[str, str, float, float | None], **parts: Any) -> list[Any]:
    """Rows of a metric and condition with an effect, and that of its control if it has one."""
    rows = []
    for metric, condition, size, control in given:
        of = MASS if metric == "sink_mass" else LOSS
        clean = 0.4 if metric == "sink_mass" else 3.0
        effect = Effect(clean + size + NOISE[1], clean)
        beside = []
        if control is not None:
            beside = [Reference(Effect(clean + control + NOISE[3], clean), "later_position")]
        rows += rows_of(metric, of, condition, effect, *beside, **SEEDED, **parts)
    return rows


def test_a_sink_is_where_a_head_exceeds_30_percent_and_uniform_attention() -> None:
    found = profile()
    assert sink_heads(found) == [(0, 1), (1, 0)]
    claim = the_sink(found)
    assert claim.verdict == "sink"
    assert claim.text.startswith("A sink: position 0 takes 35.0% [95% CI ")
    ends = re.findall(r"CI ([\d.]+)%, ([\d.]+)%\] of later queries' attention", claim.text)
    low, high = map(float, ends[0])
    half = 100 * stats.t.ppf(0.975, PROMPTS - 1) * NOISE[0].std(ddof=1) / np.sqrt(PROMPTS)
    assert (low, high) == (round(35 - half, 1), round(35 + half, 1))
    assert "] of later queries' attention (uniform 5.0%); " in claim.text
    assert "2 of 4 heads give it more than 30%, strongest L0H1 (60.0%)" in claim.text
    assert claim.text.endswith("No later sinks.")
    ((experiment, row),) = claim.rows
    assert (experiment, row.metric, row.condition) == ("sink_profile", "sink_mass", "position0")
    none = the_sink(profile(strongest=0.25, position0=0.04))
    assert none.verdict == "none" and none.text.startswith("No sink at position 0: it takes 4.0%")
    assert "no head gives it 30%, at most L0H1 (25.0%)" in none.text


def test_short_prompts_make_no_sink() -> None:
    """Uniform attention over few keys gives position 0 more than 30 %."""
    found = profile()
    rows = [replace(row, baseline=0.65) for row in found.effects]
    assert sink_heads(replace(found, effects=rows)) == []


@pytest.mark.parametrize(
    ("found", "expected", "words"),
    [
        (
            profile(0.1, position0=0.01, learned_sink=0.6),
            "learned_sink",
            "sinks take 60.0%",
        ),
        (profile(0.1, position0=0.01, learned_sink=0.01), "none", "No later sinks"),
        (profile(0.1, position0=0.01, last_position=0.2), "last_position", "takes 20.0%"),
        (
            profile(0.1, later=0.25, position0=0.01),
            "later",
            "sinks in 1 of 4 heads",
        ),
        (profile(0.1, later=0.24, position0=0.01), "none", "No later sinks"),
        (profile(0.6, later=0.5), "sink", "Later keys are sinks in 1 of 4 heads"),
    ],
)
def test_what_else_takes_the_attention(found: Record, expected: str, words: str) -> None:
    claim = the_sink(found)
    assert claim.verdict == expected and words in claim.text


@pytest.mark.parametrize(
    ("without", "expected", "words"),
    [
        (0.04, "bos", "It follows the BOS token, not the position: without BOS position 0 get"),
        (0.05, "bos", "It follows the BOS token"),  # as under uniform attention
        (0.28, "part", "It follows BOS in part: without BOS position 0 gets 28.0%"),
        (0.30, "position", "It follows position 0, whatever token it holds"),
    ],
)
def test_what_the_sink_follows(without: float, expected: str, words: str) -> None:
    claim = what_it_follows(profile(no_bos=without, random=0.36, repeated=0.4))
    assert claim.verdict == expected and claim.text.startswith(words)
    assert claim.text.endswith(
        "; after BOS, random text keeps it (36.0%) and one token repeated keeps it (40.0%)."
    )
    assert len(claim.rows) == 4


def test_other_inputs_that_weaken_or_remove_the_sink() -> None:
    text = what_it_follows(profile(no_bos=0.04, random=0.1, repeated=0.02)).text
    assert "random text weakens it (10.0%) and one token repeated removes it (2.0%)" in text


def test_without_bos_or_inputs_or_a_sink_nothing_is_said_to_follow() -> None:
    claim = what_it_follows(profile(bos=False, random=0.36))
    assert claim.verdict == ""
    assert claim.text == ("These prompts have no BOS to take away; random text keeps it (36.0%).")
    assert "not measured" in what_it_follows(profile()).text
    assert "cannot be told" in what_it_follows(profile(position0=0.05, no_bos=0.3)).text
    none = what_it_follows(profile(0.1, position0=0.04, no_bos=0.02, repeated=0.2))
    assert none.verdict == "" and none.text == (
        "Nor on other inputs: position 0 gets 2.0% without BOS, 20.0% with one token repeated "
        "(above uniform attention)."
    )


@pytest.mark.parametrize(
    ("mass", "control", "words", "expected"),
    [
        (-0.3, 0.0, "removes the sink (40.0% -> 10.0%)", "removes, more than"),
        (-0.1, 0.0, "weakens the sink (40.0% -> 30.0%)", "weakens"),
        (-0.03, 0.0, "hardly changes the sink", "hardly"),
        (0.1, 0.0, "strengthens the sink", "strengthens"),
        (-0.1, -0.1, "changes the sink no more than its control", "no more"),
        (-0.1, -0.3, "changes the sink no more than its control", "no more"),
        (-0.3, None, "changes the sink (40.0% -> 10.0%; not tested)", "untested"),
        (-0.03, None, "hardly changes the sink (40.0% -> 37.0%) and", "hardly"),
    ],
)
def test_replacing_bos(mass: float, control: float | None, words: str, expected: str) -> None:
    rows = effects(("sink_mass", "random_token", mass, control), ("loss", "random_token", 0.2, 0.1))
    claim = replacing_bos(record(rows), sink=True)
    assert claim.text.startswith(f"Another token for BOS {words}")
    assert claim.verdict == expected
    assert re.search(r"and raises loss (\(clean 3\) )?by \+0\.2 nats \[", claim.text)
    assert ", more than for a later token (difference +0.1" in claim.text
    without = replacing_bos(record(rows), sink=False)
    assert "sink" not in without.text and len(without.rows) == 1


def test_replacing_bos_takes_the_first_condition_that_was_run() -> None:
    rows = effects(("loss", "zero", 0.3, 0.1), ("loss", "mean", 0.2, 0.1))
    assert (
        "The mean embedding for BOS raises loss (clean 3) by +0.2"
        in replacing_bos(record(rows), sink=True).text
    )
    assert "has no row" in replacing_bos(record([]), sink=True).text


@pytest.mark.parametrize(
    ("size", "control", "words", "expected"),
    [
        (0.2, 0.0, "raises loss (clean 3) by +0.2 nats", "more than"),
        (0.2, 0.2, "raises loss (clean 3) by +0.2 nats", "not significantly different from"),
        (0.1, 0.3, "raises loss (clean 3) by +0.1 nats", "less than"),
        (-0.2, 0.0, "changes loss (clean 3) by -0.2 nats", "less than"),
        (0.0, 0.0, "changes loss (clean 3) by 0 nats", "not significantly different from"),
    ],
)
def test_cutting_the_edge(size: float, control: float, words: str, expected: str) -> None:
    rows = effects(("loss", "drop_edge", size, control))
    claim = cutting_the_edge(record(rows, draws={"heads": ["L0H0", "L1H1"]}))
    assert claim.text.startswith(f"Cutting the attention to position 0 in 2 sink heads {words}")
    assert f"{expected} that to a later key (difference " in claim.text
    assert claim.verdict == expected


def test_few_prompts_cannot_tell() -> None:
    of = Effect(3.1 + NOISE[1][:4], 3.0)
    control = Reference(Effect(3.0 + NOISE[2][:4], 3.0), "later_key")
    rows = rows_of("loss", LOSS, "drop_edge", of, control, prompts=4, seed=0)
    claim = cutting_the_edge(record(list(rows)))
    assert claim.verdict == "too few" and "not significantly different from" in claim.text
    assert "too few prompts to tell" in verdict(
        [Claim("", (), "sink"), Claim(""), Claim(""), claim, Claim("")]
    )
    without = cutting_the_edge(record(effects(("loss", "drop_edge", 0.2, None))))
    assert without.verdict == "" and without.text.endswith("without a control.")


def layers(*sizes: tuple[float, float | None]) -> Record:
    rows: list[Any] = []
    for layer, (size, control) in enumerate(sizes):
        rows += effects(("loss", "other_token:residual", size, control), place=Place(layer))
    return record(rows)


def test_what_two_lines_have_no_room_for_is_left_to_the_rows() -> None:
    """First the clean loss and the interval of the least effect; never an end with dots."""
    rows = [*effects(("sink_mass", "random_token", -0.0123, 0.0)), *odd("random_token")]
    text = replacing_bos(record(rows), sink=True).text
    assert "raises loss by +0.000234" in text and fits(text)
    few = by_layer(record([*odd("other_token:residual", 10), *odd("other_token:residual", 29, 9)]))
    assert re.search(r"least entering L10: \+0\.000111(, not significantly more)?\.$", few.text)
    assert fits(few.text)


def odd(condition: str, layer: int | None = None, times: float = 1) -> list[Row]:
    """A change of loss, and of its control, whose numbers are long."""
    place = {} if layer is None else {"place": Place(layer)}
    of = Effect(3 + times * (0.000234 + NOISE[1] / 100), 3.0)
    control = Reference(Effect(3 + times * (0.000123 + NOISE[3] / 100), 3.0), "later_position")
    return list(rows_of("loss", LOSS, condition, of, control, **SEEDED, **place))


def test_by_layer() -> None:
    claim = by_layer(layers((0.2, 0.1), (0.5, 0.1), (0.1, 0.1)))
    assert claim.text.startswith(f"{PATCHING} costs most entering L1: +0.5 nats [")
    assert "+0.4 [" in claim.text
    assert claim.text.endswith("later position; least entering L2: 0, not significantly more.")
    assert [row.layer for _, row in claim.rows] == [1, 2] and claim.verdict == "L1"
    both = by_layer(layers((0.2, 0.1), (0.5, 0.1))).text
    assert "least entering L0: +0.1 [" in both and "not significantly" not in both
    assert "least" not in by_layer(layers((0.2, 0.1))).text
    one = by_layer(layers((0.1, 0.1))).text
    assert one.startswith(f"{PATCHING} costs no more than at a later position entering L0; the ")
    none = by_layer(layers((0.1, 0.1), (0.1, 0.5)))
    assert none.text.startswith(
        f"{PATCHING} costs more than at a later position in none of 2 layers (L0, L1); the highest "
        "difference is 0 nats ["
    )
    assert none.text.endswith("(L0).")
    assert "not compared" in by_layer(layers((0.2, None))).text


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("sink", "bos", "", "more than"), "a BOS sink that the model uses"),
        (
            ("sink", "position", "hardly", "more than"),
            "a sink at position 0, whatever token it holds, that the model uses",
        ),
        (
            ("sink", "part", "weakens", "not significantly different from"),
            "a sink at position 0, in part of BOS, not significantly costly to remove",
        ),
        (("sink", "", "", "less than"), "a sink at position 0 cheaper to remove than its control"),
        (("sink", "bos", "removes, more than", ""), "a BOS sink that the model uses"),
        (("sink", "bos", "removes, more than", "not tested against"), "a BOS sink that the model"),
        (
            ("sink", "position", "weakens", ""),
            "a sink at position 0, whatever token it holds (not tested: whether the model uses it)",
        ),
        (
            ("sink", "", "untested", "not tested against"),
            "a sink at position 0 (not tested: what it follows, whether the model uses it)",
        ),
        (
            ("sink", "", "", "more than"),
            "a sink at position 0 that the model uses (not tested: what it follows)",
        ),
        (("none", "", "", ""), "no sink"),
        (("later", "", "", ""), "no sink at position 0, but later ones"),
        (("learned_sink", "", "", ""), "no sink at position 0; learned sink logits take attention"),
        (("last_position", "", "", ""), "no sink at position 0; the last position takes more"),
    ],
)
def test_the_heading(verdicts: tuple[str, ...], expected: str) -> None:
    made = [Claim("", (), verdict) for verdict in (*verdicts, "")]
    assert verdict(made).startswith(expected)


def test_the_attention_may_be_used_whatever_is_there() -> None:
    made = [Claim("", (), word) for word in ("sink", "position", "hardly", "more than", "none")]
    assert verdict(made) == "a sink at position 0, used by the model whatever token it holds"


def test_a_verdict_by_the_ratio_of_random_models_is_said_to_be() -> None:
    """The interval of its difference may include 0."""
    values = Effect(np.abs(NOISE[1]) + 1e-3, 0.0)
    models = np.log([9.0, 10.0, 11.0])
    control = Reference(Effect(np.abs(NOISE[2]) + 1e-3, 0.0), "later_position", models=models)
    measure = replace(LOSS, signed=False)
    rows = rows_of("kl", measure, "random_token", values, control, **SEEDED)
    made = record(list(rows), measures={"kl": measure})
    text = replacing_bos(made, sink=False).text
    assert "shifts predictions by a KL of +" in text
    assert ", less than for a later token, by models with random weights (" in text


def test_without_a_sink_head_there_is_nothing_to_cut() -> None:
    found = profile(0.1, position0=0.04)
    made = claims({"sink_profile": found}, {"sink_head_ablation": "hook_pattern is not there"})
    assert made[3].text == "No head is a sink head, so that there is no such attention to cut."


def test_the_screen_fits_and_says_what_was_not_run() -> None:
    found = profile(no_bos=0.04, random=0.3, repeated=0.3)
    name = "/home/someone/" + "models/" * 20
    room = SHORTEST_NAME + len(": ")
    for follows, use in product(SINKS, ("", *USES)):
        made = [Claim("", (), word) for word in ("sink", follows, "", use, "")]
        assert len(verdict(made)) + room <= 100
    known = {**found.provenance, "model": {"name": name, "weights": "0123456789abcdef"}}
    known["prompts"] = {"n": 1, "length": 5, "longest": 12, "source": "a\n" * 50}
    found = replace(found, provenance=known)
    why = "no head has a sink mass above 0.3 (the largest is 0.03); name heads. Or not."
    lines = first_screen({"sink_profile": found}, {"sink_head_ablation": why})
    assert len(lines) <= 12 and max(map(len, lines)) <= 100
    assert lines[0].startswith("/home/someone/")
    assert lines[0].endswith("...: a BOS sink (not tested: whether the model uses it)")
    assert lines[1] == (
        "2 layers x 2 heads; 1 prompt x 5 to 12 tokens of a a a a a a..., with BOS; seed 3; "
        "weights 01234567"
    )
    text = " ".join(line.strip() for line in lines)
    assert "3 Replacing BOS was not run: the whole page says why. 4 Cutting" in text
    assert "was not run: no head has a sink mass above 0.3 (the largest is 0.03). 5" in text
    assert lines[-1].startswith("The rows of each claim")
    assert len(claims({"sink_profile": found}, {})) == 5
    long = first_screen({"sink_profile": found}, {"bos_replacement": "because " * 50})
    assert len(long) <= 12 and any(line.endswith(" ...") for line in long)


def test_a_quick_run_is_said() -> None:
    found = profile()
    quick = first_screen({"sink_profile": replace(found, settings={"precision": "quick"})}, {})
    assert quick[1].endswith("; weights 01234567; quick")
    assert first_screen({"sink_profile": found}, {})[1].endswith("; weights 01234567")


def test_without_a_profile_the_rest_is_said() -> None:
    rows = effects(("loss", "random_token", 0.2, 0.1))
    results = {"bos_replacement": record(rows)}
    lines = first_screen(results, {})
    assert lines[0] == "model: where its sinks are was not measured"
    assert lines[1].startswith("12 prompts x 64 tokens of text, with BOS; seed 3; weights 01234567")
    assert "there is no result of sink_profile" in lines[2]
    assert "raises loss (clean 3) by +0.2 nats" in " ".join(lines)
    assert len(lines) <= 12 and len(claims(results, {})) == 5
    assert first_screen({}, {}) == ["A diagnosis without results."]
