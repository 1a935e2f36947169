"""Texts and documents, as people have them: a text, a file, a list, a column of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import UsageError, shortened
from ...core.paths import path_of

MOST_READ = 100_000  # documents of an iterable whose length is unknown
LONGEST_NAME = 260


def read_text(text: str | Path) -> tuple[str, str]:
    """A text and its name in tables; a string that names a file is that file.

    Raises:
        UsageError: The file cannot be read.
    """
    path = text if isinstance(text, Path) else _named_file(text)
    if path is None:
        return str(text), "text"
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UsageError(f"{path} is a pipe or a device; give a text file")
        return path.read_text("utf-8"), path.name
    except UsageError:
        raise
    except (OSError, ValueError) as error:  # and what is no UTF-8
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read the text file {shortened(path)}: {reason}") from error


def _named_file(text: str) -> Path | None:
    """The file or folder that a string names, None where it is a text itself."""
    if len(text) > LONGEST_NAME or "\n" in text or "\0" in text or not text.strip():
        return None
    try:
        path = path_of(text)
        if path.exists():
            return path
    except (OSError, RuntimeError, ValueError):  # no name that a file system could hold
        return None
    if " " not in text and path.suffix in (".txt", ".md", ".json", ".jsonl", ".csv", ".parquet"):
        raise UsageError(f"there is no file {text}; a text to tokenise would have several words")
    return None


def visited(documents: Any) -> Iterator[tuple[int, str]]:
    """Numbers and texts of documents, in the order in which they are looked at.

    What has a length is visited in a fixed random order, so that a part of it is spread over all of
    it; what has none as it comes.

    Raises:
        UsageError: These are no documents.
    """
    require_no_table(documents)
    if isinstance(documents, (bytes, dict)) or not isinstance(documents, Iterable):
        raise UsageError(
            f"{type(documents).__name__} is neither a text, a path nor documents; give a string, "
            "a pathlib.Path, a list of strings or a column of a data set"
        )
    if hasattr(documents, "tolist"):  # labels of pandas are no numbers
        documents = documents.tolist()
    numbered: Iterable[tuple[int, Any]] = islice(enumerate(documents), MOST_READ)
    if hasattr(documents, "__len__") and hasattr(documents, "__getitem__"):
        order = np.random.default_rng([*b"documents"]).permutation(len(documents))
        numbered = ((int(number), documents[int(number)]) for number in order)
    for number, text in numbered:
        if not isinstance(text, str):
            raise UsageError(f"document {number} is a {type(text).__name__}, not a string")
        yield number, text


def require_no_table(data: Any) -> None:
    """Refuse a data set or frame, of which a column is meant.

    Raises:
        UsageError: It is one.
    """
    columns = getattr(data, "column_names", None)
    columns = getattr(data, "columns", None) if columns is None else columns
    if columns is not None:
        raise UsageError(
            f"a {type(data).__name__} has columns; choose one, such as "
            f"data[{next(iter(columns), 'text')!r}]"
        )


def even_shares(sizes: dict[int, int], count: int) -> dict[int, int]:
    """How many of `count` come from each, as even as their sizes allow; none where it gives none.

    Args:
        sizes: How many each has, together at least `count`.
        count: How many to take.
    """
    shares: dict[int, int] = dict.fromkeys(sizes, 0)
    while count:
        for number, size in sizes.items():
            if count and shares[number] < size:
                shares[number] += 1
                count -= 1
    return shares
