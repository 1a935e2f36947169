"""Scores on benchmark tasks before and after an intervention, paired by item.

Loss is not accuracy: a model can lose nats on every token and keep its answers. Tasks come from
EleutherAI's evaluation harness (`pip install 'sinklens[tasks]'`), which asks for log-likelihoods
of given continuations; the model answers with hooks attached. For each item of a task and each of
its metrics, `effect` is the mean of score after minus score before, with Student's interval over
items, the sign-flip test, and the difference from a control's effect. What the harness generates
token by token is refused: later forward passes hold one token, where position 0 is another.

The interval is over the items of the task. It says nothing of other tasks or of other models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..core.errors import SinklensError, UsageError, in_one_line
from ..core.protocol import HookedModel
from ..engine.verify import Watch
from ..hooks.forms import named_interventions
from ..hooks.intervention import Intervention
from ..models.origins import bos_token_id, require_eval_mode
from ..models.prompts.encoding import require_no_bos, resolve_bos, with_bos
from ..models.state import alone
from ..results.estimates import Effect, Measure, Reference, rows_of
from ..stats.effects import EffectSize, Row, effects_with_q

SCORED = ("loglikelihood", "multiple_choice", "loglikelihood_rolling")
"""Kinds of tasks whose forward passes hold whole items."""
Scores = Mapping[tuple[str, str], np.ndarray]
"""By task and metric, one score per item."""


@dataclass(frozen=True)
class TaskScores:
    """The scores of a model on tasks, and what interventions do to them.

    Attributes:
        effects: A row for each task, metric and condition, with its control and their difference.
            `metric` is `task/metric`; the resampled unit is the item.
        items: One line per item, metric and condition: `clean`, `value` and, with a control,
            `control` (means over draws).
    """

    effects: list[EffectSize]
    items: pd.DataFrame

    def to_dataframe(self) -> pd.DataFrame:
        """The rows as a table."""
        return pd.DataFrame([asdict(row) for row in self.effects])

    def __str__(self) -> str:
        """The rows as text."""
        return str(self._short().to_string(index=False))

    def _repr_html_(self) -> str:
        return str(self._short().to_html(index=False))

    def _short(self) -> pd.DataFrame:
        frame = self.to_dataframe().rename(columns={"n_prompts": "items"})
        columns = ["metric", "condition", "kind", "against", "baseline", "value", "effect"]
        return frame[[*columns, "ci_low", "ci_high", "q_value", "items"]].round(4).fillna("")


@alone
def evaluate_tasks(
    model: HookedModel,
    tasks: Any,
    intervention: Any,
    *,
    control: Any = None,
    bos: bool | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> TaskScores:
    """Score a model on tasks of the evaluation harness, before and after interventions.

    Args:
        model: A bridge with a tokenizer; it is left unchanged.
        tasks: A name, a configuration (a dictionary) or a task object of the harness, or a list of
            them. Datasets of named tasks come from the hub, unless the harness has them cached.
        intervention: Hooks in any form of `hooks.forms`; several of one condition are its draws.
            They have to be the same for every prompt.
        control: The same for a control, which every condition is compared with.
        bos: Whether items start with BOS; by default as the model's prompts do.
        limit: Only the first so many items of each task.
        batch_size: Items per forward pass.
        seed: Seed of the resamples of the tests.

    Returns:
        Rows and scores by item.

    Raises:
        SinklensError: The harness is not installed, a task cannot be made or is too long for the
            model, or an intervention did not happen.
        UsageError: An intervention depends on the prompts, or a task generates text.
    """
    require_eval_mode(model)
    treated = named_interventions(model, intervention, "treatment")
    controls = {} if control is None else named_interventions(model, control, "control")
    for one in (one for group in (treated, controls) for many in group.values() for one in many):
        if one.rebind is not None:
            raise UsageError(
                f"{one.name} has values for each prompt of its own, and the items of a task are "
                "others; use one that is the same for every prompt (mean, zero, drop_edge)"
            )
    if len(controls) > 1:
        raise UsageError(
            f"one control is compared with, not {len(controls)}: {', '.join(controls)}"
        )
    harness = _Harness(model, tasks, resolve_bos(model, bos), bos is False, limit, batch_size)
    clean = harness.scores(None)
    beside = {name: [harness.scores(one) for one in many] for name, many in controls.items()}
    rows: list[Row] = []
    lines: list[pd.DataFrame] = []
    for condition, many in treated.items():
        scores = [harness.scores(one) for one in many]
        for key, before in clean.items():
            rows += _rows(condition, key, before, scores, beside, seed)
            lines.append(_lines(condition, key, before, scores, beside))
    return TaskScores(
        effects_with_q([replace(row.effect, resampled="item") for row in rows]),
        pd.concat(lines, ignore_index=True),
    )


def _rows(
    condition: str,
    key: tuple[str, str],
    before: np.ndarray,
    scores: Sequence[Scores],
    beside: Mapping[str, Sequence[Scores]],
    seed: int,
) -> Iterator[Row]:
    """A task's metric after an intervention, after its control, and their difference."""
    after = np.stack([one[key] for one in scores])
    whole = bool(np.isin([before, *after], (0, 1)).all())
    measure = Measure(
        "share of items" if whole else "score",
        "the clean model",
        lowest=0.0 if whole else None,
        highest=1.0 if whole else None,
    )
    references = [
        Reference(Effect(np.stack([one[key] for one in many]), before, len(many)), name)
        for name, many in beside.items()
    ]
    effect = Effect(after, before, len(scores))
    yield from rows_of(
        "/".join(key), measure, condition, effect, *references, prompts=len(before), seed=seed
    )


def _lines(
    condition: str,
    key: tuple[str, str],
    before: np.ndarray,
    scores: Sequence[Scores],
    beside: Mapping[str, Sequence[Scores]],
) -> pd.DataFrame:
    """The scores of every item."""
    frame = pd.DataFrame(
        {
            "task": key[0],
            "metric": key[1],
            "condition": condition,
            "item": np.arange(len(before)),
            "clean": before,
            "value": np.mean([one[key] for one in scores], axis=0),
        }
    )
    for many in beside.values():
        frame["control"] = np.mean([one[key] for one in many], axis=0)
    return frame


class _Harness:
    """The evaluation harness asking one model for the same items again and again."""

    def __init__(
        self,
        model: HookedModel,
        tasks: Any,
        use_bos: bool,
        refuse_bos: bool,
        limit: int | None,
        batch_size: int,
    ) -> None:
        """Make the tasks.

        Raises:
            SinklensError: The harness is not installed, or a task cannot be made.
            UsageError: A task generates text.
        """
        if model.tokenizer is None:
            raise SinklensError("tasks are texts; load the model with tokenizer=...")
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise SinklensError(
                "evaluate_tasks needs EleutherAI's evaluation harness: "
                "pip install 'sinklens[tasks]'"
            ) from error
        given = list(tasks) if isinstance(tasks, (list, tuple)) else [tasks]
        if not given:
            raise UsageError("there are no tasks; give the name of one, or its configuration")
        named = any(isinstance(task, str) for task in given)
        try:
            self._tasks = TaskManager(include_defaults=named).load(given)
        except Exception as error:  # whatever a configuration or the hub makes of it
            raise SinklensError(f"a task cannot be made: {in_one_line(error)}") from error
        for name, task in self._tasks["tasks"].items():
            task.set_fewshot_seed(0)
            if task.OUTPUT_TYPE not in SCORED:
                raise UsageError(
                    f"{name} generates text token by token, where later forward passes do not hold "
                    f"position 0; give a task of kind {', '.join(SCORED)}"
                )
        self._model, self._limit = model, limit
        self._answering = _answering(model, use_bos, refuse_bos, batch_size)

    def scores(self, intervention: Intervention | None) -> Scores:
        """The scores of every item under an intervention."""
        from lm_eval import evaluate

        watch = None if intervention is None else Watch(self._model, intervention)
        found = evaluate(self._answering(watch), self._tasks, limit=self._limit, bootstrap_iters=0)
        if watch is not None:
            watch.verify()
        scores: dict[tuple[str, str], np.ndarray] = {}
        for task, samples in found["samples"].items():
            for metric in samples[0]["metrics"]:
                values = [sample[metric] for sample in samples]
                if all(isinstance(value, (bool, int, float)) for value in values):
                    scores[task, metric] = np.array(values, float)
        if not scores:
            raise SinklensError("no metric of these tasks is one number per item")
        return scores


def _answering(
    model: HookedModel, use_bos: bool, refuse_bos: bool, batch_size: int
) -> Callable[[Watch | None], Any]:
    """The harness's model class around a bridge, with the hooks of a watched intervention."""
    from lm_eval.models.huggingface import HFLM

    class HookedLM(HFLM):  # type: ignore[misc]
        """Answers with the bridge; every item starts with one BOS, or with none."""

        def __init__(self, watch: Watch | None) -> None:
            limit = int(model.cfg.n_ctx)
            super().__init__(
                model.original_model,
                tokenizer=model.tokenizer,
                batch_size=batch_size,
                add_bos_token=False,
                max_length=limit,
                logits_cache=False,
                prefix_token_id=bos_token_id(model),
            )
            self._watch, self._most = watch, limit

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **named: Any) -> Any:
            texts = [text for text, _, _ in requests]
            contexts = [context for _, context, _ in requests]
            if refuse_bos:
                require_no_bos(model, contexts)
            contexts = [with_bos(model, list(context), use_bos) for context in contexts]
            asked = [ask for _, _, ask in requests]
            longest = max(len(c) + len(a) for c, a in zip(contexts, asked, strict=True)) - 1
            if longest > self._most:
                raise SinklensError(
                    f"an item has {longest:,} tokens, and the context of {model.cfg.model_name} "
                    f"{self._most:,}; the harness would cut its start, and BOS, away"
                )
            requests = list(zip(texts, contexts, asked, strict=True))
            return super()._loglikelihood_tokens(requests, *args, **named)

        def _model_call(self, inps: Tensor, *_: Any, **__: Any) -> Tensor:
            hooks = [] if self._watch is None else self._watch.hooks(torch.arange(len(inps)))
            with torch.no_grad():
                logits: Tensor = model.run_with_hooks(inps, fwd_hooks=hooks)
            return logits

    return HookedLM
