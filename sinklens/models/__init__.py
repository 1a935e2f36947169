"""Models: loading, origin, capabilities, prompts and the shipped models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.lazy import on_first_use

if TYPE_CHECKING:
    from .anatomy import Anatomy as Anatomy
    from .anatomy import anatomy_of as anatomy_of
    from .gguf import cache_folder as cache_folder
    from .loading import load as load
    from .loading import load_like as load_like
    from .origins import Origin as Origin
    from .origins import bos_token_id as bos_token_id
    from .origins import count_parameters as count_parameters
    from .origins import ordinary_tokens as ordinary_tokens
    from .origins import origin as origin
    from .origins import parameters_by_config as parameters_by_config
    from .origins import require_eval_mode as require_eval_mode
    from .origins import weights_hash as weights_hash
    from .state import alone as alone
    from .state import in_use as in_use
    from .state import look_again as look_again
    from .state import model_state as model_state

_HOMES = {
    "Anatomy": "anatomy",
    "anatomy_of": "anatomy",
    "cache_folder": "gguf",
    "load": "loading",
    "load_like": "loading",
    "Origin": "origins",
    "bos_token_id": "origins",
    "count_parameters": "origins",
    "ordinary_tokens": "origins",
    "origin": "origins",
    "parameters_by_config": "origins",
    "require_eval_mode": "origins",
    "weights_hash": "origins",
    "alone": "state",
    "in_use": "state",
    "look_again": "state",
    "model_state": "state",
}

__getattr__ = on_first_use(__name__, _HOMES)
