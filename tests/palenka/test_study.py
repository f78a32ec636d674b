"""A study: from raw text to a table in one call, and only what is missing in the next."""

import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from palenka.__main__ import main
from palenka.data.corpus import Corpus
from palenka.data.held_out import fixed_windows, window_losses
from palenka.data.model_files import load_model
from palenka.data.signals.cache import TeacherCache
from palenka.eval.results import read_results
from palenka.ground.command_line import parse_file
from palenka.ground.errors import UserError
from palenka.ground.lock import sole_writer
from palenka.samples import read_samples
from palenka.study import Study, StudySettings
from palenka.templates import write_pairs

StateOf = Callable[..., dict[str, tuple[int, bytes]]]

LENGTH = 16
MODELS = {"big": "teacher", "control": "control", "distilled": "distilled"}
"""The folder of each model of the study."""
OF_A_CALL = ("results.json", "seconds.json", "report.html")
"""Files that each call writes."""
SHAPE = {"architecture": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def sentences(seed: int, count: int) -> str:
    draw = random.Random(seed)
    words = ["teacher", "student", "window", "token", "river", "stone"]
    return "".join(f"the {draw.choice(words)} sees the {draw.choice(words)} .\n" for _ in range(count))


def parsed(*arguments: str | Path) -> Study:
    return Study(*parse_file(StudySettings, [str(word) for word in arguments], "palenka study"))


def write_study(folder: Path) -> Path:
    """A study of a teacher, its cache, a control and a student, every stage in a file of its own."""
    (folder / "text").mkdir()
    (folder / "text" / "switchboard.train").write_text(sentences(0, 1500))
    (folder / "text" / "switchboard.dev").write_text(sentences(1, 200))
    runs = folder / "runs"
    shared: dict[str, object] = {"corpus": str(runs / "corpus"), "windows": {"length": LENGTH}}
    run = shared | {
        "model": SHAPE,
        "global_batch": 16,
        "fraction": 0.5,
        "optimizer": {"learning_rate": 0.01, "warmup_steps": 2},
    }
    distilled = {"teachers": {"t": {"cache": str(runs / "cache")}}, "objective": {"hard": 0.5, "logit": 0.5}}
    teacher = str(runs / "teacher")
    files: dict[str, Mapping[str, object]] = {
        "study": {
            "output": str(runs),
            "corpus": "stages/corpus.yaml",
            "teachers": {"big": "stages/teacher.yaml"},
            "caches": {"big": "stages/cache.yaml"},
            "students": {"control": "stages/control.yaml", "distilled": "stages/distilled.yaml"},
            "suites": {"minimal_pairs": str(folder / "pairs")},
            "prompts": ["the teacher", ""],
        },
        "stages/corpus": {"sources": str(folder / "text"), "output": shared["corpus"], "vocabulary_size": 300},
        "stages/teacher": run | {"output": teacher, "model": SHAPE | {"hidden_size": 32}},
        "stages/cache": shared
        | {"output": str(runs / "cache"), "teacher": teacher, "logits": {"kind": "topk", "k": 8}},
        "stages/control": run | {"output": str(runs / "control")},
        "stages/distilled": run | distilled | {"output": str(runs / "distilled")},
    }
    (folder / "stages").mkdir()
    write_pairs(folder / "pairs")
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return folder / "study.yaml"


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    """A study that was not run."""
    return write_study(tmp_path)


def results(study_file: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((study_file.parent / "runs" / "results.json").read_text())
    return read


@dataclass(frozen=True)
class Finished:
    """A study that was run once: its file, what it printed and what it recorded."""

    file: Path
    said: str
    record: dict[str, Any]

    @property
    def runs(self) -> Path:
        """Where its stages are."""
        return self.file.parent / "runs"

    def row(self, model: str) -> dict[str, Any]:
        """What is recorded of a model."""
        rows: dict[str, dict[str, Any]] = {row["name"]: row for row in self.record["models"]}
        return rows[model]

    def copy(self, folder: Path) -> Path:
        """A copy of its file and those of its stages, which may be changed; its stages stay where they are."""
        shutil.copytree(self.file.parent / "stages", folder / "stages")
        return Path(shutil.copyfile(self.file, folder / self.file.name))


@pytest.fixture(scope="module")
def finished(printed_by: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A study that was run; who changes its stages leaves them as they were."""
    file = write_study(tmp_path_factory.mktemp("study"))
    said = printed_by("study", "--config", file)
    return Finished(file, said, results(file))


def test_every_model_has_its_role(finished: Finished) -> None:
    roles = {row["name"]: row["role"] for row in finished.record["models"]}
    assert roles == {"big": "teacher", "control": "control", "distilled": "student"}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_its_size(finished: Finished, name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished.runs / MODELS[name])
    assert finished.row(name)["parameters"] == model.num_parameters()


@pytest.mark.parametrize("name", MODELS)
def test_the_table_has_held_out_losses_with_their_intervals(finished: Finished, name: str) -> None:
    loss = finished.row(name)["suites"]["held_out"]["figures"]["cross_entropy"]
    low, high = loss["interval"]
    assert low < loss["value"] < high < 4
    assert f"{loss['value']:.4f} ({low:.4f} to {high:.4f})" in finished.said


@pytest.mark.parametrize("name", MODELS)
def test_the_table_has_the_accuracies_that_were_measured(finished: Finished, name: str) -> None:
    scored = read_results(finished.runs / "measures" / f"{name}.json").by_suite["minimal_pairs"].main
    assert finished.row(name)["suites"]["minimal_pairs"]["figures"]["accuracy"]["value"] == scored.value
    assert scored.n == 1200
    assert str(scored) in finished.said


@pytest.mark.parametrize("name", MODELS)
def test_a_table_reads_the_test_split_and_dev_has_chosen_the_checkpoint(finished: Finished, name: str) -> None:
    model = load_model(finished.runs / MODELS[name], torch.device("cpu"))
    means = {}
    for split in ("dev", "test"):
        corpus = Corpus.open(finished.runs / "corpus", split)
        losses = window_losses(model, fixed_windows(corpus, LENGTH), corpus.vocabulary_size, 8)
        means[split] = float(np.concatenate(list(losses)).mean())
    # A validation reads all of dev here.
    validated = json.loads((finished.runs / MODELS[name] / "result.json").read_text())["validation_cross_entropy"]
    assert validated == pytest.approx(means["dev"], abs=1e-5)
    loss = finished.row(name)["suites"]["held_out"]["figures"]["cross_entropy"]["value"]
    assert loss == pytest.approx(means["test"], abs=1e-5)
    assert means["dev"] != pytest.approx(means["test"], abs=1e-4)


def test_the_row_of_a_cache_is_what_the_cache_measures(finished: Finished) -> None:
    (cache,) = finished.record["caches"]
    stored = TeacherCache(finished.runs / "cache")
    assert (cache["name"], cache["path"]) == ("big", "cache")
    assert cache["bytes_per_token"] == pytest.approx(sum(stored.bytes_per_token().values()), abs=0.005)
    assert cache["kept_mass"] == stored.kept_mass()[1.0]
    assert 0.3 < cache["kept_mass"] < 1


def test_a_cache_is_compared_with_its_teacher(finished: Finished) -> None:
    stored = TeacherCache(finished.runs / "cache")
    fidelity = stored.fidelity()
    assert fidelity is not None
    assert fidelity.missing["1.0"] == pytest.approx(1 - stored.kept_mass()[1.0], abs=0.1)  # of a few windows


@pytest.mark.parametrize("name", MODELS)
def test_every_model_goes_on_from_every_prompt(finished: Finished, name: str) -> None:
    samples = read_samples(finished.runs / "samples" / f"{name}.json")
    assert [sample.prompt for sample in samples.samples] == ["the teacher", ""]


def test_the_seconds_of_every_stage_are_kept(finished: Finished) -> None:
    stages = ["corpus", "teacher big", "cache big", "fidelity big", "student control", "student distilled"]
    measures = [f"{stage} {name}" for name in MODELS for stage in ("measures", "samples")]
    assert set(finished.record["seconds"]) == {*stages, *measures}
    assert sum(finished.record["seconds"].values()) > 0


def test_a_report_names_the_students(finished: Finished) -> None:
    assert b"distilled" in (finished.runs / "report.html").read_bytes()


def test_a_second_call_does_nothing(finished: Finished, state_of: StateOf) -> None:
    before, report = state_of(finished.runs, *OF_A_CALL), (finished.runs / "report.html").read_bytes()
    assert main(["study", str(finished.file)]) == 0
    assert state_of(finished.runs, *OF_A_CALL) == before
    assert (finished.runs / "report.html").read_bytes() == report
    assert results(finished.file) == finished.record


def test_a_student_that_is_gone_is_trained_again_to_the_same_bits_and_nothing_else_is(
    finished: Finished, state_of: StateOf
) -> None:
    before = state_of(finished.runs, *OF_A_CALL)
    shutil.copytree(finished.runs / "distilled", away := finished.file.parent / "distilled")
    seconds = (finished.runs / "seconds.json").read_bytes()
    shutil.rmtree(finished.runs / "distilled")
    assert main(["study", str(finished.file)]) == 0
    after = state_of(finished.runs, *OF_A_CALL)
    assert after.keys() == before.keys()
    assert after["distilled/model.safetensors"][1] == before["distilled/model.safetensors"][1]
    assert all(after[name] == before[name] for name in before if not name.startswith("distilled/"))
    assert results(finished.file)["models"] == finished.record["models"]
    # As it was, with the seconds of its first training.
    shutil.rmtree(finished.runs / "distilled")
    away.rename(finished.runs / "distilled")
    (finished.runs / "seconds.json").write_bytes(seconds)


def test_teachers_that_no_file_trains_are_measured_under_their_caches_name(finished: Finished, tmp_path: Path) -> None:
    file, again = finished.copy(tmp_path), tmp_path / "again"
    elsewhere = shutil.copytree(finished.runs / "teacher", tmp_path / "elsewhere")
    cache = tmp_path / "stages" / "cache.yaml"
    cache.write_text(cache.read_text().replace(str(finished.runs / "teacher"), str(elsewhere)))
    options = ["--teachers", "{}", "--output", str(again), "--held_out_windows", "20"]
    assert main(["study", str(file), *options]) == 0
    rows = json.loads((again / "results.json").read_text())["models"]
    assert [(row["name"], row["role"]) for row in rows] == [
        ("big", "teacher"),
        ("control", "control"),
        ("distilled", "student"),
    ]
    assert {row["suites"]["held_out"]["figures"]["cross_entropy"]["n"] for row in rows} == {20}
    assert (again / "measures" / "big.json").is_file()
    assert finished.row("big")["suites"]["held_out"]["figures"]["cross_entropy"]["n"] > 20


def test_a_teacher_from_elsewhere_takes_no_other_models_name(
    study_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = study_file.parent / "stages" / "cache.yaml"
    cache.write_text(cache.read_text().replace(str(study_file.parent / "runs" / "teacher"), "some/teacher"))
    assert main(["study", str(study_file)]) == 2
    assert "cache big is of some/teacher, which is measured by that name, but the study" in capsys.readouterr().err


def test_a_wrong_stage_stops_a_study_before_anything_is_run(study_file: Path) -> None:
    (study_file.parent / "stages" / "distilled.yaml").write_text("epocs: 3\n")
    with pytest.raises(UserError, match=r"stages/distilled.yaml: epocs is not an option; did you mean 'epochs'"):
        parsed(study_file)
    assert main(["study", "--config", str(study_file)]) == 2
    assert not (study_file.parent / "runs").exists()


def test_pairs_that_are_not_there_stop_a_study_before_anything_is_run(
    study_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(study_file.parent / "pairs")
    assert main(["study", str(study_file)]) == 2
    assert "pairs is not a folder; give the one that holds the suite's *.jsonl files" in capsys.readouterr().err
    assert not (study_file.parent / "runs").exists()


def test_a_study_that_runs_already_is_left_alone(study_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = study_file.parent / "runs"
    with sole_writer(runs):
        assert main(["study", str(study_file)]) == 2
    assert f"{runs} is being written by process {os.getpid()} on " in capsys.readouterr().err
    assert not runs.exists()


def test_overrides_reach_the_study(study_file: Path, tmp_path: Path) -> None:
    study = parsed(study_file, "--output", str(tmp_path / "elsewhere"), "--held_out_split", "train")
    assert study.settings.output == tmp_path / "elsewhere"
    assert study.settings.held_out_split == "train"
    assert list(study.students) == ["control", "distilled"]


def test_changed_settings_of_a_finished_stage_are_refused(
    finished: Finished, tmp_path: Path, refused: Callable[..., str]
) -> None:
    file, control = finished.copy(tmp_path), tmp_path / "stages" / "control.yaml"
    control.write_text(control.read_text() + "seed: 5\n")
    assert "seed is 0 there, but 5 is expected; delete it or choose another output" in refused("study", file)
