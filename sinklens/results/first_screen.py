"""The first screen of a diagnosis: a verdict, what was run, and five claims with their numbers.

At most 12 lines of at most 100 characters. What each claim rests on, and the rules by which it is
made, are in `claims`; the heading is put together from their verdicts:

    a BOS sink | a sink at position 0, whatever token it holds | a sink at position 0, in part of
        BOS | a sink at position 0                                          from claims 1 and 2
    that the model uses | whose removal costs no more than its control      from claim 4, else 3
    no sink at position 0, with what takes the attention instead            from claim 1
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence

from .claims import Claim, Results, claims

WIDTH, LONGEST, LINES_OF_A_CLAIM = 100, 12, 2
NAME = 30
GLUE = "\N{NO-BREAK SPACE}"
SINKS = {
    "bos": "a BOS sink",
    "position": "a sink at position 0, whatever token it holds,",
    "part": "a sink at position 0, in part of BOS,",
    "": "a sink at position 0",
}
NO_SINK = {
    "none": "no sink",
    "later": "no sink at position 0, but later ones",
    "learned_sink": "no sink at position 0; learned sinks take the attention",
    "last_position": "no sink at position 0; the last position takes more than uniform attention",
}
USES = {
    "more than": "that the model uses",
    "less than": "whose removal costs no more than its control",
    "not significantly different from": "whose removal costs no more than its control",
}
MORE = "The rows of each claim, and all others: --full, or .full() in Python."


def first_screen(results: Results, refused: Mapping[str, str]) -> list[str]:
    """The lines of the first screen.

    Args:
        results: Results of the diagnosis by experiment.
        refused: By experiment why it was not run.
    """
    made = claims(results, refused)
    lines = [heading(results, made), what_was_run(results)]
    for number, claim in enumerate(made, 1):
        lines += _wrapped(number, claim.text)
    return [*lines, MORE] if len(lines) < LONGEST else lines


def _wrapped(number: int, text: str) -> list[str]:
    """A claim on at most two lines; intervals are not torn."""
    kept = re.sub(r"\[[^\]]*\]", lambda interval: interval[0].replace(" ", GLUE), text)
    lines = textwrap.wrap(
        kept,
        WIDTH,
        initial_indent=f"{number} ",
        subsequent_indent="  ",
        max_lines=LINES_OF_A_CLAIM,
        placeholder=" ...",
        break_on_hyphens=False,
    )
    return [line.replace(GLUE, " ") for line in lines]


def heading(results: Results, made: Sequence[Claim]) -> str:
    """The model and the verdict in words."""
    name = _cut(results["sink_profile"].provenance["model"]["name"], NAME)
    return f"{name}: {verdict(made)}"


def verdict(made: Sequence[Claim]) -> str:
    """What the heading says: which sink there is, and whether the model uses it."""
    sink, follows, replaced, cut, _ = (claim.verdict for claim in made)
    if sink != "sink":
        return NO_SINK[sink]
    removing = cut or replaced.removeprefix("removes, ")
    return f"{SINKS[follows]} {USES.get(removing, '')}".rstrip(" ,")


def what_was_run(results: Results) -> str:
    """Model, prompts, seed and weights, in one line."""
    profile = results["sink_profile"]
    layers, heads = profile.arrays["sink_mass"].values.shape
    known = profile.provenance
    prompts = known["prompts"]
    longest = f" to {prompts['longest']}" if "longest" in prompts else ""
    bos = "with" if known["bos"] else "without"
    source = _cut(str(prompts["source"]), NAME // 2)
    return _cut(
        f"{layers} layers x {heads} heads; {prompts['n']} prompt{'s' * (prompts['n'] != 1)} x {prompts['length']}{longest} "
        f"tokens of {source}, {bos} BOS; seed {known.get('seed', 0)}; "
        f"weights {str(known['model']['weights'])[:8]}",
        WIDTH,
    )


def _cut(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 3]}..."
