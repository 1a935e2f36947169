"""Prompts: token windows of equal length, cut by a reproducible rule.

The rule of `prompts`: tokenise the whole text without special tokens, cut consecutive,
non-overlapping windows from the start (`length - 1` tokens each, `length` without BOS), prepend
BOS, take the first `n`. The default text is the shipped corpus (33 State of the Union addresses),
of whose M windows those with numbers floor(i M / n), i < n, are taken, so that prompts come from
many documents; shipped models trained on another task get its sequences instead (`own_prompts`).

Also here: the control inputs `random_prompts` and `repeated_prompts`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..core.errors import SinklensError, UsageError
from ..core.protocol import HookedModel
from .origins import bos_token_id, ordinary_tokens, origin
from .shipped import card
from .shipped.prompts import OWN_PROMPTS

_cut_corpora: WeakKeyDictionary[Any, list[int]] = WeakKeyDictionary()
_cut_by_rules: dict[tuple[type, str], list[int]] = {}


@dataclass(frozen=True)
class Prompts:
    """Token windows of one length, without padding.

    Attributes:
        tokens: Token ids.
        bos: Whether position 0 of every prompt is the model's BOS.
        source: Their source in tables: `sotu`, a file's name, `text`, `strings`, `random`, ...
        answers: For `logit_diff`: the correct and the incorrect next token after each prompt.
    """

    tokens: Int[Tensor, "prompt pos"]
    bos: bool
    source: str
    answers: Int[Tensor, "prompt 2"] | None = None

    def __post_init__(self) -> None:
        """Refuse tokens and answers that no experiment can use."""
        if self.tokens.ndim != 2 or self.tokens.dtype.is_floating_point or not self.tokens.numel():
            raise UsageError(
                f"tokens must be integers of shape [prompt, pos], not {self.tokens.dtype} "
                f"{tuple(self.tokens.shape)}"
            )
        if self.answers is not None and self.answers.shape != (len(self.tokens), 2):
            raise UsageError(
                f"answers must have shape [{len(self.tokens)}, 2] (right and wrong token of each "
                f"prompt), not {list(self.answers.shape)}"
            )

    def __len__(self) -> int:
        """The number of prompts."""
        return len(self.tokens)

    @property
    def length(self) -> int:
        """Positions in each prompt, BOS included."""
        return self.tokens.shape[1]

    @property
    def hash(self) -> str:
        """SHA-256 of shape and token ids (16 hexadecimal digits)."""
        values = self.tokens.cpu().numpy().astype("<i8")
        return hashlib.sha256(str(values.shape).encode() + values.tobytes()).hexdigest()[:16]

    def take(self, numbers: Int[Tensor, " chosen"]) -> Prompts:
        """The prompts with these numbers."""
        answers = None if self.answers is None else self.answers[numbers]
        return replace(self, tokens=self.tokens[numbers], answers=answers)

    def without_first(self) -> Prompts:
        """The same windows without position 0, that is without BOS."""
        return replace(self, tokens=self.tokens[:, 1:], bos=False, source=f"{self.source}:no_bos")

    @classmethod
    def from_strings(
        cls,
        model: HookedModel,
        strings: Sequence[str],
        *,
        bos: bool | None = None,
        answers: Sequence[Sequence[str]] | Int[Tensor, "prompt 2"] | None = None,
    ) -> Prompts:
        """A user's own prompts, which must have the same number of tokens.

        Args:
            model: The model whose tokenizer is used.
            strings: The texts.
            bos: Whether to prepend BOS; by default as the model does.
            answers: The correct and the incorrect answer of each prompt, as strings of one token
                each or as token ids.

        Raises:
            UsageError: The token counts differ, or an answer is not one token.
        """
        if isinstance(strings, str):
            raise UsageError("from_strings takes a list of strings, not one text")
        use_bos = _resolve_bos(model, bos)
        encoded = [_encode(model, string) for string in strings]
        lengths = [len(tokens) + use_bos for tokens in encoded]
        if len(set(lengths)) != 1:
            raise UsageError(f"prompts must have equal numbers of tokens; these have {lengths}")
        tokens = _prepend_bos(model, torch.tensor(encoded), use_bos)
        if answers is not None and not isinstance(answers, Tensor):
            answers = torch.tensor([[single_token(model, a) for a in pair] for pair in answers])
        return cls(tokens, use_bos, "strings", answers)


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
    use_bos = _resolve_bos(model, bos)
    content, source = _read(text)
    tokens = torch.tensor(corpus_tokens(model) if text is None else _encode(model, content))
    width = length - use_bos
    count = len(tokens) // width
    if count < n:
        raise UsageError(
            f"{source} gives {count} windows of {length} tokens, {n} were asked for; "
            "use a longer text, a smaller n or a smaller length"
        )
    chosen = [i * count // n for i in range(n)] if text is None else list(range(n))
    windows = tokens[: count * width].view(count, width)[chosen]
    cut = Prompts(_prepend_bos(model, windows, use_bos), use_bos, source)
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
    use_bos = _resolve_bos(model, bos)
    generator = np.random.default_rng([seed, *b"random_prompts"])
    choice = generator.choice(ordinary_tokens(model).numpy(), size=(n, length - use_bos))
    return Prompts(_prepend_bos(model, torch.from_numpy(choice), use_bos), use_bos, "random")


def repeated_prompts(
    model: HookedModel, n: int = 64, length: int = 64, *, bos: bool | None = None, seed: int = 0
) -> Prompts:
    """Prompts of one repeated token; a different ordinary token in each prompt."""
    _require_size(n, length, seed)
    use_bos = _resolve_bos(model, bos)
    generator = np.random.default_rng([seed, *b"repeated_prompts"])
    choice = generator.choice(ordinary_tokens(model).numpy(), size=(n, 1))
    tokens = torch.from_numpy(choice).expand(n, length - use_bos)
    return Prompts(_prepend_bos(model, tokens, use_bos), use_bos, "repeated")


def single_token(model: HookedModel, text: str) -> int:
    """The single token that a text consists of.

    Raises:
        UsageError: The text is not exactly one token.
    """
    tokens = _encode(model, text)
    if len(tokens) != 1:
        raise UsageError(f"{text!r} is {len(tokens)} tokens {tokens}; exactly one is needed")
    return tokens[0]


def token_text(model: HookedModel, token: int) -> str:
    """The text of a token; its number where there is no tokenizer."""
    tokenizer = model.tokenizer
    return str(token) if tokenizer is None else str(tokenizer.decode([token]))


def corpus() -> str:
    """The shipped text: 33 State of the Union addresses (public domain), one a line."""
    return resources.files("sinklens").joinpath("data/sotu.txt").read_text("utf-8")


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


def corpus_tokens(model: HookedModel) -> list[int]:
    """Token ids of the shipped corpus, cached for tokenizers with the same rules."""
    tokenizer = model.tokenizer
    known = None if tokenizer is None else _cut_corpora.get(tokenizer)
    if known is None:
        rules = _rules(tokenizer)
        known = None if rules is None else _cut_by_rules.get(rules)
        known = known or _encode(model, corpus())
        _cut_corpora[tokenizer] = known
        if rules is not None:
            _cut_by_rules[rules] = known
    return known


def _rules(tokenizer: Any) -> tuple[type, str] | None:
    """The rules of a tokenizer, as far as it exposes them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    return type(tokenizer), hashlib.sha256(backend.to_str().encode()).hexdigest()


def _encode(model: HookedModel, text: str) -> list[int]:
    """Token ids of a text, without special tokens."""
    if model.tokenizer is None:
        raise SinklensError(
            "this model has no tokenizer to tokenise text; load it with tokenizer=..., or make "
            "Prompts(tokens, bos, source) from token ids"
        )
    # `verbose=False`: a whole corpus is longer than any context, which is intended here.
    return list(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _resolve_bos(model: HookedModel, bos: bool | None) -> bool:
    """Whether prompts start with BOS, from the caller or the model's own default."""
    available = bos_token_id(model) is not None
    if bos and not available:
        raise SinklensError(
            f"BOS was requested, but {model.cfg.model_name} has no BOS token; use bos=False "
            "(--no-bos)"
        )
    if bos is None:
        return available and bool(model.cfg.default_prepend_bos)
    return bos


def _prepend_bos(
    model: HookedModel, tokens: Int[Tensor, "prompt rest"], use_bos: bool
) -> Int[Tensor, "prompt pos"]:
    """The windows with BOS in front, on the model's device."""
    if use_bos:
        token = bos_token_id(model)
        assert token is not None
        tokens = torch.cat([torch.full((len(tokens), 1), token), tokens], dim=1)
    return tokens.contiguous().to(model.cfg.device)
