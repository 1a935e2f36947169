"""The command that makes a result again, from what it records of model, prompts and settings."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from .record import Record

KINDS = ("shipped", "hub", "folder", "gguf")
BY_DEFAULT = ("sotu", "sotu:sep", "backcopy")
"""What the prompts of a model are from where no text is given."""
NO_SETTINGS = ("seed", "precision", "left_out", "notes", "footnotes", "uneven")
OF_A_DIAGNOSIS = ("draws", "null_models", "batch_size", "memory")


def run_command(result: Record, defaults: Mapping[str, Any]) -> str:
    """`sinklens run ...`; empty where model or prompts were given in Python.

    Args:
        result: The result.
        defaults: The settings of its experiment that need not be said.
    """
    said = {
        name: value
        for name, value in result.settings.items()
        if name not in NO_SETTINGS and value != defaults.get(name, [] if value == [] else None)
    }
    return _command(("run", result.experiment), result, said)


def diagnose_command(profile: Record) -> str:
    """`sinklens diagnose ...`; empty where model or prompts were given in Python.

    Args:
        profile: The sink profile of the diagnosis.
    """
    shared = {name: profile.settings.get(name) for name in OF_A_DIAGNOSIS}
    said = {name: value for name, value in shared.items() if value is not None}
    return _command(("diagnose",), profile, said)


def _command(verb: tuple[str, ...], result: Record, settings: Mapping[str, Any]) -> str:
    known = result.provenance
    model, prompts = known["model"], known["prompts"]
    source = str(prompts["source"])
    is_file = bool(PurePath(source).suffix)
    if model["kind"] not in KINDS or not (is_file or source in BY_DEFAULT) or "longest" in prompts:
        return ""
    words = ["sinklens", *verb, model["name"], *(["--text", source] if is_file else [])]
    words += ["--n-prompts", str(prompts["n"]), "--length", str(prompts["length"])]
    words += ["--bos" if known["bos"] else "--no-bos", *_options(known)]
    words += ["--precision", precision] if (precision := result.settings.get("precision")) else []
    words += [part for pair in settings.items() for part in ("--set", _pair(*pair))]
    return shlex.join(words)


def _options(known: Mapping[str, Any]) -> Iterator[str]:
    """The options that are not at their defaults."""
    model = known["model"]
    options = {
        "--seed": (known.get("seed", 0), 0),
        "--dtype": (known["dtype"], "float32"),
        "--device": (known["device"], "cpu"),
        "--revision": (model["revision"], None),
        "--step": (model["step"], None),
        "--model-seed": (model["seed"], None),
    }
    for option, (value, default) in options.items():
        if value != default:
            yield from (option, str(value))


def _pair(name: str, value: Any) -> str:
    """A setting as `--set` takes it."""
    return f"{name}={','.join(map(_word, value)) if isinstance(value, list) else _word(value)}"


def _word(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
