"""Tasks: every combination of checkpoint, text, seed and experiment that a specification asks for.

A task is known by all that decides its numbers, as far as it can be known without loading anything:
the same task has the same name in every shard and after a restart, so that it is measured once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from ..core.errors import SinklensError, UsageError
from ..core.paths import path_of
from ..models import shipped
from ..models.names import hub_id, require_hub_id
from .spec import AskedModel, AskedText, Spec

_UNSAFE = re.compile(r"[^\w.-]+")
LONGEST_NAME = 80


@dataclass(frozen=True)
class Checkpoint:
    """One model to load.

    Attributes:
        name: As it is asked for.
        source: What `sinklens.load` is given: the name, or the path that it stands for.
        revision: The revision of a Hub id.
        step: The training step of a shipped model.
        model_seed: The training seed of a shipped model.
        dtype: Its dtype.
        device: Its device.
        device_map: Several devices, as `sinklens.load` takes them.
    """

    name: str
    source: str
    revision: str | None = None
    step: int | None = None
    model_seed: int | None = None
    dtype: str = "float32"
    device: str | None = None
    device_map: str | None = None

    def __str__(self) -> str:
        """Its name and what picks the checkpoint."""
        parts = {"": self.revision, "step": self.step, "seed": self.model_seed}
        picked = [f"{what}{value}" for what, value in parts.items() if value is not None]
        return " ".join([self.name, *picked])


@dataclass(frozen=True)
class Text:
    """What the prompts of a task are cut from, and how.

    Attributes:
        name: As it is asked for; empty for the shipped corpus.
        path: Where it is; None for the shipped corpus.
        hash: Of its content.
        n: Number of prompts.
        length: Tokens in each.
        bos: Whether they start with BOS; None is as the model does.
    """

    name: str
    path: str | None
    hash: str
    n: int
    length: int
    bos: bool | None


@dataclass(frozen=True)
class Task:
    """One run of one experiment.

    Attributes:
        checkpoint: The model.
        text: The text.
        seed: Seed of the random draws.
        experiment: The experiment.
        settings: Its settings, as they were asked for.
        recorded: All of its settings.
        threads: Threads of the worker.
    """

    checkpoint: Checkpoint
    text: Text
    seed: int
    experiment: str
    settings: dict[str, Any] = field(hash=False)
    recorded: dict[str, Any] = field(hash=False)
    threads: int = 1

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that decides its numbers, for JSON; paths and devices do not."""
        one, text = self.checkpoint, self.text
        return {
            "model": [one.name, one.revision, one.step, one.model_seed, one.dtype],
            "text": [text.name, text.hash, text.n, text.length, text.bos],
            "seed": self.seed,
            "experiment": self.experiment,
            "settings": self.recorded,
            "threads": self.threads,
        }

    @cached_property
    def name(self) -> str:
        """The name of its folder: readable, and with a digest of its identity."""
        said = f"{self.checkpoint}-{self.experiment}-{self.seed}"
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        return f"{_UNSAFE.sub('-', said).strip('-.')[-LONGEST_NAME:]}-{digest[:10]}"


def expand(spec: Spec) -> list[Task]:
    """All tasks: those of one model together, then those of one text and seed.

    Raises:
        UsageError: A model or a text is none.
    """
    checkpoints = [one for asked in spec.models for one in _checkpoints(asked, spec.base)]
    texts = [_text(asked, spec.base) for asked in spec.texts]
    every = product(checkpoints, texts, spec.seeds, spec.experiments)
    tasks = [
        Task(one, text, seed, asked.name, asked.settings, asked.recorded, spec.threads)
        for one, text, seed, asked in every
    ]
    return list({task.name: task for task in tasks}.values())


def _checkpoints(asked: AskedModel, base: Path) -> Iterator[Checkpoint]:
    """The checkpoints of an entry.

    Raises:
        UsageError: There is none.
    """
    how: dict[str, Any] = {
        "dtype": asked.dtype,
        "device": asked.device,
        "device_map": asked.device_map,
    }
    paths = _paths(asked.name, base)
    picked = [
        what
        for what, given in (("steps", asked.steps), ("model_seeds", asked.model_seeds))
        if given != ()
    ]
    if not paths and asked.name in shipped.names():
        if asked.revisions:
            raise UsageError(
                f"revisions pick versions of a Hub id; {asked.name} is a shipped model"
            )
        yield from _of_shipped(asked, how)
        return
    if picked:
        raise UsageError(f"{picked[0]} pick checkpoints of shipped models; {asked.name} is none")
    if paths and asked.revisions:
        raise UsageError(f"revisions pick versions of a Hub id; {asked.name} is a path")
    if paths:
        for name, path in paths.items():
            yield Checkpoint(name, str(path), **how)
        return
    require_hub_id(asked.name) if "/" in asked.name else hub_id(asked.name)
    for revision in asked.revisions or (None,):
        yield Checkpoint(asked.name, asked.name, revision, **how)


def _paths(name: str, base: Path) -> dict[str, Path]:
    """The paths that a name stands for, by name; none where it is the name of a model.

    Raises:
        UsageError: It looks like a path, and there is none.
    """
    if "*" in name:
        asked = path_of(name)
        root = Path(asked.anchor or base)
        pattern = str(asked.relative_to(asked.anchor))
        found = {
            str(path.relative_to(base) if root == base else path): path.resolve()
            for path in sorted(root.glob(pattern))
            if _is_model(path)
        }
        if not found:
            raise UsageError(
                f"no model matches {name} in {root}; a model is a folder or a .gguf file"
            )
        return found
    path = base / path_of(name)
    if path.exists():
        return {name: path.resolve()}
    if path.suffix == ".gguf" or name.startswith(("/", "./", "../", "~")):
        raise UsageError(f"there is no file or folder {path}")
    return {}


def _is_model(path: Path) -> bool:
    return path.suffix == ".gguf" or (path / "config.json").is_file()


def _of_shipped(asked: AskedModel, how: dict[str, Any]) -> Iterator[Checkpoint]:
    """The checkpoints of a shipped model.

    Raises:
        UsageError: It has no such step or seed.
    """
    name = asked.name
    chosen = shipped.seeds(name) if asked.model_seeds is None else asked.model_seeds
    for seed in chosen or (None,):
        there = shipped.steps(name, seed)
        for step in (there if asked.steps is None else asked.steps) or (None,):
            if step is not None and step not in there:
                raise UsageError(
                    f"{name} has no checkpoint of step {step} for seed {seed or 0}; there is: "
                    f"{', '.join(map(str, there))}"
                )
            yield Checkpoint(name, name, None, step, seed, **how)


def _text(asked: AskedText, base: Path) -> Text:
    """A text with the hash of its content.

    Raises:
        UsageError: There is none.
    """
    size = (asked.n, asked.length, asked.bos)
    if asked.path is None:
        return Text("", None, "", *size)
    path = (base / path_of(asked.path)).resolve()
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UsageError(f"there is no text {path}; give a text file, or a folder of them")
    digest = hashlib.sha256()
    try:
        for file in files:
            digest.update(file.read_bytes())
    except OSError as error:
        raise SinklensError(f"{path} cannot be read: {error.strerror}") from error
    return Text(asked.path, str(path), digest.hexdigest()[:16], *size)


@dataclass(frozen=True)
class Group:
    """Tasks that share a model: one process does them, one after the other.

    Attributes:
        tasks: The tasks, of one checkpoint.
    """

    tasks: tuple[Task, ...]

    @property
    def checkpoint(self) -> Checkpoint:
        """Their model."""
        return self.tasks[0].checkpoint

    def __str__(self) -> str:
        """Their model and number."""
        return f"{self.checkpoint} ({len(self.tasks)} tasks)"


def sharded(tasks: Sequence[Task], number: int, count: int) -> list[Task]:
    """The tasks of one shard: whole runs of tasks of one model, text and seed, in order.

    Args:
        tasks: All tasks.
        number: Which shard, from 0.
        count: How many there are.
    """
    parts = _together(tasks, fine=True)
    first, last = (len(parts) * place // count for place in (number, number + 1))
    return [task for part in parts[first:last] for task in part.tasks]


def grouped(tasks: Sequence[Task], workers: int) -> list[Group]:
    """Groups of one model; where workers would be idle, of one model, text and seed."""
    coarse = _together(tasks, fine=False)
    return coarse if len(coarse) >= 2 * workers or workers == 1 else _together(tasks, fine=True)


def _together(tasks: Sequence[Task], *, fine: bool) -> list[Group]:
    parts: dict[Any, list[Task]] = {}
    for task in tasks:
        key = (task.checkpoint, (task.text, task.seed) if fine else None)
        parts.setdefault(key, []).append(task)
    return [Group(tuple(part)) for part in parts.values()]
