"""What a diagnosis claims of its sinks, made from the rows of `sink_profile` by these rules.

Sink heads give position 0 more than 30 % of the attention of later queries, and more than uniform
attention does. With such heads there is a sink at position 0, else none.

1  Sink: `sink_mass position0`, with the array `sink_mass` for heads; `sink_mass learned_sink` and
   `last_position` where they are above uniform attention; later sinks are heads with one in a
   quarter of the prompts (array `some_later_sink_share`).
2  What it follows: `sink_mass position0:no_bos`, `:random`, `:repeated`. An input keeps the sink if
   its sink mass is above uniform attention by at least 80 % of what text is above it; weakens it
   if it is above by less; removes it if it is not above. Without BOS removed: the sink follows BOS;
   kept: the position; weakened: BOS in part. Nothing is claimed where the mean over heads is not
   above uniform attention on text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..core.labels import head_label
from ..stats.effects import EffectSize
from .claim import Claim, cited, fitting, percent, row_of
from .record import Record
from .wording import null_verdict

SINK_HEAD, LATER_SHARE, KEPT, LONGEST_TOKEN = 0.3, 0.25, 0.8, 12
INPUTS = {"random": "random text", "repeated": "one token repeated"}
NOT_ABOVE = ("below", "not distinguishable from")
FOLLOWS = {"removes": "bos", "keeps": "position", "weakens": "part"}
OPENINGS = {
    "bos": "It follows the BOS token, not the position",
    "position": "It follows position 0, whatever token it holds",
    "part": "It follows BOS in part",
}


def sink_heads(profile: Record) -> list[tuple[int, int]]:
    """The sink heads, the strongest first."""
    row, mass = row_of(profile, "sink_mass", "position0"), profile.arrays["sink_mass"]
    least = max(SINK_HEAD, 0.0 if row is None else row.baseline)
    order = mass.values.flatten().argsort(descending=True).tolist()
    return [mass.head(place) for place in order if float(mass.values.flatten()[place]) > least]


def the_sink(profile: Record) -> Claim:
    """Claim 1: whether there is a sink at position 0, in which heads, and what else takes mass."""
    row = profile.find(metric="sink_mass", condition="position0", against=None)
    heads, by_head = sink_heads(profile), profile.arrays["sink_mass"]
    mass = by_head.values
    strongest = by_head.head(int(mass.argmax()))
    largest = f"{head_label(strongest)} ({percent(float(mass.max()))})"
    opening = "A sink: position 0" if heads else "No sink at position 0: it"
    whole = " of later queries' attention"
    sentences = [
        f"{opening} takes {_beside_uniform(row, whole).replace('[', '[95% CI ', 1)}; "
        + (
            f"{len(heads)} of {mass.numel()} heads give it more than 30%, strongest {largest}"
            if heads
            else f"no head gives it 30%, at most {largest}"
        )
    ]
    rows, verdict = [row], "sink" if heads else "none"
    for condition, words in (
        ("learned_sink", "Learned sinks take"),
        ("last_position", "The last position takes"),
    ):
        other = row_of(profile, "sink_mass", condition)
        if other is not None and null_verdict(other) == "above":
            sentences.append(f"{words} {percent(other.value)}")
            rows.append(other)
            verdict = verdict if heads else condition
    later = _later_sinks(profile)
    if later is not None:
        count, at = later
        # Which token they are at is said where two lines have room for it.
        before = ". ".join(sentences)
        sentences = [fitting(f"{before}. {count}{at}", f"{before}. {count}")]
        verdict = "later" if verdict == "none" and not count.startswith("No ") else verdict
    return Claim(". ".join(sentences) + ".", cited(profile, rows), verdict)


def _later_sinks(profile: Record) -> tuple[str, str] | None:
    """How many heads have a later sink, and the token that most of them are at."""
    if "some_later_sink_share" not in profile.arrays:
        return None
    shares = profile.arrays["some_later_sink_share"].values
    count = int((shares >= LATER_SHARE).sum())
    if not count:
        return "No later sinks", ""
    tokens = profile.findings.get("later_sinks", {}).get("tokens", [])
    at = f", most at {tokens[0]['token'][:LONGEST_TOKEN]!r}" if tokens else ""
    return f"Later keys are sinks in {count} of {shares.numel()} heads", at


def what_it_follows(profile: Record) -> Claim:
    """Claim 2: whether the sink follows BOS or the position, by other inputs."""
    natural = profile.find(metric="sink_mass", condition="position0", against=None)
    found = {
        name: row_of(profile, "sink_mass", f"position0:{name}") for name in ("no_bos", *INPUTS)
    }
    rows = {name: row for name, row in found.items() if row is not None}
    used = cited(profile, [natural, *rows.values()])
    if not rows:
        return Claim("What the sink follows was not measured: there are no other inputs.")
    if not sink_heads(profile):
        return Claim(_without_a_sink(rows), used)
    if null_verdict(natural) in NOT_ABOVE:
        return Claim(
            "What the sink follows cannot be told: the mean over heads is not above uniform "
            "attention.",
            used,
        )
    verdict = FOLLOWS[keeping(natural, rows["no_bos"])] if "no_bos" in rows else ""
    text = "; ".join(_by_input(natural, rows, verdict, profile.provenance["bos"]))
    return Claim(f"{text}.", used, verdict)


def _by_input(
    natural: EffectSize, rows: Mapping[str, EffectSize], verdict: str, bos: bool
) -> Iterator[str]:
    """Claim 2 where there is a sink: without BOS, then random and repeated tokens."""
    if verdict:
        without = _beside_uniform(rows["no_bos"])
        yield f"{OPENINGS[verdict]}: without BOS position 0 gets {without}"
    elif not bos:
        yield "These prompts have no BOS to take away"
    others = [
        f"{words} {keeping(natural, rows[name])} it ({percent(rows[name].value)})"
        for name, words in INPUTS.items()
        if name in rows
    ]
    if others:
        yield f"{'after BOS, ' if bos else ''}{' and '.join(others)}"


def _without_a_sink(rows: Mapping[str, EffectSize]) -> str:
    """Claim 2 where there is no sink: whether another input gives position 0 more."""
    words = {"no_bos": "without BOS", **{name: f"with {said}" for name, said in INPUTS.items()}}
    values = ", ".join(
        f"{percent(row.value)} {words[name]}"
        f"{' (above uniform attention)' if null_verdict(row) == 'above' else ''}"
        for name, row in rows.items()
    )
    return f"Nor on other inputs: position 0 gets {values}."


def keeping(natural: EffectSize, other: EffectSize) -> str:
    """Whether an input keeps, weakens or removes the sink that there is on text."""
    if null_verdict(other) in NOT_ABOVE or other.effect <= 0:
        return "removes"
    return "keeps" if other.effect >= KEPT * natural.effect else "weakens"


def _beside_uniform(row: EffectSize, whole: str = "") -> str:
    """A share of attention with its interval, beside uniform attention."""
    interval = ""
    if row.ci_low is not None and row.ci_high is not None:
        low, high = (percent(row.baseline + end) for end in (row.ci_low, row.ci_high))
        interval = f" [{low}, {high}]"
    return f"{percent(row.value)}{interval}{whole} (uniform {percent(row.baseline)})"
