"""The guard before probes: every hook that they read is there and holds what its name says."""

from __future__ import annotations

from collections.abc import Iterable

from ..core.errors import SinklensError
from ..core.protocol import HookedModel
from ..models.capabilities import check
from ..probes import Probe


def require_readable(model: HookedModel, probes: Iterable[Probe]) -> None:
    """Refuse probes of hooks that this model does not have, or has in another shape.

    Raises:
        SinklensError: The message names the hook, the layer and the reason.
    """
    known = model.hook_dict
    for probe in probes:
        names = [name for name, _ in probe.fwd_hooks if isinstance(name, str)]
        what, capabilities = type(probe).__name__, check(model)
        if not probe.fwd_hooks:
            raise SinklensError(f"{what} finds nothing to read in {capabilities.architecture}")
        capabilities.require_readable(names, what)
        for name in names:
            if name not in known:
                raise SinklensError(
                    f"{what} reads {name}, which {capabilities.architecture} does not have "
                    "in every layer; sinklens.check(model) says what can be read"
                )
