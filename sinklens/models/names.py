"""Short names of models, as TransformerLens demos use them, and what the Hub's cache holds."""

from __future__ import annotations

from ..core.errors import SinklensError, UsageError, shortened, unknown_name
from . import shipped

OWNERS = {
    "distilgpt2": "distilbert",
    "gpt2": "openai-community",
    "gpt2-medium": "openai-community",
    "gpt2-large": "openai-community",
    "gpt2-xl": "openai-community",
}
"""Owners of the models that TransformerLens knows without one."""


def hub_id(name: str) -> str:
    """The Hub id that a short name stands for: `gpt2-small` is `openai-community/gpt2`.

    A name is an alias of TransformerLens, or the last part of one Hub id that it supports.

    Raises:
        UsageError: It is none of these; near names are suggested.
    """
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    known = [*OFFICIAL_MODEL_NAMES, *MODEL_ALIASES]
    found = {official.rpartition("/")[2].lower(): official for official in known}
    found |= {alias.lower(): name for name, aliases in MODEL_ALIASES.items() for alias in aliases}
    official: str = found.get(name.lower(), "")
    if official in OWNERS:
        return f"{OWNERS[official]}/{official}"
    if "/" in official:
        return official
    error = unknown_name("model", name, [*shipped.names(), *found])
    raise UsageError(
        f"{error}; a model may also be a folder, a .gguf file or a hub id of the form owner/name"
    )


def require_hub_id(name: str) -> str:
    """A Hub id as it is.

    Raises:
        UsageError: It has not the form of one.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(
            f"there is no file or folder {shortened(name)}, and a Hub id has the form owner/name"
        ) from error
    return name


def is_cached(name: str, revision: str | None) -> bool:
    """Whether the cache of the Hub holds a model's configuration."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)


def require_reachable(name: str, revision: str | None, asked: str, error: Exception) -> None:
    """Say what to do about a model that could not be loaded since the Hub cannot be reached.

    Args:
        name: The Hub id.
        revision: The revision.
        asked: The name that it was asked for by.
        error: What went wrong.

    Raises:
        SinklensError: The model is not cached, and the Hub cannot be reached.
    """
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    unreachable = HF_HUB_OFFLINE or "connect" in str(error)
    if not unreachable or is_cached(name, revision):
        return
    called = f"{name} (asked for as {asked})" if asked != name else name
    where = f" of revision {revision}" if revision else ""
    command = f"hf download {name} --revision {revision}" if revision else f"hf download {name}"
    raise SinklensError(
        f"cannot load {called}: it is not cached{where} in {HF_HUB_CACHE}, and the Hub cannot be "
        f"reached; run `{command}` where it can, or give a folder or a .gguf file"
    ) from error
