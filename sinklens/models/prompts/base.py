"""Prompts as token ids, with what is known of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from ...core.errors import UsageError
from ...core.protocol import HookedModel
from .encoding import encode, prepend_bos, resolve_bos, single_token


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
        use_bos = resolve_bos(model, bos)
        encoded = [encode(model, string) for string in strings]
        lengths = [len(tokens) + use_bos for tokens in encoded]
        if len(set(lengths)) != 1:
            raise UsageError(f"prompts must have equal numbers of tokens; these have {lengths}")
        tokens = prepend_bos(model, torch.tensor(encoded), use_bos)
        if answers is not None and not isinstance(answers, Tensor):
            answers = torch.tensor([[single_token(model, a) for a in pair] for pair in answers])
        return cls(tokens, use_bos, "strings", answers)
