"""Token windows of equal length, cut by a reproducible rule.

The rule of `prompts` for one text: tokenise it without special tokens, cut consecutive,
non-overlapping windows from the start (`length - 1` tokens each, `length` without BOS), prepend
BOS, take the first `n`. Documents are cut one by one, so that no window spans two: they are visited
until `n` of them have a window or none is left, each gives as many windows as another as far as it
has them, and those of one document are spread over it. The default text is the shipped corpus (33
State of the Union addresses), of whose M windows those with numbers floor(i M / n), i < n, are
taken, so that prompts come from many documents; shipped models trained on another task get its
sequences instead (`own_prompts`).

Also here: the control inputs `random_prompts` and `repeated_prompts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ...core.errors import UsageError
from ...core.protocol import HookedModel
from ..origins import bos_token_id, ordinary_tokens, origin
from ..shipped import card
from ..shipped.prompts import OWN_PROMPTS
from .base import Prompts
from .documents import even_shares, read_text, visited
from .encoding import encode, prepend_bos, resolve_bos
from .shipped_text import corpus_tokens

SHORT, CHARACTERS = 1_000_000, 16
"""Characters of a text that is tokenised as a whole, and those allowed for a token beyond that."""


def prompts(
    model: HookedModel,
    text: Any = None,
    n: int = 64,
    length: int = 64,
    bos: bool | None = None,
) -> Prompts:
    """`n` windows of a text or of documents by the rules at the top of this module.

    Args:
        model: The model whose tokenizer is used.
        text: A text, or the name of a file; a `pathlib.Path`; documents: a list of strings, a
            column of a data set, any iterable of strings; None is the shipped corpus.
        n: How many windows.
        length: Positions in each, BOS included.
        bos: Whether to prepend BOS; by default as the model does (`cfg.default_prepend_bos`).

    Raises:
        UsageError: There are fewer than `n` windows, a file cannot be read, this is no text, or BOS
            is asked for where there is none.
    """
    _require_size(n, length)
    use_bos = resolve_bos(model, bos)
    width = length - use_bos
    if text is None or isinstance(text, (str, Path)):
        found = _of_text(model, text, n, width)
    else:
        found = _of_documents(model, text, n, width)
    if found.available < n:
        raise UsageError(
            f"{found.source} gives {found.available} windows of {length} tokens, {n} were asked "
            "for; use a longer text, a smaller n or a smaller length"
        )
    made = Prompts(
        prepend_bos(model, torch.tensor(found.windows), use_bos),
        use_bos,
        found.source,
        documents=None if found.documents is None else torch.tensor(found.documents),
        tokenizer=model.tokenizer,
    )
    known = origin(model)
    return own_prompts(known.name, made) if text is None and known.kind == "shipped" else made


class _Found(NamedTuple):
    """What a text or documents give: how many windows there are, and those that are taken."""

    source: str
    available: int
    windows: list[Sequence[int]]
    documents: list[int] | None = None


def cut(model: HookedModel, tokens: Sequence[int], width: int) -> list[Sequence[int]]:
    """Consecutive windows; BOS in the text, where a window would start with it, is left out."""
    bos, windows, at = bos_token_id(model), list[Sequence[int]](), 0
    while at + width <= len(tokens):
        if tokens[at] == bos:
            at += 1
        else:
            windows.append(tokens[at : at + width])
            at += width
    return windows


def _of_text(model: HookedModel, text: str | Path | None, n: int, width: int) -> _Found:
    """Windows of one text from its start, of the shipped corpus spread over it."""
    if text is None:
        windows = cut(model, corpus_tokens(model), width)
        count = len(windows)
        chosen = [windows[i * count // n] for i in range(n)] if count else []
        return _Found("sotu", count, chosen)
    content, source = read_text(text)
    windows = _first_windows(model, content, n, width)
    return _Found(source, len(windows), windows[:n])


def _first_windows(model: HookedModel, text: str, n: int, width: int) -> list[Sequence[int]]:
    """The first windows of a text, at least n if it has them.

    Of a long text no more is tokenised than they take, since tokens need many times the memory of
    their text. The last window of a part, which may end within a word, does not count.
    """
    part = max(SHORT, CHARACTERS * n * width)
    while part < len(text):
        windows = cut(model, encode(model, text[:part]), width)[:-1]
        if len(windows) >= n:
            return windows
        part *= 4
    return cut(model, encode(model, text), width)


def _of_documents(model: HookedModel, documents: Any, n: int, width: int) -> _Found:
    """Windows of documents, of as many as there are, spread over each."""
    windows: dict[int, list[Sequence[int]]] = {}
    looked_at = 0
    for looked_at, (number, text) in enumerate(visited(documents), 1):  # noqa: B007
        there = cut(model, encode(model, text), width)
        if there:
            windows[number] = there
        if len(windows) == n:
            break
    sizes = {number: len(windows[number]) for number in sorted(windows)}
    count = sum(sizes.values())
    shares = even_shares(sizes, min(n, count))
    places = [
        (number, i * sizes[number] // share)
        for number, share in shares.items()
        for i in range(share)
    ]
    named = len(windows) if count >= n else looked_at
    return _Found(
        "1 document" if named == 1 else f"{named} documents",
        count,
        [windows[number][place] for number, place in places],
        [number for number, _ in places],
    )


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
    return Prompts(
        prepend_bos(model, torch.from_numpy(choice), use_bos),
        use_bos,
        "random",
        tokenizer=model.tokenizer,
    )


def repeated_prompts(
    model: HookedModel, n: int = 64, length: int = 64, *, bos: bool | None = None, seed: int = 0
) -> Prompts:
    """Prompts of one repeated token; a different ordinary token in each prompt."""
    _require_size(n, length, seed)
    use_bos = resolve_bos(model, bos)
    generator = np.random.default_rng([seed, *b"repeated_prompts"])
    choice = generator.choice(ordinary_tokens(model).numpy(), size=(n, 1))
    tokens = torch.from_numpy(choice).expand(n, length - use_bos)
    return Prompts(
        prepend_bos(model, tokens, use_bos), use_bos, "repeated", tokenizer=model.tokenizer
    )


def _require_size(n: int, length: int, seed: int = 0) -> None:
    """Refuse invalid sizes and seeds."""
    if seed < 0:
        raise UsageError(f"seed must be 0 or more, not {seed}")
    if n < 1 or length < 2:
        raise UsageError(f"n must be at least 1 and length at least 2, not n={n}, length={length}")
