"""A study: from raw text to a table in one call, and only what is missing in the next."""

import json
import os
import random
import shutil
from collections.abc import Mapping
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

LENGTH = 16
LOGITS = {"kind": "topk", "k": 8}
SHAPE = {"architecture": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def sentences(seed: int, count: int) -> str:
    draw = random.Random(seed)
    words = ["teacher", "student", "window", "token", "river", "stone"]
    return "".join(f"the {draw.choice(words)} sees the {draw.choice(words)} .\n" for _ in range(count))


def parsed(*arguments: str | Path) -> Study:
    return Study(*parse_file(StudySettings, [str(word) for word in arguments], "palenka study"))


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    """A study of a teacher, its cache, a control and a student, every stage in a file of its own."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "switchboard.train").write_text(sentences(0, 1500))
    (tmp_path / "text" / "switchboard.dev").write_text(sentences(1, 200))
    runs = tmp_path / "runs"
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
            "suites": {"minimal_pairs": str(tmp_path / "pairs")},
            "prompts": ["the teacher", ""],
        },
        "stages/corpus": {"sources": str(tmp_path / "text"), "output": shared["corpus"], "vocabulary_size": 300},
        "stages/teacher": run | {"output": teacher, "model": SHAPE | {"hidden_size": 32}},
        "stages/cache": shared
        | {"output": str(runs / "cache"), "teacher": teacher, "logits": {"kind": "topk", "k": 8}},
        "stages/control": run | {"output": str(runs / "control")},
        "stages/distilled": run | distilled | {"output": str(runs / "distilled")},
    }
    (tmp_path / "stages").mkdir()
    write_pairs(tmp_path / "pairs")
    for name, content in files.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "study.yaml"


def state(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with the time of its last change; aside from the study's own, which each call writes."""
    return {
        str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in directory.rglob("*")
        if path.is_file() and path.name not in ("results.json", "seconds.json", "report.html")
    }


def results(study_file: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((study_file.parent / "runs" / "results.json").read_text())
    return read


def test_a_study_goes_from_text_to_a_table_and_does_nothing_twice(
    study_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = study_file.parent / "runs"
    assert main(["study", "--config", str(study_file)]) == 0
    first, told = results(study_file), capsys.readouterr().out
    rows = {row["name"]: row for row in first["models"]}
    assert {name: row["role"] for name, row in rows.items()} == {
        "big": "teacher",
        "control": "control",
        "distilled": "student",
    }
    for name, folder in (("big", "teacher"), ("control", "control"), ("distilled", "distilled")):
        assert rows[name]["parameters"] == AutoModelForCausalLM.from_pretrained(runs / folder).num_parameters()
        loss = rows[name]["suites"]["held_out"]["figures"]["cross_entropy"]
        low, high = loss["interval"]
        assert low < loss["value"] < high < 4
        assert f"{loss['value']:.4f} ({low:.4f} to {high:.4f})" in told
        scored = read_results(runs / "measures" / f"{name}.json").by_suite["minimal_pairs"].main
        assert rows[name]["suites"]["minimal_pairs"]["figures"]["accuracy"]["value"] == scored.value
        assert scored.n == 1200
        assert str(scored) in told
        # A table reads the test split; dev, all of which a validation reads here, has chosen the checkpoint.
        model = load_model(runs / folder, torch.device("cpu"))
        means = {}
        for split in ("dev", "test"):
            corpus = Corpus.open(runs / "corpus", split)
            losses = window_losses(model, fixed_windows(corpus, LENGTH), corpus.vocabulary_size, 8)
            means[split] = float(np.concatenate(list(losses)).mean())
        validated = json.loads((runs / folder / "result.json").read_text())["validation_cross_entropy"]
        assert validated == pytest.approx(means["dev"], abs=1e-5)
        assert loss["value"] == pytest.approx(means["test"], abs=1e-5)
        assert means["dev"] != pytest.approx(means["test"], abs=1e-4)
    (cache,) = first["caches"]
    stored = TeacherCache(runs / "cache")
    assert (cache["name"], cache["path"]) == ("big", "cache")
    assert cache["bytes_per_token"] == pytest.approx(sum(stored.bytes_per_token().values()), abs=0.005)
    assert cache["kept_mass"] == stored.kept_mass()[1.0]
    assert 0.3 < cache["kept_mass"] < 1
    fidelity = stored.fidelity()
    assert fidelity is not None
    assert fidelity.missing["1.0"] == pytest.approx(1 - cache["kept_mass"], abs=0.1)  # of a few windows
    for name in rows:
        samples = read_samples(runs / "samples" / f"{name}.json")
        assert [sample.prompt for sample in samples.samples] == ["the teacher", ""]
    stages = ["corpus", "teacher big", "cache big", "fidelity big", "student control", "student distilled"]
    measures = [f"{stage} {name}" for name in rows for stage in ("measures", "samples")]
    assert set(first["seconds"]) == {*stages, *measures}
    assert sum(first["seconds"].values()) > 0

    before, report = state(runs), (runs / "report.html").read_bytes()
    assert b"distilled" in report
    assert main(["study", str(study_file)]) == 0
    assert state(runs) == before
    assert (runs / "report.html").read_bytes() == report
    assert results(study_file) == first

    # A student that is gone is trained again, to the same bits, and nothing else is.
    shutil.rmtree(runs / "distilled")
    assert main(["study", str(study_file)]) == 0
    after = state(runs)
    assert after.keys() == before.keys()
    assert after["distilled/model.safetensors"][1] == before["distilled/model.safetensors"][1]
    assert all(after[name] == before[name] for name in before if not name.startswith("distilled/"))
    assert results(study_file)["models"] == first["models"]


def test_teachers_that_no_file_trains_are_measured_under_their_caches_name(study_file: Path) -> None:
    runs = study_file.parent / "runs"
    assert main(["study", str(study_file)]) == 0
    elsewhere = shutil.copytree(runs / "teacher", study_file.parent / "elsewhere")
    cache = study_file.parent / "stages" / "cache.yaml"
    cache.write_text(cache.read_text().replace(str(runs / "teacher"), str(elsewhere)))
    options = [str(study_file), "--teachers", "{}", "--output", str(study_file.parent / "again")]
    assert main(["study", *options, "--held_out_windows", "20"]) == 0
    rows = json.loads((study_file.parent / "again" / "results.json").read_text())["models"]
    assert [(row["name"], row["role"]) for row in rows] == [
        ("big", "teacher"),
        ("control", "control"),
        ("distilled", "student"),
    ]
    assert {row["suites"]["held_out"]["figures"]["cross_entropy"]["n"] for row in rows} == {20}
    assert (study_file.parent / "again" / "measures" / "big.json").is_file()
    whole = {
        row["name"]: row["suites"]["held_out"]["figures"]["cross_entropy"] for row in results(study_file)["models"]
    }
    assert whole["big"]["n"] > 20


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


def test_changed_settings_of_a_finished_stage_are_refused(study_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", str(study_file)]) == 0
    control = study_file.parent / "stages" / "control.yaml"
    control.write_text(control.read_text() + "seed: 5\n")
    capsys.readouterr()
    assert main(["study", str(study_file)]) == 2
    assert "seed is 0 there, but 5 is expected; delete it or choose another output" in capsys.readouterr().err
