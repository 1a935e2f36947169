"""Wrong calls with models and settings."""

from __future__ import annotations

from typing import Any

import torch

import sinklens
from sinklens.core.errors import UsageError
from tests import families
from tests.wrong_calls import Call

TOKENS = torch.full((2, 6), 7)
PROMPTS = sinklens.Prompts(TOKENS, bos=False, source="tokens")
MODELS: dict[str, Call] = {
    "load(unknown name)": (lambda: sinklens.load("ropes"), UsageError, ("rope",)),
    "load(near an alias)": (lambda: sinklens.load("gpt2-smal"), UsageError, ("gpt2-small",)),
    "load(not cached)": (
        lambda: sinklens.load("gpt2"),
        sinklens.SinklensError,
        ("openai-community/gpt2", "not cached"),
    ),
    "load(number)": (lambda: sinklens.load(3), UsageError, ("int", "folder")),
    "load(None)": (lambda: sinklens.load(None), UsageError, ("NoneType", "folder")),
    "load(dtype)": (lambda: sinklens.load("rope", dtype="half"), UsageError, ("float16",)),
    "load(torch dtype)": (
        lambda: sinklens.load("rope", dtype=torch.int8),
        UsageError,
        ("int8", "float32"),
    ),
    "load(object, dtype)": (
        lambda: sinklens.load(families.llama(), dtype="float16"),
        UsageError,
        ("float32", "model.to(torch.float16)"),
    ),
    "load(object, step)": (
        lambda: sinklens.load(families.llama(), step=3),
        UsageError,
        ("need a name",),
    ),
    "load(shipped, revision)": (
        lambda: sinklens.load("rope", revision="main"),
        UsageError,
        ("revision", "hub id"),
    ),
    "load(hub, step)": (lambda: sinklens.load("gpt2", step=3), UsageError, ("revision",)),
    "load(shipped, step)": (lambda: sinklens.load("rope", step=33), UsageError, ("step 33", "32")),
    "load(shipped, seed)": (lambda: sinklens.load("rope", seed=99), UsageError, ("seed 99", "0")),
    "check(name)": (lambda: sinklens.check("rope"), UsageError, ("'rope'", "sinklens.load")),
    "check(Hugging Face model)": (
        lambda: sinklens.check(families.llama()),
        UsageError,
        ("LlamaForCausalLM", "sinklens.load"),
    ),
    "origin(name)": (lambda: sinklens.origin("rope"), UsageError, ("sinklens.load",)),
    "sink_scores(name)": (
        lambda: sinklens.sink_scores("rope", TOKENS),
        UsageError,
        ("sinklens.load",),
    ),
    "evaluate(name)": (
        lambda: sinklens.evaluate("rope", PROMPTS, [], ["loss"]),
        UsageError,
        ("sinklens.load",),
    ),
    "card(unknown)": (lambda: sinklens.zoo.card("roope"), UsageError, ("rope",)),
    "steps(unknown seed)": (lambda: sinklens.zoo.steps("rope", seed=9), UsageError, ("seed 9",)),
}
RUNS: dict[str, Call] = {
    "run(unknown)": (lambda: sinklens.run("sink_profil", "rope"), UsageError, ("sink_profile",)),
    "run(number)": (lambda: sinklens.run("sink_profile", 3), UsageError, ("int",)),
    "run(text as prompts)": (
        lambda: sinklens.run("sink_profile", "rope", "some text"),
        UsageError,
        ("str", "sinklens.prompts"),
    ),
    "run(setting)": (
        lambda: sinklens.run("bos_replacement", "rope", drwas=3),
        UsageError,
        ("draws",),
    ),
    "run(condition)": (
        lambda: sinklens.run("bos_replacement", "nowhere/nothing", conditions=["meen"]),
        UsageError,
        ("mean",),
    ),
    "diagnose(setting)": (
        lambda: sinklens.diagnose("nowhere/nothing", conditions=["mean"]),
        UsageError,
        ("belongs to sinklens.run",),
    ),
    "diagnose(value)": (
        lambda: sinklens.diagnose("nowhere/nothing", draws=-1),
        UsageError,
        ("draws", "-1"),
    ),
    "diagnose(text as prompts)": (
        lambda: sinklens.diagnose("nowhere/nothing", "some text"),
        UsageError,
        ("str", "sinklens.prompts"),
    ),
}


def made_in_inference_mode() -> Any:
    with torch.inference_mode():
        return families.boot("llama")


def all_special() -> Any:
    plain = families.llama()
    plain.config.eos_token_id = list(range(families.VOCABULARY))
    return sinklens.load(plain)


def with_a_hook_of_another_signature() -> Any:
    model = families.boot("llama")
    model.original_model.register_forward_hook(lambda module: None)
    return model


STATES: dict[str, Call] = {
    "run(inference mode, screened)": (
        lambda: sinklens.run(
            "sink_head_ablation",
            made_in_inference_mode(),
            TOKENS,
            heads="all",
            each=True,
            screen=True,
            progress=False,
        ),
        sinklens.SinklensError,
        ("torch.inference_mode()", "screen=True"),
    ),
    "check(only special tokens)": (
        lambda: sinklens.check(all_special()),
        sinklens.SinklensError,
        ("every token", "special"),
    ),
    "check(own hook)": (
        lambda: sinklens.check(with_a_hook_of_another_signature()),
        sinklens.SinklensError,
        ("plain tokens", "hooks of your own"),
    ),
    **{
        f"sink_scores({name})": (
            lambda tokens=tokens: sinklens.sink_scores(families.boot("llama"), tokens),
            UsageError,
            words,
        )
        for name, tokens, words in (
            ("bool", TOKENS.bool(), ("integers",)),
            ("float", TOKENS.float(), ("integers",)),
            ("three axes", TOKENS[None], ("integers",)),
            ("none", TOKENS[:, :0], ("one length",)),
            ("large", TOKENS + 99, ("token 106", "vocabulary of 64")),
            ("negative", TOKENS - 99, ("token -92", "vocabulary of 64")),
            ("unequal", [[1, 2], [3]], ("one length, not of [1, 2]",)),
        )
    },
}
