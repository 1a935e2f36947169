"""Prompts: what a model reads, made of texts, strings, chats or token ids.

`base` has `Prompts` itself. They are made by `windows` of a text or `documents`, by `chats` of
conversations, by `encoding` of strings and by `token_ids` of what a tokenizer returned; `given`
tells these apart, `look_up` finds BOS and padding in the tokens. `matched` says which prompts are
clean and corrupted pairs.
"""

from .base import Pairs as Pairs
from .base import Prompts as Prompts
from .encoding import single_token as single_token
from .encoding import token_text as token_text
from .given import as_prompts as as_prompts
from .given import require_several as require_several
from .notes import notes_on as notes_on
from .shipped_text import corpus as corpus
from .shipped_text import corpus_tokens as corpus_tokens
from .windows import own_prompts as own_prompts
from .windows import prompts as prompts
from .windows import prompts_of as prompts_of
from .windows import random_prompts as random_prompts
from .windows import repeated_prompts as repeated_prompts
