"""What a worker does, whatever engine runs it: the tasks of a group, one after the other.

A model is loaded once for all tasks that follow each other on it, and so is what is known of it
(what can be edited, which shortcuts it allows); prompts are cut once for a text, and models with
random weights made once for a seed. A task that fails keeps its error and does not stop the others.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.errors import SinklensError, in_one_line
from ..core.json_files import json_bytes
from ..core.protocol import HookedModel
from ..core.storage import write_files
from ..engine import kept
from ..models import anatomy_of, load
from ..models.prompts import Prompts
from ..models.prompts import prompts as make_prompts
from ..models.random_weights import random_models_held
from ..runner import registry
from .folder import OF_A_TASK, SweepFolder
from .tasks import Checkpoint, Group, Task, Text

FINISHED, FAILED, ELSEWHERE, BEFORE = "finished", "failed", "elsewhere", "before"
_LAST: dict[Checkpoint, HookedModel] = {}
"""The model that this process loaded last; engines that reuse processes find it again."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        task: Its name.
        state: `finished`, `failed`, `elsewhere` (another process works on it), or `before` (it was
            finished already).
        seconds: How long it took.
        error: Why it failed, in one line.
    """

    task: str
    state: str
    seconds: float = 0.0
    error: str = ""


def work(root: Path, group: Group) -> list[Outcome]:
    """Do the tasks of a group, in order.

    Args:
        root: The folder of the sweep.
        group: The tasks.
    """
    folder, shared = SweepFolder(root), Shared()
    with _threads(group.tasks[0].threads), random_models_held():
        return [_outcome(folder, task, shared) for task in group.tasks]


class Shared:
    """What tasks of a group share: the model and its prompts."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._prompts: dict[Text, Prompts] = {}
        self._refused: Exception | None = None
        self._anatomy: dict[str, Any] = {}

    def inputs(self, task: Task) -> tuple[HookedModel, Prompts]:
        """The model and the prompts of a task.

        Raises:
            Exception: The model cannot be loaded, which is not tried again for the group.
        """
        if self._refused is not None:
            raise self._refused
        try:
            model = loaded(task.checkpoint)
        except Exception as error:
            self._refused = error
            raise
        text = task.text
        if text not in self._prompts:
            path = None if text.path is None else Path(text.path)
            made = make_prompts(model, path, n=text.n, length=text.length, bos=text.bos)
            self._prompts = {text: made}
        return model, self._prompts[text]

    def anatomy(self, model: HookedModel) -> dict[str, Any]:
        """What kind of model it is."""
        self._anatomy = self._anatomy or asdict(anatomy_of(model))
        return self._anatomy


def loaded(checkpoint: Checkpoint) -> HookedModel:
    """The model of a checkpoint; the one before is let go first, so that one is held at a time."""
    if checkpoint not in _LAST:
        release()
        _LAST[checkpoint] = load(
            checkpoint.source,
            revision=checkpoint.revision,
            step=checkpoint.step,
            seed=checkpoint.model_seed,
            dtype=checkpoint.dtype,
            device=checkpoint.device,
            device_map=checkpoint.device_map,
        )
    return _LAST[checkpoint]


def release() -> None:
    """Let go of the model that was loaded last."""
    _LAST.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _outcome(folder: SweepFolder, task: Task, shared: Shared) -> Outcome:
    """Do a task, whatever happens to it."""
    began = time.perf_counter()
    try:
        with folder.alone(task.name) as place:
            if folder.is_finished(task.name):
                folder.tidy(task.name)
                return Outcome(task.name, BEFORE)
            return _done(folder, task, shared, place, began)
    except SinklensError as error:
        if folder.runs(task.name):
            return Outcome(task.name, ELSEWHERE, error=str(error))
        if folder.is_finished(task.name):  # by whoever held it a moment ago
            return Outcome(task.name, BEFORE)
        return _failed(folder, task, error, began)


def _done(folder: SweepFolder, task: Task, shared: Shared, place: Path, began: float) -> Outcome:
    """Do a task that nobody else does."""
    folder.log(task.name, "began")
    try:
        _measure(folder, task, shared, place)
    except Exception as error:
        return _failed(folder, task, error, began)
    folder.forgive(task.name)
    folder.log(task.name, FINISHED)
    return Outcome(task.name, FINISHED, time.perf_counter() - began)


def _measure(folder: SweepFolder, task: Task, shared: Shared, place: Path) -> None:
    """Run the experiment and write its folder."""
    model, prompts = shared.inputs(task)
    with kept(place, [task.name]):
        result = registry.run(
            task.experiment, model, prompts, seed=task.seed, progress=False, **task.settings
        )
        about = {"task": task.name, **task.identity, "anatomy": shared.anatomy(model)}
        files = {OF_A_TASK: json_bytes(about), **result.files()}
        write_files(folder.result(task.name), files)


def _failed(folder: SweepFolder, task: Task, error: Exception, began: float) -> Outcome:
    """Keep why a task failed."""
    known = isinstance(error, SinklensError)
    said = str(error) if known else in_one_line(error)
    seconds = time.perf_counter() - began
    frames = "" if known else "".join(traceback.format_exception(error))
    about = {"error": said, "traceback": frames, "seconds": round(seconds, 3)}
    lost = folder.fail(task.name, {**task.identity, **about})
    folder.log(task.name, FAILED)
    return Outcome(task.name, FAILED, seconds, "; ".join(part for part in (said, lost) if part))


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Use a number of threads for the length of a `with` block; rounding depends on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
