"""Tokenizers: beside the weights or the user's own, and the BOS that they had before a bridge.

TransformerLens opens a tokenizer again from its files, and fills a missing BOS with EOS.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..core.errors import UsageError, shortened


def openable(tokenizer: Any) -> Any:
    """A tokenizer that TransformerLens can open again; one that is in memory only is written.

    Raises:
        UsageError: It is none.
    """
    if tokenizer is not None and not hasattr(tokenizer, "bos_token_id"):
        raise UsageError(
            f"tokenizer={shortened(repr(tokenizer))} is no tokenizer; give the object that "
            "AutoTokenizer.from_pretrained returns"
        )
    if tokenizer is None or "name_or_path" in getattr(tokenizer, "init_kwargs", {"name_or_path"}):
        return tokenizer
    with tempfile.TemporaryDirectory(prefix="sinklens-") as folder:
        tokenizer.save_pretrained(folder)
        return find_tokenizer(folder, None)


def find_tokenizer(name: str, revision: str | None) -> Any:
    """The tokenizer beside the weights, asked to prepend BOS where it can; None without files."""
    from transformers import AutoTokenizer

    path = Path(name)
    if path.is_dir() and not any(path.glob("tokenizer*")) and not any(path.glob("vocab*")):
        return None
    options = {"revision": revision, "trust_remote_code": False}
    try:
        return AutoTokenizer.from_pretrained(name, add_bos_token=True, **options)
    except ValueError:  # no BOS to add
        return AutoTokenizer.from_pretrained(name, **options)


def bos_before_boot(tokenizer: Any, config: Any) -> int | None:
    """BOS of tokenizer or config, before TransformerLens fills a missing one with EOS."""
    if tokenizer is not None:
        for candidate in (tokenizer.bos_token_id, getattr(tokenizer, "cls_token_id", None)):
            if candidate is not None:
                return int(candidate)
    value = getattr(config, "bos_token_id", None)
    return None if value is None else int(value)
