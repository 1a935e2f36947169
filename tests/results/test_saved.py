"""Results on disk: damage is said when they are loaded, and nothing leads out of their folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import sinklens
from sinklens.cli import app
from sinklens.core.errors import UsageError
from sinklens.core.locks import LOCK, locked, passing_folder
from sinklens.core.storage import write_files
from sinklens.models.prompts import corpus
from sinklens.results.diagnosis import Diagnosis


@pytest.fixture(scope="module")
def result(boot_family: Callable[[str], Any]) -> sinklens.ExperimentResult:
    model = boot_family("llama")
    prompts = sinklens.prompts(model, corpus()[:2000], n=4, length=12, bos=True)
    return sinklens.run("sink_profile", model, prompts, draws=1, null_models=0, progress=False)


@pytest.fixture
def saved(result: sinklens.ExperimentResult, tmp_path: Path) -> Path:
    return result.save(tmp_path / "result")


def test_a_flipped_bit_is_found_wherever_it_is(
    saved: Path, result: sinklens.ExperimentResult
) -> None:
    for name in ("result.json", "values.safetensors"):
        file = saved / name
        raw = file.read_bytes()
        for place in range(0, len(raw), len(raw) // 40):
            file.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
            try:  # a change of white space, or of the name of the hash, changes no number
                assert sinklens.ExperimentResult.load(saved) == result
            except sinklens.SinklensError as error:
                assert "\n" not in str(error)
        file.write_bytes(raw)


def edit(content: Any, *place: Any, to: Any) -> None:
    for step in place[:-1]:
        content = content[step]
    content[place[-1]] = to


NESTED: Any = 1
for _ in range(200):
    NESTED = [NESTED]


@pytest.mark.parametrize(
    ("place", "to", "words"),
    [
        (("effects", 0, "effect"), "0.3", "effects[0].effect is text, not a number"),
        (("effects", 0, "layer"), 1.5, "effects[0].layer is a number, not a whole number or null"),
        (("effects", 0, "n_prompts"), True, "effects[0].n_prompts is a bool"),
        (("effects", 0, "n_prompts"), -3, "effects[0].n_prompts is -3"),
        (("effects", 0), [], "effects[0] is a list, not an object"),
        (("provenance",), None, "provenance is null, not an object"),
        (("provenance", "prompts", "n"), "4", "provenance.prompts.n is text"),
        (("provenance", "model"), {}, "provenance.model has no name"),
        (("summary",), [3], "summary[0] is a whole number, not text"),
        (("summary",), ["\ud800"], "surrogates"),
        (("findings",), {"deep": NESTED}, "nested deeper than"),
        (("findings",), {"large": 10**400}, "too large"),
        (("measures", "sink_mass", "form"), "99999999999d", "measures.sink_mass.form"),
        (("figure", "kind"), "Pickle", "figure.kind is 'Pickle'"),
        (("arrays", "sink_mass", "dims"), ["layer"], "1 names for 2 axes"),
        (("settings", "notes"), "a", "settings.notes is text, not a list"),
    ],
)
def test_fields_are_checked(place: Any, to: Any, words: str, saved: Path) -> None:
    """In a file without a hash of its own, as version 0.1 wrote it."""
    file = saved / "result.json"
    content = json.loads(file.read_text())
    del content["sha256"]
    edit(content, *place, to=to)
    file.write_text(json.dumps(content))
    with pytest.raises(sinklens.SinklensError) as caught:
        sinklens.ExperimentResult.load(saved)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("raw", [b"1" * 5000, b"[" * 100_000, b'{"a": NaN}', b"\xff", b"3"])
def test_what_is_no_json_is_refused(raw: bytes, saved: Path) -> None:
    for name in ("result.json", "run.json"):
        before = (saved / name).read_bytes()
        (saved / name).write_bytes(raw)
        with pytest.raises(sinklens.SinklensError):
            sinklens.ExperimentResult.load(saved)
        (saved / name).write_bytes(before)


@pytest.mark.skipif(os.name == "nt", reason="there are no such files")
@pytest.mark.parametrize("name", ["result.json", "values.safetensors", "run.json"])
def test_a_pipe_is_not_waited_for(name: str, saved: Path) -> None:
    (saved / name).unlink()
    os.mkfifo(saved / name)
    with pytest.raises(sinklens.SinklensError, match="no regular file"):
        sinklens.ExperimentResult.load(saved)
    (saved / name).unlink()
    (saved / name).symlink_to("/dev/zero")
    with pytest.raises(sinklens.SinklensError, match="no regular file"):
        sinklens.ExperimentResult.load(saved)


@pytest.mark.parametrize("name", ["../../x", "/x", "a/../../x", "", ".", "a\x1b[31m", "a" * 300])
def test_names_lead_nowhere_else(
    name: str, result: sinklens.ExperimentResult, tmp_path: Path
) -> None:
    card = Diagnosis({"sink_profile": result, name: result}, ["one"])
    with pytest.raises(UsageError, match="cannot name a file or folder"):
        card.save(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_a_crafted_list_of_folders_leads_nowhere_else(
    result: sinklens.ExperimentResult, tmp_path: Path
) -> None:
    mine = result.save(tmp_path / "mine")
    card = Diagnosis({"sink_profile": result}, ["one"]).save(tmp_path / "card")
    (card / "diagnosis.json").write_text('{"experiments": ["sink_profile", "../mine"]}')
    with pytest.raises(sinklens.SinklensError, match="cannot name a file or folder"):
        Diagnosis.load(card)
    result.save(card, overwrite=True)
    assert sinklens.ExperimentResult.load(mine) == result


def test_overwriting_removes_what_was_written_and_nothing_else(
    result: sinklens.ExperimentResult, tmp_path: Path
) -> None:
    out = tmp_path / "results"
    for name in ("a", "b"):
        result.save(out / name)
    (out / "notes.txt").write_text("mine")
    result.save(out, overwrite=True)
    for folder in (out, out / "a", out / "b"):
        assert sinklens.ExperimentResult.load(folder) == result
    card = Diagnosis({"sink_profile": result, "another": result}, ["one"])
    card.save(out, overwrite=True)
    assert not (out / "result.json").exists()
    assert Diagnosis.load(out).results.keys() == {"sink_profile", "another"}
    result.save(out, overwrite=True)
    names = ["a", "b", "notes.txt", "result.json", "run.json", "values.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == names


def test_two_results_of_one_experiment_are_both_shown(
    result: sinklens.ExperimentResult, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        result.save(tmp_path / name)
    done = CliRunner().invoke(app, ["show", str(tmp_path)])
    assert done.exit_code == 0 and done.stdout.count(str(result)) == 2
    assert done.stdout.startswith(f"{result.experiment} (first)\n")
    assert f"\n{result.experiment} (second)\n" in done.stdout
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", str(tmp_path), "-o", str(page)])
    assert done.exit_code == 0, done.output
    assert "(first)" in page.read_text() and "(second)" in page.read_text()


def test_a_folder_in_use_is_not_written_into(
    result: sinklens.ExperimentResult, saved: Path
) -> None:
    """Two threads stand for two processes: the system tells their locks apart as well."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as other, locked(saved):
        with pytest.raises(sinklens.SinklensError, match=f"in use by process {os.getpid()} on"):
            other.submit(result.save, saved, overwrite=True).result()
        result.save(saved, overwrite=True)  # its owner may
    assert not (saved / LOCK).exists()


def test_what_a_dead_process_left_is_taken_over(
    result: sinklens.ExperimentResult, saved: Path
) -> None:
    (saved / LOCK).write_text("process 1 on another machine")
    left = saved.parent / ".sinklens-left"
    (left / "result").mkdir(parents=True)
    (left / "result" / "values.safetensors").write_bytes(b"half")
    result.save(saved, overwrite=True)
    assert not (saved / LOCK).exists() and not left.exists()


def test_a_full_disk_locks_without_a_name(
    result: sinklens.ExperimentResult, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, locked(saved.parent):
        patched.setattr(os, "write", full)
        with locked(saved):
            assert (saved / LOCK).read_bytes() == b""
        patched.setattr(os, "open", full)
        with pytest.raises(sinklens.SinklensError, match="No space left on device"):
            result.save(saved, overwrite=True)
    assert [path.name for path in saved.parent.iterdir()] == ["result"]
    result.save(saved, overwrite=True)


def test_a_folder_that_is_being_made_is_left_alone(tmp_path: Path) -> None:
    with passing_folder(tmp_path, ".sinklens-") as folder:
        write_files(tmp_path / "out", {"result.json": b"{}"})
        assert folder.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_paths_that_no_file_system_holds(result: sinklens.ExperimentResult, tmp_path: Path) -> None:
    for folder in (tmp_path / ("a" * 300), tmp_path / "a\0b"):
        for call in (result.save, sinklens.ExperimentResult.load):
            with pytest.raises(sinklens.SinklensError) as caught:
                call(folder)
            assert len(str(caught.value)) < 500
    assert not list(tmp_path.iterdir())


def test_results_are_the_same_after_a_move(
    result: sinklens.ExperimentResult, saved: Path, tmp_path: Path
) -> None:
    moved = shutil.move(saved, tmp_path / "moved")
    assert sinklens.ExperimentResult.load(moved) == result
