"""Prompts: what a model reads, made of texts, strings, chats or token ids.

`base` has `Prompts` itself, `windows` the rule by which a text is cut, `shipped_text` the text that
comes with the package, and `encoding` the way between text and token ids.
"""

from .base import Prompts as Prompts
from .encoding import single_token as single_token
from .encoding import token_text as token_text
from .shipped_text import corpus as corpus
from .shipped_text import corpus_tokens as corpus_tokens
from .windows import own_prompts as own_prompts
from .windows import prompts as prompts
from .windows import prompts_of as prompts_of
from .windows import random_prompts as random_prompts
from .windows import repeated_prompts as repeated_prompts
