"""Attention views hold the patterns of plain TransformerLens runs, whatever the tokens are."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sinklens
from sinklens.core.errors import UsageError
from sinklens.core.labels import token_label
from sinklens.hooks import ablate_heads, drop_edge, replace_bos_embedding
from sinklens.results.attention import AttentionView
from tests import odd_models

pytestmark = pytest.mark.slow  # many models or pages

ROUNDING = 5.1e-5  # four decimals


@pytest.fixture(scope="module")
def model() -> Any:
    return sinklens.load("rope")


@pytest.fixture(scope="module")
def prompt(model: Any) -> sinklens.Prompts:
    return sinklens.prompts(model, n=1, length=24)


def content(view: AttentionView) -> dict[str, Any]:
    """What the page of a view draws, from its HTML."""
    found = re.findall(r'sinklens\.attention\("[^"]+", (\{.*?\})\)\)</script>', view._repr_html_())
    assert len(found) == 1
    return json.loads(found[0])


def squares(view: AttentionView, side: str) -> np.ndarray:
    """`[head, query, key]`, from the HTML; later keys are 0."""
    heads = content(view)["sides"][side]
    filled = [[row + [0.0] * (len(head) - len(row)) for row in head] for head in heads]
    return np.array(filled)


def plain(model: Any, tokens: torch.Tensor, heads: list[str], hooks: Any = ()) -> np.ndarray:
    """The patterns of some heads as TransformerLens gives them."""
    with model.hooks(fwd_hooks=list(hooks)):
        _, cache = model.run_with_cache(tokens)
    places = [tuple(map(int, re.findall(r"\d+", head))) for head in heads]
    return np.stack(
        [cache[f"blocks.{layer}.attn.hook_pattern"][0, head].numpy() for layer, head in places]
    )


def test_the_strongest_sink_heads_before_and_after(model: Any, prompt: sinklens.Prompts) -> None:
    edit = replace_bos_embedding(model, with_="mean")
    view = sinklens.attention_view(model, prompt, edit=edit)
    heads = content(view)["heads"]
    everything = [f"L{layer}H{head}" for layer in range(6) for head in range(4)]
    mass = plain(model, prompt.tokens, everything)[:, 1:, 0].mean(1)
    assert heads == [everything[i] for i in np.argsort(-mass)[:8]]
    clean, edited = (plain(model, prompt.tokens, heads, h) for h in ([], edit.fwd_hooks))
    np.testing.assert_allclose(squares(view, "before"), clean, atol=ROUNDING, rtol=0)
    np.testing.assert_allclose(squares(view, "after"), edited, atol=ROUNDING, rtol=0)
    assert np.abs(clean - edited).max() > 0.1
    assert view.names == {"before": "clean run", "after": "with mean (embedding)"}
    assert f"The first 8 of {(mass > 0.3).sum()} heads are shown." in view.notes
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_the_sink_is_taken_out(model: Any, prompt: sinklens.Prompts) -> None:
    view = sinklens.attention_view(model, prompt, ["L2H1", "L0H0"], without_sink=True)
    expected = plain(model, prompt.tokens, ["L0H0", "L2H1"]).astype(np.float64)
    expected[:, :, 0] = 0
    expected[:, 1:] /= expected[:, 1:].sum(-1, keepdims=True)
    np.testing.assert_allclose(squares(view, "before"), expected, atol=ROUNDING, rtol=0)
    assert "Query 0 sees only itself, so that its row is empty." in view.notes


def test_rows_of_which_nothing_is_left_are_empty_and_counted(
    model: Any, prompt: sinklens.Prompts
) -> None:
    def all_to_the_sink(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
        edited = torch.zeros_like(pattern)
        edited[..., 0] = 1 - 1e-6
        edited[..., 1] = 1e-6
        return edited

    edit = ("blocks.3.attn.hook_pattern", all_to_the_sink)
    view = sinklens.attention_view(model, prompt, ["L3H3"], edit=edit, without_sink=True)
    assert not squares(view, "after").any() and squares(view, "before").any()
    assert "23 more rows give less than 0.0001 to other keys and are left empty." in view.notes


def test_an_encoder_is_shown_whole(boot_family: Callable[[str], Any]) -> None:
    bert = boot_family("bert")
    tokens = torch.arange(5, 15)[None]
    view = sinklens.attention_view(bert, tokens, ["L0H1"])
    shown = np.array(content(view)["sides"]["before"])
    assert shown.shape == (1, 10, 10) and not content(view)["causal"]
    np.testing.assert_allclose(shown, plain(bert, tokens, ["L0H1"]), atol=ROUNDING, rtol=0)
    assert (np.triu(shown[0], 1) > 0).any()


def test_heads_that_are_no_sinks_are_said_to_be_none(boot_family: Callable[[str], Any]) -> None:
    view = sinklens.attention_view(boot_family("llama"), torch.arange(5, 25)[None])
    assert "of which none gives it more than 30%" in view.title and view.heads


def test_an_intervention_that_does_nothing_is_an_error(
    model: Any, prompt: sinklens.Prompts
) -> None:
    nothing = ("blocks.1.hook_resid_pre", lambda activation, hook: activation.clone())
    with pytest.raises(sinklens.SinklensError, match="did not happen"):
        sinklens.attention_view(model, prompt, edit=nothing)


def test_an_intervention_behind_the_heads_is_said(model: Any, prompt: sinklens.Prompts) -> None:
    edit = ablate_heads(model, [(5, 0)], "zero")
    view = sinklens.attention_view(model, prompt, ["L1H0"], edit=edit)
    assert any("does not reach" in note for note in view.notes)


def test_what_cannot_be_shown_is_refused(model: Any, boot_family: Callable[[str], Any]) -> None:
    prompts = sinklens.prompts(model, n=2, length=8)
    edit = ("blocks.0.attn.hook_pattern", partial(drop_edge, heads=[0]))
    for arguments, said in (
        ({"prompt": prompts}, "one prompt, not 2"),
        ({"prompt": prompts[0], "heads": ["L9H0"]}, "unknown head 'L9H0'"),
        ({"prompt": prompts[0], "heads": []}, "names no head"),
        ({"prompt": prompts[0], "edit": [[edit], [edit]]}, "one intervention"),
        ({"prompt": torch.tensor([[5]])}, "at least 2 tokens"),
    ):
        with pytest.raises(UsageError, match=said):
            sinklens.attention_view(model, **arguments)
    with pytest.raises(sinklens.SinklensError, match="does nothing"):
        sinklens.attention_view(boot_family("opt"), torch.arange(5, 15)[None], edit=edit)


def test_a_model_without_patterns_is_refused() -> None:
    with pytest.raises(sinklens.SinklensError, match=r"no layer has a hook_pattern"):
        sinklens.attention_view(sinklens.load(odd_models.mamba()), torch.arange(5, 15)[None])


def test_a_view_stays_under_two_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest one there is; and it asks no web address, as CircuitsVis itself does."""
    monkeypatch.setattr(urllib.request, "urlopen", None)
    patterns = torch.rand(8, 96, 96, generator=torch.Generator().manual_seed(0))
    view = view_of(["\U0001f600" * 24] * 96, patterns, causal=False)
    page = view._repr_html_()
    assert len(page.encode()) < 2e6 and "unpkg" not in page


def test_long_prompts_are_cut(model: Any) -> None:
    view = sinklens.attention_view(model, sinklens.prompts(model, n=1, length=120), "L0H0,L1H1")
    assert len(view.tokens) == 96 and squares(view, "before").shape == (2, 96, 96)
    assert "The first 96 of 120 tokens are shown." in view.notes


ODD = {
    "</script><script>alert(1)</script>": "</script><script>aler...",
    "<!--<script>": "<!--<script>",
    " the": "␣the",
    "\n": r"\n",
    "\x00\x1b[31m": r"\x00\x1b[31m",
    "\u202etxt": r"\u202etxt",
    "\u2028": r"\u2028",
    "\u05e9\u05dc\u05d5\u05dd": "\u2068\u05e9\u05dc\u05d5\u05dd\u2069",
    "": "''",
    "x" * 90: "x" * 21 + "...",
}


@pytest.mark.parametrize("token", ODD, ids=ascii)
def test_tokens_are_text(token: str) -> None:
    assert token_label(token) == ODD[token]


def test_no_text_becomes_markup() -> None:
    tokens = [token_label(token) for token in ODD]
    size = len(tokens)
    view = view_of(tokens, torch.full((1, size, size), 1 / size), causal=True, said="<img src=x>")
    page = view.html()
    assert content(view)["tokens"] == tokens
    parsed = Tags()
    parsed.feed(page)
    assert set(parsed.found) <= {
        *("div", "p", "small", "fieldset", "legend", "label", "input", "figure", "figcaption"),
        "script",
    }
    assert parsed.found.count("script") == 1


def test_a_view_is_written_once(tmp_path: Path) -> None:
    view = view_of(["a", "b"], torch.eye(2)[None], causal=True)
    file = view.save(tmp_path / "view.html")
    with pytest.raises(sinklens.SinklensError, match="exists"):
        view.save(file)
    view.save(file, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["view.html"]
    assert "view.html" in str(view)


class Tags(HTMLParser):
    """The tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append(tag)


def view_of(
    tokens: list[str], patterns: torch.Tensor, *, causal: bool, said: str = ""
) -> AttentionView:
    """A view of patterns that no model made."""
    return AttentionView(
        title=f"a view {said}",
        tokens=tokens,
        heads={f"L0H{number}": said for number in range(len(patterns))},
        patterns={"before": patterns, "after": patterns},
        names={"before": "clean run", "after": f"mean {said}"},
        causal=causal,
        notes=[f"a note {said}"],
    )
