"""Nothing of a run can be swapped: what is finished, what it goes on from, and what others read of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.corpus import Corpus
from palenka.data.model_files import identity_of
from palenka.export import ExportSettings, export
from palenka.ground.errors import UserError
from palenka.train_student.model.shapes import ModelShape
from palenka.train_student.run import Run
from palenka.train_student.run_facts import Best
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train

Interrupted = Callable[..., TrainSettings]


@pytest.fixture
def settings(capture_settings: CaptureSettings, student_of_cache: Callable[..., TrainSettings]) -> TrainSettings:
    """A student of a cache, 13 steps, with a checkpoint every 4 and a validation every 3."""
    capture(capture_settings)
    return student_of_cache(
        fraction=0.2,
        objective={"hard": 1.0, "logit": 0.5},
        optimizer={"learning_rate": 1e-2},
        validation={"every": 3, "windows": 20},
        checkpoint_every=4,
    )


def flip(path: Path, place: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [Path.unlink, zero, cut, flip])
def test_a_finished_run_of_which_a_file_was_changed_is_refused_by_all_stages(
    settings: TrainSettings, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    train(settings)
    whole = {path.name: path.read_bytes() for path in settings.output.iterdir() if path.is_file()}
    assert {"config.yaml", "metrics.jsonl", "model.safetensors", "tokenizer_config.json", "config.json"} < whole.keys()
    exported = ExportSettings(run=settings.output, out=tmp_path / "exported")
    for name, content in whole.items():
        if name == "result.json" or (name, damage) == ("inputs.json", Path.unlink):
            continue  # what goes missing of these is written again
        damage(settings.output / name)
        with pytest.raises(UserError, match=rf"{name}|is not empty and not a run|does not match"):
            train(settings)
        with pytest.raises(UserError, match=name):
            export(exported)
        if name not in ("config.yaml", "inputs.json", "metrics.jsonl", "calls.jsonl", "model.commit.json"):
            with pytest.raises(UserError, match=name):
                identity_of(settings.output, "float32")
        (settings.output / name).write_bytes(content)
    export(exported)
    record = settings.output / "result.json"
    record.write_text(record.read_text().replace('"best_step": ', '"best_step": 1'))
    with pytest.raises(UserError, match=r"result\.json was changed since it was written"):
        train(settings)


def test_a_model_that_was_changed_is_no_teacher(
    settings: TrainSettings, capture_settings: CaptureSettings, changed: Callable[..., CaptureSettings]
) -> None:
    train(settings)
    other = changed(capture_settings, teacher=settings.output, output=settings.output.with_name("run-cache"))
    flip(settings.output / "model.safetensors", 0.9)
    with pytest.raises(UserError, match=r"model .* is damaged: model\.safetensors differs from its checksum"):
        capture(other)


def test_checkpoints_and_metrics_of_another_run_are_not_gone_on_from(
    settings: TrainSettings, interrupted: Interrupted, capsys: pytest.CaptureFixture[str]
) -> None:
    train(settings)
    other = settings.model_copy(update={"output": settings.output.with_name("other"), "seed": 1})
    train(other)
    again = interrupted(settings, "checkpoints")
    shutil.rmtree(again.output / "checkpoints")
    shutil.copytree(other.output / "checkpoints", again.output / "checkpoints")
    train(again)
    assert "commit.json is of another run" in " ".join(capsys.readouterr().err.split())
    assert (again.output / "model.safetensors").read_bytes() == (settings.output / "model.safetensors").read_bytes()
    again = interrupted(settings, "renamed")
    steps = sorted((again.output / "checkpoints").iterdir())
    shutil.rmtree(steps[1])
    steps[0].rename(steps[1])
    train(again)
    assert "commit.json is of another step: 8, not 12" in " ".join(capsys.readouterr().err.split())
    assert (again.output / "model.safetensors").read_bytes() == (settings.output / "model.safetensors").read_bytes()
    again = interrupted(settings, "metrics")
    shutil.copyfile(other.output / "metrics.jsonl", again.output / "metrics.jsonl")
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged: it is not what the checkpoint was made beside"):
        train(again)
    again = interrupted(settings, "model")
    for name in ("model.safetensors", "model.commit.json"):
        shutil.copyfile(other.output / name, again.output / name)
    with pytest.raises(UserError, match=r"model\.commit\.json is of another run"):
        train(again)


def test_a_best_model_that_was_changed_while_the_run_rested_is_refused(
    settings: TrainSettings, interrupted: Interrupted
) -> None:
    train(settings)
    again = interrupted(settings, "again")
    flip(again.output / "model.safetensors", 0.9)
    with pytest.raises(UserError, match=r"is damaged: model\.safetensors differs from its checksum"):
        train(again)
    # Without its record it may be of a kill while it took its place, and is made again on the way.
    again = interrupted(settings, "best-lost")
    (again.output / "model.commit.json").unlink()
    assert train(again).best_step == 13
    assert (again.output / "model.safetensors").read_bytes() == (settings.output / "model.safetensors").read_bytes()
    run = Run(again.output, json.loads((again.output / "model.commit.json").read_text())["run"])
    result = run.result()
    assert result is not None
    with pytest.raises(UserError, match="lost the model of its best step, 9"):
        run.finish(result.model_copy(update={"best_step": 9}))


def test_a_cache_and_a_corpus_may_be_moved(
    settings: TrainSettings, changed: Callable[..., TrainSettings], interrupted: Interrupted, tmp_path: Path
) -> None:
    result = train(settings)
    cache = settings.teachers["t"].cache
    assert cache is not None
    cache.rename(tmp_path / "moved")
    shutil.copytree(settings.corpus, tmp_path / "copied")
    moved = changed(settings, teachers={"t": {"cache": tmp_path / "moved"}}, corpus=tmp_path / "copied")
    assert train(moved) == result
    assert train(interrupted(moved, "again")).validation_cross_entropy == result.validation_cross_entropy


def test_metrics_of_a_finished_run_are_part_of_it(settings: TrainSettings) -> None:
    train(settings)
    path = settings.output / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["loss"] = 0.1
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        Run(settings.output).read()


def test_a_tokenizer_that_changes_while_a_run_trains_is_not_kept(
    corpus_directory: Path, make_shape: Callable[..., ModelShape], tmp_path: Path
) -> None:
    shutil.copytree(corpus_directory, tmp_path / "corpus")
    corpus = Corpus.open(tmp_path / "corpus", "train")
    model = make_shape().build(corpus, 0)
    run = Run(tmp_path / "run", "identity")
    run.directory.mkdir()
    best = Best(step=1, validation_cross_entropy=1.0)
    run.save_model(model, {}, corpus, best)
    kept = (run.directory / "model.safetensors").stat().st_ino
    flip(corpus.directory / "tokenizer" / "tokenizer_config.json")
    with pytest.raises(UserError, match=r"tokenizer_config\.json differs from its checksum"):
        run.save_model(model, {}, corpus, best)
    assert run.best() == best
    assert (run.directory / "model.safetensors").stat().st_ino == kept
