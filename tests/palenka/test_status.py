"""`palenka status`: what is done, running, interrupted and damaged, told from what lies there and from the locks."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from palenka.__main__ import main
from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.signals.encoding import ENCODINGS
from palenka.ground.holder_file import HolderFile
from palenka.ground.lock import sole_writer
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train

SettingsOfCapture = Callable[..., CaptureSettings]


@pytest.fixture(scope="module")
def made(
    settings_of_run: Callable[..., TrainSettings],
    settings_of_capture: SettingsOfCapture,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A run of 10 steps that is finished, one that was interrupted after a checkpoint, and a cache in two views."""
    runs = tmp_path_factory.mktemp("made")
    train(settings_of_run(output=runs / "whole", fraction=0.3, checkpoint_every=4))
    shutil.copytree(runs / "whole", runs / "part")
    (runs / "part" / "result.json").unlink()
    metrics = runs / "part" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 11, "lo')
    capture(settings_of_capture(output=runs / "cache", windows={"length": 16, "views": 2}))
    return runs


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of them, which may be changed."""
    return Path(shutil.copytree(made, tmp_path / "runs"))


def statuses(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[str, str, str]]:
    capsys.readouterr()
    assert main(["status", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    return {Path(each["path"]).name: (each["kind"], each["state"], each["detail"]) for each in found}


def test_what_is_done_and_what_was_interrupted_are_told_by_how_far_they_are(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = statuses(folder, capsys)
    assert found["cache"] == ("cache", "done", "4 of 4 shards")
    kind, state, detail = found["whole"]
    assert (kind, state) == ("run", "done")
    assert detail.startswith("10 steps, validation ")
    assert found["part"] == ("run", "interrupted", "at step 10, goes on after step 8")


def test_what_is_being_written_is_running(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sole_writer(folder / "part"), sole_writer(folder / "cache.part-1-of-2"):
        found = statuses(folder, capsys)
    assert found["part"][1] == "running"
    assert "after step 10, by process " in found["part"][2]
    assert found["cache"][1] == "running"


def test_a_run_without_its_weights_is_damaged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "whole" / "model.safetensors").write_bytes(b"")
    kind, state, detail = statuses(folder, capsys)["whole"]
    assert (kind, state) == ("run", "damaged")
    assert "model.safetensors has 0 bytes" in detail


def test_a_cache_with_a_damaged_shard_is_damaged_and_without_it_interrupted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = next((folder / "cache" / "logits" / "ids").rglob("c/1/*/*/*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert statuses(folder, capsys)["cache"][:2] == ("cache", "damaged")
    (folder / "cache" / "commits" / "1-0.json").unlink()
    shard.unlink()
    assert statuses(folder, capsys)["cache"][1:] == ("interrupted", "3 of 4 shards")


def test_a_fraction_that_was_asked_for_is_a_whole_cache(
    settings_of_capture: SettingsOfCapture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "cache"
    asked = settings_of_capture(output=output, windows={"length": 16, "views": 2}, fraction=0.1)
    for fraction in (0.1, 0.05):  # less than before changes nothing
        capture(asked.model_copy(update={"fraction": fraction}))
        assert statuses(tmp_path, capsys)["cache"][1:] == ("done", "2 of 2 shards, a fraction of 0.1")
    (output / "commits" / "1-0.json").unlink()
    assert statuses(tmp_path, capsys)["cache"][1:] == ("interrupted", "1 of 2 shards, a fraction of 0.1")


def test_what_a_plug_in_made_is_not_damaged_without_it(
    folder: Path,
    settings_of_capture: SettingsOfCapture,
    plug_in: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as named:
        named.setattr(ENCODINGS, "_entries", dict(ENCODINGS))
        plug_in(Path(__file__).parents[1] / "plugins", "toy_encoding")
        output = folder / "[own] cache"
        capture(settings_of_capture(output=output, logits={"kind": "whole"}))
        assert statuses(folder, capsys)[output.name] == ("cache", "done", "2 of 2 shards")
    kind, state, detail = statuses(folder, capsys)[output.name]
    assert (kind, state) == ("cache", "unknown")
    assert f"{output} cannot be read: logits.kind is 'whole', which comes from a plug-in; " in detail
    assert detail.endswith("give --plugins MODULE")
    with HolderFile(folder / f"{output.name}.part-1-of-2.lock.holder", output).held(wait=False):
        assert statuses(folder, capsys)[output.name][1] == "running"
    config = folder / "part" / "config.yaml"
    config.write_text(
        "plugins: [last_cosine]\n" + config.read_text().replace("objective:\n", "objective:\n  last_cosine: 1\n")
    )
    kind, state, detail = statuses(folder, capsys)["part"]
    assert (kind, state) == ("run", "interrupted")
    assert detail.endswith("give --plugins last_cosine")


def test_a_grid_is_one_line_with_its_points_counted(
    grid_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["grid", "--config", str(grid_file), "--local.isolated", "false"]) == 0
    found = statuses(tmp_path, capsys)
    assert found.keys() == {"grid", "cache"}
    assert found["grid"] == ("grid", "done", "points: 5 done")
    point = tmp_path / "grid" / "points" / "control-seed0"
    (point / "result.json").unlink()
    (tmp_path / "grid" / "points" / "control-seed0.failure.json").write_text('{"reason": "it was killed"}')
    assert statuses(tmp_path, capsys)["grid"][1:] == (
        "interrupted",
        "points: 1 interrupted, 4 done; 1 did not end well",
    )
    with sole_writer(tmp_path / "grid"):
        assert statuses(tmp_path, capsys)["grid"][1] == "running"


@pytest.mark.skipif(os.getuid() == 0, reason="root may read every folder")
def test_folders_that_may_not_be_read_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locked = folder / "locked"
    locked.mkdir(mode=0)
    assert set(statuses(folder, capsys)) == {"whole", "part", "cache"}
    assert f"{locked} is left out: Permission denied" in capsys.readouterr().err
    assert main(["status", str(locked)]) == 2
    assert f"cannot search {locked}: Permission denied" in capsys.readouterr().err


def test_a_folder_with_nothing_and_none_at_all_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 2
    assert "no run, cache or grid in" in capsys.readouterr().err
    assert main(["status", str(tmp_path / "nowhere")]) == 2
    assert "is not a folder" in capsys.readouterr().err
