"""Conversations in a model's own chat template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any, NamedTuple

from ...core.errors import SinklensError, UsageError
from ...core.protocol import HookedModel
from .encoding import encode, require_no_bos, require_tokenizer, resolve_bos, with_bos

WORDS = "sinklens-words"  # in place of a user's first words, to find where they begin
Conversation = list[Mapping[str, Any]]


class Chat(NamedTuple):
    """A conversation as tokens.

    Attributes:
        tokens: Token ids.
        preamble: Tokens before the user's first words; none where no user says any.
    """

    tokens: list[int]
    preamble: int


def rendered(
    model: HookedModel, conversations: Any, add_generation_prompt: bool, bos: bool | None
) -> list[Chat]:
    """Each conversation in the template of the model's tokenizer.

    Raises:
        SinklensError: It has no template.
        UsageError: These are no conversations, or the template refuses one.
    """
    require_tokenizer(model)
    if not getattr(model.tokenizer, "chat_template", None):
        raise SinklensError(
            "this model's tokenizer has no chat template; set model.tokenizer.chat_template, or "
            "write the turns yourself and use Prompts.from_strings"
        )
    use_bos = bool(bos) and resolve_bos(model, bos)
    chats = []
    for conversation in conversations_in(conversations):
        text = _apply(model, conversation, add_generation_prompt)
        tokens = with_bos(model, encode(model, text), use_bos)
        if bos is False:
            require_no_bos(model, [tokens])
        chats.append(Chat(tokens, _preamble(model, conversation, tokens, use_bos)))
    return chats


def conversations_in(given: Any) -> list[Conversation]:
    """One conversation or several, as lists of messages.

    Raises:
        UsageError: These are no conversations.
    """
    listed = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else []
    if listed and all(isinstance(message, Mapping) for message in listed):
        listed = [listed]
    for conversation in listed:
        messages = conversation if isinstance(conversation, (list, tuple)) else []
        if not messages or not all(_is_message(message) for message in messages):
            listed = []
            break
    if not listed:
        raise UsageError(
            'a conversation is a list of messages such as {"role": "user", "content": "Hello"}; '
            "Prompts.from_chat takes a list of them"
        )
    return [list(conversation) for conversation in listed]


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and {"role", "content"} <= message.keys()


def _apply(model: HookedModel, conversation: Conversation, add_generation_prompt: bool) -> str:
    """A conversation as the text that the template makes of it."""
    from jinja2 import TemplateError

    try:
        return str(
            model.tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(str(message["role"]) for message in conversation)
        said = " ".join(str(error).split())
        raise UsageError(
            f"the chat template refuses a conversation with the turns {roles}: {said}"
        ) from error


def _preamble(
    model: HookedModel, conversation: Conversation, tokens: list[int], use_bos: bool
) -> int:
    """How many of a chat's tokens stand before the user's first words."""
    turns = [number for number, one in enumerate(conversation) if one["role"] == "user"]
    if not turns or not isinstance(conversation[turns[0]]["content"], str):
        return 0
    marked = list(conversation)
    marked[turns[0]] = {**marked[turns[0]], "content": WORDS}
    before = _apply(model, marked, False).partition(WORDS)[0]
    head = with_bos(model, encode(model, before), use_bos)
    same = takewhile(lambda pair: pair[0] == pair[1], zip(head, tokens, strict=False))
    return sum(1 for _ in same)
