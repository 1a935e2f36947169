"""The sink heads of a model: which, and what each gives to position 0."""

from __future__ import annotations

import html

from ...core.labels import head_label
from ...results.claim import percent
from ...results.record import Array, Record
from ...results.sink_claims import SINK_HEAD, sink_heads
from ..by_head import ARRAY

MOST_NAMED = 24


def named_heads(profile: Record) -> str:
    """The sink heads in a sentence, the strongest first."""
    masses = profile.arrays[ARRAY]
    heads, total = sink_heads(profile), masses.values.numel()
    if not heads:
        strongest = masses.head(int(masses.values.argmax()))
        return (
            f"None of {total} heads gives position 0 more than {SINK_HEAD:.0%}; at most "
            f"{head_label(strongest)}, {percent(float(masses.values.max()))}."
        )
    row = dict(zip(masses.labels("layer"), masses.values, strict=True))
    shares = [f"{head_label(one)} {percent(float(row[str(one[0])][one[1]]))}" for one in heads]
    more = f" and {len(shares) - MOST_NAMED} more" if len(shares) > MOST_NAMED else ""
    return (
        f"{len(heads)} of {total} heads give position 0 more than {SINK_HEAD:.0%} (sink heads): "
        f"{', '.join(shares[:MOST_NAMED])}{more}."
    )


def every_head(masses: Array) -> str:
    """The sink mass by layer and head; that of more than 30 % is bold, that of others grey."""
    head = "".join(f'<th scope="col">H{number}</th>' for number in range(masses.values.shape[1]))
    lines = "".join(
        f'<tr><th scope="row">{html.escape(f"L{layer}")}</th>{"".join(map(_share, row))}</tr>'
        for layer, row in zip(masses.labels("layer"), masses.values.tolist(), strict=True)
    )
    return (
        '<div class="scrolls" tabindex="0" role="region" aria-label="Sink mass of every head">'
        f'<table class="heads"><thead><tr><th scope="col">layer</th>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _share(mass: float) -> str:
    share = percent(mass)
    return f"<td><b>{share}</b></td>" if mass > SINK_HEAD else f'<td class="grey">{share}</td>'
