"""Wrong calls with prompts."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

import sinklens
from sinklens import Prompts, SinklensError
from sinklens.core.errors import UsageError
from tests import families
from tests.families import BOS, EOS, PAD
from tests.wrong_calls import Call


@cache
def tiny(*, template: str = "", pads: bool = True) -> Any:
    """A tiny Llama, with a chat template, or without a padding token of its own."""
    tokenizer = families.tiny_tokenizer()
    tokenizer.chat_template = template or None
    if not pads:
        tokenizer.pad_token = tokenizer.eos_token
    return families.boot("llama", tokenizer=tokenizer)


def chat(conversations: Any, **how: Any) -> Any:
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    refuses = "{% if messages[0].role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    return Prompts.from_chat(tiny(template=refuses + template), conversations, **how)


def profile(prompts: Any) -> Any:
    return sinklens.run("sink_profile", tiny(), prompts, progress=False)


def hand_made(tokens: Any, bos: bool = True) -> Any:
    return profile(Prompts(torch.tensor(tokens), bos, "own"))


def of_a_data_set(column: str = "") -> Any:
    import datasets

    data = datasets.Dataset.from_dict({"text": ["abc"], "label": [1]})
    return data[column] if column else data


def of_a_frame() -> Any:
    import pandas as pd

    return pd.DataFrame({"text": ["abc"]})


def windows(text: Any, **how: Any) -> Any:
    return sinklens.prompts(tiny(), text, **{"n": 4, "length": 8, **how})


def strings(given: Any, **how: Any) -> Any:
    return Prompts.from_strings(tiny(), given, **how)


def token_ids(given: Any, **how: Any) -> Any:
    return Prompts.from_tokens(tiny(), given, **how)


def pairs(clean: Any, corrupted: Any, **how: Any) -> Any:
    return Prompts.pairs(tiny(), clean, corrupted, **how)


def patched(made: Any, **how: Any) -> Any:
    return sinklens.patch_position(tiny(), made, **{"layer": 1, **how})


UNEQUAL = [[BOS, 5, 6, 7, 8], [BOS, 5, 6]]
PROMPTS: dict[str, Call] = {
    "run(text)": (lambda: profile("some text"), UsageError, ("str", "sinklens.prompts")),
    "run(number)": (lambda: profile(3), UsageError, ("int", "sinklens.prompts")),
    "run(empty list)": (lambda: profile([]), UsageError, ("empty", "from_strings")),
    "run(a data set)": (lambda: profile(of_a_data_set()), UsageError, ("data['text']",)),
    "run(mapping)": (lambda: profile({"text": ["a"]}), UsageError, ("input_ids", "text")),
    "run(float tokens)": (
        lambda: profile(torch.rand(2, 8)),
        UsageError,
        ("integers", "one row a prompt"),
    ),
    "run(bool tokens)": (
        lambda: profile(torch.ones(2, 8, dtype=torch.bool)),
        UsageError,
        ("integers",),
    ),
    "run(tokens, 3 axes)": (
        lambda: profile(torch.ones(2, 2, 8, dtype=torch.long)),
        UsageError,
        ("one row a prompt",),
    ),
    "run(strings and numbers)": (lambda: profile(["ab", 3]), UsageError, ("prompt 1", "int")),
    "evaluate(text)": (
        lambda: sinklens.evaluate(tiny(), "some text", [], ["loss"]),
        UsageError,
        ("sinklens.prompts",),
    ),
    "diagnose(number)": (lambda: sinklens.diagnose(tiny(), 3), UsageError, ("int",)),
    "Prompts(two BOS)": (
        lambda: hand_made([[BOS, BOS, 5, 6]]),
        UsageError,
        ("two BOS", "attention_mask"),
    ),
    "Prompts(left padding)": (
        lambda: hand_made([[PAD, BOS, 5, 6]]),
        UsageError,
        ("starts with padding", "from_tokens"),
    ),
    "Prompts(right padding)": (
        lambda: hand_made([[BOS, 5, 6, PAD]]),
        UsageError,
        ("ends with padding", "from_tokens"),
    ),
    "Prompts(no BOS, bos=True)": (lambda: hand_made([[8, 5, 6]]), UsageError, ("'e'", "bos=False")),
    "Prompts(some BOS)": (
        lambda: hand_made([[BOS, 5, 6], [8, 5, 6]]),
        UsageError,
        ("1 of 2", "whole run"),
    ),
    "Prompts(-1 inside)": (lambda: hand_made([[BOS, -1, 6]]), UsageError, ("-1", "from_tokens")),
    "Prompts(-100 inside)": (lambda: hand_made([[BOS, -100, 6]]), UsageError, ("vocabulary",)),
    "Prompts(float)": (
        lambda: Prompts(torch.rand(2, 3), False, "own"),
        UsageError,
        ("integers", "float32"),
    ),
    "Prompts(token beyond)": (lambda: hand_made([[BOS, 64, 6]]), UsageError, ("64", "vocabulary")),
    "prompts[9]": (lambda: strings(["ab", "cd"])[9], UsageError, ("0 to 1",)),
    "prompts['a']": (lambda: strings(["ab", "cd"])["a"], UsageError, ("'a'", "0 to 1")),
    "prompts[5:]": (lambda: strings(["ab", "cd"])[5:], UsageError, ("none",)),
    "prompts(number)": (lambda: windows(3), UsageError, ("int", "pathlib.Path")),
    "prompts(bytes)": (lambda: windows(b"abc"), UsageError, ("bytes", "string")),
    "prompts(file that is not there)": (lambda: windows("notes.txt"), UsageError, ("no file",)),
    "prompts(folder)": (lambda: windows("tests"), UsageError, ("cannot read", "tests")),
    "prompts(short text)": (lambda: windows("a few"), UsageError, ("0 windows", "smaller")),
    "prompts(empty list)": (lambda: windows([]), UsageError, ("0 documents", "0 windows")),
    "prompts(short documents)": (
        lambda: windows(["ab", "abcdefghijk"]),
        UsageError,
        ("2 documents", "1 windows"),
    ),
    "prompts(list of numbers)": (lambda: windows([1, 2]), UsageError, ("document", "int")),
    "prompts(list of rows)": (lambda: windows([{"text": "a"}]), UsageError, ("document 0", "dict")),
    "prompts(a data set)": (lambda: windows(of_a_data_set()), UsageError, ("data['text']",)),
    "prompts(column of numbers)": (
        lambda: windows(of_a_data_set("label")),
        UsageError,
        ("document 0", "int"),
    ),
    "prompts(a frame)": (lambda: windows(of_a_frame()), UsageError, ("data['text']",)),
    "prompts(n=0)": (lambda: windows("abc" * 99, n=0), UsageError, ("n must be",)),
    "from_strings(text)": (lambda: strings("ab"), UsageError, ("list of strings", "str")),
    "from_strings(empty)": (lambda: strings([]), UsageError, ("no strings",)),
    "from_strings(no tokens)": (lambda: strings([""], bos=False), UsageError, ("string 0",)),
    "from_strings(numbers)": (lambda: strings([[1, 2]]), UsageError, ("from_tokens",)),
    "from_strings(BOS, bos=False)": (
        lambda: strings(["<bos>ab"], bos=False),
        UsageError,
        ("text 0", "bos=True"),
    ),
    "from_strings(answers of two tokens)": (
        lambda: strings(["ab"], answers=[("xy", "z")]),
        UsageError,
        ("2 tokens", "'xy'"),
    ),
    "from_strings(answers alone)": (
        lambda: strings(["ab"], answers=["x"]),
        UsageError,
        ("(right, wrong)",),
    ),
    "from_strings(too few answers)": (
        lambda: strings(["ab", "cd"], answers=[("x", "z")]),
        UsageError,
        ("[2, 2]",),
    ),
    "from_chat(no template)": (
        lambda: Prompts.from_chat(tiny(), [[{"role": "user", "content": "a"}]]),
        SinklensError,
        ("chat template", "from_strings"),
    ),
    "from_chat(text)": (lambda: chat("hello"), UsageError, ("list of messages",)),
    "from_chat(empty)": (lambda: chat([]), UsageError, ("list of messages",)),
    "from_chat(no role)": (lambda: chat([[{"content": "a"}]]), UsageError, ("role",)),
    "from_chat(refused by its template)": (
        lambda: chat([[{"role": "tool", "content": "a"}]]),
        UsageError,
        ("tool", "no tools"),
    ),
    "from_chat(bos=False)": (
        lambda: chat([[{"role": "user", "content": "a"}]], bos=False),
        UsageError,
        ("starts with BOS",),
    ),
    "from_tokens(text)": (lambda: token_ids("abc"), UsageError, ("integers", "str")),
    "from_tokens(nothing)": (lambda: token_ids([]), UsageError, ("no tokens",)),
    "from_tokens(empty row)": (lambda: token_ids([[BOS, 5], []]), UsageError, ("prompt 1",)),
    "from_tokens(padded)": (
        lambda: token_ids(torch.tensor([[BOS, 5, PAD], [BOS, 5, 6]])),
        UsageError,
        ("attention_mask", "pad_id"),
    ),
    "from_tokens(padded with EOS)": (
        lambda: Prompts.from_tokens(tiny(pads=False), [[BOS, 5, EOS], [BOS, 5, 6]]),
        UsageError,
        ("attention_mask", "pad_id"),
    ),
    "from_tokens(pad_id=BOS)": (
        lambda: token_ids([[BOS, BOS, 5]], pad_id=BOS),
        UsageError,
        ("attention_mask",),
    ),
    "from_tokens(mask of another shape)": (
        lambda: token_ids([[BOS, 5, 6]], attention_mask=[[1, 1]]),
        UsageError,
        ("shape",),
    ),
    "from_tokens(mask with a hole)": (
        lambda: token_ids([[BOS, 5, 6]], attention_mask=[[1, 0, 1]]),
        UsageError,
        ("hole",),
    ),
    "from_tokens(mask of nothing)": (
        lambda: token_ids([[BOS, 5, 6]], attention_mask=[[0, 0, 0]]),
        UsageError,
        ("prompt 0",),
    ),
    "pairs(unequal)": (
        lambda: pairs(["ab", "ab"], ["cd", "cde"]),
        UsageError,
        ("pair 1", "3 clean and 4 corrupted", "equally many"),
    ),
    "pairs(more clean)": (
        lambda: pairs(["ab", "ab"], ["cd"]),
        UsageError,
        ("2 clean and 1 corrupted",),
    ),
    "pairs(the same)": (lambda: pairs(["ab"], ["ab"]), UsageError, ("pair 0", "twice")),
    "pairs(texts)": (lambda: pairs("ab", "cd"), UsageError, ("list of strings",)),
    "pairs(answers of two tokens)": (
        lambda: pairs(["ab"], ["cd"], answers=[("xy", "z")]),
        UsageError,
        ("2 tokens", "'xy'"),
    ),
    "pairs(too few answers)": (
        lambda: pairs(["ab", "cd"], ["cd", "ab"], answers=[("x", "z")]),
        UsageError,
        ("[2, 2]",),
    ),
    "pairs(answers without pairs)": (
        lambda: pairs(["ab"], ["cd"], answers=[3, 4]),
        UsageError,
        ("(right, wrong)",),
    ),
    "pairs(an answer that is nothing)": (
        lambda: pairs(["ab"], ["cd"], answers=[("x", None)]),
        UsageError,
        ("token", "None"),
    ),
    "pairs(answer beyond)": (
        lambda: pairs(["ab"], ["cd"], answers=[(5, 64)]),
        UsageError,
        ("64", "vocabulary"),
    ),
    "pairs(answers, a number)": (
        lambda: pairs(["ab"], ["cd"], answers=3),
        UsageError,
        ("(right, wrong)",),
    ),
    "run(pairs)": (lambda: profile(pairs(["ab"], ["cd"])), UsageError, ("compare_pairs",)),
    "compare_pairs(prompts)": (
        lambda: sinklens.compare_pairs(tiny(), strings(["ab"]), treatment=[]),
        UsageError,
        ("Prompts.pairs", "compare_interventions"),
    ),
    "compare_pairs(no answers)": (
        lambda: sinklens.compare_pairs(
            tiny(),
            pairs(["ab"], ["cd"]),
            treatment=sinklens.patch_heads(tiny(), pairs(["ab"], ["cd"]), [(0, 0)]),
            progress=False,
        ),
        UsageError,
        ("logit_diff", "answers"),
    ),
    "patch_position(BOS)": (
        lambda: patched(pairs(["ab"], ["cd"])),
        UsageError,
        ("1 of 1 pairs", "BOS", "bos=False"),
    ),
    "patch_position(beyond)": (
        lambda: patched(pairs(["ab"], ["cd"]), position=3),
        UsageError,
        ("no position 3",),
    ),
    "patch_position(layer)": (
        lambda: patched(pairs(["ab"], ["cd"]), layer=7),
        UsageError,
        ("no layer 7",),
    ),
    "patch_position(part)": (
        lambda: patched(pairs(["ab"], ["cd"]), part="mlp"),
        UsageError,
        ("mlp", "residual"),
    ),
    "patch_position(prompts)": (
        lambda: patched(strings(["ab"])),
        UsageError,
        ("Prompts.pairs",),
    ),
    "patch_heads(head)": (
        lambda: sinklens.patch_heads(tiny(), pairs(["ab"], ["cd"]), [(0, 9)]),
        UsageError,
        ("L0H9",),
    ),
    "patch_heads(prompts)": (
        lambda: sinklens.patch_heads(tiny(), strings(["ab"]), [(0, 0)]),
        UsageError,
        ("Prompts.pairs",),
    ),
    "run(unequal, screened)": (
        lambda: sinklens.run("position0_patching", tiny(), UNEQUAL, screen=True, progress=False),
        UsageError,
        ("one length", "3 to 5 tokens"),
    ),
    "run(unequal, one length needed)": (
        lambda: sinklens.run("massive_activations", tiny(), UNEQUAL, progress=False),
        UsageError,
        ("one length", "3 to 5 tokens", "up_to"),
    ),
    "run(unequal, resample)": (
        lambda: sinklens.run(
            "sink_head_ablation", tiny(), UNEQUAL, conditions=["resample"], progress=False
        ),
        SinklensError,
        ("resample", "differ in length"),
    ),
}
