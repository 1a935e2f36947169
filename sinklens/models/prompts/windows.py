"""Token windows of equal length, cut by a reproducible rule.

The rule of `prompts`: tokenise the whole text without special tokens, cut consecutive,
non-overlapping windows from the start (`length - 1` tokens each, `length` without BOS), prepend
BOS, take the first `n`. The default text is the shipped corpus (33 State of the Union addresses),
of whose M windows those with numbers floor(i M / n), i < n, are taken, so that prompts come from
many documents; shipped models trained on another task get its sequences instead (`own_prompts`).

Also here: the control inputs `random_prompts` and `repeated_prompts`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ...core.errors import UsageError
from ...core.protocol import HookedModel
from ..origins import ordinary_tokens, origin
from ..shipped import card
from ..shipped.prompts import OWN_PROMPTS
from .base import Prompts
from .encoding import encode, prepend_bos, resolve_bos
from .shipped_text import corpus, corpus_tokens


def prompts(
    model: HookedModel,
    text: str | Path | None = None,
    n: int = 64,
    length: int = 64,
    bos: bool | None = None,
) -> Prompts:
    """`n` windows of a text by the rule at the top of this module.

    Args:
        model: The model whose tokenizer is used.
        text: A text; a `pathlib.Path` is a file to read; None is the shipped corpus.
        n: How many windows.
        length: Positions in each, BOS included.
        bos: Whether to prepend BOS; by default as the model does (`cfg.default_prepend_bos`).

    Raises:
        UsageError: The text gives fewer than `n` windows, the file cannot be read, or BOS is asked
            for where there is none.
    """
    _require_size(n, length)
    use_bos = resolve_bos(model, bos)
    content, source = _read(text)
    tokens = torch.tensor(corpus_tokens(model) if text is None else encode(model, content))
    width = length - use_bos
    count = len(tokens) // width
    if count < n:
        raise UsageError(
            f"{source} gives {count} windows of {length} tokens, {n} were asked for; "
            "use a longer text, a smaller n or a smaller length"
        )
    chosen = [i * count // n for i in range(n)] if text is None else list(range(n))
    windows = tokens[: count * width].view(count, width)[chosen]
    cut = Prompts(prepend_bos(model, windows, use_bos), use_bos, source)
    known = origin(model)
    return own_prompts(known.name, cut) if text is None and known.kind == "shipped" else cut


def own_prompts(name: str, prompts: Prompts) -> Prompts:
    """Prompts in the form of the task on which a shipped model was trained.

    Text of the shipped corpus for most. `encoder` has [SEP] in place of the last token; the
    `backcopy` models get sequences of their task, which are not text.

    Raises:
        UsageError: There is no shipped model of that name.
    """
    return prompts_of(card(name)["prompts"], prompts)


def prompts_of(task: str, prompts: Prompts) -> Prompts:
    """Prompts in the form of a task.

    Args:
        task: An entry of `OWN_PROMPTS`.
        prompts: Windows of text.
    """
    own = OWN_PROMPTS[task](prompts.tokens, prompts.source, bos=prompts.bos)
    return replace(prompts, tokens=own.tokens, source=own.source)


def random_prompts(
    model: HookedModel, n: int = 64, length: int = 64, *, bos: bool | None = None, seed: int = 0
) -> Prompts:
    """Prompts of tokens drawn uniformly from the vocabulary without special tokens."""
    _require_size(n, length, seed)
    use_bos = resolve_bos(model, bos)
    generator = np.random.default_rng([seed, *b"random_prompts"])
    choice = generator.choice(ordinary_tokens(model).numpy(), size=(n, length - use_bos))
    return Prompts(prepend_bos(model, torch.from_numpy(choice), use_bos), use_bos, "random")


def repeated_prompts(
    model: HookedModel, n: int = 64, length: int = 64, *, bos: bool | None = None, seed: int = 0
) -> Prompts:
    """Prompts of one repeated token; a different ordinary token in each prompt."""
    _require_size(n, length, seed)
    use_bos = resolve_bos(model, bos)
    generator = np.random.default_rng([seed, *b"repeated_prompts"])
    choice = generator.choice(ordinary_tokens(model).numpy(), size=(n, 1))
    tokens = torch.from_numpy(choice).expand(n, length - use_bos)
    return Prompts(prepend_bos(model, tokens, use_bos), use_bos, "repeated")


def _require_size(n: int, length: int, seed: int = 0) -> None:
    """Refuse invalid sizes and seeds."""
    if seed < 0:
        raise UsageError(f"seed must be 0 or more, not {seed}")
    if n < 1 or length < 2:
        raise UsageError(f"n must be at least 1 and length at least 2, not n={n}, length={length}")


def _read(text: str | Path | None) -> tuple[str, str]:
    """A text and its name in tables."""
    if text is None:
        return corpus(), "sotu"
    if isinstance(text, Path):
        try:
            return text.read_text("utf-8"), text.name
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the text file {text}: {error}") from error
    return text, "text"
