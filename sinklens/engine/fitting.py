"""Whether prompts can run on a model at all, before anything does."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import UsageError
from ..core.protocol import HookedModel
from ..models.prompts import Prompts
from ..models.prompts.look_up import require_bos, require_unpadded


def require_fitting(model: HookedModel, prompts: Prompts, positions: Sequence[int] | None) -> None:
    """Refuse tokens outside the vocabulary, padding, a BOS that is none, positions not there.

    Raises:
        UsageError: There is one of these.
    """
    rows = prompts.rows()
    tokens, size = [token for row in rows for token in row], int(model.cfg.d_vocab)
    if max(tokens) >= size or min(tokens) < 0:
        raise UsageError(f"token {max(tokens)} is outside the vocabulary of {size}")
    require_unpadded(model, rows)
    if prompts.bos:
        require_bos(model, rows)
    wrong = [p for p in positions or () if not 0 <= p < prompts.length]
    if wrong:
        raise UsageError(f"there is no position {wrong[0]} in prompts of {prompts.length} tokens")
