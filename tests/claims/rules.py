"""Rules by which numbers confirm a claim or do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sinklens.results.estimates import Measure
from sinklens.results.wording import number, quantity

CONFIRMED, NOT_CONFIRMED, NOT_TESTABLE = "confirmed", "not confirmed", "not testable"


@dataclass(frozen=True)
class Seen:
    """What a row says: a value, its interval, and what there would be without a mechanism."""

    value: float
    low: float
    high: float
    null: float


@dataclass(frozen=True)
class Verdict:
    """One of the three words, and why."""

    word: str
    why: str = ""

    def __str__(self) -> str:
        """As it stands in the table."""
        return f"**{self.word}**" + (f" ({self.why})" if self.why else "")


class Rule(Protocol):
    """What decides a claim."""

    def __call__(self, seen: Seen) -> Verdict:
        """The verdict on what is seen."""

    def in_words(self, measure: Measure) -> str:
        """The rule, as it stands in the table."""


@dataclass(frozen=True)
class Near:
    """A published number, or a range of them, and how far off still is the same."""

    least: float
    most: float
    tolerance: float

    def __call__(self, seen: Seen) -> Verdict:
        """Confirmed where the interval holds the number and is narrow enough to tell."""
        if seen.high < self.least or seen.low > self.most:
            return Verdict(NOT_CONFIRMED, "the interval excludes it")
        if seen.low < self.least - self.tolerance or seen.high > self.most + self.tolerance:
            return Verdict(NOT_CONFIRMED, "in range, but too wide to confirm or refute")
        return Verdict(CONFIRMED)

    def in_words(self, measure: Measure) -> str:
        """The number and the tolerance."""
        ends = dict.fromkeys(number(measure, end) for end in (self.least, self.most))
        return (
            f"the interval reaches {' to '.join(ends)} and lies within "
            f"{number(measure, self.tolerance)} of it"
        )


@dataclass(frozen=True)
class AboveNull:
    """More than there would be without a mechanism."""

    def __call__(self, seen: Seen) -> Verdict:
        """Confirmed where the interval lies above the null."""
        if seen.low > seen.null:
            return Verdict(CONFIRMED)
        below = seen.high < seen.null
        return Verdict(NOT_CONFIRMED, f"the interval {'lies below' if below else 'holds'} the null")

    def in_words(self, measure: Measure) -> str:
        """The side."""
        return "the interval lies above the null"


@dataclass(frozen=True)
class Above:
    """At least as much as was published."""

    least: float

    def __call__(self, seen: Seen) -> Verdict:
        """Confirmed where the interval lies above the published value."""
        if seen.low > self.least:
            return Verdict(CONFIRMED)
        below = seen.high < self.least
        return Verdict(
            NOT_CONFIRMED, "the interval lies below it" if below else "the interval holds it"
        )

    def in_words(self, measure: Measure) -> str:
        """The bound."""
        return f"the interval lies above {quantity(measure, self.least)}"


@dataclass(frozen=True)
class Below:
    """At most as much as was published."""

    most: float

    def __call__(self, seen: Seen) -> Verdict:
        """Confirmed where the interval lies below the published value."""
        if seen.high < self.most:
            return Verdict(CONFIRMED)
        above = seen.low > self.most
        return Verdict(
            NOT_CONFIRMED, "the interval lies above it" if above else "the interval holds it"
        )

    def in_words(self, measure: Measure) -> str:
        """The bound."""
        return f"the interval lies below {quantity(measure, self.most)}"


@dataclass(frozen=True)
class OtherThanNull:
    """A measure that any attention with the same mask would give cannot test a claim."""

    def __call__(self, seen: Seen) -> Verdict:
        """Not testable where every prompt has the value of the null."""
        if seen.low == seen.value == seen.high == seen.null:
            return Verdict(NOT_TESTABLE, "an artefact of the causal mask: the null gives the same")
        return Verdict(NOT_CONFIRMED, "it is not what the null gives")

    def in_words(self, measure: Measure) -> str:
        """The null."""
        return "never by this measure; not testable where it equals the null in every prompt"
