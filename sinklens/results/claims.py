"""What a diagnosis claims, made from its rows by these rules.

Sink heads give position 0 more than 30 % of the attention of later queries, and more than uniform
attention does. With such heads there is a sink at position 0, else none.

1  Sink. `sink_profile`: `sink_mass position0`, with the array `sink_mass` for heads;
   `sink_mass learned_sink` and `last_position` where they are above uniform attention; later sinks
   are heads with one in a quarter of the prompts (`some_later_sink_share`).
2  What it follows. `sink_profile`: `sink_mass position0:no_bos`, `:random`, `:repeated`. An input
   keeps the sink if its sink mass is above uniform attention by at least half of what text is
   above it; weakens it if it is above by less; removes it if it is not above. Without BOS removed:
   the sink follows BOS; kept: the position; weakened: BOS in part. Nothing is claimed where the
   mean over heads is not above uniform attention on text.
3  Replacing BOS. `bos_replacement`: `sink_mass` and `loss` (else `kl`) of `random_token`, else of
   `mean`, else `zero`. If the sink changes significantly more than under its control (`does_more`),
   it is removed where its mass falls by half or more, weakened where by less, strengthened where it
   rises, and hardly changed within a tenth either way.
4  Cutting the edge. `sink_head_ablation`: `loss` (else `kl`) of `drop_edge`.
5  By layer. `position0_patching`: `loss` (else `kl`) of `other_token:residual` by layer. It matters
   most where its difference from the control is largest of those that are significantly larger
   (`does_more`), and least where it is smallest.

Each effect is said against the clean run, then whether it is more than its control
(`control_verdict`), with the difference. It costs something if its interval lies above 0. The model
uses a sink if cutting the edge costs significantly more than its control does; where this was not
run, if replacing BOS removes the sink and does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..core.labels import head_label
from ..stats.effects import EffectSize
from .effect_sentences import does_more
from .record import Record
from .wording import control_verdict, describe, effect_of, interval_of, null_verdict, written

SINK_HEAD, LATER_SHARE, LONGEST_TOKEN = 0.3, 0.25, 12
KEEPS, HARDLY = 0.5, 0.1
REPLACEMENTS = {
    "random_token": "random tokens",
    "mean": "the mean embedding",
    "zero": "zero",
}
INPUTS = ("random", "repeated")
NOT_RUN = {
    "bos_replacement": "Replacing BOS",
    "sink_head_ablation": "Cutting the sink heads' attention to position 0",
    "position0_patching": "Patching position 0 by layer",
}
CHANGES = {
    "removes": "removes the sink",
    "weakens": "weakens the sink",
    "strengthens": "strengthens the sink",
    "hardly": "hardly changes the sink",
    "no more": "changes the sink no more than its control",
    "untested": "changes the sink, untested,",
}
UNTESTED = ("", "not tested against")
Results = Mapping[str, Record]


@dataclass(frozen=True)
class Claim:
    """A sentence of the first screen and what it rests on.

    Attributes:
        text: The sentence.
        rows: The rows, each with its experiment.
        verdict: In a word, what the heading is made of; empty where there is none.
    """

    text: str
    rows: tuple[tuple[str, EffectSize], ...] = ()
    verdict: str = ""


def claims(results: Results, refused: Mapping[str, str]) -> list[Claim]:
    """The five claims in their order; what was not run says why.

    Args:
        results: Results of the diagnosis by experiment.
        refused: By experiment why it was not run.
    """
    profile = results["sink_profile"]
    sink = sink_heads(profile)
    made = {
        "bos_replacement": replacing_bos,
        "sink_head_ablation": cutting_the_edge,
        "position0_patching": by_layer,
    }
    return [
        the_sink(profile),
        what_it_follows(profile),
        *(
            make(results[name], bool(sink)) if name in results else _not_run(name, refused)
            for name, make in made.items()
        ),
    ]


def _not_run(name: str, refused: Mapping[str, str]) -> Claim:
    """What was refused, with the first clause of the reason."""
    why = re.split(r"; |\. ", refused.get(name, "the whole page says why"))[0].rstrip(".")
    return Claim(f"{NOT_RUN[name]} was not run: {why}.")


def sink_heads(profile: Record) -> list[tuple[int, int]]:
    """The sink heads, the strongest first."""
    row, mass = _row(profile, "sink_mass", "position0"), profile.arrays["sink_mass"].values
    least = max(SINK_HEAD, 0.0 if row is None else row.baseline)
    heads = [divmod(int(index), mass.shape[1]) for index in mass.flatten().argsort(descending=True)]
    return [head for head in heads if float(mass[head]) > least]


def the_sink(profile: Record) -> Claim:
    """Claim 1: whether there is a sink at position 0, in which heads, and what else takes mass."""
    row = _need(profile, "sink_mass", "position0")
    heads, mass = sink_heads(profile), profile.arrays["sink_mass"].values
    strongest = divmod(int(mass.argmax()), mass.shape[1])
    largest = f"{head_label(strongest)} ({_percent(float(mass.max()))})"
    opening = "A sink: position 0" if heads else "No sink at position 0: it"
    sentences = [
        f"{opening} takes {_beside_uniform(row, ' of later attention')}; "
        + (
            f"{len(heads)} of {mass.numel()} heads give it more than 30%, strongest {largest}"
            if heads
            else f"no head gives it more than 30%, at most {largest}"
        )
    ]
    rows, verdict = [row], "sink" if heads else "none"
    for condition, words in (
        ("learned_sink", "Learned sinks take"),
        ("last_position", "The last position takes"),
    ):
        other = _row(profile, "sink_mass", condition)
        if other is not None and null_verdict(other) == "above":
            sentences.append(f"{words} {_percent(other.value)}")
            rows.append(other)
            verdict = verdict if heads else condition
    later = _later_sinks(profile)
    if later is not None:
        sentences.append(later)
        verdict = "later" if verdict == "none" and not later.startswith("No ") else verdict
    return Claim(". ".join(sentences) + ".", _of(profile, rows), verdict)


def _later_sinks(profile: Record) -> str | None:
    """How many heads have a later sink, and the token that most of them are at."""
    if "some_later_sink_share" not in profile.arrays:
        return None
    shares = profile.arrays["some_later_sink_share"].values
    count = int((shares >= LATER_SHARE).sum())
    if not count:
        return "No later sinks"
    tokens = profile.findings.get("later_sinks", {}).get("tokens", [])
    at = f", most at {tokens[0]['token'][:LONGEST_TOKEN]!r}" if tokens else ""
    return f"Later sinks in {count} of {shares.numel()} heads{at}"


def what_it_follows(profile: Record) -> Claim:
    """Claim 2: whether the sink follows BOS or the position, by other inputs."""
    natural = _need(profile, "sink_mass", "position0")
    found = {name: _row(profile, "sink_mass", f"position0:{name}") for name in ("no_bos", *INPUTS)}
    rows = {name: row for name, row in found.items() if row is not None}
    used = _of(profile, [natural, *rows.values()])
    if not rows:
        return Claim("What the sink follows was not measured: there are no other inputs.")
    if not sink_heads(profile):
        return Claim(_without_a_sink(rows), used)
    if null_verdict(natural) in ("below", "not distinguishable from"):
        return Claim(
            "What the sink follows cannot be told: the mean over heads is not above uniform "
            "attention.",
            used,
        )
    kept = {name: keeping(natural, row) for name, row in rows.items()}
    after = " after BOS" if profile.provenance["bos"] else ""
    verdict, parts = "", []
    if "no_bos" in rows:
        verdict = {"removes": "bos", "keeps": "position", "weakens": "part"}[kept["no_bos"]]
        opening = {
            "bos": "It follows the BOS token, not the position",
            "position": "It follows position 0, whatever token it holds",
            "part": "It follows BOS in part",
        }[verdict]
        parts.append(f"{opening}: without BOS position 0 gets {_beside_uniform(rows['no_bos'])}")
    elif not profile.provenance["bos"]:
        parts.append("These prompts have no BOS to take away")
    groups: dict[str, list[str]] = {}
    for name in (name for name in INPUTS if name in rows):
        groups.setdefault(kept[name], []).append(name)
    parts += [
        f"{' or '.join(names)} text{after} {word} it "
        f"({', '.join(_percent(rows[name].value) for name in names)})"
        for word, names in groups.items()
    ]
    return Claim("; ".join(parts) + ".", used, verdict)


def _without_a_sink(rows: Mapping[str, EffectSize]) -> str:
    """Claim 2 where there is no sink: whether another input gives position 0 more."""
    words = {"no_bos": "without BOS"}
    above = [words.get(name, name) for name, row in rows.items() if null_verdict(row) == "above"]
    values = ", ".join(f"{words.get(name, name)} {_percent(rows[name].value)}" for name in rows)
    inputs = " and ".join(above) or "none"
    return f"Of other inputs {inputs} gives position 0 more than uniform attention does ({values})."


def keeping(natural: EffectSize, other: EffectSize) -> str:
    """Whether an input keeps, weakens or removes the sink that there is on text."""
    if null_verdict(other) in ("below", "not distinguishable from") or other.effect <= 0:
        return "removes"
    return "keeps" if other.effect >= KEEPS * natural.effect else "weakens"


def replacing_bos(result: Record, sink: bool) -> Claim:
    """Claim 3: what another token in place of BOS does to the sink and to the loss."""
    treated = {row.condition for row in result.effects if row.kind == "treatment"}
    condition = next((name for name in REPLACEMENTS if name in treated), None)
    cost = None if condition is None else _cost(result, condition)
    if condition is None or cost is None:
        return Claim("bos_replacement has no row of another token.")
    mass = _row(result, "sink_mass", condition)
    said, rows, verdict = f"Replacing BOS by {REPLACEMENTS[condition]} ", [cost], ""
    if sink and mass is not None:
        verdict = changing(result, mass)
        at = f" over {mass.layers}" if mass.layers else ""
        values = f"{_percent(mass.baseline)} -> {_percent(mass.value)}{at}"
        said += f"{CHANGES[verdict]} ({values}) and "
        rows.insert(0, mass)
    said += _costs(result, cost, "replacing a later token")
    if verdict == "removes":
        verdict = f"removes, {_side(result, cost)}"
    return Claim(f"{said}.", _of(result, rows), verdict)


def changing(result: Record, mass: EffectSize) -> str:
    """What an intervention does to the sink, by its mass before and after and its control."""
    if _side(result, mass) in UNTESTED:
        return "untested"
    if not does_more(result, mass):
        return "no more"
    if abs(mass.effect) < HARDLY * mass.baseline:
        return "hardly"
    if mass.effect > 0:
        return "strengthens"
    return "removes" if mass.value <= KEEPS * mass.baseline else "weakens"


def cutting_the_edge(result: Record, sink: bool) -> Claim:
    """Claim 4: what the attention of the sink heads to position 0 is worth."""
    cost = _cost(result, "drop_edge")
    if cost is None:
        return Claim("sink_head_ablation has no row of a cut edge.")
    heads = len(result.draws.get("heads", ()))
    of = f"in {heads} sink heads" if heads else "in the sink heads"
    said = _costs(result, cost, "cutting that to a later key")
    return Claim(
        f"Cutting the attention to position 0 {of} {said}.",
        _of(result, [cost]),
        _side(result, cost),
    )


def by_layer(result: Record, sink: bool) -> Claim:
    """Claim 5: entering which layer it matters what position 0 holds."""
    rows = [
        row
        for row in result.effects
        if (row.kind, row.condition) == ("treatment", "other_token:residual")
        and row.metric == _loss_of(result)
    ]
    compared = [(row, pair[1]) for row in rows for pair in result.references(row)[:1]]
    if not compared:
        return Claim("What position 0 holds was not compared with a later position by layer.")
    compared.sort(key=lambda pair: pair[1].effect)
    (least, least_more), (most, most_more) = compared[0], compared[-1]
    larger = [pair for pair in compared if does_more(result, pair[0]) and pair[1].effect > 0]
    if larger:
        most, most_more = larger[-1]
        said = (
            f"What position 0 holds matters most entering L{most.layer}: {describe(most)}, "
            f"{effect_of(most_more)}{interval_of(most_more)} beyond its control"
        )
        if least is not most:
            beyond = f"{effect_of(least_more)}{interval_of(least_more)}"
            more = "" if does_more(result, least) else ", not significantly more"
            said += f"; least entering L{least.layer}: {beyond}{more}"
        return Claim(f"{said}.", _of(result, [most, least]), f"L{most.layer}")
    if _side(result, most) in UNTESTED:
        return Claim(
            f"Patching position 0 is not tested; the largest difference from a later position of "
            f"{len(rows)} layers is {describe(most_more)} (L{most.layer}).",
            _of(result, [most]),
        )
    return Claim(
        f"What position 0 holds matters entering none of {len(rows)} layers more than at a later "
        f"position; the largest difference is {describe(most_more)} (L{most.layer}).",
        _of(result, [most]),
        "none",
    )


def _costs(result: Record, row: EffectSize, control: str) -> str:
    """An effect on loss or KL against the clean run, then beside its control."""
    what = "loss" if row.metric == "loss" else "KL"
    costs = null_verdict(row) == "above" and row.metric == "loss"
    said = f"costs {describe(row)}" if costs else f"changes {what} by {describe(row)}"
    for _, contrast in result.references(row)[:1]:
        difference = f"difference {effect_of(contrast)}{interval_of(contrast)}"
        return f"{said}, {_side(result, row)} {control} ({difference})"
    return f"{said}, without a control"


def _side(result: Record, row: EffectSize) -> str:
    """On which side of its control an effect is; empty where it has none."""
    for _, contrast in result.references(row)[:1]:
        return control_verdict(contrast, result.of_random_models(contrast))
    return ""


def _cost(result: Record, condition: str) -> EffectSize | None:
    return _row(result, _loss_of(result), condition)


def _loss_of(result: Record) -> str:
    return "loss" if any(row.metric == "loss" for row in result.effects) else "kl"


def _row(result: Record, metric: str, condition: str) -> EffectSize | None:
    """The row of a metric and condition, not of its control."""
    wanted = metric, condition, None
    rows = (row for row in result.effects if (row.metric, row.condition, row.against) == wanted)
    return next(rows, None)


def _need(result: Record, metric: str, condition: str) -> EffectSize:
    return result.find(metric=metric, condition=condition, against=None)


def _of(result: Record, rows: list[EffectSize]) -> tuple[tuple[str, EffectSize], ...]:
    return tuple((result.experiment, row) for row in dict.fromkeys(rows))


def _beside_uniform(row: EffectSize, of: str = "") -> str:
    """A share of attention with its distance from uniform attention."""
    distance = written(row.effect, "+.1%")
    if row.ci_low is not None and row.ci_high is not None:
        distance += f" [{written(row.ci_low, '.1%')}, {written(row.ci_high, '.1%')}]"
    return f"{_percent(row.value)}{of}, uniform {_percent(row.baseline)} ({distance})"


def _percent(value: float) -> str:
    return written(value, ".1%")


def named(claim: Claim) -> Iterator[str]:
    """The rows of a claim as `find` takes them: `sink_profile: sink_mass position0`."""
    for experiment, row in claim.rows:
        place = "" if row.layer is None else f" L{row.layer}"
        yield f"{experiment}: {row.metric} {row.condition}{place}"
