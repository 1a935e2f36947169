"""Prompts as people have them: documents, strings, chats, token ids; BOS is looked up in tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import sinklens
from sinklens import Prompts
from sinklens.core.errors import UsageError
from sinklens.models.prompts import as_prompts, corpus
from tests import families
from tests.families import BOS, EOS, PAD

Boot = Callable[[str], Any]
TEMPLATE = (
    "{{ bos_token }}{% if messages[0].role != 'system' %}system: be brief.\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}"
    "{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
HELLO = [{"role": "user", "content": "hello"}]
LONGER = [
    {"role": "system", "content": "talk like a pirate"},
    {"role": "user", "content": "hi, hello"},
    {"role": "assistant", "content": "ahoy"},
]


@pytest.fixture(scope="module")
def model(boot_family: Boot) -> Any:
    return boot_family("llama")


@pytest.fixture(scope="module")
def chatty() -> Any:
    """A tiny Llama whose tokenizer has a chat template, which writes BOS itself."""
    tokenizer = families.tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return families.boot("llama", tokenizer=tokenizer)


def ids(text: str) -> list[int]:
    return list(families.tiny_tokenizer()(text, add_special_tokens=False)["input_ids"])


# --- BOS is what the tokens say -------------------------------------------------------------------


def test_a_text_that_starts_with_bos_keeps_that_one(model: Any) -> None:
    for bos in (None, True):
        prompts = Prompts.from_strings(model, ["<bos>abc", "abc"], bos=bos)
        assert prompts.rows() == [[BOS, *ids("abc")]] * 2 and prompts.bos
    with pytest.raises(UsageError, match="text 0 starts with BOS"):
        Prompts.from_strings(model, ["<bos>abc", "abc"], bos=False)


@pytest.mark.parametrize(
    ("tokens", "bos", "words"),
    [
        ([[BOS, BOS, 5, 6]], True, "two BOS"),
        ([[BOS, BOS, 5, 6]], False, "two BOS"),
        ([[PAD, PAD, BOS, 5]], True, "starts with padding"),
        ([[PAD, 5, 6, 7]], False, "starts with padding"),
        ([[BOS, 5, 6, PAD], [BOS, 5, 6, 7]], True, "ends with padding"),
        ([[8, 5, 6, 7]], True, "start with token 8"),
        ([[BOS, 5, 6, 7], [8, 5, 6, 7]], True, "1 of 2 prompts start with BOS"),
        ([[BOS, 5, 6, 7], [8, 5, 6, 7]], False, "1 of 2 prompts start with BOS"),
    ],
)
def test_hand_made_prompts_are_looked_at(
    model: Any, tokens: list[list[int]], bos: bool, words: str
) -> None:
    prompts = Prompts(torch.tensor(tokens), bos, "own")
    with pytest.raises(UsageError, match=words):
        sinklens.run("sink_profile", model, prompts, progress=False)
    if bos:
        with pytest.raises(UsageError, match=words):
            sinklens.evaluate(model, prompts, [], ["loss"])


def test_bos_that_is_there_is_not_denied(model: Any) -> None:
    prompts = Prompts(torch.tensor([[BOS, 5, 6, 7, 8]]), False, "own")
    result = sinklens.run("sink_profile", model, prompts, progress=False)
    assert result.provenance["bos"] is True and "with BOS" in result.notes()[0]
    assert any(row.condition == "gu:no_bos" for row in result.effects)


def test_bos_inside_packed_text_is_counted_and_said(model: Any) -> None:
    rows = [[BOS, 5, 6, BOS, 7, 8, BOS, 9], [BOS, 5, 6, 7, 8, 9, 10, 11]]
    result = sinklens.run("sink_profile", model, rows, progress=False)
    assert any("2 times in 1 of 2 prompts" in note for note in result.notes())


def test_no_window_starts_with_two_bos(model: Any) -> None:
    """Windows of text that brings BOS along: it is not repeated where a window begins with it."""
    text = "<bos>abc" * 20
    prompts = sinklens.prompts(model, text, n=4, length=9, bos=True)
    assert not (prompts.tokens[:, 1] == BOS).any() and (prompts.tokens[:, 0] == BOS).all()
    without = sinklens.prompts(model, text, n=4, length=9, bos=False)
    assert not (without.tokens[:, 0] == BOS).any()
    assert sinklens.run("sink_profile", model, without, progress=False).effects


# --- Chats ----------------------------------------------------------------------------------------


def test_a_chat_is_what_the_tokenizer_makes_of_it(chatty: Any) -> None:
    prompts = Prompts.from_chat(chatty, [HELLO, LONGER])
    made = chatty.tokenizer.apply_chat_template([HELLO, LONGER])["input_ids"]
    assert prompts.rows() == made and prompts.bos
    assert all(row.count(BOS) == 1 for row in prompts.rows())
    assert prompts.preamble is not None
    before = ["system: be brief.\nuser: ", "system: talk like a pirate\nuser: "]
    assert prompts.preamble.tolist() == [1 + len(ids(text)) for text in before]
    ended = Prompts.from_chat(chatty, HELLO, add_generation_prompt=True)
    assert ended.rows()[0] == [*made[0], *ids("assistant:")]
    with pytest.raises(UsageError, match="starts with BOS"):
        Prompts.from_chat(chatty, [HELLO], bos=False)
    result = sinklens.run("sink_profile", chatty, [HELLO, LONGER], progress=False)
    assert any("puts 25 to 34 tokens" in note for note in result.notes()), result.notes()


def test_bos_before_a_template_that_writes_none(chatty: Any) -> None:
    tokenizer = families.tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE.removeprefix("{{ bos_token }}")
    model = families.boot("llama", tokenizer=tokenizer)
    without, with_bos = (Prompts.from_chat(model, HELLO, bos=bos) for bos in (None, True))
    assert with_bos.rows() == [[BOS, *without.rows()[0]]] and not without.bos and with_bos.bos
    assert with_bos == Prompts.from_chat(chatty, HELLO)


@pytest.mark.slow
def test_a_real_chat_template(smollm2_gguf: Path) -> None:
    """SmolLM2 opens every turn with its BOS and brings a system prompt of its own."""
    model = sinklens.load(smollm2_gguf)
    prompts = Prompts.from_chat(model, [HELLO, LONGER])
    assert prompts.rows() == model.tokenizer.apply_chat_template([HELLO, LONGER])["input_ids"]
    header = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    )
    header += "<|im_end|>\n<|im_start|>user\n"
    count = len(model.tokenizer(header, add_special_tokens=False)["input_ids"])
    assert prompts.preamble is not None and int(prompts.preamble[0]) == count
    padded = model.tokenizer.apply_chat_template([HELLO, LONGER], padding=True, return_tensors="pt")
    assert Prompts.from_tokens(model, padded).rows() == prompts.rows()
    result = sinklens.run("sink_profile", model, prompts, progress=False)
    assert any("3 times in 2 of 2 prompts" in note for note in result.notes())


# --- Token ids ------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_taken_off(model: Any, side: str) -> None:
    rows = [[BOS, *ids("abcdef")], [BOS, *ids("ab")], [BOS, *ids("abcd")]]
    tokenizer = families.tiny_tokenizer()
    padded = tokenizer.pad({"input_ids": rows}, padding_side=side, return_tensors="pt")
    tokens, mask = padded["input_ids"], padded["attention_mask"]
    for prompts in (
        Prompts.from_tokens(model, padded),
        Prompts.from_tokens(model, tokens, attention_mask=mask),
        Prompts.from_tokens(model, tokens, pad_id=PAD),
        Prompts.from_tokens(model, rows),
        as_prompts(model, padded),
    ):
        assert prompts.rows() == rows and prompts.bos
    with pytest.raises(UsageError, match="attention_mask"):
        Prompts.from_tokens(model, tokens)


def test_a_token_that_ends_texts_and_pads() -> None:
    """As in most chat models: at the end of some rows only it is padding, and is not guessed at."""
    tokenizer = families.tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = families.boot("llama", tokenizer=tokenizer)
    rows = [[BOS, 5, 6, EOS], [BOS, 5, 7, EOS]]
    assert Prompts.from_tokens(model, torch.tensor(rows)).rows() == rows
    with pytest.raises(UsageError, match="1 of 2 prompts end in token 2, which pads"):
        Prompts.from_tokens(model, torch.tensor([rows[0], [BOS, 5, 7, 8]]))
    with pytest.raises(UsageError, match="ends with padding"):
        Prompts.from_tokens(model, torch.tensor([[BOS, 5, EOS, EOS]]))


# --- Documents ------------------------------------------------------------------------------------

DOCUMENTS = ["a" * 35, "b" * 9, "c" * 100, "", "d" * 22]


def of_a_data_set() -> Any:
    import datasets

    return datasets.Dataset.from_dict({"text": DOCUMENTS})["text"]


@pytest.mark.parametrize(
    "documents",
    [list, tuple, iter, lambda _: of_a_data_set(), lambda d: (text for text in d)],
    ids=["list", "tuple", "iterator", "column", "generator"],
)
def test_windows_are_cut_within_documents(model: Any, documents: Callable[[Any], Any]) -> None:
    """Windows of 10: 3, 0, 10, 0 and 2 of them; eight are 3, 3 and 2, spread over each."""
    prompts = sinklens.prompts(model, documents(DOCUMENTS), n=8, length=11, bos=True)
    assert prompts.documents is not None
    assert prompts.documents.tolist() == [0, 0, 0, 2, 2, 2, 4, 4]
    letters = [ids("a.c.d"[number]) for number in prompts.documents.tolist()]
    for row, letter in zip(prompts.rows(), letters, strict=True):
        assert row == [BOS, *letter * 10]
    result = sinklens.run("sink_profile", model, prompts, progress=False)
    assert result.provenance["prompts"]["documents"] == prompts.documents.tolist()
    assert prompts[3:7].documents.tolist() == [2, 2, 2, 4]  # type: ignore[union-attr]


def test_windows_are_spread_over_a_document(model: Any) -> None:
    text = "".join(chr(ord("a") + i) * 10 for i in range(10))
    prompts = sinklens.prompts(model, [text], n=3, length=10, bos=False)
    assert [row[0] for row in prompts.rows()] == [ids(letter)[0] for letter in "adg"]


def test_of_many_documents_some_are_read_all_over(model: Any) -> None:
    class Column(list[str]):
        read = 0

        def __getitem__(self, number: Any) -> Any:
            Column.read += 1
            return super().__getitem__(number)

    prompts = sinklens.prompts(model, Column(["abcdefgh"] * 1000), n=8, length=8, bos=False)
    assert prompts.documents is not None and len(set(prompts.documents.tolist())) == 8
    assert Column.read == 8
    assert prompts.documents.min() < 250 and prompts.documents.max() > 750


def test_an_endless_iterable_is_read_as_far_as_needed(model: Any) -> None:
    def endless() -> Iterator[str]:
        while True:
            yield "abcdefgh"

    prompts = sinklens.prompts(model, endless(), n=4, length=8, bos=False)
    assert prompts.documents is not None and prompts.documents.tolist() == [0, 1, 2, 3]


def test_a_file_is_a_file_however_it_is_named(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("abc" * 40)
    by_path = sinklens.prompts(model, path, n=3, length=8)
    assert sinklens.prompts(model, str(path), n=3, length=8) == by_path
    assert by_path.source == "words.txt"


# --- Looking at prompts ---------------------------------------------------------------------------


def test_prompts_are_a_sequence(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = Prompts.from_strings(
        model, ["abc", "defgh", "ij\nk"], bos=True, answers=[("a", "b"), ("c", "d"), ("e", "f")]
    )
    assert len(prompts) == 3 and prompts.lengths.tolist() == [4, 6, 5]
    assert prompts[1].rows() == [prompts.rows()[1]] and prompts[-1] == prompts[2]
    assert prompts[:2].rows() == prompts.rows()[:2] and prompts[::2] == prompts[[0, 2]]
    assert prompts[0].tokens.shape == (1, 4)
    assert [len(one) for one in prompts] == [1, 1, 1]
    assert prompts[1].answers is not None and prompts.answers is not None
    assert prompts[1].answers.tolist() == prompts.answers[1:2].tolist()
    assert prompts == prompts[:] and prompts != prompts[:2] and prompts != 3
    assert "3 prompts of 4 to 6 tokens with BOS from strings" in repr(prompts)
    assert "'<bos>abc'" in repr(prompts)
    prompts.show(2)
    shown = capsys.readouterr().out.splitlines()
    assert shown == [
        "0 (4 tokens): '<bos>|a|b|c'",
        "1 (6 tokens): '<bos>|d|e|f|g|h'",
        "... and 1 more",
    ]
    assert prompts.up_to(4).rows() == [row[:4] for row in prompts.rows()]


# --- Length ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_context_that_was_not_trained_on_is_said() -> None:
    """By the card of a shipped model, else by the configuration."""
    rope = sinklens.load("rope")
    for length, said in ((64, False), (65, True)):
        prompts = sinklens.random_prompts(rope, n=2, length=length)
        result = sinklens.run("sink_profile", rope, prompts, progress=False)
        assert any("the 64 that rope was trained on" in n for n in result.notes()) is said
    tiny = families.boot("llama")
    prompts = sinklens.random_prompts(tiny, n=1, length=families.MAX_POSITIONS + 1)
    result = sinklens.run("sink_profile", tiny, prompts, progress=False)
    assert any("129 tokens are longer than the 128" in note for note in result.notes())


def test_attention_that_fits_nowhere_is_refused_before_memory_is_asked_for(model: Any) -> None:
    import resource

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    prompts, before = sinklens.random_prompts(model, n=1, length=100_000), peak()
    for name in ("sink_profile", "sink_head_ablation"):
        with pytest.raises(sinklens.SinklensError, match=r"100,000 tokens need .* GiB"):
            sinklens.run(name, model, prompts, progress=False)
    assert peak() - before < 2**20  # KiB, of the 149 GiB that one layer would take


def test_what_fits_is_not_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that is left to `sdpa`, or made some rows at a time, asks for less."""
    prompts = sinklens.random_prompts(model, n=1, length=128)
    monkeypatch.setattr("sinklens.engine.sizes.device_memory", lambda _: 4 * 2 * 128**2)
    assert sinklens.evaluate(model, prompts, [], ["loss"]).shortcuts["patterns"]
    with pytest.raises(sinklens.SinklensError, match="128 tokens need"):
        edits = [sinklens.hooks.ablate_heads(model, [(0, 0)], "drop_edge")]
        sinklens.evaluate(model, prompts, edits, ["loss"], progress=False)


def test_of_a_long_text_no_more_is_tokenised_than_is_used(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sinklens.models.prompts import windows
    from sinklens.models.prompts.encoding import encode

    text = corpus()[:6000]
    whole = sinklens.prompts(model, text, n=9, length=12)
    seen: list[int] = []
    monkeypatch.setattr(windows, "SHORT", 50)
    monkeypatch.setattr(windows, "encode", lambda m, t: seen.append(len(t)) or encode(m, t))
    assert torch.equal(sinklens.prompts(model, text, n=9, length=12).tokens, whole.tokens)
    assert max(seen) < len(text)
    with pytest.raises(sinklens.SinklensError, match="gives 545 windows"):  # 6000 / 11
        sinklens.prompts(model, text, n=1000, length=12)
