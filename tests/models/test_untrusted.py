"""Files that somebody else made: no code of theirs runs, and what is damaged is made again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter

import sinklens
from sinklens.models import gguf
from tests import families

pytestmark = pytest.mark.slow  # many models or pages


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("tokenizer", [True, False])
def test_a_folders_code_is_neither_run_nor_asked_about(
    local: bool, tokenizer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a class that Transformers has itself, its own; otherwise it is refused."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked at the terminal"))
    folder, trace = tmp_path / "model", tmp_path / "trace"
    families.llama().save_pretrained(folder)
    if tokenizer:
        families.tiny_tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    # TransformerLens goes by the architecture, Transformers by the type.
    config["model_type"] = "llama" if local else "clip_text_model"
    auto = ["AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"]
    config["auto_map"] = dict.fromkeys(auto[0 if local else 1 :], "theirs.Theirs")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "theirs.py").write_text(f"open({str(trace)!r}, 'w').write('ran')\nclass Theirs: ...")
    if local:
        assert sinklens.load(folder).cfg.n_layers == families.N_LAYERS
    else:
        with pytest.raises(sinklens.SinklensError, match="brings code of its own") as caught:
            sinklens.load(folder)
        assert "\n" not in str(caught.value)
    assert not trace.exists()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SINKLENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def converted(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """A conversion whose reading of the file is a stand-in that counts."""
    file = tmp_path / "model.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    def write(model: None, tokenizer: None, folder: Path) -> None:
        times.append(1)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(bytes(range(256)) * 100)

    times: list[int] = []
    monkeypatch.setattr(gguf, "_dequantised", lambda file: (None, None))
    monkeypatch.setattr(gguf, "_write", write)
    monkeypatch.setattr(gguf, "_require_weights", lambda file, there: None)

    def convert() -> Path:
        folder = gguf.convert_gguf(file)
        convert.times = len(times)  # type: ignore[attr-defined]
        return folder

    return convert


def test_a_converted_model_is_used_again(converted: Any, cache: Path) -> None:
    folder = converted()
    assert converted() == folder and converted.times == 1
    assert [path.name for path in cache.iterdir()] == [folder.name]


@pytest.mark.parametrize("damage", ["bit", "cut", "missing", "unsaid", "said"])
def test_a_damaged_one_is_made_again(damage: str, converted: Any, cache: Path) -> None:
    folder = converted()
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    if damage == "bit":
        file.write_bytes(raw[:5000] + bytes([raw[5000] ^ 1]) + raw[5001:])
    elif damage == "cut":
        file.write_bytes(raw[:-1])
    elif damage == "missing":
        file.unlink()
    elif damage == "unsaid":
        (folder / gguf.CONTENT).unlink()
    else:
        (folder / gguf.CONTENT).write_text("[")
    assert converted() == folder and converted.times == 2
    assert file.read_bytes() == raw
    assert [path.name for path in cache.iterdir()] == [folder.name]


def test_what_a_killed_conversion_left_is_removed(converted: Any, cache: Path) -> None:
    folder = converted()
    left = cache / "converting-abc" / "model"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"gigabytes")
    converted()
    assert [path.name for path in cache.iterdir()] == [folder.name]


def test_caches_that_cannot_be_written(
    converted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below", "a" * 300, "a\0b"):
        monkeypatch.setattr(gguf, "cache_folder", lambda place=place: tmp_path / place)
        with pytest.raises(sinklens.SinklensError, match="set SINKLENS_CACHE"):
            converted()


def test_a_full_disk_is_not_said_of_the_file(
    converted: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    def full(*_: Any, **__: Any) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.undo()
    monkeypatch.setenv("SINKLENS_CACHE", str(cache))
    monkeypatch.setattr(gguf, "_require_sound", lambda file: None)
    plain = families.llama()
    plain.config.quantization_config = {"quant_method": "gguf"}
    monkeypatch.setattr(gguf, "_dequantised", lambda file: (plain, families.tiny_tokenizer()))
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(sinklens.SinklensError, match=r"cannot write .* No space left .* set SINK"):
        converted()
    assert not list(cache.iterdir())


def test_names_that_are_none(tmp_path: Path) -> None:
    for name in ("a/" * 200 + "a", "a" * 300, "a//b", "x\0y", str(tmp_path / ("a" * 300)), "-/-"):
        with pytest.raises(sinklens.SinklensError) as caught:
            sinklens.load(name)
        assert "a" * 250 not in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_tokenizer() -> None:
    for tokenizer in ("gpt2", 3):
        with pytest.raises(sinklens.SinklensError, match="is no tokenizer"):
            sinklens.load(families.llama(), tokenizer=tokenizer)


def test_names_do_not_reach_the_terminal_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "re\x1b[31md\n"
    families.llama().save_pretrained(tmp_path / "plain")
    families.tiny_tokenizer().save_pretrained(tmp_path / "plain")
    shutil.move(tmp_path / "plain", folder)
    model = sinklens.load(folder)
    prompts = sinklens.prompts(model, "a text that is long enough " * 9, n=4, length=12)
    result = sinklens.run("sink_profile", model, prompts, null_models=0, progress=False)
    loaded = sinklens.ExperimentResult.load(result.save(tmp_path / "out"))
    card = sinklens.diagnose(model, prompts, draws=0, null_models=0, progress=False)
    with pytest.raises(sinklens.SinklensError) as caught:
        sinklens.load(folder / "missing")
    for text in map(str, (result, loaded, card, card.full(), caught.value)):
        assert "\x1b" not in text and "re\\x1b[31md" in text
        text.encode()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("width", [8, 2**30])
def test_missing_weights_are_not_drawn(width: int, tmp_path: Path, cache: Path) -> None:
    """Nor is memory taken for them."""
    import numpy as np

    file = tmp_path / "model.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.add_context_length(32)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(8)
    writer.add_head_count(2)
    writer.add_vocab_size(8)
    writer.add_tensor("token_embd.weight", np.zeros((8, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(sinklens.SinklensError, match=r"asks for .* weights, of which it has 64"):
        sinklens.load(file)
