"""Text to token ids and back, and BOS in front."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ...core.errors import SinklensError, UsageError
from ...core.protocol import HookedModel
from ..origins import bos_token_id


def encode(model: HookedModel, text: str) -> list[int]:
    """Token ids of a text, without special tokens but those that stand in it.

    Raises:
        SinklensError: The model has no tokenizer.
        UsageError: The text holds halves of characters.
    """
    require_tokenizer(model)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"character {error.start} of a text is half a character ({text[error.start]!r}), as "
            "reading it under a wrong encoding leaves it; read it as UTF-8"
        ) from error
    # `verbose=False`: a whole corpus is longer than any context, which is intended here.
    return list(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def require_tokenizer(model: HookedModel) -> None:
    """Refuse a model that cannot tokenise.

    Raises:
        SinklensError: It has no tokenizer.
    """
    if model.tokenizer is None:
        raise SinklensError(
            "this model has no tokenizer to tokenise text; load it with tokenizer=..., or make "
            "Prompts(tokens, bos, source) from token ids"
        )


def encoded(model: HookedModel, strings: Any, bos: bool | None) -> list[list[int]]:
    """The token ids of each text, which start with one BOS where BOS is wanted.

    Args:
        model: The model whose tokenizer is used.
        strings: The texts.
        bos: Whether to prepend BOS to texts that do not start with it; by default as the model
            does.

    Raises:
        UsageError: These are no texts, or texts start with a BOS that `bos=False` denies.
    """
    use_bos = resolve_bos(model, bos)
    rows = [with_bos(model, encode(model, text), use_bos) for text in strings_in(strings)]
    if not rows:
        raise UsageError("there are no strings, so no prompts")
    empty = [number for number, row in enumerate(rows) if not row]
    if empty:
        raise UsageError(f"string {empty[0]} has no tokens; leave empty strings out, or bos=True")
    if bos is False:
        require_no_bos(model, rows)
    return rows


def strings_in(strings: Any) -> list[str]:
    """A list, column or iterable of strings as a list.

    Raises:
        UsageError: It is something else.
    """
    if isinstance(strings, (str, bytes)) or not isinstance(strings, Iterable):
        raise UsageError(
            f"Prompts.from_strings takes a list of strings, one a prompt, not a "
            f"{type(strings).__name__}; sinklens.prompts(model, text) cuts one text into windows"
        )
    listed = list(strings)
    for number, text in enumerate(listed):
        if not isinstance(text, str):
            raise UsageError(
                f"prompt {number} is a {type(text).__name__}, not a string; "
                "Prompts.from_tokens takes token ids, Prompts.from_chat conversations"
            )
    return listed


def with_bos(model: HookedModel, tokens: list[int], use_bos: bool) -> list[int]:
    """The tokens with BOS in front, once: one that stands there already is kept."""
    token = bos_token_id(model)
    if not use_bos or token is None or tokens[:1] == [token]:
        return tokens
    return [token, *tokens]


def require_no_bos(model: HookedModel, rows: Sequence[Sequence[int]]) -> None:
    """Refuse texts that start with BOS where none is wanted.

    Raises:
        UsageError: One does.
    """
    token = bos_token_id(model)
    there = [number for number, row in enumerate(rows) if row and row[0] == token]
    if there:
        raise UsageError(
            f"bos=False, but text {there[0]} starts with BOS "
            f"({token_text(model, rows[there[0]][0])}) itself; leave it out of the text, "
            "or use bos=True, which keeps that one"
        )


def answer_tokens(model: HookedModel, answers: Any) -> Int[Tensor, "prompt 2"] | None:
    """Answers as token ids: the correct and the incorrect one of each prompt.

    Raises:
        UsageError: An answer is not one token, or these are no pairs.
    """
    if answers is None or isinstance(answers, Tensor):
        return answers
    if isinstance(answers, (str, Mapping)) or not isinstance(answers, Iterable):
        raise UsageError(f"answers are pairs (right, wrong) of each prompt, not {answers!r}")
    pairs = list(answers)
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise UsageError(f"answers are pairs (right, wrong) of each prompt, not {pair!r}")
    return torch.tensor([[_answer(model, one) for one in pair] for pair in pairs])


def _answer(model: HookedModel, given: Any) -> int:
    """The token of an answer.

    Raises:
        UsageError: It is not one token of the model.
    """
    if isinstance(given, str):
        return single_token(model, given)
    if not isinstance(given, int):
        raise UsageError(f"an answer is a string of one token, or a token id, not {given!r}")
    if not 0 <= given < model.cfg.d_vocab:
        raise UsageError(
            f"the answer {given} is no token: the vocabulary of {model.cfg.model_name} has "
            f"{model.cfg.d_vocab}"
        )
    return given


def single_token(model: HookedModel, text: str) -> int:
    """The single token that a text consists of.

    Raises:
        UsageError: The text is not exactly one token.
    """
    tokens = encode(model, text)
    if len(tokens) != 1:
        raise UsageError(f"{text!r} is {len(tokens)} tokens {tokens}; exactly one is needed")
    return tokens[0]


def token_text(model: HookedModel, token: int) -> str:
    """The text of a token; its number where there is no tokenizer."""
    return written(model.tokenizer, token)


def written(tokenizer: Any, token: int) -> str:
    """The text of a token; its number where there is no tokenizer."""
    return str(token) if tokenizer is None else str(tokenizer.decode([token]))


def resolve_bos(model: HookedModel, bos: bool | None) -> bool:
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


def prepend_bos(
    model: HookedModel, tokens: Int[Tensor, "prompt rest"], use_bos: bool
) -> Int[Tensor, "prompt pos"]:
    """The windows with BOS in front, on the model's device."""
    if use_bos:
        token = bos_token_id(model)
        assert token is not None
        tokens = torch.cat([torch.full((len(tokens), 1), token), tokens], dim=1)
    return tokens.contiguous().to(model.cfg.device)
