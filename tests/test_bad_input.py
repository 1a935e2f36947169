"""Bad input: a typed error with a message of one line, and nothing written or changed.

On the command line: `sinklens: ...` on standard error, exit status 1 where it cannot be done on
this model or input and 2 where the request is wrong, and no traceback.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import sinklens
from sinklens import SinklensError
from sinklens.cli import app
from sinklens.models.prompts import corpus
from tests import families

# Tokenising the whole shipped corpus takes seconds, one token a character.
TEXT = corpus()[:2000]
Boot = Callable[[str], Any]


@pytest.fixture(scope="module")
def model(boot_family: Boot) -> Any:
    return boot_family("llama")


@pytest.fixture(scope="module")
def prompts(model: Any) -> sinklens.Prompts:
    return sinklens.prompts(model, TEXT, n=4, length=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama as a folder, for the command line."""
    return save_model(families.llama(), tmp_path_factory.mktemp("models") / "tiny")


def save_model(model: Any, target: Path, *, bos: bool = True) -> Path:
    model.save_pretrained(target)
    families.tiny_tokenizer(bos=bos).save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def saved(model: Any, prompts: sinklens.Prompts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = sinklens.run("bos_replacement", model, prompts, draws=1, progress=False)
    return result.save(tmp_path_factory.mktemp("results") / "result")


@contextmanager
def refused(*parts: str) -> Any:
    """A SinklensError of one line that names these things."""
    with pytest.raises(SinklensError) as caught:
        yield
    message = str(caught.value)
    assert message and "\n" not in message
    for part in parts:
        assert part in message


def listing(root: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
    }


def fails(*arguments: object, status: int) -> str:
    """The one line that a command prints as it fails."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    assert isinstance(result.exception, SystemExit)  # and not an error that got through
    assert "Traceback" not in result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("sinklens: "), result.stderr
    return lines[0]


@pytest.fixture
def run_fails(folder: Path, text_file: Path, tmp_path: Path) -> Callable[..., str]:
    """`sinklens run` with --out, which must leave nothing behind."""

    def check(
        *more: object,
        status: int,
        experiment: str = "bos_replacement",
        model: object = folder,
        text: object = text_file,
    ) -> str:
        before = listing(tmp_path)
        arguments = ["run", experiment, model, "--n-prompts", 4, "--length", 12, "--quiet"]
        arguments += ["--text", text, "--out", tmp_path / "out", "--set", "draws=1", *more]
        line = fails(*arguments, status=status)
        assert listing(tmp_path) == before
        return line

    return check


def test_the_command_works_at_all(folder: Path, text_file: Path, tmp_path: Path) -> None:
    arguments = ["run", "bos_replacement", folder, "--n-prompts", 4, "--length", 12, "--quiet"]
    arguments += ["--text", text_file, "--out", tmp_path / "out", "--set", "draws=1"]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    assert "bos_replacement" in done.stdout
    assert sinklens.ExperimentResult.load(tmp_path / "out").effects
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "out")])
    assert shown.exit_code == 0 and shown.stdout == done.stdout


# --- Texts and prompts -------------------------------------------------------------------------


def test_text_too_short(model: Any, run_fails: Callable[..., str]) -> None:
    with refused("3 windows", "5 were asked for"):  # 36 = 3 * 11 + 3
        sinklens.prompts(model, "a" * 36, n=5, length=12, bos=True)
    with refused("0 windows"):
        sinklens.prompts(model, "", n=1, length=12)
    assert "windows" in run_fails("--n-prompts", 100_000, status=2)


def test_missing_text_file(model: Any, tmp_path: Path, run_fails: Callable[..., str]) -> None:
    with refused("nowhere.txt"):
        sinklens.prompts(model, tmp_path / "nowhere.txt", n=1, length=12)
    with refused(tmp_path.name):
        sinklens.prompts(model, tmp_path, n=1, length=12)
    assert "nowhere.txt" in run_fails(text=tmp_path / "nowhere.txt", status=2)


def test_text_file_that_is_no_text(model: Any, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x81")
    with refused("binary"):
        sinklens.prompts(model, tmp_path / "binary", n=1, length=12)


@pytest.mark.parametrize(("n", "length"), [(0, 12), (-1, 12), (4, 1), (4, 0)])
def test_no_prompts(n: int, length: int, model: Any, run_fails: Callable[..., str]) -> None:
    with refused(f"n={n}", f"length={length}"):
        sinklens.prompts(model, TEXT, n=n, length=length)
    assert f"n={n}" in run_fails("--n-prompts", n, "--length", length, status=2)


@pytest.mark.parametrize("make", [sinklens.random_prompts, sinklens.repeated_prompts])
@pytest.mark.parametrize(("n", "length"), [(0, 12), (-1, 12), (4, 0)])
def test_no_control_prompts(make: Callable[..., Any], n: int, length: int, model: Any) -> None:
    with refused():
        make(model, n=n, length=length)


def test_prompts_too_short_to_count(model: Any) -> None:
    prompts = sinklens.prompts(model, TEXT, n=2, length=2, bos=True)
    for name in ("bos_replacement", "position0_patching"):
        with refused("2 tokens"):
            sinklens.run(name, model, prompts, progress=False)


def test_prompts_longer_than_the_context(boot_family: Boot) -> None:
    model = boot_family("gpt2")
    prompts = sinklens.prompts(model, TEXT, n=2, length=families.MAX_POSITIONS + 1)
    with refused(str(families.MAX_POSITIONS)):
        sinklens.run("sink_profile", model, prompts, progress=False)


def test_strings(model: Any) -> None:
    with refused("list"):
        sinklens.Prompts.from_strings(model, "ab", bos=True)
    with refused():
        sinklens.Prompts.from_strings(model, [], bos=True)
    with refused("2 tokens"):
        sinklens.Prompts.from_strings(model, ["ab"], bos=True, answers=[("xy", "z")])


def test_logit_diff_without_answers(model: Any, prompts: sinklens.Prompts) -> None:
    with refused("answers"):
        sinklens.run("bos_replacement", model, prompts, metrics=["logit_diff"], progress=False)


def test_no_bos(tmp_path: Path, run_fails: Callable[..., str]) -> None:
    plain = families.llama()
    plain.config.bos_token_id = None
    plain.generation_config.bos_token_id = None
    target = save_model(plain, tmp_path / "model", bos=False)
    assert "--no-bos" in run_fails("--bos", model=target, status=1)
    assert "position0_patching" in run_fails(model=target, status=1)


# --- Models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/nowhere/model", "nowhere/m.gguf"])
def test_missing_model(name: str, run_fails: Callable[..., str]) -> None:
    for source in (name, Path(name)):
        with refused("nowhere"):
            sinklens.load(source)
    assert "nowhere" in run_fails(model=name, status=_status_of(name))


def _status_of(name: str) -> int:
    """A name that nobody knows is wrong usage; a path that is not there cannot be loaded."""
    return 1 if "/" in name else 2


def test_unknown_shipped_name_suggests_near_ones() -> None:
    with refused("rope"):
        sinklens.load("ropes")


def test_hub_model_without_a_hub(run_fails: Callable[..., str]) -> None:
    assert "nobody/nothing" in run_fails(model="nobody/nothing", status=1)


def test_folder_without_a_model(tmp_path: Path, run_fails: Callable[..., str]) -> None:
    (tmp_path / "empty").mkdir()
    assert "config.json" in run_fails(model=tmp_path / "empty", status=1)


def test_damaged_weights(folder: Path, tmp_path: Path, run_fails: Callable[..., str]) -> None:
    target = shutil.copytree(folder, tmp_path / "model")
    weights = target / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model" in run_fails(model=target, status=1)
    (target / "config.json").write_text("{")
    run_fails(model=target, status=1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not a model", "not a GGUF"),
        (b"", "not a GGUF"),
        (b"GGUF", "GGUF"),
        (b"GGUF" + b"\x03\x00\x00\x00" + bytes(range(256)) * 4, "GGUF"),
        (b"GGUF" + b"\xff" * 64, "GGUF"),
    ],
    ids=["text", "empty", "magic", "garbage", "huge"],
)
def test_broken_gguf(
    content: bytes,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_fails: Callable[..., str],
) -> None:
    monkeypatch.setenv("SINKLENS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with refused(said, "model.gguf"):
        sinklens.load(file)
    assert said in run_fails(model=file, status=1)
    assert file.read_bytes() == content
    assert listing(tmp_path / "cache") == {}


@pytest.mark.slow
def test_truncated_real_gguf(
    smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SINKLENS_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "cut.gguf"
    with smollm2_gguf.open("rb") as stream:
        file.write_bytes(stream.read(3_000_000))
    with refused("cut.gguf"):
        sinklens.load(file)
    assert listing(tmp_path / "cache") == {}


def test_nan_in_the_weights(folder: Path, tmp_path: Path, run_fails: Callable[..., str]) -> None:
    bridge = families.boot("llama")
    prompts = sinklens.prompts(bridge, TEXT, n=4, length=12)
    sinklens.check(bridge)  # before the damage, so that its answer is known
    _poison(bridge.original_model)
    for name in ("sink_profile", "bos_replacement", "position0_patching", "sink_head_ablation"):
        with refused("NaN", "tiny-llama"):
            sinklens.run(name, bridge, prompts, progress=False)
    unchecked = families.boot("llama")
    _poison(unchecked.original_model)
    with refused("NaN"):
        sinklens.check(unchecked)
    plain = families.llama()
    _poison(plain)
    assert "NaN" in run_fails(model=save_model(plain, tmp_path / "model"), status=1)


def _poison(model: Any) -> None:
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "down_proj" in name)[0, 0] = torch.nan


def test_nan_for_one_token_only() -> None:
    """Not met by the check, but by the prompts."""
    bridge = families.boot("llama")
    prompts = sinklens.prompts(bridge, TEXT, n=4, length=12)
    token = int(prompts.tokens[2, 5])
    sinklens.check(bridge)
    with torch.no_grad():
        embedding = bridge.original_model.get_input_embeddings()
        embedding.weight[token] = torch.nan
    with refused("NaN"):
        sinklens.run("sink_profile", bridge, prompts, progress=False)


def test_train_mode(prompts: sinklens.Prompts) -> None:
    bridge = families.boot("llama")
    bridge.train()
    with refused("train mode", "eval()"):
        sinklens.load(bridge)
    with refused("train mode"):
        sinklens.check(bridge)
    with refused("train mode"):
        sinklens.run("bos_replacement", bridge, prompts, progress=False)
    with refused("train mode"):
        sinklens.evaluate(bridge, prompts, [], ["loss"], progress=False)
    with refused("train mode"):
        sinklens.diagnose(bridge, prompts, progress=False)
    with refused("train mode"):
        sinklens.sink_scores(bridge, prompts.tokens)
    assert bridge.training  # refused, not switched
    bridge.eval()
    assert sinklens.run("bos_replacement", bridge, prompts, draws=0, progress=False).effects


def test_train_mode_after_a_check(prompts: sinklens.Prompts) -> None:
    bridge = families.boot("llama")
    sinklens.check(bridge)
    bridge.original_model.train()
    with refused("train mode"):
        sinklens.run("bos_replacement", bridge, prompts, progress=False)
    with refused("train mode"):
        sinklens.sink_scores(bridge, prompts.tokens)


def test_unknown_dtype(folder: Path, run_fails: Callable[..., str]) -> None:
    with refused("float31", "float32"):
        sinklens.load(folder, dtype="float31")
    assert "float32" in run_fails("--dtype", "float31", status=2)


def test_unknown_device(run_fails: Callable[..., str]) -> None:
    assert "abacus" in run_fails("--device", "abacus", status=1)


def test_not_a_model() -> None:
    with refused("int"):
        sinklens.load(3)
    with refused("folder"):
        sinklens.load(torch.nn.Linear(2, 2))


# --- Names and settings ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("experiment", "more", "said"),
    [
        ("bos_replacment", [], "bos_replacement"),
        ("sinkprofile", [], "sink_profile"),
        ("bos_replacement", ["--set", "conditions=meen"], "mean"),
        ("bos_replacement", ["--set", "conditions=token:two letters"], "one is needed"),
        ("sink_profile", ["--set", "conditions=naturel"], "natural"),
        ("position0_patching", ["--set", "conditions=other_tokens"], "other_token"),
        ("position0_patching", ["--set", "conditions=zero:values"], "value"),
        ("position0_patching", ["--set", "conditions=rescaled:key"], "residual"),
        ("position0_patching", ["--set", "part=valu"], "value"),
        ("position0_patching", ["--set", "layers=7"], "layer 7"),
        ("position0_patching", ["--set", "layers=-1"], "layer -1"),
        ("sink_head_ablation", ["--set", "conditions=drop_edges"], "drop_edge"),
        ("bos_replacement", ["--set", "metrics=los"], "loss"),
        ("sink_profile", ["--set", "metrics=loss"], "metrics"),
        ("bos_replacement", ["--set", "drwas=3"], "draws"),
        ("bos_replacement", ["--set", "heads=L0H0"], "heads"),
        ("bos_replacement", ["--set", "draws"], "KEY=VALUE"),
        ("bos_replacement", ["--set", "=3"], "KEY=VALUE"),
        ("bos_replacement", ["--set", "draws=three"], "three"),
        ("bos_replacement", ["--set", "draws=-1"], "-1"),
        ("bos_replacement", ["--set", "batch_size=0"], "batch_size"),
        ("bos_replacement", ["--set", "seed=3"], "--seed"),
        ("sink_head_ablation", ["--set", "heads=L9H9"], "L9H9"),
        ("sink_head_ablation", ["--set", "heads=L0H4"], "L1H3"),
        ("sink_head_ablation", ["--set", "heads=best"], "best"),
        ("sink_head_ablation", ["--set", "each=perhaps"], "perhaps"),
    ],
    ids=lambda value: "-".join(value[1:]) if isinstance(value, list) else None,
)
def test_unknown_names(
    experiment: str, more: list[str], said: str, run_fails: Callable[..., str]
) -> None:
    assert said in run_fails(*more, experiment=experiment, status=2)


@pytest.mark.parametrize(
    ("experiment", "settings", "said"),
    [
        ("bos_replacment", {}, "bos_replacement"),
        ("bos_replacement", {"conditions": ["meen"]}, "mean"),
        ("bos_replacement", {"metrics": ["los"]}, "loss"),
        ("bos_replacement", {"drwas": 3}, "draws"),
        ("bos_replacement", {"draws": -1}, "draws"),
        ("bos_replacement", {"draws": "many"}, "many"),
        ("sink_head_ablation", {"heads": "L9H9"}, "L9H9"),
        ("sink_head_ablation", {"heads": ["L0H0", "L0H4"]}, "L0H4"),
        ("position0_patching", {"layers": [0, 2]}, "layer 2"),
    ],
)
def test_unknown_names_in_python(
    experiment: str, settings: dict[str, Any], said: str, model: Any, prompts: sinklens.Prompts
) -> None:
    with refused(said):
        sinklens.run(experiment, model, prompts, progress=False, **settings)


def test_no_sink_heads(boot_family: Boot) -> None:
    """Uniform attention has no sink: the error says how to name heads."""
    bridge = families.boot("llama")
    with torch.no_grad():
        for name, parameter in bridge.original_model.named_parameters():
            if "q_proj" in name:
                parameter.zero_()
    prompts = sinklens.prompts(bridge, TEXT, n=4, length=32)
    with refused("heads=all", "0.3"):
        sinklens.run("sink_head_ablation", bridge, prompts, progress=False)


def test_metric_of_the_wrong_shape(model: Any, prompts: sinklens.Prompts) -> None:
    def everything(logits: torch.Tensor, tokens: torch.Tensor, **_: Any) -> torch.Tensor:
        return logits

    with refused("everything"):
        sinklens.run("bos_replacement", model, prompts, metrics=[everything], progress=False)


def test_metric_that_is_nan(model: Any, prompts: sinklens.Prompts, tmp_path: Path) -> None:
    def nothing(logits: torch.Tensor, tokens: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((len(logits),), torch.nan)

    with refused("nothing"):
        result = sinklens.run("bos_replacement", model, prompts, metrics=[nothing], progress=False)
        result.save(tmp_path / "out")
    assert listing(tmp_path) == {}


def test_bad_hooks_in_python(model: Any) -> None:
    from sinklens.hooks import ablate_heads, patch_position0, replace_bos_embedding

    with refused("mean"):
        replace_bos_embedding(model, "meen")
    with refused("L7H0"):
        ablate_heads(model, [(7, 0)], "zero")
    with refused("HeadMeans"):
        ablate_heads(model, [(0, 0)], "mean")
    with refused("no heads"):
        ablate_heads(model, [], "zero")
    with refused("layer 5"):
        patch_position0(model, 5)
    with refused("ResidualNorms"):
        patch_position0(model, 0, "rescaled")


# --- Results on disk ---------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 1, 0.5, 0.99])
@pytest.mark.parametrize("file", ["result.json", "values.safetensors", "run.json"])
def test_truncated_result(file: str, keep: float, saved: Path, tmp_path: Path) -> None:
    target = shutil.copytree(saved, tmp_path / "result")
    content = (target / file).read_bytes()
    (target / file).write_bytes(content[: int(keep if keep == 1 else keep * len(content))])
    before = listing(target)
    with refused("result"):
        sinklens.ExperimentResult.load(target)
    assert "result" in fails("show", target, status=1)
    assert listing(target) == before


@pytest.mark.parametrize("file", ["result.json", "values.safetensors", "run.json"])
def test_incomplete_result(file: str, saved: Path, tmp_path: Path) -> None:
    target = shutil.copytree(saved, tmp_path / "result")
    (target / file).unlink()
    with refused(file):
        sinklens.ExperimentResult.load(target)
    assert file in fails("show", target, status=1)


def test_result_without_a_field(saved: Path, tmp_path: Path) -> None:
    content = json.loads((saved / "result.json").read_text())
    del content["sha256"]  # as in files from before it
    target = shutil.copytree(saved, tmp_path / "result")
    for key in content:
        less = {name: value for name, value in content.items() if name != key}
        (target / "result.json").write_text(json.dumps(less))
        with refused("result"):
            sinklens.ExperimentResult.load(target)
    for wrong in ([], 3, {"schema": 99}, {**content, "arrays": None}, {**content, "effects": [{}]}):
        (target / "result.json").write_text(json.dumps(wrong))
        with refused("result"):
            sinklens.ExperimentResult.load(target)


def test_no_result(tmp_path: Path, text_file: Path) -> None:
    with refused("nowhere"):
        sinklens.ExperimentResult.load(tmp_path / "nowhere")
    assert "nowhere" in fails("show", tmp_path / "nowhere", status=1)
    fails("show", tmp_path, status=1)
    fails("show", text_file, status=1)


def test_output_folder_in_use(tmp_path: Path, run_fails: Callable[..., str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    assert "--overwrite" in run_fails(status=1)  # and the listing is the same


@pytest.mark.slow
def test_output_folder_with_another_result(
    saved: Path,
    model: Any,
    prompts: sinklens.Prompts,
    tmp_path: Path,
    run_fails: Callable[..., str],
) -> None:
    shutil.copytree(saved, tmp_path / "out")
    before = listing(tmp_path)
    assert "--overwrite" in run_fails("--set", "conditions=zero", status=1)
    card = sinklens.diagnose(model, prompts, progress=False)
    with refused("overwrite"):
        card.save(tmp_path / "out")
    assert listing(tmp_path) == before


def test_output_path_is_a_file(tmp_path: Path, run_fails: Callable[..., str]) -> None:
    (tmp_path / "out").write_text("mine")
    assert "is a file" in run_fails(status=1)
    assert "is a file" in run_fails("--overwrite", status=1)


def test_output_path_below_a_file(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    result = sinklens.ExperimentResult.load(saved)
    with refused("file"):
        result.save(tmp_path / "file" / "out")
    assert listing(tmp_path) == {"file": b"mine"}


def test_a_failing_run_spares_the_old_result(
    saved: Path, tmp_path: Path, run_fails: Callable[..., str]
) -> None:
    """With --overwrite too, as long as there is nothing to replace it by."""
    shutil.copytree(saved, tmp_path / "out")
    run_fails("--overwrite", "--set", "conditions=meen", status=2)
    run_fails("--overwrite", "--no-bos", status=1)


@pytest.mark.parametrize("command", ["diagnose", "check"])
def test_the_other_commands(command: str, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"nothing")
    assert "GGUF" in fails(command, tmp_path / "model.gguf", status=1)


def test_wrong_usage_of_the_command_itself() -> None:
    for arguments in (["rnu"], ["run"], ["run", "sink_profile", "rope", "--sead", "3"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2 and "Traceback" not in result.output
