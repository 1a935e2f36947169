"""Which values come out without a mechanism: a sentence on the nulls of measurements."""

from __future__ import annotations

from collections.abc import Iterator

from ..stats.effects import EffectSize
from .estimates import RANDOM_MODELS
from .record import Record
from .wording import null_verdict


def already_of_nulls(result: Record) -> Iterator[str]:
    """Which measured values a null has as well, as far as the interval tells them apart.

    An analytic null and an empirical one are alike where the interval of the distance holds 0; one
    model with random weights is where its value lies in the interval of the model's own.
    """
    alike: dict[str, list[str]] = {}
    for row in result.effects:
        if row.kind == "measurement":
            for null in _alike(result, row):
                name = f"{row.metric} {row.condition}".replace("_", " ")
                alike.setdefault(null, []).append(name)
    if alike:
        said = (f"{null} ({', '.join(names)})" for null, names in alike.items())
        yield f"Values that a null has as well, within their interval: {'; '.join(said)}."


def _alike(result: Record, row: EffectSize) -> Iterator[str]:
    """The nulls that a value is not told from."""
    if row.ci_low is None or row.ci_high is None:
        return
    if null_verdict(row) == "not distinguishable from":
        yield result.measure(row.metric, row.condition).null
    for reference, contrast in result.references(row):
        within = row.ci_low <= reference.value - row.baseline <= row.ci_high
        if reference.against == RANDOM_MODELS:
            if within:
                yield "one model with random weights"
        elif null_verdict(contrast) == "not distinguishable from":
            yield f"{reference.against}".replace("_", "-") + f" {reference.kind}"
