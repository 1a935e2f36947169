"""The first screen of a diagnosis: a verdict, what was run, and five claims with their numbers.

At most 12 lines of at most 100 characters. By which rules a claim is made is written in
`sink_claims` (1, 2) and `effect_claims` (3 to 5); on which rows it rests, in `Claim.rows` and in
the whole page. The heading is put together from their verdicts:

    a BOS sink | a sink at position 0, whatever token it holds | a sink at position 0, in part of
        BOS | a sink at position 0                                          from claims 1 and 2
    that the model uses | cheaper to remove than its control | not significantly costly to remove
        (beside its control) | too few prompts to tell        from claim 4; where it was not run or
        not tested, from claim 3 if replacing BOS removes the sink
    (not tested: what it follows, whether the model uses it)        of claims 2 and 4, what was left
        out or has nothing to be judged by
    a sink at position 0, used by the model whatever token it holds       from claims 2 and 4, where
        what is there does not matter by claim 5
    no sink at position 0, with what takes the attention instead            from claim 1
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from .claim import MOST_LINES, UNTESTED, WIDTH, Claim
from .effect_claims import by_layer, cutting_the_edge, replacing_bos
from .record import Record
from .sink_claims import sink_heads, the_sink, what_it_follows

LONGEST = 12
SOURCE = 14
GLUE = "\N{NO-BREAK SPACE}"
SINKS = {
    "bos": "a BOS sink",
    "position": "a sink at position 0, whatever token it holds,",
    "part": "a sink at position 0, in part of BOS,",
    "": "a sink at position 0",
}
NO_SINK = {
    "": "where its sinks are was not measured",
    "none": "no sink",
    "later": "no sink at position 0, but later ones",
    "learned_sink": "no sink at position 0; learned sink logits take attention",
    "last_position": "no sink at position 0; the last position takes more than uniform attention",
}
USES = {
    "more than": "that the model uses",
    "less than": "cheaper to remove than its control",
    "not significantly different from": "not significantly costly to remove",
    "too few": "(too few prompts to tell if used)",
}
PROFILE = "sink_profile"
NO_PROFILE = [
    Claim(f"Where the sinks are was not measured: there is no result of {PROFILE}."),
    Claim("What they follow was not measured either."),
]
NOT_RUN = {
    "bos_replacement": "Replacing BOS",
    "sink_head_ablation": "Cutting the sink heads' attention to position 0",
    "position0_patching": "Patching position 0 by layer",
}
FOLLOWED, USED = "what it follows", "whether the model uses it"
Results = Mapping[str, Record]
MORE = "The rows of each claim, and all others: --full, or .full() in Python."


def first_screen(results: Results, refused: Mapping[str, str]) -> list[str]:
    """The lines of the first screen.

    Args:
        results: Results of the diagnosis by experiment.
        refused: By experiment why it was not run.
    """
    if not results:
        return ["A diagnosis without results."]
    made = claims(results, refused)
    lines = [heading(results, made), what_was_run(results)]
    for number, claim in enumerate(made, 1):
        lines += _wrapped(number, claim.text)
    return [*lines, MORE] if len(lines) < LONGEST else lines


def claims(results: Results, refused: Mapping[str, str]) -> list[Claim]:
    """The five claims in their order; what was not run says why.

    Args:
        results: Results of the diagnosis by experiment.
        refused: By experiment why it was not run.
    """
    profile = results.get(PROFILE)
    sinks = [the_sink(profile), what_it_follows(profile)] if profile else NO_PROFILE
    has_sink = bool(profile and sink_heads(profile))
    made: dict[str, Callable[[Record], Claim]] = {
        "bos_replacement": partial(replacing_bos, sink=has_sink),
        "sink_head_ablation": cutting_the_edge,
        "position0_patching": by_layer,
    }
    effects = [
        make(results[name]) if name in results else _not_run(name, refused)
        for name, make in made.items()
    ]
    if "sink_head_ablation" not in results and profile and not has_sink:
        effects[1] = Claim("No head is a sink head, so that there is no such attention to cut.")
    return [*sinks, *effects]


def _not_run(name: str, refused: Mapping[str, str]) -> Claim:
    """What was refused, with the first clause of the reason."""
    why = re.split(r"; |\. ", refused.get(name, "the whole page says why"))[0].rstrip(".")
    return Claim(f"{NOT_RUN[name]} was not run: {why}.")


def _wrapped(number: int, text: str) -> list[str]:
    """A claim on at most two lines; intervals are torn only where it does not fit otherwise."""
    glued = re.sub(r"\[[^\]]*\]", lambda interval: interval[0].replace(" ", GLUE), text)
    fill = textwrap.TextWrapper(
        WIDTH, initial_indent=f"{number} ", subsequent_indent="  ", break_on_hyphens=False
    )
    if len(fill.wrap(glued)) > MOST_LINES:
        glued = text
    fill.max_lines, fill.placeholder = MOST_LINES, " ..."
    return [line.replace(GLUE, " ") for line in fill.wrap(glued)]


def heading(results: Results, made: Sequence[Claim]) -> str:
    """The model and the verdict in words."""
    first, said = next(iter(results.values())), verdict(made)
    return f"{_cut(first.provenance['model']['name'], WIDTH - len(said) - 2)}: {said}"


def verdict(made: Sequence[Claim]) -> str:
    """What the heading says: which sink there is, whether the model uses it, what is not tested."""
    sink, follows, replaced, cut, patched = (claim.verdict for claim in made)
    if sink != "sink":
        return NO_SINK[sink]
    if (follows, cut, patched) == ("position", "more than", "none"):
        return "a sink at position 0, used by the model whatever token it holds"
    removing = replaced.removeprefix("removes, ") if cut in UNTESTED else cut
    tests = {FOLLOWED: follows, USED: USES.get(removing, "")}
    left_out = ", ".join(what for what, found in tests.items() if not found)
    untested = f" (not tested: {left_out})" if left_out else ""
    return f"{SINKS[follows]} {USES.get(removing, '')}".rstrip(" ,") + untested


def what_was_run(results: Results) -> str:
    """Model, prompts, seed, time, weights, and whether it was a quick run, in one line."""
    first = next(iter(results.values()))
    known = first.provenance
    prompts = known["prompts"]
    longest = f" to {prompts['longest']}" if "longest" in prompts else ""
    bos = "with" if known["bos"] else "without"
    number = "1 prompt" if prompts["n"] == 1 else f"{prompts['n']} prompts"
    source = _cut(str(prompts["source"]), SOURCE)
    quick = "; quick" if first.settings.get("precision") == "quick" else ""
    return _cut(
        f"{_size(results)}{number} x {prompts['length']}{longest} tokens"
        f" of {source}, {bos} BOS; seed {known.get('seed', 0)}; {_time(results)}"
        f"weights {str(known['model']['weights'])[:8]}{quick}",
        WIDTH,
    )


def _time(results: Results) -> str:
    """How long the experiments ran, where their results know it."""
    known = [result.run.get("seconds") for result in results.values()]
    seconds = [each for each in known if isinstance(each, (int, float))]
    return f"{sum(seconds):.0f} s; " if seconds else ""


def _size(results: Results) -> str:
    """How many layers and heads there are, where the profile knows it."""
    if PROFILE not in results:
        return ""
    mass = results[PROFILE].arrays["sink_mass"]
    layers, heads = mass.values.shape
    of_layers = "layers with attention" if "layer" in mass.coords else "layers"
    return f"{layers} {of_layers} x {heads} heads; "


def _cut(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 3]}..."
