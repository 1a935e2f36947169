"""One experiment on several shipped models, with the variation between training seeds beside it.

Two models trained with the same recipe still differ, so a difference between two recipes has to be
compared with the variation between seeds. The unit here is the training seed, not the prompt:
`p_seeds` is Welch's or, with a single seed on one side, Student's two-sided t test between the
effects of the seeds of one member and those of the base (`scipy.stats`). With three seeds per
member it has little power; a large p does not show that two members are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..core.errors import SinklensError, UsageError, unknown_name
from ..models.shipped import card, names, seeds
from ..results.wording import probability, written
from ..stats.effects import EffectSize, interval

ROW = ("metric", "condition", "kind", "layer", "head", "queries")
BASE = "rope"
"""The member that the others are compared with, if it takes part."""


class _Seed(NamedTuple):
    """A row of one seed's result, and the differences by prompt of which it is the mean."""

    row: EffectSize
    differences: Float[np.ndarray, " prompt"]


@dataclass(frozen=True)
class MemberComparison:
    """Results by member and training seed.

    Attributes:
        experiment: Name of the experiment.
        base: The member that the others are compared with.
        results: Results by name and seed.
        left_out: Members and seeds on which the experiment cannot be run, with the reason.
    """

    experiment: str
    base: str
    results: Mapping[tuple[str, int], Any]
    left_out: Mapping[str, str]

    def to_dataframe(self) -> pd.DataFrame:
        """All rows of all results in long form, with `member` and `seed`."""
        frames = [
            result.to_dataframe().assign(member=member, seed=seed)
            for (member, seed), result in self.results.items()
        ]
        table = pd.concat(frames, ignore_index=True)
        return table[["member", "seed", *table.columns.drop(["member", "seed"])]]

    def table(self) -> pd.DataFrame:
        """One row per effect and member: the mean over seeds, their range, the base, p.

        `effect` is that of the experiment (value minus its baseline), averaged over seeds;
        `ci_low` and `ci_high` are its interval over prompts, each prompt averaged over seeds;
        `seed_low` and `seed_high` are the range over seeds.
        """
        effects: dict[tuple[Any, ...], dict[str, list[_Seed]]] = {}
        for (member, _), result in self.results.items():
            differences = (result.per_prompt["value"] - result.per_prompt["baseline"]).double()
            for row, values in zip(result.effects, differences.numpy(), strict=True):
                key = tuple(getattr(row, name) for name in ROW)
                effects.setdefault(key, {}).setdefault(member, []).append(_Seed(row, values))
        rows = [
            {**dict(zip(ROW, key, strict=True)), **self._row(member, members)}
            for key, members in effects.items()
            for member in members
        ]
        return pd.DataFrame(rows).dropna(axis="columns", how="all")

    def _row(self, member: str, members: Mapping[str, list[_Seed]]) -> dict[str, Any]:
        rows = [seed.row for seed in members[member]]
        values = [row.effect for row in rows]
        base = [seed.row.effect for seed in members.get(self.base, [])]
        against = base if member != self.base else []
        several = len(values) > 1
        low, high = interval(np.mean([seed.differences for seed in members[member]], axis=0))
        if rows[0].ci_low is None:  # a value that does not depend on the prompts
            low = high = None
        return {
            "member": member,
            "value": float(np.mean([row.value for row in rows])),
            "effect": float(np.mean(values)),
            "ci_low": low,
            "ci_high": high,
            "seeds": len(values),
            "seed_low": min(values) if several else None,
            "seed_high": max(values) if several else None,
            f"minus_{self.base}": float(np.mean(values) - np.mean(against)) if against else None,
            "p_seeds": seed_p_value(values, against),
            "unit": rows[0].unit,
        }

    def _in_words(self) -> pd.DataFrame:
        """The table with its numbers as text."""
        table = self.table()
        for name in table.select_dtypes("float"):
            form = probability if name == "p_seeds" else partial(written, form=".4g")
            table[name] = table[name].map(form, na_action="ignore").astype(object)
        return table

    def notes(self) -> list[str]:
        """What is needed to interpret the table."""
        counts = {member: len(seeds(member)) for member, _ in self.results}
        lines = [
            "seed_low and seed_high are the range over training seeds. p_seeds is a t test against "
            f"the seeds of {self.base}, per row and not corrected for multiple testing; a member "
            "with a single seed is assumed to have the variance of the other. Confidence "
            "intervals are over prompts, averaged over seeds, and do not cover variation "
            "between seeds."
        ]
        if all(count == 1 for count in counts.values()):
            lines.append(
                f"None of these members has more than one seed; add {BASE} to see the spread."
            )
        for member in counts:
            besides, task = card(member)["differs"]["besides"], card(member)["task"]
            if task != card(self.base)["task"]:
                lines.append(
                    f"{member} was trained on another task than {self.base} ({task}): their losses "
                    "are over different predictions and not comparable."
                )
            if besides:
                lines.append(f"{member} also differs from {BASE} in: {'; '.join(besides)}.")
        return lines + [f"Left out: {name}, since {why}" for name, why in self.left_out.items()]

    def __str__(self) -> str:
        """Table and notes as plain text."""
        table = self._in_words().to_string(index=False, na_rep="")
        return "\n".join([f"{self.experiment} by member", "", table, "", *self.notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Table and notes for Jupyter."""
        import html

        table = self._in_words().to_html(index=False, na_rep="", border=0)
        notes = "<br>".join(html.escape(line) for line in self.notes())
        return (
            f"<h4>{html.escape(self.experiment)} by member</h4>"
            f"<div style='overflow-x: auto'>{table}</div><p><small>{notes}</small></p>"
        )


def compare(
    members: Sequence[str],
    experiment: str,
    *,
    n: int = 16,
    length: int = 64,
    progress: bool | None = None,
    **settings: Any,
) -> MemberComparison:
    """Run an experiment on shipped models, on every shipped seed of each.

    Args:
        members: Shipped names; all are compared with `rope`, or with the first if it is absent.
        experiment: Name of the experiment.
        n: Prompts, in each member's own form (`zoo.own_prompts`), from the same text where it reads
            text.
        length: Positions in each prompt.
        progress: As in `sinklens.run`.
        settings: Settings of the experiment.

    Raises:
        UsageError: A name is unknown or missing, or a setting is wrong.
        SinklensError: The experiment can be run on none of the members.
    """
    from ..models import load
    from ..models.prompts import prompts
    from ..runner import registry

    if isinstance(members, str) or not members:
        raise UsageError("compare takes a list of shipped names, such as ['rope', 'postnorm']")
    for name in members:
        if name not in names():
            raise unknown_name("shipped model", name, names())
    registry.configure(registry.get(experiment), settings)
    results, left_out = {}, {}
    runs = [(member, seed) for member in dict.fromkeys(members) for seed in seeds(member)]
    for name, seed in runs:
        try:
            model = load(name, seed=seed)
            own = prompts(model, n=n, length=length)
            results[name, seed] = registry.run(
                experiment, model, own, progress=progress, **settings
            )
        except UsageError:
            raise
        except SinklensError as error:
            left_out[f"{name}, seed {seed}"] = str(error)
    if not results:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise SinklensError(f"{experiment} can be run on none of these models. {reasons}")
    ran = [name for name, _ in results]
    return MemberComparison(experiment, BASE if BASE in ran else ran[0], results, left_out)


def seed_p_value(values: Sequence[float], base: Sequence[float]) -> float | None:
    """The p-value of a t test between two groups of seeds; None where the variance is unknown."""
    from scipy import stats

    if not values or not base or max(len(values), len(base)) < 2:
        return None
    spread = [np.std(group, ddof=1) if len(group) > 1 else 0.0 for group in (values, base)]
    if max(spread) == 0:
        return None
    p = stats.ttest_ind_from_stats(
        np.mean(values),
        spread[0],
        len(values),
        np.mean(base),
        spread[1],
        len(base),
        equal_var=min(len(values), len(base)) < 2,
    ).pvalue
    return float(p)
