"""Learning curves over a run's revisions: each measured as by itself, nothing twice, mistakes in a sentence."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from palenka.eval.__main__ import main
from palenka.eval.learning_curve import CurvePoint, read_curve
from palenka.eval.results import read_results
from palenka.eval.suite import Conditions, Suite
from palenka.eval.suites import SUITES
from palenka.ground.errors import UserError
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train

REVISIONS = [100, 300]
PAIRS = [
    ("the teacher sees the stone .", "the stone sees the the ."),
    ("the river follows .", "river the follows ."),
    ("the garden keeps the river .", "the garden the keeps river ."),
]


@pytest.fixture(scope="module")
def made(settings_of_run: Callable[..., TrainSettings], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with two revisions."""
    directory = tmp_path_factory.mktemp("made") / "student"
    train(settings_of_run(output=directory, revisions=REVISIONS, fraction=0.1))
    return directory


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the run, which may be changed."""
    return Path(shutil.copytree(made, tmp_path / "student"))


def write_download(parent: Path) -> Path:
    """The fast part of BLiMP, and all of it, which is not for revisions."""
    for folder, pairs in (("fast_eval/blimp_fast", PAIRS[:2]), ("full_eval/blimp_filtered", PAIRS)):
        path = parent / "evaluation_data" / folder
        path.mkdir(parents=True)
        rows = [json.dumps({"sentence_good": good, "sentence_bad": bad}) for good, bad in pairs]
        (path / "agreement.jsonl").write_text("\n".join(rows) + "\n")
    return parent / "evaluation_data"


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """The official data of the test's own: they may be changed."""
    return write_download(tmp_path)


@dataclass(frozen=True)
class Measured:
    """A curve as it was measured: the words of the command, its file and folder, and what was printed."""

    words: list[str]
    out: Path
    download: Path
    said: str

    def point(self, number: int) -> CurvePoint:
        """What is kept of the revision after so many words."""
        points = {point.revision: point for point in read_curve(self.out).revisions}
        return points[f"chck_{number}"]


@pytest.fixture(scope="module")
def measured(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """The curve of the run on the official data."""
    folder = tmp_path_factory.mktemp("measured")
    download, out = write_download(folder), folder / "out" / "student.json"
    words = [str(made), "--revisions", "--babylm", str(download), "--out", str(out)]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(words) == 0
    return Measured(words, out, download, said.getvalue())


def test_a_curve_has_the_revisions_of_its_run_in_order(measured: Measured) -> None:
    curve = read_curve(measured.out)
    assert (curve.kind, curve.name) == ("revisions", "student")
    assert [point.revision for point in curve.revisions] == ["chck_100", "chck_300"]


@pytest.mark.parametrize("number", REVISIONS)
def test_a_revision_is_measured_on_the_fast_part_as_by_itself(
    made: Path, measured: Measured, tmp_path: Path, number: int
) -> None:
    point, alone = measured.point(number), tmp_path / "alone.json"
    asked = ["--suite", "blimp_filtered", "--protocol", "babylm-2025"]
    fast = measured.download / "fast_eval" / "blimp_fast"
    place = made / "revisions" / point.revision
    assert main([str(place), *asked, "--data", str(fast), "--out", str(alone)]) == 0
    expected = read_results(alone)
    assert point.weights == expected.model.weights
    assert point.suites["blimp_filtered"].figure == expected.by_suite["blimp_filtered"].main.without_tasks()
    assert read_results(measured.out.parent / "student" / f"{point.revision}.json").by_suite == expected.by_suite


@pytest.mark.parametrize("number", REVISIONS)
def test_a_point_has_its_number_of_items_its_title_and_its_protocol(measured: Measured, number: int) -> None:
    found = measured.point(number).suites["blimp_filtered"]
    assert (found.figure.n, found.title, found.conditions["protocol"]) == (2, "BLiMP filtered", "babylm-2025")


@pytest.mark.parametrize("number", REVISIONS)
def test_a_point_has_the_step_and_the_words_of_its_revision(made: Path, measured: Measured, number: int) -> None:
    point = measured.point(number)
    record = json.loads((made / "revisions" / point.revision / "model.commit.json").read_text())
    assert (point.step, point.words) == (record["step"], record["words"])
    assert f"{point.words:,}" in measured.said


@pytest.mark.parametrize("number", REVISIONS)
def test_the_predictions_of_a_revision_are_the_chosen_sentences(measured: Measured, number: int) -> None:
    folder = measured.out.parent / "results" / "student" / f"chck_{number}" / "zero_shot/causal/blimp/blimp_fast"
    chosen = json.loads((folder / "predictions.json").read_text())["agreement"]["predictions"]
    assert [each["pred"] in pair for each, pair in zip(chosen, PAIRS[:2], strict=True)] == [True, True]


def test_a_second_call_measures_nothing(
    measured: Measured, state_of: Callable[..., dict[str, tuple[int, bytes]]]
) -> None:
    before = state_of(measured.out.parent / "student")
    assert main(measured.words) == 0
    assert state_of(measured.out.parent / "student") == before


def test_revisions_are_measured_on_any_data(run: Path, download: Path, tmp_path: Path) -> None:
    out = tmp_path / "pairs.json"
    data = ["--suite", "minimal_pairs", "--data", str(download / "full_eval" / "blimp_filtered")]
    assert main([str(run), "--revisions", *data, "--out", str(out)]) == 0
    assert [point.suites["minimal_pairs"].figure.n for point in read_curve(out).revisions] == [3, 3]
    record = json.loads(out.read_text())
    record["revisions"][0]["words"] += 1
    out.write_text(json.dumps(record))
    with pytest.raises(UserError, match="was changed since `palenka eval` wrote it"):
        read_curve(out)


def test_an_out_that_would_mix_with_other_files_is_refused(
    run: Path, download: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    (tmp_path / "link").symlink_to(run)
    for out, told in (
        (tmp_path / "curve", "curve, but the curve goes to a JSON file"),
        (tmp_path / "curve.parquet", "curve.parquet, but the curve goes to a JSON file"),
        (run.with_suffix(".json"), "student, where the run keeps its models; choose another out"),
        (tmp_path / "link.json", "link, where the run keeps its models; choose another out"),
        (run / "revisions.json", "revisions, where the run keeps its models; choose another out"),
    ):
        assert main([str(run), "--revisions", "--babylm", str(download), "--out", str(out)]) == 2
        assert told in " ".join(capsys.readouterr().err.split())
    (tmp_path / "link").unlink()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_run_that_is_not_finished_has_no_curve(
    run: Path, download: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "result.json").unlink()
    assert main([str(run), "--revisions", "--babylm", str(download), "--out", str(tmp_path / "x.json")]) == 2
    assert "is not finished, and its curve would end before its end" in " ".join(capsys.readouterr().err.split())


def test_data_is_read_for_predictions_once(
    run: Path, download: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    suite = SUITES["blimp_filtered"]
    read = type(suite).read

    def counted(self: Suite[Any], folder: Path, conditions: Conditions) -> Any:
        reads.append(folder.name)
        return read(self, folder, conditions)

    monkeypatch.setattr(type(suite), "read", counted)
    assert main([str(run), "--revisions", "--babylm", str(download), "--out", str(tmp_path / "x.json")]) == 0
    # Once for each of two revisions that is measured, and once for the predictions of both.
    assert reads == ["blimp_fast"] * 3


def test_a_mistake_is_one_sentence(
    run: Path, download: Path, teacher: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    options = ["--revisions", "--babylm", download, "--out", tmp_path / "x.json"]
    assert "has no revisions; they are kept while a run trains" in refused("eval", teacher, *options)
    (tmp_path / "x.json").write_text("{}")
    assert "x.json holds no learning curve" in refused("eval", run, *options)
    (download / "fast_eval").rename(tmp_path / "elsewhere")
    (tmp_path / "x.json").unlink()
    assert "has no folder of a suite that is known; these are aoa, blimp_fast, " in refused("eval", run, *options)
