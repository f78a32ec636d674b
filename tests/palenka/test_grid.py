"""Grids: which points there are, what is refused before any of them runs, what fails alone, and who is ranked first."""

import functools
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from palenka.__main__ import main
from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.eval.results import read_results
from palenka.grid.points import Grid, Point
from palenka.grid.ranking import best, rank
from palenka.grid.record import GridFiles, RunFigure
from palenka.grid.results import chosen_finalists, results_of
from palenka.grid.running import _devices, is_finished, reason_of_failure, run_point, visible_gpus
from palenka.grid.settings import GridSettings, LocalSettings
from palenka.grid.slurm import array_script, following_script
from palenka.ground.command_line import parse_file
from palenka.ground.errors import UserError
from palenka.ground.lock import sole_writer
from palenka.study import Study, StudySettings
from palenka.templates import write_pairs
from palenka.train_student.run_facts import RunResult
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train

CONFIGS = Path(__file__).parents[2] / "configs"
SHAPE = {"architecture": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
OF_A_CALL = ("grid.json", "report.html")
"""Files that each call writes."""
GridFile = Callable[..., Path]
StateOf = Callable[..., dict[str, tuple[int, bytes]]]


def read_grid(file: Path, *overrides: str) -> Grid:
    return Grid(*parse_file(GridSettings, ["--config", str(file), *overrides], "palenka grid"))


def write_student(settings: CaptureSettings, file: Path) -> None:
    """A student of a cache, 4 steps a run."""
    student = {
        "corpus": str(settings.corpus),
        "output": "decided by the grid",
        "model": SHAPE,
        "windows": {"length": 16},
        "fraction": 0.5,
        "teachers": {"t": {"cache": str(settings.output)}},
        "objective": {"hard": 0.5, "logit": 0.5},
        "global_batch": 16,
        "optimizer": {"learning_rate": 0.01, "warmup_steps": 2},
        "validation": {"windows": 8},
    }
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(student))


def write_grid(folder: Path, **changes: object) -> Path:
    """A grid of two points, each with its seeds."""
    fields: dict[str, object] = {
        "output": str(folder / "grid"),
        "student": "../students/small.yaml",
        "product": {"objective.logit": [0.1, 0.9]},
        "overrides": {"fraction": 0.1},
        "held_out_windows": 40,
        "finalists": {"count": 1, "overrides": {"fraction": 0.2}},
        "local": {"isolated": False},
    }
    (folder / "grids").mkdir(exist_ok=True)
    (folder / "grids" / "grid.yaml").write_text(yaml.safe_dump(fields | changes, sort_keys=False))
    return folder / "grids" / "grid.yaml"


@pytest.fixture
def grid_file(capture_settings: CaptureSettings, tmp_path: Path) -> GridFile:
    """Writes a grid, and the student that it varies."""
    write_student(capture_settings, tmp_path / "students" / "small.yaml")
    return functools.partial(write_grid, tmp_path)


def results(file: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((file.parents[1] / "grid" / "grid.json").read_text())
    return read


def test_the_points_are_the_product_with_every_seed_and_a_control(grid_file: GridFile) -> None:
    product = {"objective.logit": [0.1, 0.3], "objective.hard": [0, 1], "teachers.t.weight": [0.5]}
    grid = read_grid(grid_file(product=product, seeds=[0, 7]))
    assert [point.name.removeprefix("points/") for point in grid.points] == [
        f"{name}-seed{seed}"
        for seed in (0, 7)
        for name in (
            "control",
            "logit0.1-hard0-weight0.5",
            "logit0.1-hard1-weight0.5",
            "logit0.3-hard0-weight0.5",
            "logit0.3-hard1-weight0.5",
        )
    ]
    last = grid.points[-1].settings
    terms = last.objective.terms
    assert (terms["logit"].weight, terms["hard"].weight, last.teachers["t"].weight, last.seed) == (0.3, 1, 0.5, 7)
    assert last.fraction == 0.1
    assert last.output == grid.settings.output / "points" / "logit0.3-hard1-weight0.5-seed7"
    control = grid.points[5].settings
    assert control.teachers == {}
    assert control.weights() == {"hard": 1.0}
    same = ("corpus", "split", "windows", "fraction", "epochs", "global_batch", "optimizer", "model", "seed")
    assert all(getattr(control, field) == getattr(last, field) for field in same)


def test_finalists_differ_in_their_overrides_alone(grid_file: GridFile) -> None:
    grid = read_grid(grid_file(seeds=[3]))
    (finalist,) = grid.finalists(["logit0.9"])
    assert finalist.name == "finalists/logit0.9-seed3"
    point = grid.point("points/logit0.9-seed3")
    expected = {"fraction": 0.2, "output": grid.settings.output / "finalists" / "logit0.9-seed3"}
    assert finalist.settings == point.settings.model_copy(update=expected)
    with pytest.raises(UserError, match=r"has no point points/logit0\.9-seed4; its first is points/control-seed3"):
        grid.point("points/logit0.9-seed4")


def test_each_combination_of_other_options_has_its_own_control(grid_file: GridFile) -> None:
    product = {"optimizer.learning_rate": [0.01, 0.02], "objective.logit": [0.5]}
    grid = read_grid(grid_file(product=product))
    controls = {point.variant.name: point.variant.control for point in grid.points}
    assert controls == {
        "control-learning_rate0.01": "control-learning_rate0.01",
        "control-learning_rate0.02": "control-learning_rate0.02",
        "learning_rate0.01-logit0.5": "control-learning_rate0.01",
        "learning_rate0.02-logit0.5": "control-learning_rate0.02",
    }
    rates = {point.variant.name: point.settings.optimizer.learning_rate for point in grid.points}
    assert all(rates[name] == rates[control] for name, control in controls.items())


def test_names_tell_options_of_the_same_name_and_any_value_apart(grid_file: GridFile) -> None:
    teachers = {"teachers": {"a": {"cache": "a"}, "b": {"cache": "b"}}}
    product = {"teachers.a.weight": [0.5], "teachers.b.weight": [1.0], "teachers.b.layers": ["uniform", {0: 0, 2: 1}]}
    points = read_grid(grid_file(product=product, overrides=teachers)).points
    assert [point.name for point in points] == [
        "points/control-seed0",
        "points/a.weight0.5-b.weight1.0-layersuniform-seed0",
        "points/a.weight0.5-b.weight1.0-layers0_0_2_1-seed0",
    ]
    assert points[2].settings.teachers["b"].layers == {0: 0, 2: 1}
    assert points[2].settings.teachers["a"].weight == 0.5


@pytest.mark.parametrize(("name", "fraction", "of_finalists"), [("palenka-25", 0.2, 1.0), ("babylm-cpu", 0.015, 0.03)])
def test_the_grids_that_come_with_the_project(name: str, fraction: float, of_finalists: float) -> None:
    grid = read_grid(CONFIGS / "grids" / f"{name}.yaml")
    assert len(grid.points) == (25 + 1) * 3
    assert {point.settings.fraction for point in grid.points} == {fraction}
    assert {point.settings.fraction for point in grid.finalists(["control", "logit0.9-hidden0.1"])} == {of_finalists}
    point = grid.point("points/logit0.3-hidden0.7-seed2").settings
    assert {name: term.weight for name, term in point.objective.active.items()} == {
        "hard": 1.0,
        "logit": 0.3,
        "hidden": 0.7,
    }
    if name == "babylm-cpu":
        require_fit(grid.finalists(["logit0.1-hidden0.1"])[0])


def require_fit(finalist: Point) -> None:
    """Make sure that the caches which the small grid's study captures hold what its finalists read."""
    study = Study(*parse_file(StudySettings, [str(CONFIGS / "babylm-grid" / "study.yaml")], "palenka study"))
    for name, source in finalist.settings.teachers.items():
        cache = study.caches[name]
        assert (source.cache, cache.teacher) == (cache.output, study.teachers[name].output)
        assert cache.fraction >= finalist.settings.fraction
        assert finalist.settings.objective.temperature in cache.logits.temperatures
        assert cache.hidden is not None
    assert finalist.settings.model.num_parameters(4096) < 1_000_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"product": {"objective.logitt": [0.1]}},
            "objective.logitt is not an option; did you mean 'objective.logit'?",
        ),
        ({"product": {"objective.logit": [0.1, -1]}}, "objective.logit.weight is -1, but it should be greater than or"),
        ({"overrides": {"epocs": 2}}, "epocs is not an option; did you mean 'epochs'?"),
        ({"finalists": {"overrides": {"fraction": 2}}}, "fraction is 2, but it should be less than or equal to 1"),
        ({"product": {"seed": [1, 2]}}, "seed is varied, but the grid decides it"),
        ({"overrides": {"output": "x"}}, "output is varied, but the grid decides it"),
        ({"product": {"windows.length": [8, 16]}}, "windows.length is varied, but points must share it to be ranked"),
        ({"product": {"objective.logit": []}}, "product.objective.logit has no values"),
        ({"overrides": {"objective.logit": 0.3}}, "objective.logit is varied under product and set under overrides"),
        ({"product": {"objective.logit": [0.1, 0.1]}}, "two points of the grid would have the name logit0.1"),
        ({"seeds": [1, 1]}, "seeds is [1, 1], but it should name at least one seed, and each of them once"),
        ({"seeds": [-1]}, "seeds has -1, but a seed is from 0"),
        ({"rank_by": "blimp"}, "rank_by is blimp, but suites has no folder for it"),
        ({"rank_by": "loss"}, "rank_by is loss, but it should be"),
        ({"local": {"isolated": False, "processes": 2}}, "processes is 2, but points that are not isolated run one"),
        ({"student": "nowhere.yaml"}, "cannot read configuration"),
        ({"launchr": "slurm"}, "launchr is not an option; did you mean 'launcher'?"),
        ({"suites": {"blimp": "nowhere"}}, "nowhere is not a folder"),
        (
            {"overrides": {"fraction": 1}, "finalists": {}},
            'finalists.overrides is {"fraction": 1.0}, but finalist logit0.1 should differ from its point and would',
        ),
        ({"finalists": {"overrides": {}}}, "let overrides give points less text (fraction), or set finalists.count to"),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_runs(
    changes: dict[str, object], message: str, grid_file: GridFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["grid", "--config", str(grid_file(**changes))]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "grid").exists()


def test_points_of_all_the_text_need_no_finalists(grid_file: GridFile) -> None:
    grid = read_grid(grid_file(overrides={"fraction": 1.0}, finalists={"count": 0}))
    assert grid.finalists(["logit0.1"]) == []


def test_a_student_that_is_its_own_control_is_refused(grid_file: GridFile, tmp_path: Path) -> None:
    file = grid_file(product={"optimizer.learning_rate": [0.01]})
    student = tmp_path / "students" / "small.yaml"
    plain = yaml.safe_load(student.read_text())
    student.write_text(yaml.safe_dump({name: plain[name] for name in plain if name not in ("teachers", "objective")}))
    with pytest.raises(UserError, match=r"point learning_rate0\.01 would be its own control; name teachers"):
        read_grid(file)


def test_a_grid_without_a_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["grid", "--output", "x", "--student", "y"]) == 2
    assert "palenka grid finds other files beside its own; give it as palenka grid FILE.yaml" in capsys.readouterr().err


@dataclass(frozen=True)
class Finished:
    """A grid of two seeds that was run once: its file, what it printed and what it recorded."""

    file: Path
    said: str
    record: dict[str, Any]

    @property
    def output(self) -> Path:
        """Where its points are."""
        return self.file.parents[1] / "grid"


@pytest.fixture(scope="module")
def finished(
    settings_of_capture: Callable[..., CaptureSettings],
    printed_by: Callable[..., str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Finished:
    """A grid with pairs to measure on; who changes its points leaves them as they were."""
    folder = tmp_path_factory.mktemp("grid")
    settings = settings_of_capture(output=folder / "cache")
    capture(settings)
    write_student(settings, folder / "students" / "small.yaml")
    write_pairs(folder / "pairs")
    for suite in (folder / "pairs").iterdir():
        suite.write_text("".join(suite.read_text().splitlines(keepends=True)[:5]))
    file = write_grid(folder, seeds=[0, 1], suites={"minimal_pairs": str(folder / "pairs")})
    said = printed_by("grid", "--config", file)
    return Finished(file, said, results(file))


def test_variants_are_ranked_by_their_mean_held_out_loss(finished: Finished) -> None:
    ranking = finished.record["points"]["ranking"]
    assert [row["rank"] for row in ranking] == [1, 2, 3]
    assert {row["variant"] for row in ranking} == {"control", "logit0.1", "logit0.9"}
    means = [row["measures"]["held_out"]["mean"] for row in ranking]
    assert means == sorted(means)


def test_the_table_marks_the_control(finished: Finished) -> None:
    assert "control (control)" in finished.said


def test_every_point_is_measured_on_the_windows_and_the_pairs_that_were_asked_for(finished: Finished) -> None:
    runs = finished.record["points"]["runs"]
    assert len(runs) == 6
    assert all(run["measures"]["held_out"]["n"] == 40 for run in runs.values())
    assert all(run["measures"]["minimal_pairs"]["n"] == 60 for run in runs.values())


def test_a_difference_is_the_mean_over_seeds_of_that_to_the_control_of_a_seed(finished: Finished) -> None:
    points = finished.record["points"]
    (point,) = (row for row in points["ranking"] if row["variant"] == "logit0.9")
    losses = {name: run["measures"]["held_out"]["value"] for name, run in points["runs"].items()}
    differences = [losses[f"points/logit0.9-seed{seed}"] - losses[f"points/control-seed{seed}"] for seed in (0, 1)]
    assert point["measures"]["held_out"]["difference"] == pytest.approx(sum(differences) / 2)


def test_the_finalists_are_the_winner_and_the_control(finished: Finished) -> None:
    winner = next(row["variant"] for row in finished.record["points"]["ranking"] if row["role"] == "point")
    assert {row["variant"] for row in finished.record["finalists"]["ranking"]} == {"control", winner}


def test_finalists_are_measured_on_more_windows(finished: Finished) -> None:
    assert all(run["measures"]["held_out"]["n"] > 40 for run in finished.record["finalists"]["runs"].values())


@pytest.mark.parametrize(("stage", "split"), [("points", "dev"), ("finalists", "test")])
def test_the_split_that_has_chosen_is_not_the_one_that_is_told(finished: Finished, stage: str, split: str) -> None:
    assert finished.record[stage]["runs"]
    for name in finished.record[stage]["runs"]:
        measured = read_results(GridFiles(finished.output).measures(name)).by_suite["held_out"]
        assert measured.conditions["split"] == split


def test_finalists_train_with_their_overrides(finished: Finished) -> None:
    steps = {
        stage: json.loads((finished.output / stage / "control-seed0" / "result.json").read_text())["steps"]
        for stage in ("points", "finalists")
    }
    assert steps["finalists"] > 1.8 * steps["points"]


def test_a_report_has_every_variant_and_the_paired_tests(finished: Finished) -> None:
    page = (finished.output / "report.html").read_text()
    assert all(f'<th scope="row">{row["variant"]}</th>' in page for row in finished.record["points"]["ranking"])
    assert "Held-out cross-entropy over objective.logit" in page
    assert "The paired test asks how far" in page
    assert "McNemar, minimal pairs" in page


@pytest.mark.parametrize("command", [[], ["rank"]])
def test_a_second_call_does_nothing(finished: Finished, state_of: StateOf, command: list[str]) -> None:
    before = state_of(finished.output, *OF_A_CALL)
    assert main(["grid", *command, "--config", str(finished.file)]) == 0
    assert state_of(finished.output, *OF_A_CALL) == before
    assert results(finished.file) == finished.record


def test_a_point_that_is_gone_is_untried_and_trained_again_to_the_same_bits_and_nothing_else_is(
    finished: Finished, state_of: StateOf
) -> None:
    before = state_of(finished.output, *OF_A_CALL)
    shutil.rmtree(finished.output / "points" / "logit0.1-seed1")
    assert main(["grid", "rank", "--config", str(finished.file)]) == 1
    assert results(finished.file)["points"]["untried"] == ["points/logit0.1-seed1"]
    assert results(finished.file)["finalists"] is None
    assert main(["grid", "--config", str(finished.file)]) == 0
    after = state_of(finished.output, *OF_A_CALL)
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in before if "points/logit0.1-seed1/" not in name)
    weights = "points/logit0.1-seed1/model.safetensors"
    assert after[weights][1] == before[weights][1]
    assert results(finished.file) == finished.record


@pytest.fixture
def failed(grid_file: GridFile, capsys: pytest.CaptureFixture[str]) -> tuple[Path, str]:
    """A grid that was run without its cache, and what was said: every point failed but the control."""
    file = grid_file()
    assert main(["grid", "--config", str(file)]) == 1
    return file, capsys.readouterr().err


def test_a_failed_point_is_reported_with_its_reason(
    failed: tuple[Path, str], capture_settings: CaptureSettings
) -> None:
    file, said = failed
    failures = results(file)["points"]["failures"]
    assert set(failures) == {"points/logit0.1-seed0", "points/logit0.9-seed0"}
    assert all(str(capture_settings.output) in reason for reason in failures.values())
    assert "points/logit0.1-seed0 failed: " in said


def test_a_failed_point_has_no_rank_and_no_finalist_is_chosen(failed: tuple[Path, str]) -> None:
    found = results(failed[0])
    assert [(row["variant"], row["rank"]) for row in found["points"]["ranking"]] == [
        ("control", 1),
        ("logit0.1", None),
        ("logit0.9", None),
    ]
    assert found["finalists"] is None


def test_failed_points_alone_are_tried_again(
    failed: tuple[Path, str], capture_settings: CaptureSettings, tmp_path: Path, state_of: StateOf
) -> None:
    file, _ = failed
    control = state_of(tmp_path / "grid" / "points" / "control-seed0")
    capture(capture_settings)
    assert main(["grid", "--config", str(file)]) == 0
    assert results(file)["points"]["failures"] == {}
    assert {row["rank"] for row in results(file)["points"]["ranking"]} == {1, 2, 3}
    assert state_of(tmp_path / "grid" / "points" / "control-seed0") == control
    assert not list((tmp_path / "grid").rglob("*.failure.json"))


def test_a_finished_point_that_is_damaged_is_told_until_it_is_restored(
    grid_file: GridFile, capture_settings: CaptureSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capture(capture_settings)
    file = grid_file(finalists={"count": 0})
    assert main(["grid", "--config", str(file)]) == 0
    ranked = results(file)
    metrics = tmp_path / "grid" / "points" / "logit0.1-seed0" / "metrics.jsonl"
    whole = metrics.read_bytes()
    metrics.write_bytes(whole.replace(b"1", b"2", 1))
    capsys.readouterr()
    assert main(["grid", "--config", str(file)]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert f"points/logit0.1-seed0 failed: run {metrics.parent} is damaged: metrics.jsonl differs" in told
    metrics.write_bytes(whole)
    assert main(["grid", "--config", str(file)]) == 0
    assert results(file) == ranked


def test_a_report_that_cannot_be_written_is_told_and_the_grids_status_stays(
    grid_file: GridFile, capture_settings: CaptureSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "grid").mkdir()
    report = tmp_path / "grid" / "report.html"
    report.write_text("a page of somebody else's")
    file = grid_file(finalists={"count": 0})
    for status in (1, 0):  # without the cache points fail
        assert main(["grid", "--config", str(file)]) == status
        told = capsys.readouterr()
        assert told.out.endswith(f"Written to {tmp_path / 'grid' / 'grid.json'}\n")
        assert f"{report} is not written: {report} exists and is no report" in told.err
        assert bool(results(file)["points"]["failures"]) == bool(status)
        if status:
            capture(capture_settings)
    assert report.read_text() == "a page of somebody else's"
    report.unlink()
    assert main(["grid", "rank", "--config", str(file)]) == 0
    assert capsys.readouterr().out.endswith(f"Written to {report}\n")


def test_a_loss_that_is_not_finite_is_a_failure_and_finalists_go_on_without_it(
    grid_file: GridFile, capture_settings: CaptureSettings
) -> None:
    capture(capture_settings)
    product = {"optimizer.learning_rate": [0.01, 1e30], "objective.logit": [0.5]}
    file = grid_file(product=product)
    assert main(["grid", "--config", str(file)]) == 1
    found = results(file)
    failures = found["points"]["failures"]
    assert set(failures) == {"points/control-learning_rate1e+30-seed0", "points/learning_rate1e+30-logit0.5-seed0"}
    assert all("is not finite at step 2" in reason for reason in failures.values())
    assert {row["variant"] for row in found["finalists"]["ranking"]} == {
        "control-learning_rate0.01",
        "learning_rate0.01-logit0.5",
    }


def test_a_point_that_was_killed_is_told_from_one_that_never_began(
    grid_file: GridFile, capture_settings: CaptureSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture(capture_settings)
    grid = read_grid(grid_file())

    def killed(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("palenka.grid.running.train", killed)
        with pytest.raises(KeyboardInterrupt):
            run_point(grid, grid.points[0])
    found = results_of(grid, grid.points)
    assert found.failures[grid.points[0].name].startswith("it began and did not end")
    assert found.untried == tuple(point.name for point in grid.points[1:])
    assert chosen_finalists(grid, found) == []
    assert run_point(grid, grid.points[0])["held_out"].n == 40
    assert is_finished(grid, grid.points[0])


def test_a_finished_point_that_is_run_again_is_at_no_time_told_as_failed(
    grid_file: GridFile, capture_settings: CaptureSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture(capture_settings)
    grid = read_grid(grid_file())
    point = grid.points[0]
    found = []

    def looked_at(settings: TrainSettings) -> RunResult:
        found.append(reason_of_failure(point))
        return train(settings)

    monkeypatch.setattr("palenka.grid.running.train", looked_at)
    assert run_point(grid, point) == run_point(grid, point)
    first, second = found
    assert "it began and did not end" in str(first)
    assert second is None


def test_while_a_grid_is_launched_no_other_is_but_points_run_and_are_ranked(
    grid_file: GridFile, capture_settings: CaptureSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    capture(capture_settings)
    file = grid_file()
    arguments = ["--config", str(file)]
    with sole_writer(file.parents[1] / "grid"):
        for command in ([], ["finish"]):
            assert main(["grid", *command, *arguments]) == 2
            assert f"grid is being written by process {os.getpid()} on " in capsys.readouterr().err
        assert main(["grid", "point", *arguments, "--name", "points/control-seed0"]) == 0
        assert main(["grid", "rank", *arguments]) == 1
    assert list(results(file)["points"]["runs"]) == ["points/control-seed0"]
    assert not list(file.parents[1].rglob("*.lock"))


def test_a_run_with_other_settings_is_refused_before_anything_runs(
    grid_file: GridFile,
    capture_settings: CaptureSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    state_of: StateOf,
) -> None:
    capture(capture_settings)
    assert main(["grid", "--config", str(grid_file())]) == 0
    before = state_of(tmp_path / "grid", *OF_A_CALL)
    capsys.readouterr()
    assert main(["grid", "--config", str(grid_file(overrides={"fraction": 0.1, "epochs": 2}))]) == 2
    assert "control-seed0 was begun with epochs 1, and 2 are asked for, but its learning" in capsys.readouterr().err
    assert state_of(tmp_path / "grid", *OF_A_CALL) == before


def measured(
    losses: Mapping[str, Sequence[float]], accuracies: Mapping[str, Sequence[float]] | None = None
) -> dict[str, dict[str, RunFigure]]:
    def figure(value: float, higher_is_better: bool) -> RunFigure:
        return RunFigure(title="t", value=value, higher_is_better=higher_is_better)

    return {
        f"points/{name}-seed{seed}": {
            "held_out": figure(loss, False),
            **({"blimp": figure(accuracies[name][seed], True)} if accuracies else {}),
        }
        for name, values in losses.items()
        for seed, loss in enumerate(values)
    }


def test_variants_are_ranked_by_means_over_seeds_and_differ_from_the_control_of_their_seed(grid_file: GridFile) -> None:
    grid = read_grid(grid_file(seeds=[0, 1, 2]))
    losses = {"control": [5.0, 6.0, 7.0], "logit0.1": [4.8, 5.9, 6.6], "logit0.9": [4.0, 6.0, 9.0]}
    first, second, third = rank(grid, grid.points, measured(losses))
    assert [row.variant for row in (first, second, third)] == ["logit0.1", "control", "logit0.9"]
    figures = first.measures["held_out"]
    assert figures.mean == pytest.approx(17.3 / 3)
    assert figures.deviation == pytest.approx(0.9073772, abs=1e-6)
    assert figures.difference == pytest.approx(-0.7 / 3)
    # Three differences of mean −0.2333 and deviation 0.1528: t at two degrees is 4.3027.
    assert figures.interval == pytest.approx((-0.7 / 3 - 0.379461, -0.7 / 3 + 0.379461), abs=1e-5)
    assert second.measures["held_out"].difference is None
    assert best([first, second, third], 1) == ["logit0.1", "control"]
    assert best([first, second, third], 9) == ["logit0.1", "logit0.9", "control"]


def test_a_variant_that_lacks_a_seed_has_no_rank(grid_file: GridFile) -> None:
    grid = read_grid(grid_file(seeds=[0, 1]))
    rows = rank(grid, grid.points, measured({"control": [5.0, 6.0], "logit0.1": [1.0], "logit0.9": [7.0, 7.0]}))
    assert [(row.variant, row.rank, row.lacking) for row in rows] == [
        ("control", 1, ()),
        ("logit0.9", 2, ()),
        ("logit0.1", None, (1,)),
    ]
    assert rows[2].measures["held_out"].difference == -4.0
    assert best(rows, 2) == ["logit0.9", "control"]
    assert rank(grid, grid.points, {})[0].measures == {}


def test_a_suite_ranks_by_its_accuracy(grid_file: GridFile, tmp_path: Path) -> None:
    grid = read_grid(grid_file(suites={"blimp": str(tmp_path)}, rank_by="blimp"))
    losses = {"control": [5.0], "logit0.1": [4.0], "logit0.9": [6.0]}
    rows = rank(grid, grid.points, measured(losses, {"control": [0.6], "logit0.1": [0.5], "logit0.9": [0.7]}))
    assert [row.variant for row in rows] == ["logit0.9", "control", "logit0.1"]
    assert rows[0].measures["blimp"].difference == pytest.approx(0.1)
    assert rows[0].measures["blimp"].interval is None


def test_the_scripts_say_what_the_settings_say(grid_file: GridFile) -> None:
    slurm = {
        "partition": "gpu",
        "gres": "gpu:1",
        "time": "02:00:00",
        "finalists_time": "1-00:00:00",
        "at_once": 4,
        "options": ["--qos=long"],
        "setup": "module load cuda\nsource activate",
    }
    grid = read_grid(grid_file(slurm=slurm))
    script = array_script(grid, grid.points, ["--config", "my grids/g.yaml"])
    lines = script.splitlines()
    for option in ("--array=0-2%4", "--partition=gpu", "--gres=gpu:1", "--time=02:00:00", "--requeue", "--qos=long"):
        assert f"#SBATCH {option}" in lines
    assert lines.index("module load cuda") > lines.index("set -euo pipefail")
    assert lines[-1].endswith(
        "-m palenka grid point --config 'my grids/g.yaml' --name \"${points[$SLURM_ARRAY_TASK_ID]}\""
    )
    assert [line.strip() for line in lines[lines.index("points=(") + 1 : lines.index(")")]] == [
        point.name for point in grid.points
    ]
    finalists: list[Point] = grid.finalists(["control", "logit0.1"])
    assert "#SBATCH --time=1-00:00:00\n" in array_script(grid, finalists, [])
    following = following_script(grid, ["--config", "g.yaml"], "finish")
    assert "--array" not in following
    assert "gres" not in following
    assert following.endswith("-m palenka grid finish --config g.yaml\n")


def test_without_sbatch_the_script_is_there_and_the_error_says_so(
    grid_file: GridFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    left = tmp_path / "grid" / f"grid.sbatch.{'0' * 32}.partial"
    left.parent.mkdir()
    left.touch()  # by a grid that was killed
    assert main(["grid", "--config", str(grid_file()), "--launcher", "slurm"]) == 2
    assert "sbatch is not on this machine" in capsys.readouterr().err
    assert {path.name for path in left.parent.iterdir()} == {"grid.sbatch", "finish.sbatch", "logs"}


def test_points_share_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert _devices(LocalSettings()) == ["2", "3"]
    assert _devices(LocalSettings(per_gpu=2)) == ["2", "3", "2", "3"]
    assert _devices(LocalSettings(processes=3)) == ["2", "3", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert _devices(LocalSettings(per_gpu=4)) == [None]
    assert _devices(LocalSettings(processes=2)) == [None, None]


def test_how_many_points_run_is_said_once() -> None:
    with pytest.raises(ValueError, match="processes is 3 and per_gpu 2, but each says how many points run"):
        LocalSettings(processes=3, per_gpu=2)
    with pytest.raises(ValueError, match="per_gpu is 2, but points that are not isolated run one after the other"):
        LocalSettings(isolated=False, per_gpu=2)


def test_the_gpus_are_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, expected in (("2,3", ["2", "3"]), ("", []), ("-1", []), ("GPU-8a", ["GPU-8a"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert visible_gpus() == expected
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus() == [str(number) for number in range(torch.cuda.device_count())]
