"""Names by which models are asked for, and what a model object is not converted to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import sinklens
from sinklens.cli import app
from sinklens.models import loading
from sinklens.models.names import hub_id
from tests import families

SHORT = {
    "gpt2": "openai-community/gpt2",
    "gpt2-small": "openai-community/gpt2",
    "GPT2-XL": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
    "pythia-70m": "EleutherAI/pythia-70m",
    "opt-125m": "facebook/opt-125m",
    "gpt-j": "EleutherAI/gpt-j-6B",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "gelu-1l": "NeelNanda/GELU_1L512W_C4_Code",
    "tiny-stories-1M": "roneneldan/TinyStories-1M",
}


@pytest.mark.parametrize("name", SHORT)
def test_short_names_stand_for_hub_ids(name: str) -> None:
    """As the TransformerLens documentation lists them."""
    assert hub_id(name) == SHORT[name]


def test_a_short_name_is_loaded_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(loading, "_boot", lambda name, known, *_: asked.append((name, known)))
    sinklens.load("gpt2", revision="main")
    (name, known), *_ = asked
    assert name == known.name == "openai-community/gpt2"
    assert (known.kind, known.revision) == ("hub", "main")


def test_a_model_that_is_not_cached_is_named() -> None:
    for name in ("gpt2", "openai-community/gpt2"):
        with pytest.raises(sinklens.SinklensError) as caught:
            sinklens.load(name)
        said = str(caught.value)
        assert "openai-community/gpt2" in said and "not cached" in said and "hf download" in said
        assert "\n" not in said


def test_a_revision_that_is_not_cached_is_named() -> None:
    with pytest.raises(sinklens.SinklensError) as caught:
        sinklens.load("openai-community/gpt2", revision="v9")
    assert "not cached of revision v9" in str(caught.value)
    assert "`hf download openai-community/gpt2 --revision v9`" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", "torch.bfloat16"])
def test_a_dtype_is_text_or_of_torch(dtype: Any) -> None:
    model = sinklens.load("rope", dtype=dtype)
    assert {w.dtype for w in model.original_model.parameters()} == {torch.bfloat16}


def test_a_model_object_is_not_converted() -> None:
    half = families.llama().to(torch.bfloat16)
    for dtype in ("float32", torch.float32, torch.float16):
        with pytest.raises(sinklens.SinklensError, match="bfloat16, which load does not convert"):
            sinklens.load(half, dtype=dtype)
    with pytest.raises(sinklens.SinklensError, match="on cpu, which load does not move"):
        sinklens.load(half, device="cuda")
    model = sinklens.load(half, dtype=torch.bfloat16, device="cpu")
    assert sinklens.load(model, dtype="bfloat16") is model
    with pytest.raises(sinklens.SinklensError, match="does not convert"):
        sinklens.load(model, dtype="float32")


@pytest.mark.slow
def test_run_takes_what_diagnose_takes() -> None:
    tokens = torch.randint(5, 40, (3, 8), generator=torch.Generator().manual_seed(0))
    prompts = sinklens.Prompts(tokens, bos=False, source="tokens")
    plain, bridge = families.llama(), sinklens.load(families.llama())
    found = sinklens.run("sink_profile", plain, prompts, progress=False)
    expected = sinklens.run("sink_profile", bridge, prompts, progress=False)
    assert [row.value for row in found.effects] == [row.value for row in expected.effects]
    own = sinklens.prompts(sinklens.load("rope"), n=2, length=8)
    named = sinklens.run("sink_profile", "rope", own, progress=False)
    assert named.provenance["model"]["name"] == "rope"


@pytest.mark.slow
def test_a_gguf_file_is_called_by_its_name(smollm2_gguf: Path) -> None:
    model = sinklens.load(smollm2_gguf)
    name = smollm2_gguf.name
    hugging_face = model.original_model
    assert sinklens.origin(model).name == model.cfg.model_name == name
    assert hugging_face.name_or_path == hugging_face.config._name_or_path == name
    twin, _ = sinklens.models.random_weights.random_twin(model, None, 0)
    assert sinklens.origin(twin).name == name


def test_code_in_a_folder_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by config, model or tokenizer, nor after a question at the terminal."""
    ran = tmp_path / "ran"
    folder = tmp_path / "model"
    families.llama().save_pretrained(folder)
    families.tiny_tokenizer().save_pretrained(folder)
    code = f"open({str(ran)!r}, 'w').close()\nclass Own: pass\n"
    (folder / "own.py").write_text(code)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    auto = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"model_type": "own", "auto_map": auto})
    )
    with pytest.raises(sinklens.SinklensError, match="code of its own, which sinklens never runs"):
        sinklens.load(folder)
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(sinklens.SinklensError, match="code of its own, which sinklens never runs"):
        sinklens.load(folder)
    assert not ran.exists()


def test_a_tokenizer_in_memory_only(boot_family: Any) -> None:
    """One that TransformerLens cannot open again by its path."""
    from transformers import PreTrainedTokenizerFast

    tiny = families.tiny_tokenizer()
    own = PreTrainedTokenizerFast(
        tokenizer_object=tiny.backend_tokenizer, bos_token=tiny.bos_token, eos_token=tiny.eos_token
    )
    text = "the quick brown fox jumps over the lazy dog. " * 9
    model = sinklens.load(families.llama(), tokenizer=own)
    found = sinklens.prompts(model, text, n=3, length=12)
    expected = sinklens.prompts(boot_family("llama"), text, n=3, length=12)
    assert found.bos and torch.equal(found.tokens, expected.tokens)


def test_paths_that_no_file_system_holds(tmp_path: Path) -> None:
    for name in (tmp_path / ("x" * 300), str(tmp_path / ("x" * 300)), "x" * 300):
        with pytest.raises(sinklens.SinklensError, match=r"there is no file|unknown model"):
            sinklens.load(name)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(sinklens.SinklensError, match="is a pipe or a device"):
        sinklens.load(tmp_path / "pipe.gguf")


@pytest.mark.parametrize("device", ["meta", "abacus", "cuda:99"])
def test_a_device_that_holds_nothing(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def boot(*_: Any) -> None:
        raise AssertionError("a model was read")

    monkeypatch.setattr(loading, "_boot", boot)
    with pytest.raises(sinklens.SinklensError, match=device):
        sinklens.load("rope", device=device)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(64))
    for cache in (file, file / "below", Path("/proc/nowhere")):
        monkeypatch.setenv("SINKLENS_CACHE", str(cache))
        with pytest.raises(sinklens.SinklensError, match="SINKLENS_CACHE"):
            sinklens.load(file)


def test_a_header_that_promises_a_million_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Building them takes for ever."""
    from gguf import GGUFWriter

    file = tmp_path / "deep.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(2**20)
    writer.add_tensor("token_embd.weight", np.zeros((8, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setenv("SINKLENS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(sinklens.SinklensError, match="block_count is 1048576, of 1 tensors"):
        sinklens.load(file)


def test_a_text_that_never_ends(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    run = ["run", "sink_profile", "rope", "--quiet", "--text", str(tmp_path / "pipe")]
    done = CliRunner().invoke(app, run)
    assert done.exit_code == 2 and "is no regular file" in done.stderr
