"""Wrong calls of the Python API, by what is wrong; `tests/test_wrong_calls.py` makes them.

A call, the type of its error, and words of its message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Call = tuple[Callable[[], Any], type[Exception], tuple[str, ...]]
