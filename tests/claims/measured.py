"""A claim, the run and the row that measure it, and what is seen there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sinklens
from sinklens.core.errors import UsageError
from sinklens.results.estimates import Measure
from sinklens.results.record import Record
from sinklens.results.wording import number, quantity
from sinklens.runner import registry
from sinklens.stats.effects import EffectSize
from tests.claims.rules import NOT_TESTABLE, Rule, Seen, Verdict

SHARED = {"draws": 3, "null_models": 0}


def anything(result: Record) -> str:
    """A claim that any model can be asked about."""
    return ""


@dataclass(frozen=True)
class Measured:
    """A run of an experiment."""

    experiment: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    bos: bool = True
    n_prompts: int = 8
    length: int = 64

    def command(self) -> str:
        """The command line."""
        settings = "".join(
            f" --set {name}={','.join(value) if isinstance(value, tuple) else value}"
            for name, value in {**SHARED, **self.settings}.items()
        )
        bos = "bos" if self.bos else "no-bos"
        prompts = f"--n-prompts {self.n_prompts} --length {self.length} --{bos}"
        return f"sinklens run {self.experiment} MODEL {prompts}{settings}"

    def result(self, model: Any) -> Record:
        """The result on a model."""
        prompts = sinklens.prompts(model, n=self.n_prompts, length=self.length, bos=self.bos)
        settings = {**SHARED, **self.settings, "progress": False}
        return sinklens.run(self.experiment, model, prompts, **settings)


@dataclass(frozen=True)
class Claim:
    """What a paper says, the row that measures it, and the rule that decides.

    Attributes:
        paper: Author, year and arXiv number.
        says: The claim.
        measured: The run.
        row: Fields of the row; of several layers the first is taken.
        rule: What decides.
        given: Why a result cannot answer; empty where it can.
    """

    paper: str
    says: str
    measured: Measured
    row: Mapping[str, Any]
    rule: Rule
    given: Callable[[Record], str] = anything


def lowest(result: Record, fields: Mapping[str, Any]) -> EffectSize:
    """The row with these fields; of several the one of the lowest layer.

    Raises:
        UsageError: There is none, or several at one layer.
    """
    layers = [
        row.layer
        for row in result.effects
        if all(getattr(row, name) == value for name, value in fields.items())
        and row.layer is not None
    ]
    return result.find(**fields, **({"layer": min(layers)} if layers else {}))


def seen_in(row: EffectSize) -> Seen | None:
    """A value beside its null, or an effect beside 0; None where there is no interval."""
    if row.ci_low is None or row.ci_high is None:
        return None
    null = row.baseline if row.kind == "measurement" else 0.0
    return Seen(null + row.effect, null + row.ci_low, null + row.ci_high, null)


def cell(claim: Claim, result: Record) -> str:
    """The verdict on one model, and the numbers that it follows from."""
    try:
        row = lowest(result, claim.row)
    except UsageError:
        reasons = (
            why
            for what, why in result.settings["left_out"].items()
            if what.startswith(claim.row["metric"])
        )
        return str(Verdict(NOT_TESTABLE, next(reasons, "there is no such row")))
    seen = seen_in(row)
    if seen is None:
        return str(Verdict(NOT_TESTABLE, "a single prompt has no interval"))
    lacking = claim.given(result)
    verdict = Verdict(NOT_TESTABLE, lacking) if lacking else claim.rule(seen)
    measure = result.measure(row.metric, row.condition)
    low, high, null = (number(measure, end) for end in (seen.low, seen.high, seen.null))
    place = "" if row.layer is None else f"entering L{row.layer}: "
    return (
        f"{verdict}: {place}{quantity(measure, seen.value)} [{low}, {high}], null {null}, "
        f"{row.n_prompts} {row.resampled}s"
    )


def measure_of(claim: Claim) -> Measure:
    """How the numbers of a claim are written."""
    measures = registry.get(claim.measured.experiment).measures
    metric, condition = claim.row["metric"], claim.row["condition"]
    return measures.get(f"{metric}/{condition}") or measures.get(metric) or Measure("nats")


def row_of(metric: str, condition: str, kind: str = "measurement", **more: str) -> dict[str, Any]:
    """The fields of a row."""
    return {"metric": metric, "condition": condition, "kind": kind, "against": None, **more}
