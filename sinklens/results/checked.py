"""What `result.json` may hold, field by field, so that damage is said when a result is loaded."""

# Without postponed annotations, under which Python does not see what is `NotRequired`.
import re
from dataclasses import is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, NotRequired, TypedDict, Union, get_args, get_origin, get_type_hints
from typing import is_typeddict as _is_typed

from ..core.errors import SinklensError
from ..stats.effects import EffectSize
from .estimates import Measure
from .figures import KINDS

MOST_PROMPTS = 2**40
_FORM = re.compile(r"\+?,?\.\d{1,2}[efg%]|")
_NAMES = {NoneType: "null", float: "a number", int: "a whole number", str: "text", bool: "a bool"}


class ModelAbout(TypedDict):
    """The model, as provenance names it."""

    name: str
    kind: NotRequired[str]
    revision: NotRequired[str | None]
    step: NotRequired[int | None]
    seed: NotRequired[int | None]
    weights: NotRequired[str]
    architecture: NotRequired[str]


class PromptsAbout(TypedDict):
    """The prompts, as provenance names them."""

    n: int
    length: int
    source: str
    longest: NotRequired[int]
    hash: NotRequired[str | None]
    documents: NotRequired[list[int] | None]


class Provenance(TypedDict):
    """What was run on what."""

    model: ModelAbout
    bos: bool
    prompts: PromptsAbout


class Settings(TypedDict):
    """What is shown of the settings."""

    draws: NotRequired[int | None]
    footnotes: NotRequired[dict[str, str]]
    notes: NotRequired[list[str]]
    left_out: NotRequired[dict[str, str]]
    uneven: NotRequired[list[int]]


class Axes(TypedDict):
    """The axes of an array."""

    dims: list[str]
    coords: dict[str, list[str | float | None]]


class Stacked(TypedDict):
    """Figures below or beside each other."""

    parts: list[dict[str, Any]]
    title: str | None


class Content(TypedDict):
    """A `result.json` of schema 2."""

    experiment: str
    summary: list[str]
    effects: list[EffectSize]
    measures: dict[str, Measure]
    findings: dict[str, Any]
    draws: dict[str, Any]
    settings: Settings
    provenance: Provenance
    figure: dict[str, Any]
    arrays: dict[str, Axes]


def require_content(content: Any) -> None:
    """Refuse what no result holds.

    Raises:
        SinklensError: The message names the first field that is wrong.
    """
    require(content, Content, "")
    if not content["effects"]:
        raise SinklensError("it has no rows")
    for number, row in enumerate(content["effects"]):
        for name in ("n_prompts", "n_draws"):
            if not 0 <= row[name] <= MOST_PROMPTS:
                raise SinklensError(f"effects[{number}].{name} is {row[name]}")
    for name, measure in content["measures"].items():
        if not _FORM.fullmatch(measure.get("form", "")):
            raise SinklensError(f"measures.{name}.form is {measure['form']!r}")
    _require_figure(content["figure"], "figure")


def _require_figure(figure: Any, place: str) -> None:
    """Refuse a declaration that cannot be drawn.

    Raises:
        SinklensError: It is one.
    """
    require(figure, dict[str, Any], place)
    fields = {name: value for name, value in figure.items() if name != "kind"}
    if figure.get("kind") == "Panels":
        for side in ("left", "right"):
            _require_figure(figure.get(side), f"{place}.{side}")
        return
    if figure.get("kind") == "Stack":
        require(fields, Stacked, place)
        for number, part in enumerate(fields["parts"]):
            _require_figure(part, f"{place}.parts[{number}]")
        return
    if figure.get("kind") not in KINDS:
        raise SinklensError(
            f"{place}.kind is {figure.get('kind')!r}, not one of {', '.join(KINDS)}"
        )
    require(fields, KINDS[figure["kind"]], place)


def require(value: Any, hint: Any, place: str) -> None:
    """Refuse a value that is not of a type.

    Args:
        value: What JSON holds.
        hint: A type: of text, numbers, lists, dictionaries by text, a dataclass or `TypedDict`.
        place: Where it stands, for the message.

    Raises:
        SinklensError: It is something else; the message says where.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return
    if origin in (Union, UnionType):
        if not any(_is(value, one) for one in inner):
            raise _wrong(value, " or ".join(map(_name, inner)), place)
        for one in inner:
            if _is(value, one):
                require(value, one, place)
                return
    elif origin in (list, tuple):
        if not isinstance(value, list):
            raise _wrong(value, "a list", place)
        for number, one in enumerate(value):
            require(one, inner[0], f"{place}[{number}]")
    elif origin is dict or is_dataclass(hint) or _is_typed(hint):
        if not isinstance(value, dict):
            raise _wrong(value, "an object", place)
        if origin is dict:
            for name, one in value.items():
                require(one, inner[1], f"{place}.{name}")
        else:
            _require_fields(value, hint, place)
    elif not _is(value, hint):
        raise _wrong(value, _name(hint), place)


def _require_fields(value: dict[str, Any], hint: Any, place: str) -> None:
    """Check an object's fields; only a dataclass allows no others."""
    types, required = _fields(hint)
    missing = sorted(required - value.keys())
    if missing:
        raise SinklensError(f"{place or 'it'} has no {missing[0]}".removeprefix("."))
    strange = sorted(value.keys() - types.keys())
    if strange and is_dataclass(hint):
        raise SinklensError(f"{place} has a field {strange[0]!r}".removeprefix("."))
    for name, type_ in types.items():
        if name in value:
            require(value[name], type_, f"{place}.{name}")


@cache
def _fields(hint: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """The types of an object's fields, and the fields that it has to have."""
    types = get_type_hints(hint)
    if is_dataclass(hint):
        fields = hint.__dataclass_fields__
        return types, frozenset(n for n in types if not hasattr(hint, n) and n in fields)
    return types, frozenset(hint.__required_keys__)


def _is(value: Any, hint: Any) -> bool:
    """Whether a value has the kind of a type; whole numbers are numbers, truth values are not."""
    kind = get_origin(hint) or hint
    kind = list if kind is tuple else kind
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, (int, float))
    if is_dataclass(kind) or _is_typed(kind):
        return isinstance(value, dict)
    return isinstance(value, kind)


def _name(hint: Any) -> str:
    return _NAMES.get(hint, "a list" if get_origin(hint) is list else "an object")


def _wrong(value: Any, wanted: str, place: str) -> SinklensError:
    found = _NAMES.get(type(value), "a list" if isinstance(value, list) else "an object")
    return SinklensError(f"{place.removeprefix('.') or 'it'} is {found}, not {wanted}")
