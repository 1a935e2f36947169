"""The page of a model: its checkpoints, and what the rows of each say, as a diagnosis does."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

import pandas as pd

from ...core.errors import SinklensError
from ...results.claim import percent, row_of
from ...results.effect_claims import by_layer, cutting_the_edge, replacing_bos
from ...results.estimates import Measure
from ...results.notebook import folded, sentences
from ...results.record import Record
from ...results.report_sections import in_a_line
from ...results.shown import Shown
from ...results.sink_claims import INPUTS, keeping
from ...results.table import lines_of, text_of
from ...results.wording import null_verdict
from ...runner import registry
from ...stats.effects import EffectSize
from ..by_head import ARRAY, COLUMN, from_text
from .checkpoints import Checkpoint
from .head_table import every_head, named_heads
from .pages import Atlas, framed, table, title_of

ABOUT = (
    *("architecture", "parameters", "n_layers", "n_heads", "d_model", "position_encoding", "norm"),
    *("norm_placement", "dtype", "device", "bos", "weights"),
)
PROFILE = "sink_profile"
MOST_LINES = 100


def model_page(atlas: Atlas, model: str, checkpoints: Sequence[Checkpoint]) -> str:
    """The page.

    Args:
        atlas: The atlas.
        model: The model.
        checkpoints: Its checkpoints.
    """
    parts = {"Checkpoints": table(atlas, checkpoints, linked=False)}
    for one in checkpoints:
        parts[_free(title_of(one), parts)] = _part(one)
    family = checkpoints[0].known["family"]
    about = f"Family: {family}." if family else ""
    return framed(atlas, model, about, parts, up="../")


def _free(title: str, taken: Mapping[str, str]) -> str:
    return title if title not in taken else _free(f"{title} (again)", taken)


def _part(one: Checkpoint) -> str:
    records = _records(one)
    first = next(iter(records.values())).provenance
    known = {name: one.known[name] for name in ABOUT}
    masses = (it.arrays[ARRAY] for it in records.values() if ARRAY in it.arrays)
    tables = "".join(folded("Sink mass of every head", every_head(array)) for array in masses)
    tables += "".join(folded(f"Rows of {name}", _rows(it)) for name, it in records.items())
    said = (
        f"Sentences and rows are of seed {first['seed']} and the text {first['text']}, "
        f"{first['n']} prompts of {first['length']} tokens."
    )
    return (
        f"{sentences(list(_said(records)))}<p class='grey'>{html.escape(said)}</p>"
        f"{in_a_line(known)}{tables}"
    )


def _records(one: Checkpoint) -> dict[str, Record]:
    """The first result of each experiment, as far as the table has it."""
    ordered = one.rows.sort_values(["seed", "text", "task"], kind="stable")
    records = {}
    for name, rows in ordered.groupby("experiment", sort=True):
        mine = rows[rows["task"] == rows["task"].iloc[0]]
        first = mine.iloc[0]
        about = {"model": {"name": one.model}, "bos": bool(one.known["bos"])}
        about |= {key: first[key] for key in ("seed", "text", "n", "length")}
        effects = [_effect(row) for row in mine.to_dict("records")]
        masses = mine[COLUMN].dropna().map(from_text).dropna()
        arrays = {} if masses.empty else {ARRAY: masses.iloc[0]}
        measures = _measures(str(name))
        records[str(name)] = Record(
            str(name), effects, [], arrays, {}, {}, about, measures=dict(measures)
        )
    return records


def _effect(row: Mapping[Any, Any]) -> EffectSize:
    values = {one.name: row[one.name] for one in fields(EffectSize)}
    known: dict[str, Any] = {k: None if pd.isna(v) else v for k, v in values.items()}
    numbers = {"n_prompts": known["n_prompts"] or 0, "n_draws": known["n_draws"] or 0}
    return EffectSize(**{**known, **numbers, "unit": known["unit"] or ""})


@cache
def _measures(experiment: str) -> Mapping[str, Measure]:
    """What an experiment declares; nothing where it is not installed here."""
    try:
        return registry.get(experiment).measures
    except SinklensError:
        return {}


def _said(records: Mapping[str, Record]) -> Iterator[str]:
    """Where the sink is, what it follows, and what edits do to it."""
    profile, has_sink = records.get(PROFILE), False
    mass = row_of(profile, "sink_mass", "position0") if profile else None
    if profile is not None and mass is not None:
        has_sink = null_verdict(mass) == "above"
        taken = f"{percent(mass.value)}{_ends(mass)}"
        yield (
            f"Position 0 takes {taken} of the attention of later queries, "
            f"{null_verdict(mass)} uniform attention ({percent(mass.baseline)})."
        )
        if ARRAY in profile.arrays:
            yield named_heads(profile)
        if has_sink:
            yield from _by_input(profile, mass)
    claims = {
        "bos_replacement": lambda record: replacing_bos(record, has_sink),
        "sink_head_ablation": cutting_the_edge,
        "position0_patching": by_layer,
    }
    for name, claim in claims.items():
        if name in records:
            yield claim(records[name]).text


def _ends(mass: EffectSize) -> str:
    """The interval of a share: ` [46.0%, 59.9%]`."""
    if mass.ci_low is None or mass.ci_high is None:
        return ""
    low, high = (percent(mass.baseline + end) for end in (mass.ci_low, mass.ci_high))
    return f" [{low}, {high}]"


def _by_input(profile: Record, mass: EffectSize) -> Iterator[str]:
    """What other inputs leave of the sink."""
    for name, words in {"no_bos": "Taking BOS away", **INPUTS}.items():
        row = row_of(profile, "sink_mass", f"position0:{name}")
        if row is not None:
            yield f"{words.capitalize() if name in INPUTS else words} {keeping(mass, row)} it " + (
                f"({percent(row.value)}, uniform {percent(row.baseline)})."
            )


def _rows(record: Record) -> str:
    """The rows about the whole model, then those by layer, as far as there is room."""
    lines = list(lines_of(record))
    chosen = [line for line in lines if line.row.head is None][:MOST_LINES]
    shown = Shown("", text_of(chosen), [line.is_grey for line in chosen]).html()
    left = len(lines) - len(chosen)
    more = f"<p>{left} more lines, by layer and head, are in the downloads.</p>" if left else ""
    return f"{shown}{more}"
