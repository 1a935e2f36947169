"""The measures of an atlas: which rows of the table they are, and how they are written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from ...core.errors import SinklensError

MEASUREMENT, TREATMENT, CONTRAST = "measurement", "treatment", "contrast"
ALIKE = ("settings", "n", "length", "unit")
"""In what rows of one measure may not differ; of several, the commonest is taken."""


@dataclass(frozen=True)
class Headline:
    """A measure.

    Attributes:
        key: Its name in downloads.
        title: What heads its column.
        about: What it is, in a sentence.
        experiment: The experiment.
        rows: Metrics and conditions, of which the one that most models have is taken.
        kind: `measurement` (a value beside its null) or `treatment` (a change from the clean run).
        form: How it is written.
        null: Its null in words.
        against: The control or empirical null beside it, if it has one.
        empirical: Whether that is its null, where no value lies below the analytic one.
    """

    key: str
    title: str
    about: str
    experiment: str
    rows: tuple[tuple[str, str], ...]
    kind: str
    form: str
    null: str
    against: str | None = None
    empirical: bool = False

    @property
    def compared(self) -> str:
        """What is pooled over models."""
        return "change" if self.kind == TREATMENT else f"distance from {self.null}"


FRAME = "Score of a {} reference frame (2508.02546), share of the columns' sum."
HEADLINES = (
    Headline(
        "sink_mass",
        "Sink mass",
        "Share of the attention of later queries that position 0 takes, over all heads.",
        "sink_profile",
        (("sink_mass", "position0"),),
        MEASUREMENT,
        ".1%",
        "uniform attention",
    ),
    Headline(
        "bos_dependence",
        "BOS dependence",
        "Change in sink mass where the embedding of BOS is replaced.",
        "bos_replacement",
        (("sink_mass", "mean"), ("sink_mass", "random_token"), ("sink_mass", "zero")),
        TREATMENT,
        "+.1%",
        "no change",
        "later_position",
    ),
    Headline(
        "edge_cost",
        "Cost of cutting the edge",
        "Change where the attention of sink heads to position 0 is dropped, rows renormalised.",
        "sink_head_ablation",
        (("loss", "drop_edge"), ("kl", "drop_edge")),
        TREATMENT,
        "+.3g",
        "no change",
        "later_key",
    ),
    Headline(
        "spikes",
        "Spikes",
        "Largest entry of the residual stream, in medians of its layer.",
        "massive_activations",
        (("peak_ratio", "layer_median"),),
        MEASUREMENT,
        ",.1f",
        "Gaussian entries",
    ),
    *(
        Headline(
            name,
            f"{name.capitalize()} frame",
            FRAME.format(name),
            "reference_frame",
            ((name, "attention"),),
            MEASUREMENT,
            ".1%",
            "row-permuted attention",
            "row_permuted",
            empirical=True,
        )
        for name in ("centralised", "distributed", "bidirectional")
    ),
)


@dataclass(frozen=True)
class Measured:
    """A measure in a table.

    Attributes:
        headline: The measure.
        metric: The metric that was taken.
        condition: The condition that was taken.
        rows: Its rows.
        references: The rows of its control or empirical null.
        contrasts: Its distance from these.
        left_out: Rows of other settings or sizes of prompts.
    """

    headline: Headline
    metric: str
    condition: str
    rows: pd.DataFrame
    references: pd.DataFrame
    contrasts: pd.DataFrame
    left_out: int

    @property
    def unit(self) -> str:
        """The unit of its numbers, empty where there is none."""
        unit = self.rows["unit"].iloc[0]
        return "" if pd.isna(unit) else str(unit)

    def pooled_rows(self) -> tuple[pd.DataFrame, str]:
        """The rows that are pooled over models, and their kind."""
        if self.headline.empirical:
            return self.contrasts, CONTRAST
        return self.rows, self.headline.kind

    def about(self) -> str:
        """What it is, which rows were taken and which were left out."""
        one = self.headline
        said = f"{one.about} {one.experiment}: {self.metric}, {self.condition}"
        said += f" ({self.unit})" if self.unit else ""
        control = "" if one.empirical or one.against is None else one.against.replace("_", " ")
        beside = f"; beside it: {control}" if control else ""
        left = f" Left out: {self.left_out} rows of other settings." if self.left_out else ""
        return f"{said}. Null: {one.null}{beside}.{left}"


def measured_in(table: pd.DataFrame) -> list[Measured]:
    """The measures that a table has, in their order.

    Raises:
        SinklensError: It has none.
    """
    found = list(_measured(table))
    if not found:
        asked = ", ".join(dict.fromkeys(one.experiment for one in HEADLINES))
        raise SinklensError(
            f"the table has no row that an atlas compares models by; sweep some of {asked}"
        )
    return found


def _measured(table: pd.DataFrame) -> Iterator[Measured]:
    whole = _of_the_model(table)
    for one in HEADLINES:
        mine = whole[whole["experiment"] == one.experiment]
        treated = mine[(mine["kind"] == one.kind) & mine["against"].isna()]
        counts = {pair: treated.loc[_are(treated, pair), "model"].nunique() for pair in one.rows}
        pair = max(counts, key=lambda name: counts[name])  # the first of equal ones
        if not counts[pair]:
            continue
        rows = treated[_are(treated, pair)]
        alike = rows.groupby(list(ALIKE), dropna=False)["task"].transform("size")
        chosen = rows[list(ALIKE)].fillna("").loc[alike.idxmax()]
        kept = rows[(rows[list(ALIKE)].fillna("") == chosen).all(axis=1)]
        beside = mine[_are(mine, pair) & (mine["against"] == one.against)]
        beside = beside[(beside[list(ALIKE)].fillna("") == chosen).all(axis=1)]
        references = beside[beside["kind"].isin(["control", "null"])]
        contrasts = beside[beside["kind"] == CONTRAST]
        yield Measured(one, *pair, kept, references, contrasts, len(rows) - len(kept))


def _of_the_model(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that are about no layer or head, or about the only ones that their task names."""
    every = table[table["queries"].isna()]
    named = ["task", "metric", "condition", "kind", "against"]
    alone = every.groupby(named, dropna=False)["value"].transform("size") == 1
    return every[(every["layer"].isna() & every["head"].isna()) | alone]


def _are(rows: pd.DataFrame, pair: tuple[str, str]) -> pd.Series:
    return (rows["metric"] == pair[0]) & (rows["condition"] == pair[1])
