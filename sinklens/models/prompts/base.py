"""Prompts as token ids, with what is known of them.

Prompts of unequal lengths stand in one tensor, whose shorter rows end in `NO_TOKEN`. No model is
given that: prompts of one length run together, as they are, without padding and masks, so that each
gives the numbers that it gives alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from ...core.errors import UsageError
from ...core.protocol import HookedModel
from .chats import rendered
from .encoding import answer_tokens, encoded, written
from .look_up import starts_with_bos
from .matched import require_pairs
from .shape import NO_TOKEN, require_shape
from .token_ids import token_rows

SHOWN = 4
BY_PROMPT = ("answers", "documents", "preamble")


@dataclass(frozen=True, eq=False, repr=False)
class Prompts:
    """Prompts of one length or of several, without padding.

    `len`, `prompts[3]`, slices and iteration give prompts again.

    Attributes:
        tokens: Token ids; where lengths differ, -1 behind the end of the shorter rows.
        bos: Whether position 0 of every prompt is the model's BOS.
        source: Their source in tables: `sotu`, a file's name, `text`, `strings`, `random`, ...
        answers: For `logit_diff`: the correct and the incorrect next token after each prompt.
        documents: The number of the document that each is cut from, where there are documents.
        preamble: Of chats, the tokens before the user's first words: BOS, system prompt, header.
        tokenizer: What `show` writes them with.
    """

    tokens: Int[Tensor, "prompt pos"]
    bos: bool
    source: str
    answers: Int[Tensor, "prompt 2"] | None = None
    documents: Int[Tensor, " prompt"] | None = None
    preamble: Int[Tensor, " prompt"] | None = None
    tokenizer: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse tokens and answers that no experiment can use."""
        require_shape(self.tokens, self.answers)
        object.__setattr__(self, "tokens", self.tokens.long())  # as embeddings and losses take them

    @property
    def lengths(self) -> Int[Tensor, " prompt"]:
        """The number of tokens of each prompt, BOS included."""
        return (self.tokens != NO_TOKEN).sum(1)

    @property
    def length(self) -> int:
        """Positions in each prompt, BOS included; where lengths differ, in the shortest."""
        return int(self.lengths.min())

    @property
    def longest(self) -> int:
        """Positions in the longest prompt."""
        return int(self.lengths.max())

    @property
    def size(self) -> str:
        """Number and length in words, such as `3 prompts of 5 to 9 tokens`."""
        shortest, longest = self.length, self.longest
        several = "" if shortest == longest else f"{shortest} to "
        count = f"{len(self)} prompt{'' if len(self) == 1 else 's'}"
        return f"{count} of {several}{longest} tokens"

    @property
    def hash(self) -> str:
        """SHA-256 of shape and token ids (16 hexadecimal digits)."""
        values = self.tokens.cpu().numpy().astype("<i8")
        return hashlib.sha256(str(values.shape).encode() + values.tobytes()).hexdigest()[:16]

    def rows(self) -> list[list[int]]:
        """The token ids of each prompt."""
        return [
            row[:length]
            for row, length in zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)
        ]

    def batches(
        self, size: int, order: Int[Tensor, " prompt"] | None = None
    ) -> list[Int[Tensor, " batch"]]:
        """Numbers of prompts that can share a forward pass: of one length, at most `size`.

        Args:
            size: The most in a batch.
            order: The order in which they run; by default that in which they stand.
        """
        order = torch.arange(len(self)) if order is None else order
        lengths = self.lengths.cpu()[order]
        ends = (lengths[1:] != lengths[:-1]).nonzero().flatten() + 1
        alike = order.tensor_split(ends)
        return [batch for one in alike for batch in one.split(size)]

    def by_length(self) -> Int[Tensor, " prompt"]:
        """The numbers of the prompts, shortest first; those of one length as they stand."""
        return self.lengths.cpu().argsort(stable=True)

    def take(self, numbers: Int[Tensor, " chosen"]) -> Prompts:
        """The prompts with these numbers."""
        known = {name: getattr(self, name) for name in BY_PROMPT}
        chosen = {name: values[numbers] for name, values in known.items() if values is not None}
        return replace(self, tokens=_without_empty(self.tokens[numbers]), **chosen)

    def up_to(self, length: int) -> Prompts:
        """The first tokens of each prompt, at most `length`; answers are left out."""
        return replace(self, tokens=_without_empty(self.tokens[:, :length]), answers=None)

    def as_long_as(self, others: Prompts) -> Prompts:
        """As many tokens of each prompt as the prompt of the same number has among others."""
        longest = self.tokens[:, : others.tokens.shape[1]]
        return replace(self, tokens=longest.masked_fill(others.tokens == NO_TOKEN, NO_TOKEN))

    def without_first(self) -> Prompts:
        """The same windows without position 0, that is without BOS."""
        return replace(self, tokens=self.tokens[:, 1:], bos=False, source=f"{self.source}:no_bos")

    def __len__(self) -> int:
        """The number of prompts."""
        return len(self.tokens)

    def __getitem__(self, which: int | slice | Sequence[int] | Int[Tensor, " chosen"]) -> Prompts:
        """One prompt, a slice or those with some numbers, as `Prompts`."""
        numbers = torch.arange(len(self))
        try:
            chosen = numbers[which if not isinstance(which, (list, tuple)) else list(which)]
        except (IndexError, TypeError) as error:
            raise UsageError(
                f"there is no prompt {which!r}: these are {len(self)}, from 0 to {len(self) - 1}"
            ) from error
        if not chosen.numel():
            raise UsageError(f"no prompt is left: {which!r} of {len(self)} prompts are none")
        return self.take(chosen.reshape(-1))

    def __iter__(self) -> Iterator[Prompts]:
        """Each prompt alone."""
        return (self[number] for number in range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Whether the same tokens and answers stand there, from the same source."""
        if not isinstance(other, Prompts):
            return NotImplemented
        sides = [(one.hash, one.bos, one.source) for one in (self, other)]
        answers = [None if one.answers is None else one.answers.tolist() for one in (self, other)]
        return sides[0] == sides[1] and answers[0] == answers[1]

    def __hash__(self) -> int:
        """By their tokens."""
        return hash((self.hash, self.bos, self.source))

    def __repr__(self) -> str:
        """Number, length, BOS, source and the beginning of the first."""
        begins = "".join(written(self.tokenizer, token) for token in self.rows()[0][:SHOWN])
        bos = "with" if self.bos else "without"
        return f"<{self.size} {bos} BOS from {self.source}; the first begins {begins!r}>"

    def show(self, n: int = SHOWN) -> None:
        """Print the first `n` prompts with a bar between tokens and line breaks escaped."""
        for number, row in enumerate(self.rows()[:n]):
            text = "|".join(written(self.tokenizer, token) for token in row)
            print(f"{number} ({len(row)} tokens): {text!r}")
        if n < len(self):
            print(f"... and {len(self) - n} more")

    @classmethod
    def from_strings(
        cls,
        model: HookedModel,
        strings: Any,
        *,
        bos: bool | None = None,
        answers: Sequence[Sequence[str]] | Int[Tensor, "prompt 2"] | None = None,
    ) -> Prompts:
        """A user's own prompts, of one length or of several.

        Args:
            model: The model whose tokenizer is used.
            strings: The texts: a list, a column of a data set, any iterable of strings.
            bos: Whether to prepend BOS; by default as the model does. A text that starts with BOS
                keeps that one.
            answers: The correct and the incorrect answer of each prompt, as strings of one token
                each or as token ids.

        Raises:
            UsageError: These are no strings, some start with BOS and others do not, or an answer
                is not one token.
        """
        rows = encoded(model, strings, bos)
        return cls._of(model, rows, "strings", answers=answer_tokens(model, answers))

    @classmethod
    def from_chat(
        cls,
        model: HookedModel,
        conversations: Any,
        *,
        add_generation_prompt: bool = False,
        bos: bool | None = None,
    ) -> Prompts:
        """Conversations in the model's own chat template, of one length or of several.

        Args:
            model: The model whose tokenizer is used.
            conversations: Lists of messages `{"role": "user", "content": "..."}`.
            add_generation_prompt: Whether each ends with the header of the assistant's turn.
            bos: Whether they start with BOS, one; by default as the template has it.

        Raises:
            SinklensError: There is no chat template.
            UsageError: These are no conversations, the template refuses one, or writes a BOS that
                `bos=False` denies.
        """
        chats = rendered(model, conversations, add_generation_prompt, bos)
        preamble = torch.tensor([chat.preamble for chat in chats])
        return cls._of(model, [chat.tokens for chat in chats], "chat", preamble=preamble)

    @classmethod
    def from_tokens(
        cls,
        model: HookedModel,
        tokens: Any,
        *,
        attention_mask: Any = None,
        pad_id: int | None = None,
        answers: Sequence[Sequence[str]] | Int[Tensor, "prompt 2"] | None = None,
    ) -> Prompts:
        """Prompts of token ids, whose padding is taken off.

        Args:
            model: The model whose tokens they are.
            tokens: What a tokenizer returns (a `BatchEncoding`, with its mask), a tensor, or lists
                of token ids.
            attention_mask: 1 where a token counts.
            pad_id: The token that pads, taken off both ends of each prompt.
            answers: As in `from_strings`.

        Raises:
            UsageError: They are padded without a mask or pad id, start with two BOS, or some start
                with BOS and others do not.
        """
        rows = token_rows(model, tokens, attention_mask, pad_id)
        return cls._of(model, rows, "tokens", answers=answer_tokens(model, answers))

    @classmethod
    def pairs(
        cls,
        model: HookedModel,
        clean: Any,
        corrupted: Any,
        *,
        answers: Sequence[Sequence[str]] | Int[Tensor, "prompt 2"] | None = None,
        bos: bool | None = None,
    ) -> Pairs:
        """Clean and corrupted prompts, the two of a pair of equally many tokens.

        Args:
            model: The model whose tokenizer is used.
            clean: The clean texts; pairs may differ in length from each other.
            corrupted: The corrupted text of each.
            answers: The right and the wrong answer of each clean prompt, as in `from_strings`.
            bos: As in `from_strings`.

        Raises:
            UsageError: The texts of a pair differ in their number of tokens or are the same, or
                what `from_strings` refuses.
        """
        sides = [
            replace(cls.from_strings(model, texts, bos=bos, answers=answers), source=name)
            for name, texts in (("clean", clean), ("corrupted", corrupted))
        ]
        require_pairs(*(side.rows() for side in sides))
        return Pairs(clean=sides[0], corrupted=sides[1])

    @classmethod
    def _of(
        cls, model: HookedModel, rows: Sequence[Sequence[int]], source: str, **known: Any
    ) -> Prompts:
        """Prompts of rows of token ids, in which BOS is looked up."""
        bos = starts_with_bos(model, rows)
        longest = max(map(len, rows))
        filled = [[*row, *[NO_TOKEN] * (longest - len(row))] for row in rows]
        tokens = torch.tensor(filled, device=model.cfg.device)
        return cls(tokens, bos, source, tokenizer=model.tokenizer, **known)


@dataclass(frozen=True)
class Pairs:
    """Clean and corrupted prompts, position by position, and which run is patched.

    `len`, `pairs[3]` and slices are those of `Prompts`.

    Attributes:
        clean: The clean prompts, with the answers.
        corrupted: The corrupted ones, with the same answers.
        into: The run that is patched, with values of the other one.
    """

    clean: Prompts
    corrupted: Prompts
    into: Literal["clean", "corrupted"] = "corrupted"

    @property
    def patched(self) -> Prompts:
        """The prompts whose run is patched."""
        return self.clean if self.into == "clean" else self.corrupted

    @property
    def written(self) -> Prompts:
        """The prompts from whose run values are taken."""
        return self.corrupted if self.into == "clean" else self.clean

    def reversed(self) -> Pairs:
        """The same pairs, patched the other way."""
        return replace(self, into="corrupted" if self.into == "clean" else "clean")

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.clean)

    def __getitem__(self, which: int | slice | Sequence[int] | Int[Tensor, " chosen"]) -> Pairs:
        """Some of the pairs."""
        return replace(self, clean=self.clean[which], corrupted=self.corrupted[which])


def _without_empty(tokens: Int[Tensor, "prompt pos"]) -> Int[Tensor, "prompt held"]:
    """The tokens without columns that no prompt reaches."""
    return tokens[:, (tokens != NO_TOKEN).any(0)]
