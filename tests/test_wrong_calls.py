"""Wrong calls of the Python API: each gives one typed line that says what would work.

Raw errors of torch, pandas and transformers never reach the user.
"""

from __future__ import annotations

from collections.abc import Iterator

import jaxtyping
import pytest

from tests.wrong_calls import Call
from tests.wrong_calls.hooks import HOOKS
from tests.wrong_calls.models import MODELS, RUNS, STATES
from tests.wrong_calls.prompts import PROMPTS

TABLES = {"hooks": HOOKS, "models": MODELS, "runs": RUNS, "states": STATES, "prompts": PROMPTS}
CALLS: dict[str, Call] = {
    f"{about}: {name}": call for about, table in TABLES.items() for name, call in table.items()
}


@pytest.fixture(autouse=True)
def as_a_user_calls() -> Iterator[None]:
    """Without the checks of types that only tests have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_gives_one_line(name: str) -> None:
    call, kind, words = CALLS[name]
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message
    for word in words:
        assert word in message, message
