"""The forms in which hooks are written, as interventions.

    Intervention(...)
    ("blocks.2.hook_resid_pre", function)
    [("blocks.2.hook_resid_pre", function), ...]     one intervention, as TransformerLens takes it
    [[...], [...], Intervention(...)]                several
    {"a name": any of these, ...}                    several, named

As in TransformerLens, a function of names may stand for the hook points that it chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..core.errors import UsageError
from ..core.protocol import HookedModel
from ..models.capabilities import SITES, hook_name, switched_off
from .intervention import FwdHooks, Intervention
from .reach import block_of

FORMS = (
    'an intervention is an Intervention, a list of pairs [("blocks.2.hook_resid_pre", function)], '
    "a list of such lists, or a dictionary of them by name"
)


def as_interventions(model: HookedModel, given: Any) -> list[Intervention]:
    """The interventions of any form.

    Args:
        model: The model, whose hook points a function of names chooses from.
        given: One of the forms above.

    Raises:
        UsageError: It is none of them.
    """
    return list(_interventions(model, given, None))


def named_interventions(
    model: HookedModel, given: Any, default: str
) -> dict[str, list[Intervention]]:
    """The interventions by name; several of one name are its draws.

    Args:
        model: The model.
        given: One of the forms above.
        default: The name of hooks that have none.

    Raises:
        UsageError: It is none of them.
    """
    if isinstance(given, Mapping):
        return {name: as_interventions(model, {name: hooks}) for name, hooks in given.items()}
    made = as_interventions(model, given)
    if not made:
        raise UsageError(f"there is no intervention in {given!r}; {FORMS}")
    named = {one.name for one in made} if _has_names(given) else set()
    return {named.pop() if len(named) == 1 else default: made}


def _has_names(given: Any) -> bool:
    """Whether interventions are given that are named."""
    parts = given if isinstance(given, (list, tuple)) else [given]
    return all(isinstance(part, Intervention) for part in parts)


def _interventions(model: HookedModel, given: Any, name: str | None) -> Iterator[Intervention]:
    if isinstance(given, Intervention):
        yield given if name is None else replace(given, name=name)
    elif isinstance(given, Mapping):
        for key, hooks in given.items():
            found = list(_interventions(model, hooks, str(key)))
            if not found:
                raise UsageError(f"{key} has no hooks; {FORMS}")
            yield from found
    elif _is_pair(given):
        yield _from_pairs(model, [given], name)
    elif isinstance(given, (list, tuple)):
        if given and all(map(_is_pair, given)):
            yield _from_pairs(model, given, name)
            return
        for part in given:
            if isinstance(part, (list, tuple)) and not part:
                raise UsageError(f"there is an empty list among the interventions; {FORMS}")
            yield from _interventions(model, part, name)
    else:
        what = "a function alone, which does not say where" if callable(given) else repr(given)
        raise UsageError(f"{FORMS}; not {what[:100]}")


def _is_pair(given: Any) -> bool:
    """Whether it is a hook point, or a function that chooses some, with a hook function."""
    if not (isinstance(given, (list, tuple)) and len(given) == 2 and callable(given[1])):
        return False
    return isinstance(given[0], str) or (isinstance(given, tuple) and callable(given[0]))


def _from_pairs(model: HookedModel, pairs: Iterable[Any], name: str | None) -> Intervention:
    """One intervention of several hooks."""
    hooks: FwdHooks = [(point, fn) for where, fn in pairs for point in _points(model, where)]
    if not hooks:
        raise UsageError(f"no hook point of this model is chosen by the hooks of {name or 'it'}")
    (first, function), *more = hooks
    inner = getattr(function, "func", function)
    said = getattr(inner, "__name__", type(inner).__name__).replace("<lambda>", "lambda")
    sites = {_site(point) for point, _ in hooks}
    return Intervention(
        name=name or f"{said} at {first}{f' and {len(more)} more' if more else ''}",
        site=sites.pop() if len(sites) == 1 else "several",
        first_layer=min(block_of(point) or 0 for point, _ in hooks),
        fwd_hooks=hooks,
    )


def _points(model: HookedModel, where: str | Callable[[str], bool]) -> list[str]:
    """The names of the hook points of a pair, each point once, without those switched off."""
    if isinstance(where, str):
        return [where]
    known: Any = model.hook_dict
    try:
        chosen = {id(point): name for name, point in known.items() if where(name)}
    except Exception as error:
        raise UsageError(
            f"a function in place of a hook point takes its name and says whether it is meant; "
            f"this one failed: {type(error).__name__}: {error}"
        ) from error
    return [name for name in chosen.values() if not switched_off(model, name)]


def _site(point: str) -> str:
    """The kind of site of a hook point, where it is one that `check` tries."""
    layer = block_of(point) or 0
    return next((site for site in SITES if hook_name(site, layer) == point), "own")
